"""Fields of a manifest's rows: their known spellings, and their values in a row.

Manifests of NeMo, SpeechBrain, `datasets` and many scripts name the same fields differently. The first spelling found
in the order below is read. A key that looks like a field but is unknown is named in a remark, so that nothing is
ignored silently.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from tarq.data.corpora.layout import audio_exists
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance, stated_language
from tarq.errors import DataError

#: Field to its spellings, the preferred first; case, and - for _, do not matter.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "audio": (
        *("audio", "audio_filepath", "audio_path", "audio_file", "audio_filename", "file_name", "filename", "file"),
        *("path", "filepath", "file_path", "wav", "wav_path", "wav_file", "wav_filename", "mp3", "flac", "recording"),
    ),
    "text": (
        *("text", "sentence", "transcript", "transcription", "normalized_text", "text_normalized", "norm_text"),
        *("raw_text", "reference", "ref_text", "txt", "wrd"),
    ),
    "duration": ("duration", "duration_s", "duration_seconds", "audio_duration", "audio_length_s", "dur"),
    "id": (*("id", "utterance_id", "utt_id", "utt", "uttid", "audio_id", "segment_id", "uniq_id", "sample_id", "key"),),
    "speaker": ("speaker", "speaker_id", "spk", "spk_id", "client_id", "speaker_name"),
    "entities": ("entities", "entity_list", "named_entities"),
    "start": ("start", "offset", "start_time", "begin", "begin_time", "start_s", "start_seconds", "segment_start"),
    "end": ("end", "end_time", "stop", "end_s", "end_seconds", "segment_end"),
    "language": ("language", "lang", "locale", "lang_id", "language_id", "source_lang", "lang_code"),
}
#: Substrings of keys that may mean a field.
_STEMS = {
    "audio": r"audio|wav|file|path",
    "text": r"text|transcri|sentence|utterance|caption",
    "duration": r"dur(?:ation)?\b|seconds",
    "speaker": r"speaker|spk",
    "start": r"start|offset|begin|onset",
    "end": r"\bend|end\b|stop",
    "language": r"lang|locale",
}
#: Fields whose name is kept out of ``extra``, and fields of which every spelling is.
_KEPT_OUT = ("audio", "text", "duration", "start", "end")
NUMBERS = ("duration", "start", "end")


def normalized_key(key: str) -> str:
    """A key in the form used for comparison."""
    return re.sub(r"[\s-]+", "_", key.strip().casefold())


@lru_cache(maxsize=1024)
def fields_of(keys: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Field to the keys that are spellings of it, the preferred first."""
    by_spelling = {normalized_key(key): key for key in reversed(keys)}
    found = {
        field: tuple(by_spelling[s] for s in spellings if s in by_spelling) for field, spellings in SPELLINGS.items()
    }
    return {field: there for field, there in found.items() if there}


