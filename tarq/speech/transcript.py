"""A transcript with times, and the files that players and editors read: SRT, WebVTT, TSV, JSON, plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from tarq.files import to_json
from tarq.models.types import Segment, Word


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording.

    Attributes:
        text: all of it.
        segments: in order, with times in seconds; without those in which nothing was said.
        language: code of the language that the model was told, or detected; None for a model that is told none.
    """

    text: str
    segments: tuple[Segment, ...] = ()
    language: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: text, language, segments, each with its words if they were asked for."""
        segments = [asdict(segment) for segment in self.segments]
        for segment in segments:
            if segment["words"] is None:
                del segment["words"]
        return {"text": self.text, "language": self.language, "segments": segments}

    def formatted(self, kind: str) -> str:
        """The content of a file.

        Args:
            kind: ``text``, ``srt``, ``vtt``, ``tsv`` or ``json``.

        Raises:
            KeyError: it is none of these.
        """
        if kind == "json":
            return to_json(self.to_dict()) + "\n"
        if kind == "text":
            return self.text + "\n"
        return HEADERS[kind] + "".join(cue(kind, i, segment) for i, segment in enumerate(self.segments, start=1))


#: What a file of cues begins with.
HEADERS = {"srt": "", "vtt": "WEBVTT\n\n", "tsv": "start\tend\ttext\n"}


def cue(kind: str, number: int, segment: Segment) -> str:
    """A segment as it stands in a file of cues; ``number`` counts them from 1."""
    return _CUES[kind](number, segment)


def _srt(number: int, segment: Segment) -> str:
    # The arrow would begin a new cue; the format knows no escapes.
    text = _line(segment.text).replace("-->", "->")
    return f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n{text}\n\n"


def _vtt(_: int, segment: Segment) -> str:
    if segment.words:
        text = " ".join(f"<{_clock(word.start, '.')}>{_escaped(word.text)}" for word in segment.words)
    else:
        text = _escaped(segment.text)
    return f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{text}\n\n"


def _tsv(_: int, segment: Segment) -> str:
    """Milliseconds, as OpenAI's Whisper writes them."""
    return f"{_milliseconds(segment.start)}\t{_milliseconds(segment.end)}\t{_line(segment.text)}\n"


_CUES: dict[str, Callable[[int, Segment], str]] = {"srt": _srt, "vtt": _vtt, "tsv": _tsv}


def _line(text: str) -> str:
    """On one line, without tabs: an empty line would end a cue, a tab a column."""
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _clock(seconds: float, point: str) -> str:
    """``01:02:03,450``; more than two digits of hours where there are as many."""
    rest, thousandths = divmod(_milliseconds(seconds), 1000)
    return f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}{point}{thousandths:03}"


def transcript_of(segments: Iterable[Segment], language: str | None) -> Transcript:
    """From segments as a model writes them, each with the space before it, to a transcript."""
    kept = [segment for segment in segments if segment.text.strip()]
    text = "".join(segment.text for segment in kept).strip()
    return Transcript(text, tuple(replace(segment, text=segment.text.strip()) for segment in kept), language)


def within(segment: Segment, seconds: float) -> Segment:
    """A segment cut off where the recording ends (a model's last window may last longer), in whole milliseconds."""

    def time(of: float) -> float:
        return round(min(of, seconds), 3)

    words = segment.words and tuple(Word(time(word.start), time(word.end), word.text) for word in segment.words)
    return Segment(time(segment.start), time(segment.end), segment.text, words)
