"""Audio that is decoded once: what was decoded to check an utterance is kept for its use."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tarq.data.audio import AudioCheck, resampled
from tarq.data.utterance import Utterance

#: Bytes of decoded audio held at most between check and use: 4.3 hours at 16 kHz.
LIMIT = 1e9


@dataclass
class AudioBudget:
    """Memory that utterances share for the audio they hold.

    Attributes:
        limit: bytes at most; :data:`LIMIT` by default.
        used: bytes held now.
    """

    limit: float = field(default_factory=lambda: LIMIT)
    used: int = 0

    def take(self, size: int) -> bool:
        """Take so many bytes, if there are as many left."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True


@dataclass(frozen=True)
class CachedUtterance(Utterance):
    """An utterance that keeps its audio once it is decoded, be it to check it, within a budget.

    Attributes:
        budget: what it shares with others; unlimited by default.
        rate: sampling rate in Hz at which audio that was decoded to check it is kept.
        waveforms: sampling rate to audio.
        checks: ``longest`` of :meth:`check` to its result.
    """

    budget: AudioBudget = field(default_factory=lambda: AudioBudget(math.inf), compare=False, repr=False)
    rate: int = field(default=16000, compare=False, repr=False)
    waveforms: dict[int, NDArray[np.float32]] = field(default_factory=dict, compare=False, repr=False)

    checks: dict[float | None, AudioCheck] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, utterance: Utterance, budget: AudioBudget | None = None, rate: int = 16000) -> Self:
        """The same utterance; audio that it holds already moves, and leaves the budget it counted in."""
        known = {f.name: getattr(utterance, f.name) for f in fields(Utterance)}
        made = cls(**known, budget=budget or AudioBudget(math.inf), rate=rate)
        if isinstance(utterance, CachedUtterance):
            made.checks.update(utterance.checks)
            for at in list(utterance.waveforms):
                waveform = utterance.waveforms.pop(at)
                utterance.budget.used -= waveform.nbytes
                made._keep(at, waveform)
        return made

    def waveform(self, sampling_rate: int = 16000, notes: list[str] | None = None) -> NDArray[np.float32]:
        if sampling_rate in self.waveforms:
            return self.waveforms[sampling_rate]
        return self._keep(sampling_rate, super().waveform(sampling_rate, notes))

    def check(self, longest: float | None = None) -> AudioCheck:
        if longest in self.checks:
            return self.checks[longest]
        checked = super().check(longest)
        used = longest is None or checked.seconds <= longest
        if checked.decoded is not None and used and self.rate not in self.waveforms:
            self._keep(self.rate, resampled(self.audio, checked.decoded, self.rate))
        return self.checks.setdefault(longest, AudioCheck(checked.seconds, checked.notes))

    def seconds(self) -> float:
        if self.duration is None and self.end is None and self.checks:
            return next(iter(self.checks.values())).seconds
        return super().seconds()

    def _keep(self, rate: int, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.budget.take(waveform.nbytes):
            self.waveforms[rate] = waveform
        return waveform
