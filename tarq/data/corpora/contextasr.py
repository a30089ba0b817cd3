"""ContextASR-Bench: synthetic, entity-rich speech, with its entities (arXiv 2507.05727).

Its repository holds a JSONL file a set (``ContextASR-Speech_English.jsonl``) and the audio in tar archives
(``audio/ContextASR-Speech/English/ContextASR-Speech_English_1.tar`` …), which are unpacked in place. A line
has uniq_id, text, audio (``audio/ContextASR-Speech/English/BOSON-001650_EN.wav``), duration, domain_label and
entity_list.

Transcripts are kept as written (capitals, punctuation, numerals as words, spelled abbreviations as ``D S M``). The
Mandarin sets load, but are neither scored nor drawn from: Chinese is written without spaces, and rare words are
delimited by spaces (``tarq.words.frequencies``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from tarq.data.corpora.layout import audio_exists, choose_part
from tarq.data.fields import seconds, strings, value
from tarq.data.hub import HubColumns, undecoded
from tarq.data.intake import Intake
from tarq.data.manifests import json_lines
from tarq.data.utterance import Utterance
from tarq.errors import DataError

LANGUAGES = {"English": "en", "Mandarin": "zh", "Chinese": "zh"}
COLUMNS = ("uniq_id", "audio", "text", "entity_list")


def _sets(source: Path) -> dict[str, Path]:
    files = [source] if source.is_file() else sorted(source.glob("*.jsonl"))
    return {path.stem: path for path in files if path.suffix == ".jsonl" and _is_set(path)}


def _is_set(path: Path) -> bool:
    try:
        _, row = next(json_lines(path))
    except (DataError, StopIteration):
        return False
    return set(COLUMNS) <= set(row)


def is_contextasr(source: Path) -> bool:
    """Whether ``source`` is one of its JSONL files or a folder with some."""
    return bool(_sets(source))


def load_contextasr(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The utterances of one set, in its order.

    Raises:
        DataError: several sets and ``part`` names none, a line is malformed, or too many files are missing.
    """
    path = choose_part(source, "a folder of ContextASR-Bench sets", _sets(source), part)
    utterances = []
    set_language = path.stem.rpartition("_")[2]
    for where, row in json_lines(path, intake):
        try:
            utterance = _utterance(row, path.parent, set_language, where)
        except DataError as error:
            intake.broken(where, error)
            continue
        if audio_exists(path.parent / row["audio"], where, utterance.id, intake):
            utterances.append(utterance)
    return utterances


def _utterance(row: dict[str, Any], folder: Path, set_language: str, where: str) -> Utterance:
    missing = [key for key in COLUMNS if row.get(key) is None]
    if missing:
        raise DataError(f"{where}: no {', '.join(missing)}; download the file again")
    return Utterance(
        id=value(row, "uniq_id", str, where),
        audio=folder / value(row, "audio", str, where),
        text=value(row, "text", str, where),
        duration=seconds(row, "duration", where),
        entities=strings(row, "entity_list", where),
        extra={
            "domain_label": row.get("domain_label"),
            "language": LANGUAGES.get(value(row, "language", str, where) or set_language),
        },
    )


def hub_rows(location: str, part: str | None) -> Iterator[dict[str, Any]]:
    """Rows of one set, streamed from its archives and joined with its JSONL file by the name of the audio file.

    Args:
        location: of the repository, for fsspec (``hf://datasets/MrSupW/ContextASR-Bench``, or a folder).
        part: the set, such as ``ContextASR-Speech_English``.

    Raises:
        DataError: no such set.
    """
    import datasets

    kind, _, language = (part or "").partition("_")
    if not language:
        raise DataError(f"{location}: name one of its sets, such as ContextASR-Speech_English, as SOURCE:SET")
    lines = datasets.load_dataset("json", data_files=f"{location}/{part}.jsonl", split="train", streaming=True)
    known = {PurePath(line["audio"]).stem: line for line in lines}
    archives = datasets.load_dataset(
        "webdataset", data_files=f"{location}/audio/{kind}/{language}/*.tar", split="train", streaming=True
    )
    for row in undecoded(archives, "wav"):
        line = known.get(PurePath(row["__key__"]).stem)
        if line is not None:
            yield {**line, "audio": row["wav"], "language": LANGUAGES.get(language, language)}


#: ``MrSupW/ContextASR-Bench``: JSONL and tar files, joined as they stream.
HUB = HubColumns(
    "contextasr",
    needs=("uniq_id", "entity_list", "text"),
    id="uniq_id",
    entities="entity_list",
    repository="MrSupW/ContextASR-Bench",
    rows=hub_rows,
)
