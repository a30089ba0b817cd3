"""From the name of a corpus to its utterances.

A new corpus is one new file beside this one, with a function that recognises its source and one that
loads it, and one line in ``CORPORA``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tarq.data.corpora import (
    commonvoice,
    contextasr,
    gigaspeech,
    kaldi,
    librispeech,
    libritts,
    ljspeech,
    profasr,
    spgispeech,
    tedlium,
    voxpopuli,
)
from tarq.data.corpora.folder import is_folder, load_folder
from tarq.data.hub import HubColumns, is_dataset, is_hub, is_saved, load_dataset_object, load_hub, load_saved
from tarq.data.intake import Intake
from tarq.data.manifests import is_manifest, is_table, load_manifest
from tarq.data.utterance import Utterance
from tarq.errors import DataError
from tarq.files import expanded


class Corpus(NamedTuple):
    """A kind of corpus.

    Attributes:
        name: its name in messages.
        matches: whether a path is such a corpus.
        load: from the path, the requested part (``PATH:PART``) and the intake to its utterances.
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
    Corpus("LibriTTS (*/*/*.normalized.txt)", libritts.is_libritts, libritts.load_libritts),
    Corpus("LJ Speech (metadata.csv without column names, wavs/)", ljspeech.is_ljspeech, ljspeech.load_ljspeech),
    Corpus("a Kaldi data folder (wav.scp)", kaldi.is_kaldi, kaldi.load_kaldi),
    Corpus("ProfASR-Bench or another data set of the hub (*.parquet, *.arrow)", is_saved, _load_saved, profasr.HUB),
    Corpus("a table (.csv, .tsv, .json, or a folder with one that names its audio)", is_table, load_manifest),
    Corpus("a folder of audio files with transcripts (.txt)", is_folder, load_folder),
]


def _hub_columns() -> list[HubColumns]:
    return [corpus.hub for corpus in CORPORA if corpus.hub is not None]


def load_utterances(source: str | Path | Any, intake: Intake | None = None) -> list[Utterance]:
    """All utterances of a corpus, in its own order.

    Args:
        source: a file or folder in the corpus's own layout, ``PATH:PART`` for a part of it (a subset, a split), or
            ``hub:OWNER/NAME:[CONFIG/]SPLIT`` (``tarq.data.hub``); or a ``datasets.Dataset``.
        intake: counts what is left out, and how many have a transcript; by default broken files are errors.

    Raises:
        DataError: there is no such path, no kind of corpus recognises it, it is a folder above a corpus, it is empty,
            two utterances share an id, or what its loader raises.
    """
    intake = Intake() if intake is None else intake
    if is_dataset(source):
        utterances, source = load_dataset_object(source, _hub_columns(), intake), "the data set"
    elif not str(source).strip():
        raise DataError("the path of a corpus is empty; give a file, a folder or hub:OWNER/NAME (. is this folder)")
    elif is_hub(str(source)):
        utterances = load_hub(str(source), _hub_columns(), intake)
    else:
        path, part = _path_and_part(str(source))
        corpus = next((corpus for corpus in CORPORA if corpus.matches(path)), None)
        if corpus is None:
            raise DataError(f"{path}: not a corpus; give {' or '.join(corpus.name for corpus in CORPORA)}")
        if corpus.matches is is_folder:
            _check_nothing_below(path)
        utterances = corpus.load(path, part, intake)
    utterances = _without_repeats(str(source), utterances, intake)
    if not utterances:
        raise DataError(f"{source}: the corpus is empty; it needs at least one utterance")
    with_text = sum(utterance.text is not None for utterance in utterances)
    intake.transcribed += with_text
    intake.untranscribed += len(utterances) - with_text
    return utterances


def _without_repeats(source: str, utterances: list[Utterance], intake: Intake) -> list[Utterance]:
    """The utterances without those that repeat an earlier id; scores and samples are keyed by id."""
    counts = Counter(utterance.id for utterance in utterances)
    if len(counts) == len(utterances):
        return utterances
    seen: Counter[str] = Counter()
    kept = []
    for utterance in utterances:
        name = utterance.id
        seen[name] += 1
        if seen[name] == 1:
            kept.append(utterance)
            continue
        error = DataError(f"{source}: id {name!r} occurs {counts[name]} times; ids must differ")
        intake.broken(f"{name} ({seen[name]})", error)
    return kept


def _check_nothing_below(folder: Path) -> None:
    """A corpus named one or two levels too high has audio in it, but its transcripts are not beside the audio.

    Raises:
        DataError: a kind of corpus recognises a folder below; names it.
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
    path = expanded(source)
    before, colon, part = source.partition(":")
    try:
        if path.exists():
            return path, None
        if colon and before and expanded(before).exists():
            return expanded(before), part
    except OSError as error:  # an impossible file name
        raise DataError(f"{source[:80]}…: no path ({error.strerror}); give the path of a corpus") from error
    raise DataError(f"{path}: no such file or folder; give the path of a corpus, or hub:OWNER/NAME for one of the hub")
