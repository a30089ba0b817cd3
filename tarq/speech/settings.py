"""How recordings are transcribed: the options of ``tarq transcribe`` and of ``tarq.timed_transcripts``."""

# ruff: noqa: RUF009 - option() is dataclasses.field() with what the field says of itself

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tarq.option import RESOURCES, Checked, option

LongForm = Literal["windows", "sequential"]
#: The value of ``language`` for which the model detects it.
AUTO = "auto"
#: Format of a transcript to the suffix of its files.
SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "json": ".json", "tsv": ".tsv"}
#: Formats that have a place for the times of words.
WITH_WORDS = ("json", "vtt")
#: Heading of these options in the command line's help.
PANEL = "Transcript"


@dataclass(frozen=True)
class Transcription(Checked):
    """How recordings are transcribed.

    Attributes:
        language: code of the speech's language; ``auto`` detects it for each recording, by its first window; None takes
            the recognizer's.
        batch_size: windows of audio decoded at once, and files read ahead.
        times: segments by the model's own timestamps where it writes any; otherwise they are windows.
        words: with the times of words.
        long_form: how audio longer than a window is transcribed: ``windows`` cuts it at quiet places and decodes
            several at once; ``sequential`` goes by the model's timestamps, one window after the other. None is
            ``sequential`` where the model writes timestamps anyway, otherwise ``windows``.
        vad: leave out what is not speech (Silero VAD).
    """

    language: str | None = option(
        None,
        PANEL,
        "Language of the speech: a code, or auto to detect it for each file (multilingual Whisper). "
        "Default: the checkpoint's, or en.",
        "language",
        choices=(AUTO,),
        optional=True,
    )
    batch_size: int = option(4, RESOURCES, "Windows of audio decoded at once.", "int", low=1, high=10**6)
    times: bool = option(False, PANEL, "Segments by the model's own timestamps.", "bool")
    words: bool = option(
        False, PANEL, "Times of words too (Whisper and CTC models); for --format json or vtt, and --json.", "bool"
    )
    long_form: LongForm | None = option(
        None,
        PANEL,
        "How audio longer than a window is transcribed: windows (cut at quiet places, several at once) or sequential "
        "(by Whisper's own timestamps). Default: sequential if a format with times is asked of Whisper, else windows.",
        LongForm,
        optional=True,
    )
    vad: bool = option(
        False, PANEL, "Leave out what is not speech, found by Silero VAD (pip install silero-vad).", "bool"
    )

    @property
    def timed(self) -> bool:
        """Whether a model that writes timestamps is to write them."""
        return self.times or self.words or self.long_form == "sequential"
