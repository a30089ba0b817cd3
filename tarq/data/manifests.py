"""Manifests: a table of utterances, one per row, as JSON or with columns.

- JSON lines (``.jsonl``, ``.json`` as NeMo writes it): one object per line;
- a JSON array of objects, an object with one such array, or an object of objects by id (SpeechBrain);
- CSV and TSV with a line of column names (``,``, ``;``, ``|`` or tab).

A row names its audio file, absolute or relative to the manifest's folder; transcript, duration (seconds), id, speaker,
entities (a list of strings), language, start and end (seconds, of a segment of the file) are optional. Several
spellings are known (``tarq.data.fields``); other keys are kept as ``extra``, for selecting utterances. Without an id,
an utterance is named by its audio path as written, without the suffix, and its segment.

A folder is read by the manifest in it: ``manifest.jsonl``, or the ``metadata`` table of `datasets`' audiofolder, at its
top or in a folder for each split, or any other table in it that names audio files.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from tarq.data.audio import SUFFIXES as AUDIO_SUFFIXES
from tarq.data.audio import Encoded
from tarq.data.corpora.layout import choose_part, read_text
from tarq.data.fields import NUMBERS, SPELLINGS, fields_of, utterance_of
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance
from tarq.errors import DataError
from tarq.files import write_whole

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
#: Folders beside a manifest in which audio is looked for if it is not in the manifest's folder.
BESIDE = ("audio", "clips", "wavs", "wav")
Rows = Iterator[tuple[str, dict[str, Any]]]


def is_manifest(source: Path) -> bool:
    """Whether ``source`` is a ``.jsonl`` file or a folder with a ``manifest.jsonl``."""
    return source.suffix == ".jsonl" if source.is_file() else (source / "manifest.jsonl").is_file()


def is_table(source: Path) -> bool:
    """Whether ``source`` is another manifest by its name, or a folder with a table that names audio files."""
    return source.suffix.lower() in SUFFIXES if source.is_file() else bool(_tables(source))


def load_manifest(source: Path, part: str | None = None, intake: Intake | None = None) -> list[Utterance]:
    """The utterances of a manifest, in its order.

    Raises:
        DataError: several manifests and ``part`` names none; text that is not UTF-8, no column of audio files; or too
            many broken rows: invalid JSON, no audio, missing files, values of a wrong type. Each names file and line.
    """
    intake = Intake() if intake is None else intake
    path = choose_part(source, "a folder with several manifests", _tables(source), part)
    if source.is_file() and part is not None:
        choose_part(source, "", {}, part)
    folders = (path.parent, *(path.parent / name for name in BESIDE if (path.parent / name).is_dir()))
    rows = [utterance_of(row, folders, path, where, intake) for where, row in rows_of(path, intake)]
    return [utterance for utterance in rows if utterance is not None]


def _tables(source: Path) -> dict[str, Path]:
    """The manifests of a folder, by the name of their part."""
    if source.is_file():
        return {source.stem: source}
    if (source / "manifest.jsonl").is_file():
        return {"manifest": source / "manifest.jsonl"}
    names = [f"metadata{suffix}" for suffix in SUFFIXES]
    own = [source / name for name in names if _names_audio(source / name)]
    if own:
        return {"metadata": own[0]}
    splits = [path for name in names for path in sorted(source.glob(f"*/{name}")) if _names_audio(path)]
    if splits:
        return {path.parent.name: path for path in reversed(splits)}
    tables = [path for path in sorted(source.glob("*.*")) if path.suffix.lower() in SUFFIXES and _names_audio(path)]
    # A table named like an audio file beside it describes that file alone.
    tables = [path for path in tables if not any(path.with_suffix(ending).is_file() for ending in AUDIO_SUFFIXES)]
    stems = [path.stem for path in tables]
    return {path.stem if stems.count(path.stem) == 1 else path.name: path for path in tables}


def _names_audio(path: Path) -> bool:
    """Whether a file is a table whose first row names an audio file."""
    try:
        if not path.is_file():
            return False
        if path.suffix.lower() in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                return "audio" in fields_of(tuple(_split(file.readline(1 << 16), path)))
        _, row = next(rows_of(path, Intake()))
    except (DataError, StopIteration, OSError, UnicodeDecodeError, csv.Error):
        return False
    return "audio" in fields_of(tuple(row))


def rows_of(path: Path, intake: Intake, needed: str = "audio") -> Rows:
    """Rows of a table by its suffix, each with its location; broken ones go to the intake.

    Args:
        needed: the field that columns must have.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        return _table_rows(path, intake, needed)
    return json_lines(path, intake) if path.suffix.lower() == ".jsonl" else _json_rows(path, intake)


def write_manifest(path: Path, utterances: Sequence[Utterance], extra: Sequence[Mapping[str, Any]]) -> None:
    """Write utterances as a manifest that ``load_manifest`` reads back.

    Audio below the manifest's folder is named relative to it, other files by their absolute path; audio in memory
    is written to a folder beside the manifest, with the same name and ``.audio`` at the end.

    Args:
        path: the manifest.
        utterances: in order.
        extra: further keys of each.

    Raises:
        OutputError: the manifest cannot be written.
        DataError: the folder of its audio cannot be written.
    """
    folder = path.with_suffix(".audio")
    lines = []
    try:
        for number, (utterance, more) in enumerate(zip(utterances, extra, strict=True)):
            audio = utterance.audio
            if isinstance(audio, Encoded):
                folder.mkdir(exist_ok=True)
                audio = folder / f"{number:05}-{PurePath(audio.name).name}"
                audio.write_bytes(utterance.audio.data)  # type: ignore[union-attr]
            audio = audio.resolve()
            home = path.parent.resolve()
            row = {
                "id": utterance.id,
                "audio": audio.relative_to(home).as_posix() if audio.is_relative_to(home) else str(audio),
                "text": utterance.text,
                "duration": utterance.duration,
                "speaker": utterance.speaker,
                "entities": list(utterance.entities) or None,
                "start": utterance.start or None,
                "end": utterance.end,
            }
            row = {key: value for key, value in row.items() if value is not None}
            lines.append(json.dumps({**utterance.extra, **more, **row}, ensure_ascii=False))
        write_whole(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error}; choose another place") from error


