"""A plain folder of audio files, at any depth, each with its transcript in a ``.txt`` beside it.

``talks/a.flac`` and ``talks/a.txt``: the whole text file is the transcript, its lines joined. A file without one
has no transcript. Utterances are called by their path below the folder, less the suffix.
"""

from __future__ import annotations

from pathlib import Path

from tarq.data.audio import SUFFIXES
from tarq.data.corpora.layout import choose_part, read_text
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance


def _audio(source: Path) -> list[Path]:
    return sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def is_folder(source: Path) -> bool:
    """Whether ``source`` is a folder with an audio file somewhere in it."""
    return source.is_dir() and any(p.suffix.lower() in SUFFIXES and p.is_file() for p in source.rglob("*"))


def load_folder(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The audio files below a folder, in the order of their paths.

    Raises:
        DataError: a transcript is not UTF-8.
    """
    if part is not None:
        choose_part(source, "", {}, part)
    utterances = []
    for audio in _audio(source):
        beside = audio.with_suffix(".txt")
        text = " ".join(read_text(beside).split()) if beside.is_file() else None
        utterances.append(Utterance(id=audio.relative_to(source).with_suffix("").as_posix(), audio=audio, text=text))
    return utterances
