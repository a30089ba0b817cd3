"""Transcripts alone: what a recognizer wrote, or the text of a corpus; no audio need be there.

- JSON lines, JSON, CSV and TSV with a column of text (the spellings of :mod:`tarq.data.fields`), as manifests and
  ``tarq transcribe`` have them; several rows of one id are its segments, in order;
- lines of a name, a tab and a text, as ``tarq transcribe`` prints them;
- any other text: a transcript a line, named by its number;
- a corpus in a layout of its own, whose audio must then be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tarq.data.corpora.layout import header, read_text
from tarq.data.corpora.registry import load_utterances
from tarq.data.fields import fields_of, value
from tarq.data.hub import is_hub
from tarq.data.intake import Intake
from tarq.data.manifests import SUFFIXES, rows_of
from tarq.data.utterance import language_of, stated_language
from tarq.errors import DataError
from tarq.files import expanded


@dataclass(frozen=True)
class Transcript:
    """A transcript, by the id of its utterance.

    Attributes:
        language: where it is stated.
    """

    id: str
    text: str
    language: str | None = None


def read_transcripts(source: str | Path, what: str = "transcripts") -> list[Transcript]:
    """The transcripts of a file or a corpus, those of one id joined.

    Args:
        what: is wanted, for messages.

    Raises:
        DataError: there is no such file, it is not text, or has no transcript; names file and line.
    """
    path = expanded(source)
    if path.is_file() and path.suffix.lower() in SUFFIXES and (rows := _rows(path)) is not None:
        found = [_transcript(where, row, path.parent) for where, row in rows]
    elif path.is_file() and path.suffix.lower() not in (".parquet", ".arrow"):
        found = _lines(path)
    elif path.exists() or is_hub(str(source)) or ":" in str(source):
        found = [
            Transcript(u.id, u.text, language_of(u, "") or None) for u in load_utterances(source) if u.text is not None
        ]
    else:
        raise DataError(f"{source}: no such file; give one of {what}")
    if not found:
        raise DataError(f"{source}: no transcripts in it; give a file with some")
    return list(_joined(found))


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]] | None:
    """Rows of a table; None of a TSV file whose first line does not name a column of text."""
    if path.suffix.lower() == ".tsv" and "text" not in fields_of(tuple(header(path, "\t"))):
        return None
    return list(rows_of(path, Intake(), "text"))


def _transcript(where: str, row: Mapping[str, Any], folder: Path) -> Transcript:
    known = fields_of(tuple(row))
    keys = {field: next((key for key in there if row[key] is not None), there[0]) for field, there in known.items()}
    if isinstance(row.get("error"), str) and "text" not in keys:
        raise DataError(f"{where}: it was not transcribed ({row['error']}); transcribe it again, or leave it out")
    text = value(row, keys.get("text", "text"), str, where)
    if text is None:
        raise DataError(f"{where}: no text; every row needs a transcript")
    name = value(row, keys.get("id", "id"), str, where)
    if not name:
        audio = value(row, keys.get("audio", "audio"), str, where)
        name = _name(audio, folder) if audio else where
    language = value(row, keys.get("language", "language"), str, where)
    return Transcript(name, text, language and (stated_language(language) or language))


def _lines(path: Path) -> list[Transcript]:
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    named = bool(lines) and all("\t" in line for _, line in lines)
    found = []
    for number, line in lines:
        name, tab, text = line.partition("\t") if named else (str(number), "", line)
        found.append(Transcript(_name(name, path.parent) if tab else name, text))
    return found


def _name(audio: str, folder: Path) -> str:
    """An utterance's id from its audio's path, as a manifest has it: below the folder, without the suffix."""
    path = PurePath(audio)
    if path.is_absolute() and path.is_relative_to(folder.resolve()):
        path = path.relative_to(folder.resolve())
    return str(path.with_suffix("")) if path.name else audio


def _joined(found: Iterable[Transcript]) -> Iterable[Transcript]:
    segments: dict[str, list[Transcript]] = {}
    for one in found:
        segments.setdefault(one.id, []).append(one)
    for name, some in segments.items():
        yield Transcript(
            name, " ".join(s.text.strip() for s in some) if len(some) > 1 else some[0].text, some[0].language
        )
