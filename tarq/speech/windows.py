"""Long audio is cut into windows at quiet places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: The last part of a window, in seconds, in which the quietest place to cut is searched.
SEARCH = 5.0
#: Seconds of audio over which loudness is measured.
FRAME = 0.02


def windows(waveform: NDArray[np.float32], size: int, sampling_rate: int) -> list[NDArray[np.float32]]:
    """Cut a waveform into pieces of at most ``size`` samples, each cut at the quietest moment near its end.

    The last two pieces are cut near their middle: a short piece that is left over makes recognizers invent words.

    Args:
        waveform: [samples].
        size: largest piece, in samples.
        sampling_rate: samples per second.
    """
    pieces = []
    frame, search = max(1, round(FRAME * sampling_rate)), round(SEARCH * sampling_rate)
    while len(waveform) > size:
        if len(waveform) <= 2 * size:
            least, end = len(waveform) - size, min(size, len(waveform) // 2 + search // 2)
        else:
            least, end = size // 2, size
        first = max(end - search, least)
        tail = waveform[first:end]
        tail = tail[: len(tail) // frame * frame].reshape(-1, frame)
        quietest = int(np.square(tail).sum(axis=1).argmin()) if len(tail) else 0
        cut = min(first + quietest * frame + frame // 2, end)
        pieces.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*pieces, waveform]
