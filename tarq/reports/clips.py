"""Audio within a page: the utterances in which words changed, as small files of their own."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import soundfile

from tarq.errors import TarqError
from tarq.report import counted
from tarq.reports.panel import Panel

RATE = 16_000  # Hz, what recognizers read
#: At most so many clips in a page, and so many characters of them together.
CLIPS, CHARACTERS = 60, 4_000_000
#: MP3 plays in every browser; the others where this libsndfile cannot write it. About 3, 4 and 16 kB a second.
FORMATS = (("MP3", "MPEG_LAYER_III", "audio/mpeg"), ("OGG", "VORBIS", "audio/ogg"), ("FLAC", "PCM_16", "audio/flac"))


@dataclass
class Clips:
    """Utterances of a page as data URIs.

    Attributes:
        found: (panel's title, utterance id) to data URI.
        absent: what is not there, and why.
    """

    found: dict[tuple[str, str], str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def embed(panels: Iterable[tuple[Panel, Sequence[str]]], limit: int = CLIPS, characters: int = CHARACTERS) -> Clips:
    """The audio of these utterances of each panel, within the size limit; shared ones are embedded once.

    Args:
        panels: each with the ids of the utterances that it shows, the most important first.
    """
    clips = Clips()
    wanted = [(panel, name) for panel, names in panels for name in dict.fromkeys(names)]
    unknown = [name for panel, name in wanted if name not in panel.clips]
    made: dict[str, str] = {}
    broken: list[str] = []
    crowded = 0
    for panel, name in wanted:
        utterance = panel.clips.get(name)
        if utterance is None:
            continue
        if utterance.origin not in made:
            if len(made) >= limit or sum(map(len, made.values())) >= characters:
                crowded += 1
                continue
            try:
                made[utterance.origin] = data_uri(utterance.waveform(RATE))
            except TarqError as error:
                broken.append(f"{name} ({error})")
                continue
        clips.found[panel.title, name] = made[utterance.origin]
    if unknown:
        clips.absent.append(
            f"Audio of {counted(len(unknown), 'utterance')}: the results do not say where it is (--data does)."
        )
    if broken:
        clips.absent.append(f"Audio of {counted(len(broken), 'utterance')} could not be read: {broken[0]}.")
    if crowded:
        clips.absent.append(f"Audio of {counted(crowded, 'more utterance')}: a page holds {limit} clips at most.")
    return clips


def data_uri(waveform: object) -> str:
    """Mono audio at :data:`RATE`, compressed, as a data URI."""
    known = soundfile.available_formats()
    format, subtype, mime = next(f for f in FORMATS if f[0] in known and f[1] in soundfile.available_subtypes(f[0]))
    file = io.BytesIO()
    smallest = {} if format == "FLAC" else {"compression_level": 0.85}
    soundfile.write(file, waveform, RATE, format=format, subtype=subtype, **smallest)
    return f"data:{mime};base64,{base64.b64encode(file.getvalue()).decode()}"
