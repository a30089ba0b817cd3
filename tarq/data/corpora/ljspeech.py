"""LJ Speech and corpora in its layout: ``metadata.csv`` without column names, and ``wavs/``.

A line is ``LJ001-0001|the transcript as read|the transcript, numerals written out``, separated by ``|`` without
quotation; the third value may be missing. If present, it is the transcript.
"""

from __future__ import annotations

from pathlib import Path

from tarq.data.audio import SUFFIXES
from tarq.data.corpora.layout import audio_exists, choose_part, first_file, header, read_text
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance
from tarq.errors import DataError

AUDIO = ("wavs", "wav", "audio", ".")


def _audio(folder: Path, name: str) -> Path:
    named = Path(name)
    endings = [""] if named.suffix.lower() in SUFFIXES else SUFFIXES
    return first_file([folder / place / f"{name}{ending}" for place in AUDIO for ending in endings])


def _tables(source: Path) -> dict[str, Path]:
    files = [source] if source.is_file() else sorted(source.glob("metadata*.csv"))
    found = {}
    for path in files:
        fields = header(path, "|") if path.suffix.lower() in (".csv", ".txt") else []
        if len(fields) in (2, 3) and fields[0].strip() and _audio(path.parent, fields[0].strip()).is_file():
            found[path.stem] = path
    return found


def is_ljspeech(source: Path) -> bool:
    """Whether ``source`` is such a table, or a folder with some."""
    return bool(_tables(source))


def load_ljspeech(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The utterances of one table, in its order.

    Raises:
        DataError: several tables and ``part`` names none, or too many lines are malformed or files missing.
    """
    path = choose_part(source, "a folder of several tables", _tables(source), part)
    utterances = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        name, *texts = (field.strip() for field in line.rstrip("\r").split("|"))
        if not name or not 1 <= len(texts) <= 2:
            intake.broken(where, DataError(f"{where}: not a name and a transcript with | between; get the file again"))
            continue
        audio = _audio(path.parent, name)
        identity = str(Path(name).with_suffix("")) if Path(name).suffix.lower() in SUFFIXES else name
        if audio_exists(audio, where, identity, intake):
            utterances.append(Utterance(id=identity, audio=audio, text=texts[-1] or texts[0]))
    return utterances
