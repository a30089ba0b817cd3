"""From the name of a corpus to its utterances, and samples of them.

A new corpus is one new file beside this one, with a function that recognises its source and one that
loads it, and one line in ``CORPORA``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tarq.data.corpora import commonvoice, contextasr, gigaspeech, librispeech, profasr, spgispeech, tedlium, voxpopuli
from tarq.data.corpora.folder import is_folder, load_folder
from tarq.data.hub import HubColumns, is_hub, is_saved, load_hub, load_saved
from tarq.data.intake import Intake
from tarq.data.manifest import is_manifest, load_manifest
from tarq.data.utterance import Utterance, check_ids
from tarq.errors import DataError


class Corpus(NamedTuple):
    """A kind of corpus.

    Attributes:
        name: what it is called in a message.
        matches: whether a path is one.
        load: its utterances, from the path, the part asked for (``PATH:PART``) and the intake.
        hub: how its rows on the hub are read.
    """

    name: str
    matches: Callable[[Path], bool]
    load: Callable[[Path, str | None, Intake], list[Utterance]]
    hub: HubColumns | None = None


def _load_saved(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    return load_saved(source, part, _hub_columns(), intake)


#: Tried in this order; the first that matches loads.
CORPORA = [
    Corpus("ContextASR-Bench (.jsonl)", contextasr.is_contextasr, contextasr.load_contextasr, contextasr.HUB),
    Corpus("a JSONL manifest (.jsonl, or a folder with manifest.jsonl)", is_manifest, load_manifest),
    Corpus("LibriSpeech (*/*/*.trans.txt)", librispeech.is_librispeech, librispeech.load_librispeech, librispeech.HUB),
    Corpus("TED-LIUM (stm/*.stm)", tedlium.is_tedlium, tedlium.load_tedlium, tedlium.HUB),
    Corpus("GigaSpeech (GigaSpeech.json)", gigaspeech.is_gigaspeech, gigaspeech.load_gigaspeech, gigaspeech.HUB),
    Corpus("SPGISpeech (train.csv, val.csv)", spgispeech.is_spgispeech, spgispeech.load_spgispeech, spgispeech.HUB),
    Corpus("VoxPopuli (asr_*.tsv)", voxpopuli.is_voxpopuli, voxpopuli.load_voxpopuli, voxpopuli.HUB),
    Corpus("Common Voice (*.tsv)", commonvoice.is_commonvoice, commonvoice.load_commonvoice, commonvoice.HUB),
    Corpus("ProfASR-Bench or another data set of the hub (*.parquet, *.arrow)", is_saved, _load_saved, profasr.HUB),
    Corpus("a folder of audio files with transcripts (.txt)", is_folder, load_folder),
]


def _hub_columns() -> list[HubColumns]:
    return [corpus.hub for corpus in CORPORA if corpus.hub is not None]


def load_utterances(source: str | Path, intake: Intake | None = None) -> list[Utterance]:
    """All utterances of a corpus, in its own order.

    Args:
        source: a file or folder in the corpus's own layout, ``PATH:PART`` for a part of it (a subset, a split), or
            ``hub:OWNER/NAME:[CONFIG/]SPLIT`` (``tarq.data.hub``).
        intake: counts what is left out; by default nothing broken may be.

    Raises:
        DataError: there is no such path, no kind of corpus knows it, it is a folder above a corpus, it is empty, two
            utterances share an id, or what its loader raises.
    """
    intake = Intake() if intake is None else intake
    if is_hub(str(source)):
        utterances = load_hub(str(source), _hub_columns(), intake)
    else:
        path, part = _path_and_part(str(source))
        corpus = next((corpus for corpus in CORPORA if corpus.matches(path)), None)
        if corpus is None:
            raise DataError(f"{path}: not a corpus; give {' or '.join(corpus.name for corpus in CORPORA)}")
        if corpus.matches is is_folder:
            _check_nothing_below(path)
        utterances = corpus.load(path, part, intake)
    if not utterances:
        raise DataError(f"{source}: the corpus is empty; it needs at least one utterance")
    check_ids(str(source), utterances)
    return utterances


def _check_nothing_below(folder: Path) -> None:
    """A corpus named one or two levels too high has audio in it, but its transcripts are not beside the audio.

    Raises:
        DataError: a kind of corpus knows a folder below; names those.
    """
    # Parquet and Arrow files at any depth, and audio files, would have been found in the folder itself.
    kinds = [corpus for corpus in CORPORA if corpus.matches not in (is_saved, is_folder)]
    for pattern in ("*/", "*/*/"):
        folders = [path for path in sorted(folder.glob(pattern)) if any(kind.matches(path) for kind in kinds)]
        if folders:
            kind = next(kind for kind in kinds if kind.matches(folders[0]))
            names = ", ".join([str(path.relative_to(folder)) for path in folders[:8]] + ["…"] * (len(folders) > 8))
            raise DataError(
                f"{folder}: no corpus itself, but there is {kind.name} below it ({names}); give {folders[0]}"
            )


def _path_and_part(source: str) -> tuple[Path, str | None]:
    """``PATH`` or ``PATH:PART``."""
    path = Path(source).expanduser()
    if path.exists():
        return path, None
    before, colon, part = source.partition(":")
    if colon and Path(before).expanduser().exists():
        return Path(before).expanduser(), part
    raise DataError(f"{path}: no such file or folder; give the path of a corpus, or hub:OWNER/NAME for one of the hub")


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
    intake: Intake | None = None,
) -> list[Utterance]:
    """A uniform sample without replacement, in the order drawn.

    The same utterances (in whatever order) and seed give the same sample, and a smaller ``count`` a prefix
    of it. Where fewer than ``count`` qualify, all of them are returned: the caller compares the length and
    reports it.

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
    """In an order that the ids and the seed decide, not that in which a file system lists a corpus."""
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
    """The first ``count`` candidates that can be used; headers and audio of the others are not looked at.

    Args:
        count: how many, at least 1.
        max_duration: leave out longer ones, in seconds; files are asked where the corpus says nothing.
        require_text: leave out those without a transcript or with a blank one.
        intake: look at each one's audio, and leave out what is broken.

    Raises:
        DataError: ``count`` is below 1, no candidate qualifies, or too many are broken; without an intake, a header
            cannot be read.
    """
    if count < 1:
        raise DataError(f"cannot sample {count} utterances: give a count of at least 1")
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
    """The candidates that can be used, each looked at when it is asked for; see ``first_usable``."""
    for utterance in candidates:
        if require_text and not (utterance.text or "").strip():
            continue
        try:
            if max_duration is not None and utterance.seconds() > max_duration:
                continue
            if intake is not None:
                # A broken file that may be left out has to be found now. One that may not ends the run wherever it is
                # met; its header tells most of them at once.
                utterance.check(decode=intake.max_bad > 0)
        except DataError as error:
            if intake is None:
                raise
            intake.broken(utterance.id, error)
            continue
        yield utterance
