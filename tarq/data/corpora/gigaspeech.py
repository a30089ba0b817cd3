"""GigaSpeech as downloaded: ``GigaSpeech.json`` with Opus files under ``audio/``, cut by its segments.

The JSON has ``audios``, each with ``aid``, ``path`` (``audio/podcast/P0001/POD0000000001.opus``), ``source``,
``category`` and ``segments``, each with ``sid``, ``speaker``, ``begin_time``, ``end_time``, ``text_tn`` and
``subsets`` (``{XS}`` … ``{XL}``, ``{DEV}``, ``{TEST}``). The parts of this corpus are its subsets.

Text conventions: ``<COMMA>``, ``<PERIOD>``, ``<QUESTIONMARK>`` and ``<EXCLAMATIONPOINT>`` become the marks (the
normaliser drops them, as the corpus's own scoring does); ``<SIL>``, ``<MUSIC>``, ``<NOISE>`` and ``<OTHER>`` are
removed, and a segment with nothing else is left out, as its authors recommend.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tarq.data.corpora.layout import audio_exists, choose_part, read_text, stated_value
from tarq.data.hub import HubColumns
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance
from tarq.errors import DataError

FILE_NAME = "GigaSpeech.json"
_PUNCTUATION = {"comma": ",", "period": ".", "questionmark": "?", "exclamationpoint": "!"}
_MARK = re.compile(rf"\s*<({'|'.join(_PUNCTUATION)})>", re.IGNORECASE)
_GARBAGE = re.compile(r"<(?:sil|music|noise|other)>", re.IGNORECASE)
_LEFT_OUT = "no speech, only <SIL>, <MUSIC>, <NOISE> or <OTHER> (GigaSpeech)"


def transcript(text: str) -> str | None:
    """A segment's words by the conventions above; None where there is no speech."""
    text = _MARK.sub(lambda match: _PUNCTUATION[match[1].lower()], _GARBAGE.sub(" ", text))
    return " ".join(text.split()) or None


#: ``speechcolab/gigaspeech`` (gated: accept its terms first): configurations xs, s, m, l, xl, dev and test;
#: splits train, validation and test; columns segment_id, speaker, text, audio, begin_time, end_time, audio_id,
#: title, url, source, category, original_full_path.
HUB = HubColumns(
    "gigaspeech",
    needs=("segment_id", "text", "begin_time"),
    id="segment_id",
    speaker="speaker",
    transcript=transcript,
)


def _metadata(source: Path) -> Path:
    return source if source.is_file() else source / FILE_NAME


def is_gigaspeech(source: Path) -> bool:
    """Whether ``source`` is a JSON file of its kind or the folder with one."""
    path = _metadata(source)
    if not path.is_file() or path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return path.name == FILE_NAME or b'"audios"' in file.read(4096)


def load_gigaspeech(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The segments of one subset (``TEST``), in the file's order.

    Raises:
        DataError: the JSON is damaged, there are several subsets and ``part`` names none, or too many files are
            missing.
    """
    path = _metadata(source)
    try:
        audios = json.loads(read_text(path))["audios"]
        segments = [(audio, segment) for audio in audios for segment in audio["segments"]]
        subsets = {name.strip("{}") for _, segment in segments for name in segment["subsets"]}
        subset = choose_part(source, "GigaSpeech has several subsets", {name: name for name in subsets}, part)
        chosen = [(audio, segment) for audio, segment in segments if f"{{{subset}}}" in segment["subsets"]]
        return _utterances(path, chosen, intake)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f"{path}: not GigaSpeech's metadata ({error!r}); download it again") from error


def _utterances(path: Path, segments: list[tuple[dict[str, Any], dict[str, Any]]], intake: Intake) -> list[Utterance]:
    utterances = []
    there: dict[str, bool] = {}  # a missing file is one broken file, however many segments it has
    for audio, segment in segments:
        text = transcript(segment["text_tn"])
        if text is None:
            intake.left_out[_LEFT_OUT] += 1
            continue
        file, name = path.parent / audio["path"], audio["aid"]
        if name not in there:
            there[name] = audio_exists(file, str(path), name, intake)
        if not there[name]:
            continue
        try:
            utterances.append(
                Utterance(
                    id=segment["sid"],
                    audio=file,
                    text=text,
                    speaker=stated_value(segment.get("speaker"), "N/A"),
                    extra={key: audio[key] for key in ("aid", "source", "category", "title") if key in audio},
                    start=float(segment["begin_time"]),
                    end=float(segment["end_time"]),
                )
            )
        except DataError as error:
            intake.broken(segment["sid"], DataError(f"{path}: {error}"))
    return utterances
