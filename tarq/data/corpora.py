"""From the name of a corpus to its utterances, and samples of them.

A new corpus is one new file beside this one, with a function that recognises its source and one that
loads it, and one line in ``CORPORA``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tarq.data.librispeech import is_librispeech, load_librispeech
from tarq.data.manifest import is_manifest, load_manifest
from tarq.data.utterance import Utterance, check_ids
from tarq.errors import DataError


class Corpus(NamedTuple):
    """A kind of corpus: what it is called in a message, whether a source is one, how to load it."""

    name: str
    matches: Callable[[Path], bool]
    load: Callable[[Path], list[Utterance]]


#: Tried in this order; the first that matches loads.
CORPORA = [
    Corpus("a JSONL manifest (.jsonl, or a folder with manifest.jsonl)", is_manifest, load_manifest),
    Corpus("a LibriSpeech subset (*/*/*.trans.txt with .flac)", is_librispeech, load_librispeech),
]


def load_utterances(source: str | Path) -> list[Utterance]:
    """All utterances of a corpus, in its own order.

    Args:
        source: a JSONL manifest (or its folder), or a LibriSpeech subset's folder.

    Raises:
        DataError: there is no such path, no kind of corpus knows it, it is empty, two utterances share
            an id, or what its loader raises.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give the path of a corpus")
    for corpus in CORPORA:
        if corpus.matches(path):
            break
    else:
        raise DataError(f"{path}: not a corpus; give {' or '.join(corpus.name for corpus in CORPORA)}")
    utterances = corpus.load(path)
    if not utterances:
        raise DataError(f"{path}: the corpus is empty; it needs at least one utterance")
    check_ids(str(path), utterances)
    return utterances


def select_utterances(utterances: Sequence[Utterance], conditions: Sequence[str]) -> list[Utterance]:
    """Those that meet every ``KEY=VALUE`` condition, KEY being ``id``, ``speaker`` or another manifest key.

    Args:
        conditions: VALUE is compared with the manifest's value as text (``in_training=false``).

    Raises:
        DataError: a condition is malformed, no utterance has its key, or none is left.
    """
    chosen = list(utterances)
    for condition in conditions:
        key, equals, wanted = condition.partition("=")
        if not equals:
            raise DataError(f"{condition!r} is no condition: write KEY=VALUE")
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
) -> list[Utterance]:
    """A uniform sample without replacement, in the order drawn.

    The same utterances (in whatever order) and seed give the same sample, and a smaller ``count`` a prefix
    of it. Where fewer than ``count`` qualify, all of them are returned: the caller compares the length and
    reports it.

    Args:
        count: how many, at least 1.
        max_duration: leave out longer ones, in seconds; files are asked where the corpus says nothing.
        require_text: leave out those without a transcript or with a blank one.

    Raises:
        DataError: ``count`` is below 1, or no utterance qualifies.
    """
    if count < 1:
        raise DataError(f"cannot sample {count} utterances: give a count of at least 1")
    # Sorted, so that the order in which a file system lists a corpus does not choose the sample.
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    sample: list[Utterance] = []
    for index in np.random.default_rng(seed).permutation(len(ordered)):
        utterance = ordered[index]
        if require_text and not (utterance.text or "").strip():
            continue
        if max_duration is not None and utterance.seconds() > max_duration:
            continue
        sample.append(utterance)
        if len(sample) == count:
            break
    if not sample:
        asked = [f"max_duration={max_duration}"] if max_duration is not None else []
        asked += ["require_text"] if require_text else []
        raise DataError(
            f"none of {len(ordered)} utterances qualifies ({', '.join(asked) or 'no condition'}): "
            "loosen the condition or give another corpus"
        )
    return sample
