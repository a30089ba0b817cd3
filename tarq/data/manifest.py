"""JSONL manifests: one utterance a line, as a JSON object.

``audio`` (a path, absolute or relative to the manifest's folder) is required; ``text``, ``duration``
(seconds), ``id``, ``speaker``, ``entities`` (a list of strings), ``start`` and ``end`` (seconds, of a segment of the
file) are optional; other keys are kept as ``extra``, to select utterances by.
Without ``id`` an utterance is called by its ``audio`` path as written, less the suffix, and its segment.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from tarq.data.audio import Encoded
from tarq.data.corpora.layout import choose_part, is_there, read_text
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance
from tarq.errors import DataError

KEYS = ("audio", "text", "duration", "id", "speaker", "entities", "start", "end")


def is_manifest(source: Path) -> bool:
    """Whether ``source`` is a ``.jsonl`` file or a folder with a ``manifest.jsonl``."""
    return source.suffix == ".jsonl" if source.is_file() else (source / "manifest.jsonl").is_file()


def load_manifest(source: Path, part: str | None = None, intake: Intake | None = None) -> list[Utterance]:
    """The utterances of a manifest, in its order.

    Raises:
        DataError: invalid JSON, a missing ``audio`` key, too many missing files, a value of a wrong type, text
            that is not UTF-8; each names file and line.
    """
    if part is not None:
        choose_part(source, "", {}, part)
    path = source if source.is_file() else source / "manifest.jsonl"
    rows = [_utterance(row, path.parent, where, intake or Intake()) for where, row in json_lines(path)]
    return [utterance for utterance in rows if utterance is not None]


def write_manifest(path: Path, utterances: Sequence[Utterance], extra: Sequence[Mapping[str, Any]]) -> None:
    """Write utterances as a manifest that ``load_manifest`` reads back.

    Audio below the manifest's folder is named relative to it, other files by their absolute path; audio in memory
    is written to a folder beside the manifest, called like it with ``.audio`` at the end.

    Args:
        path: the manifest.
        utterances: in order.
        extra: further keys of each.

    Raises:
        DataError: the file or the folder cannot be written.
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
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}; choose another place") from error


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object of a JSONL file is (``file:line``), and the object.

    Raises:
        DataError: text that is not UTF-8, invalid JSON, or something else than objects.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):  # splitlines() would cut at U+2028
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: invalid JSON ({error}); there is one JSON object a line") from error
        if not isinstance(row, dict):
            raise DataError(f'{where}: not a JSON object; write {{"audio": "…", "text": "…"}}')
        yield where, row


def _utterance(row: dict[str, Any], folder: Path, where: str, intake: Intake) -> Utterance | None:
    if row.get("audio") in (None, ""):
        raise DataError(f"{where}: no 'audio'; every line names its audio file")
    name = value(row, "audio", str, where)
    start, end = seconds(row, "start", where), seconds(row, "end", where)
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{where}: 'end' is {end:g}, not after 'start'; give the segment in seconds")
    segment = "" if start is None and end is None else f"-{start or 0:g}-{'' if end is None else f'{end:g}'}"
    utterance = Utterance(
        id=value(row, "id", str, where) or f"{Path(name).with_suffix('')}{segment}",
        audio=folder / name,  # an absolute name stays as it is
        text=value(row, "text", str, where),
        duration=seconds(row, "duration", where),
        speaker=value(row, "speaker", str, where),
        entities=strings(row, "entities", where),
        extra={key: value for key, value in row.items() if key not in KEYS},
        start=start or 0.0,
        end=end,
    )
    return utterance if is_there(folder / name, where, utterance.id, intake) else None


def value(row: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """``row[key]`` as ``kind``; None where absent or null. Whole numbers pass as float, and as an id.

    Raises:
        DataError: it is of another type.
    """
    found = row.get(key)
    if found is None or isinstance(found, kind):
        return found
    if isinstance(found, int) and not isinstance(found, bool):
        if kind is float:
            return float(found)
        if key in ("id", "speaker"):
            return str(found)
    wanted = {str: "a string", float: "a number", list: "a list of strings"}[kind]
    raise DataError(f"{where}: {key!r} is {json.dumps(found)}; give {wanted}")


def seconds(row: Mapping[str, Any], key: str, where: str) -> float | None:
    """``row[key]``, a finite number that is not negative; None where absent or null.

    Raises:
        DataError: it is something else.
    """
    found = value(row, key, float, where)
    if found is not None and not (math.isfinite(found) and found >= 0):
        raise DataError(f"{where}: {key!r} is {found}; give seconds, or leave it out")
    return found


def strings(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """``row[key]``, a list of strings; none where absent or null.

    Raises:
        DataError: it is something else.
    """
    found = value(row, key, list, where) or []
    if not all(isinstance(item, str) for item in found):
        raise DataError(f"{where}: {key!r} holds something else than strings; give a list of strings")
    return tuple(found)
