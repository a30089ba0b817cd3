"""Choosing utterances: by conditions, at random, or the first usable ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from tarq.data.intake import Intake
from tarq.data.utterance import Utterance
from tarq.errors import DataError


def select_utterances(utterances: Sequence[Utterance], conditions: Sequence[str]) -> list[Utterance]:
    """The utterances that meet every ``KEY=VALUE`` condition, KEY being ``id``, ``speaker`` or another manifest key.

    Args:
        conditions: VALUE is compared with the manifest's value as text (``in_training=false``).

    Raises:
        DataError: a condition is malformed, no utterance has its key, or none is left.
    """
    chosen = list(utterances)
    for condition in conditions:
        key, equals, wanted = condition.partition("=")
        if not equals or not key.strip():
            raise DataError(f"{condition!r} is not a condition: write KEY=VALUE")
        values = [{"id": u.id, "speaker": u.speaker, **u.extra}.get(key) for u in chosen]
        if all(value is None for value in values):
            raise DataError(f"no utterance has a {key!r}, which {condition!r} asks for")
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        chosen = [u for u, text in zip(chosen, texts, strict=True) if text == wanted]
        if not chosen:
            known = ", ".join(sorted(set(texts))[:8])
            raise DataError(f"no utterance meets {condition!r}; values of {key!r} are {known}")
    return chosen


def sample_utterances(
    utterances: Sequence[Utterance],
    count: int,
    seed: int,
    *,
    max_duration: float | None = None,
    require_text: bool = False,
    intake: Intake | None = None,
) -> list[Utterance]:
    """A uniform sample without replacement, in the order drawn.

    The same utterances (in whatever order) and seed give the same sample, and a smaller ``count`` a prefix
    of it. If fewer than ``count`` qualify, all of them are returned, and the caller reports it.

    Args:
        count: how many, at least 1.
        max_duration, require_text, intake: see ``first_usable``.

    Raises:
        DataError: see ``first_usable``.
    """
    return first_usable(
        shuffled(utterances, seed), count, max_duration=max_duration, require_text=require_text, intake=intake
    )


def shuffled(utterances: Sequence[Utterance], seed: int) -> list[Utterance]:
    """In an order determined by the ids and the seed, not by how a file system lists a corpus."""
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    return [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]


def first_usable(
    candidates: Sequence[Utterance],
    count: int,
    *,
    max_duration: float | None = None,
    require_text: bool = False,
    intake: Intake | None = None,
) -> list[Utterance]:
    """The first ``count`` usable candidates; headers and audio of the others are not read.

    Args:
        count: how many, at least 1.
        max_duration: leave out longer ones, in seconds; read from the file if the corpus does not state it.
        require_text: leave out those without a transcript or with a blank one.
        intake: decode each one's audio, leave out broken ones, and count what is unusual.

    Raises:
        DataError: ``count`` is below 1, no candidate qualifies, or too many are broken; without an intake, a header
            cannot be read.
    """
    if count < 1:
        raise DataError(f"cannot sample {count} utterances: give a count of at least 1")
    if max_duration is not None and not math.isfinite(max_duration):
        raise DataError(f"max_duration is {max_duration} s: give a finite number of seconds, or leave it out")
    chosen = list(islice(usable(candidates, max_duration, require_text, intake), count))
    if not chosen:
        asked = [f"max_duration={max_duration}"] if max_duration is not None else []
        asked += ["require_text"] if require_text else []
        raise DataError(
            f"none of {len(candidates)} utterances qualifies ({', '.join(asked) or 'no condition'}): "
            "loosen the condition or give another corpus"
        )
    return chosen


def usable(
    candidates: Iterable[Utterance], max_duration: float | None, require_text: bool, intake: Intake | None
) -> Iterator[Utterance]:
    """The usable candidates, each checked only when it is requested; see ``first_usable``."""
    for utterance in candidates:
        if require_text and not (utterance.text or "").strip():
            continue
        try:
            if intake is None:
                if max_duration is not None and utterance.seconds() > max_duration:
                    continue
            else:
                checked = utterance.check(max_duration)
                if max_duration is not None and checked.seconds > max_duration:
                    intake.left_out[f"longer than {max_duration:g} s"] += 1
                    continue
                intake.odd(utterance.id, checked.notes)
        except DataError as error:
            if intake is None:
                raise
            intake.broken(utterance.id, error)
            continue
        yield utterance
