"""JSONL manifests: one utterance a line, as a JSON object.

``audio`` (a path, absolute or relative to the manifest's folder) is required; ``text``, ``duration``
(seconds), ``id``, ``speaker`` and ``entities`` (a list of strings) are optional; other keys are kept as
``extra``, to select utterances by.
Without ``id`` an utterance is called by its ``audio`` path as written, less the suffix.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tarq.data.utterance import Utterance
from tarq.errors import DataError

KEYS = ("audio", "text", "duration", "id", "speaker", "entities")


def is_manifest(source: Path) -> bool:
    """Whether ``source`` is a ``.jsonl`` file or a folder with a ``manifest.jsonl``."""
    return source.suffix == ".jsonl" if source.is_file() else (source / "manifest.jsonl").is_file()


def load_manifest(source: Path) -> list[Utterance]:
    """The utterances of a manifest, in its order.

    Raises:
        DataError: invalid JSON, a missing ``audio`` key or file, a value of a wrong type, text that is
            not UTF-8; each names file and line.
    """
    path = source if source.is_file() else source / "manifest.jsonl"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut at U+2028
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save the manifest as UTF-8") from error
    return [_utterance(line, path.parent, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _utterance(line: str, folder: Path, where: str) -> Utterance:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: invalid JSON ({error}); a manifest has one JSON object a line") from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: not a JSON object; write {{"audio": "…", "text": "…"}}')
    if row.get("audio") in (None, ""):
        raise DataError(f"{where}: no 'audio'; every line names its audio file")
    name = _field(row, "audio", str, where)
    audio = folder / name  # an absolute name stays as it is
    if not audio.is_file():
        raise DataError(f"{where}: audio file {audio} does not exist; 'audio' is relative to the manifest's folder")
    duration = _field(row, "duration", float, where)
    if duration is not None and not (math.isfinite(duration) and duration >= 0):
        raise DataError(f"{where}: 'duration' is {duration}; give seconds, or leave it out")
    entities = _field(row, "entities", list, where) or []
    if not all(isinstance(entity, str) for entity in entities):
        raise DataError(f"{where}: 'entities' holds something else than strings; give a list of strings")
    return Utterance(
        id=_field(row, "id", str, where) or str(Path(name).with_suffix("")),
        audio=audio,
        text=_field(row, "text", str, where),
        duration=duration,
        speaker=_field(row, "speaker", str, where),
        entities=tuple(entities),
        extra={key: value for key, value in row.items() if key not in KEYS},
    )


def _field(row: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """``row[key]`` as ``kind``; None where absent or null. Whole numbers pass as float, and as an id."""
    value = row.get(key)
    if value is None or isinstance(value, kind):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if kind is float:
            return float(value)
        if key in ("id", "speaker"):
            return str(value)
    wanted = {str: "a string", float: "a number", list: "a list of strings"}[kind]
    raise DataError(f"{where}: {key!r} is {json.dumps(value)}; give {wanted}")