def json_lines(path: Path, intake: Intake | None = None) -> Rows:
    """Each object of a JSONL file with its location (``file:line``).

    Args:
        intake: counts lines that are not objects as broken; by default the first one is an error.

    Raises:
        DataError: text that is not UTF-8, invalid JSON, or something else than objects.
    """
    intake = Intake() if intake is None else intake
    for number, line in enumerate(read_text(path).split("\n"), 1):  # splitlines() would cut at U+2028
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        # ValueError: also an integer of thousands of digits. RecursionError: thousands of brackets.
        except (ValueError, RecursionError) as error:
            intake.broken(where, DataError(f"{where}: invalid JSON ({error}); write one JSON object per line"))
            continue
        if not isinstance(row, dict):
            intake.broken(where, DataError(f'{where}: not a JSON object; write {{"audio": "…", "text": "…"}}'))
            continue
        yield where, row


def _json_rows(path: Path, intake: Intake) -> Rows:
    """Objects of a ``.json`` file: lines, an array, or an object that holds them."""
    try:
        whole = json.loads(read_text(path))
    except (ValueError, RecursionError):
        yield from json_lines(path, intake)
        return
    rows: Iterable[tuple[str, Any]] = ()
    if isinstance(whole, list):
        rows = ((f"{path}: entry {number}", row) for number, row in enumerate(whole, 1))
    elif isinstance(whole, dict) and "audio" in fields_of(tuple(whole)) and not isinstance(whole.get("audio"), list):
        rows = [(f"{path}:1", whole)]
    elif isinstance(whole, dict) and whole and all(isinstance(row, dict) for row in whole.values()):
        rows = ((f"{path}: entry {key!r}", {"id": key, **row}) for key, row in whole.items())
    elif isinstance(whole, dict):
        lists = [row for row in whole.values() if isinstance(row, list) and row and isinstance(row[0], dict)]
        if len(lists) == 1:
            rows = ((f"{path}: entry {number}", row) for number, row in enumerate(lists[0], 1))
    found = False
    for where, row in rows:
        found = True
        if isinstance(row, dict):
            yield where, row
        else:
            intake.broken(where, DataError(f'{where}: not a JSON object; write {{"audio": "…", "text": "…"}}'))
    if not found and whole:
        raise DataError(
            f"{path}: no list of utterances in it; give JSON lines, or an array of objects with their audio"
        )


def _split(line: str, path: Path) -> list[str]:
    """Column names, by the delimiter that occurs most."""
    return next(csv.reader([line.rstrip("\r\n")], delimiter=_delimiter(line, path)), [])


def _delimiter(line: str, path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max((",", "\t", ";", "|"), key=line.count)


def _table_rows(path: Path, intake: Intake, needed: str) -> Rows:
    """Rows of a CSV or TSV file; in a TSV file every line is a row, whatever quotation marks it has."""
    text = read_text(path)
    first = text.partition("\n")[0]
    tabs = path.suffix.lower() == ".tsv"
    reader = csv.reader(
        text.split("\n") if tabs else io.StringIO(text, newline=""),
        delimiter=_delimiter(first, path),
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        names = [_unquoted(name) for name in next(reader, [])]
        keys = fields_of(tuple(names))
        if needed not in keys:
            what = "names the audio files" if needed == "audio" else f"holds the {needed}"
            raise DataError(
                f"{path}: no column {what}; its first line has {', '.join(names[:12]) or 'nothing'}; "
                f"known are {', '.join(SPELLINGS[needed])}"
            )
        if len(set(names)) < len(names):
            raise DataError(f"{path}: a column occurs twice in its first line, {', '.join(names)}; rename one of them")
        numbers = {key for field in NUMBERS for key in keys.get(field, ())}
        for values in reader:
            where = f"{path}:{reader.line_num}"
            if not any(item.strip() for item in values):
                continue
            if len(values) != len(names):
                text = f"{len(values)} values for {len(names)} columns; quote what holds the delimiter"
                intake.broken(where, DataError(f"{where}: {text}"))
                continue
            row = dict(zip(names, map(_unquoted, values) if tabs else values, strict=True))
            try:
                yield where, {key: _cell(key, item, keys, numbers, where) for key, item in row.items()}
            except DataError as error:
                intake.broken(where, error)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: no table ({error}); check its quotation marks") from error


def _unquoted(item: str) -> str:
    """A value of a TSV file, without the quotation marks that some programs write."""
    item = item.rstrip("\r")
    inside = item[1:-1]
    if len(item) > 1 and item[0] == item[-1] == '"' and '"' not in inside.replace('""', ""):
        return inside.replace('""', '"')
    return item


def _cell(key: str, item: str, keys: Mapping[str, tuple[str, ...]], numbers: set[str], where: str) -> Any:
    """A value of a table: a number if the column has numbers; nothing if it is blank and not a transcript."""
    if not item.strip() and key not in keys.get("text", ()):
        return None
    if key in keys.get("entities", ()):
        return [entity.strip() for entity in item.split(";") if entity.strip()]
    if key not in numbers:
        return item
    try:
        return float(item)
    except ValueError as error:
        raise DataError(f"{where}: {key!r} is {item!r}; give a number of seconds") from error
