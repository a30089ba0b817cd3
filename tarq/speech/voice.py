"""Leaving out silence: speech is found by Silero VAD, an optional package, and times are those of the recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from tarq.errors import ConfigError
from tarq.models.types import Segment, Word

#: The rate that the detector hears, in Hz.
RATE = 16_000
#: As faster-whisper sets the detector: pauses below two seconds stay, and what is kept begins and ends 0.4 s early and
#: late.
SETTINGS = {"threshold": 0.5, "min_speech_duration_ms": 0, "min_silence_duration_ms": 2000, "speech_pad_ms": 400}


@dataclass(frozen=True)
class Speech:
    """The parts of a recording in which somebody speaks, one after another.

    Attributes:
        waveform: float32 [samples] of these parts.
        starts: [parts] seconds at which each begins in ``waveform``.
        moved: [parts] seconds that each lies later in the recording.
    """

    waveform: NDArray[np.float32]
    starts: NDArray[np.float64]
    moved: NDArray[np.float64]

    def in_recording(self, segment: Segment) -> Segment:
        """A segment of ``waveform`` at its time in the recording."""
        words = segment.words and tuple(Word(self._begin(w.start), self._end(w.end), w.text) for w in segment.words)
        return Segment(self._begin(segment.start), self._end(segment.end), segment.text, words)

    def _begin(self, seconds: float) -> float:
        return self._at(seconds, "right")

    def _end(self, seconds: float) -> float:
        """What ends where two parts meet belongs to the first."""
        return self._at(seconds, "left")

    def _at(self, seconds: float, side: Any) -> float:
        part = max(int(np.searchsorted(self.starts, seconds, side=side)) - 1, 0)
        return seconds + float(self.moved[part])


class VoiceDetector:
    """Silero VAD, from the package ``silero-vad``.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        try:
            import silero_vad
        except ImportError as error:
            raise ConfigError(
                "vad (--vad) needs the package silero-vad, which is not installed: pip install silero-vad"
            ) from error
        finally:
            torch.set_num_threads(threads)  # importing it sets one thread for the whole process
        self.find = silero_vad.get_speech_timestamps
        self.model = silero_vad.load_silero_vad()

    def speech(self, waveform: NDArray[np.float32], sampling_rate: int) -> Speech:
        """What is spoken in a waveform [samples]; nothing where nobody speaks."""
        heard = waveform if sampling_rate == RATE else soxr.resample(waveform, sampling_rate, RATE)
        with torch.no_grad():
            found = self.find(torch.from_numpy(heard), self.model, sampling_rate=RATE, **SETTINGS)
        spans = [(round(p["start"] * sampling_rate / RATE), round(p["end"] * sampling_rate / RATE)) for p in found]
        parts = [waveform[first:last] for first, last in spans]
        lengths = np.cumsum([0, *map(len, parts)])[:-1] / sampling_rate
        moved = np.array([first / sampling_rate for first, _ in spans]) - lengths
        return Speech(np.concatenate([waveform[:0], *parts]), lengths, moved)
