"""LibriSpeech's own folder layout: ``<subset>/<speaker>/<chapter>/*.trans.txt`` with FLAC files."""

from __future__ import annotations

from pathlib import Path

from tarq.data.utterance import Utterance
from tarq.errors import DataError


def is_librispeech(source: Path) -> bool:
    """Whether ``source`` is one subset (``test-clean``), or a folder of subsets, which loading refuses."""
    return any(source.glob("*/*/*.trans.txt")) or any(source.glob("*/*/*/*.trans.txt"))


def load_librispeech(source: Path) -> list[Utterance]:
    """The utterances of one subset, sorted by speaker, chapter and number.

    Raises:
        DataError: ``source`` holds several subsets, a transcript file is not UTF-8, or an utterance's audio
            is missing.
    """
    transcripts = sorted(source.glob("*/*/*.trans.txt"))
    if not transcripts:
        subsets = sorted({path.parents[2].name for path in source.glob("*/*/*/*.trans.txt")})
        raise DataError(f"{source}: a folder of LibriSpeech subsets; name one of them: {', '.join(subsets)}")
    return [utterance for path in transcripts for utterance in _chapter(path)]


def _chapter(path: Path) -> list[Utterance]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); extract the archive anew") from error
    utterances = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, text = line.strip().partition(" ")
        audio = path.parent / f"{name}.flac"
        if not audio.is_file():
            raise DataError(f"{path}:{number}: audio file {audio} does not exist; extract the archive anew")
        utterances.append(Utterance(id=name, audio=audio, text=text.strip(), speaker=name.split("-")[0]))
    return utterances
