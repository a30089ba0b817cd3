"""One utterance: what every corpus loader returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarq.data.audio import audio_duration, read_audio
from tarq.errors import DataError


@dataclass(frozen=True)
class Utterance:
    """A stretch of speech in a file of its own, with what is known about it.

    Attributes:
        id: unique within its corpus.
        audio: the audio file.
        text: the reference transcript as written; None when there is none. An empty string is a
            transcript: nothing is said.
        duration: seconds, where the corpus states them; ``seconds()`` asks the file otherwise.
        speaker: who speaks, where known.
        entities: the names and terms in the transcript, where a corpus marks them.
        extra: whatever else a manifest says of it, for selecting utterances by.
    """

    id: str
    audio: Path
    text: str | None = None
    duration: float | None = None
    speaker: str | None = None
    entities: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def waveform(self, sampling_rate: int = 16000) -> NDArray[np.float32]:
        """The audio: float32 [samples], mono, at ``sampling_rate`` Hz. Raises DataError (``read_audio``)."""
        return read_audio(self.audio, sampling_rate)

    def seconds(self) -> float:
        """The stated duration or, without one, that of the file. Raises DataError where it is unreadable."""
        return audio_duration(self.audio) if self.duration is None else self.duration


def check_ids(where: str, utterances: Sequence[Utterance]) -> None:
    """Scores and samples go by id.

    Raises:
        DataError: an id occurs twice; names the set (``where``) and the id.
    """
    counts = Counter(utterance.id for utterance in utterances)
    if len(counts) < len(utterances):
        name, times = counts.most_common(1)[0]
        raise DataError(f"{where}: id {name!r} occurs {times} times; ids must differ")
