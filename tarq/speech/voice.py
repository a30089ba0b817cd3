"""Leaving out silence: speech is found by Silero VAD, an optional package, and times are those of the recording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from tarq.errors import ConfigError
from tarq.models.types import Segment, Word

#: The rate that the detector hears, in Hz.
RATE = 16_000
#: Seconds of silence that are kept before and after speech.
KEPT = 0.4
#: As faster-whisper sets the detector: pauses below two seconds stay.
SETTINGS = {
    "threshold": 0.5,
    "min_speech_duration_ms": 0,
    "min_silence_duration_ms": 2000,
    "speech_pad_ms": round(KEPT * 1000),
}


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
        """A segment of ``waveform`` at its time in the recording.

        What crosses from one part to the next by less than the silence that was kept around speech belongs to the other
        alone; a word belongs to the part of its middle.
        """
        first, last = self._part(segment.start), self._part(segment.end)
        if first < last and self._ends[first] - segment.start < KEPT:
            first += 1
        if first < last and segment.end - self.starts[last] < KEPT:
            last -= 1
        words = segment.words
        if words is not None:
            parts = [self._part((word.start + word.end) / 2) for word in words]
            words = tuple(
                Word(self._time(word.start, part), self._time(word.end, part), word.text)
                for word, part in zip(words, parts, strict=True)
            )
        return Segment(self._time(segment.start, first), self._time(segment.end, last), segment.text, words)

    @property
    def _ends(self) -> NDArray[np.float64]:
        return np.append(self.starts[1:], np.inf)

    def _part(self, seconds: float) -> int:
        return max(int(np.searchsorted(self.starts, seconds, side="right")) - 1, 0)

    def _time(self, seconds: float, part: int) -> float:
        inside = min(max(seconds, float(self.starts[part])), float(self._ends[part]))
        return inside + float(self.moved[part])


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