@lru_cache(maxsize=1024)
def _remarks(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Remarks on a row's keys."""
    fields = fields_of(keys)
    remarks = [
        f"{field} is read from {there[0]!r}, not from {', '.join(map(repr, there[1:]))}"
        for field, there in fields.items()
        if len(there) > 1 and field in ("audio", "text", "start", "end")
    ]
    used = {key for there in fields.values() for key in there}
    for key in keys:
        if key in used:
            continue
        for field, stem in _STEMS.items():
            alike = get_close_matches(normalized_key(key), SPELLINGS[field], 1, 0.8)
            if field not in fields and (alike or re.search(stem, normalized_key(key).replace("_", " "))):
                remarks.append(
                    f"{key!r} looks like the {field} and is not read: known are {', '.join(SPELLINGS[field])}"
                )
                break
    return tuple(remarks)


def utterance_of(
    row: Mapping[str, Any], folders: tuple[Path, ...], source: Path, where: str, intake: Intake
) -> Utterance | None:
    """A row of a manifest; None if it was left out as broken, which the intake counts.

    Args:
        folders: that its audio path may be relative to; the first that has it is used.
        source: the manifest, for remarks.
        where: location of the row, for messages.

    Raises:
        DataError: it is one broken row too many.
    """
    try:
        utterance = _utterance(row, folders, where)
    except DataError as error:
        intake.broken(where, error)
        return None
    for remark in _remarks(tuple(row)):
        intake.remark(f"{source}: {remark}")
    assert isinstance(utterance.audio, Path)
    return utterance if audio_exists(utterance.audio, where, utterance.id, intake) else None


def _utterance(row: Mapping[str, Any], folders: tuple[Path, ...], where: str) -> Utterance:
    keys = {
        field: next((key for key in there if row[key] is not None), there[0])
        for field, there in fields_of(tuple(row)).items()
    }
    key = keys.get("audio", "audio")
    given = row.get(key)
    if isinstance(given, dict) and isinstance(given.get("path"), str):  # as `datasets` writes an undecoded row
        row = {**row, key: given["path"]}
    name = value(row, key, str, where)
    if name is None or not name.strip():
        raise DataError(
            f"{where}: no 'audio'; every line must name its audio file (as {', '.join(SPELLINGS['audio'])})"
        )
    if re.match(r"\w+://", name):
        raise DataError(f"{where}: {name} is an address, and nothing is fetched; download it, and name the file")
    duration, start, end = (seconds(row, keys.get(field, field), where) for field in NUMBERS)
    # NeMo's offset and duration are a segment of the file.
    if "start" in keys and normalized_key(keys["start"]) == "offset" and start is not None and end is None and duration:
        end = start + duration
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{where}: {keys['end']!r} is {end:g}, not after 'start'; give the segment in seconds")
    segment = "" if not start and end is None else f"-{start or 0:g}-{'' if end is None else f'{end:g}'}"
    out = {*_KEPT_OUT, "id", "speaker", "entities"} | {
        k for field in _KEPT_OUT for k in fields_of(tuple(row)).get(field, ())
    }
    extra = {k: v for k, v in row.items() if k not in out or k == keys.get("language")}
    if (language := value(row, keys.get("language", "language"), str, where)) is not None:
        extra["language"] = stated_language(language) or language
    return Utterance(
        id=value(row, keys.get("id", "id"), str, where)
        or f"{Path(name).with_suffix('') if PurePath(name).name else name}{segment}",
        audio=_first(folders, name),
        text=value(row, keys.get("text", "text"), str, where),
        duration=duration,
        speaker=value(row, keys.get("speaker", "speaker"), str, where),
        entities=strings(row, keys.get("entities", "entities"), where),
        extra=extra,
        start=start or 0.0,
        end=end,
    )


def _first(folders: tuple[Path, ...], name: str) -> Path:
    """The first that exists, otherwise the first; an absolute name is kept."""
    candidates = [folder / name for folder in folders]
    if len(candidates) == 1:
        return candidates[0]
    try:
        return next((path for path in candidates if path.is_file()), candidates[0])
    except OSError:  # an impossible file name
        return candidates[0]


def value(row: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """``row[key]`` as ``kind``; None where absent or null. Whole numbers pass as float, and as an id.

    Raises:
        DataError: it has another type, or is text with half a surrogate pair.
    """
    found = row.get(key)
    if isinstance(found, str) and kind is str and any("\ud800" <= character <= "\udfff" for character in found):
        raise DataError(f"{where}: {key!r} holds half a surrogate pair, which is not a character; write it again")
    if found is None or isinstance(found, kind):
        return found
    if isinstance(found, int) and not isinstance(found, bool):
        if kind is float:
            return float(found) if abs(found) < 1 << 64 else math.inf
        if kind is str and normalized_key(key) in (*SPELLINGS["id"], *SPELLINGS["speaker"]):
            return str(found)
    wanted = {str: "a string", float: "a number", list: "a list of strings"}[kind]
    raise DataError(f"{where}: {key!r} is {json.dumps(found)[:80]}; give {wanted}")


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
    """``row[key]``, a list of strings; empty where absent or null.

    Raises:
        DataError: it is something else.
    """
    found = value(row, key, list, where) or []
    if not all(isinstance(item, str) for item in found):
        raise DataError(f"{where}: {key!r} is not a list of strings; give one")
    return tuple(found)
