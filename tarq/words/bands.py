"""Bands of word frequency: where damage is shown, by the Zipf scores of the words that suffer it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

#: Lower ends of the bands of Zipf scores; the last one is open.
BANDS = (0, 1, 2, 3, 4, 5, 6)
#: What is of no word: the end of a transcript, punctuation by itself, timestamps.
NO_WORD = "no word"


def band_name(low: int) -> str:
    """``Zipf 2–3``, and ``Zipf 6+`` of the last one."""
    return f"Zipf {low}+" if low == BANDS[-1] else f"Zipf {low}–{low + 1}"


#: Names of all parts that scores are divided into, the rarest words first.
NAMES = (*map(band_name, BANDS), NO_WORD)


def divided(scores: Any) -> dict[str, Any]:
    """Which Zipf scores are in each band, and which are NaN; each score is in one part.

    Args:
        scores: floating-point array or tensor of any shape.

    Returns:
        name of the band, or :data:`NO_WORD`, to bool of that shape; rarest first.
    """
    edges = (-math.inf, *BANDS[1:], math.inf)
    parts = {
        band_name(low): (scores >= bottom) & (scores < top)
        for low, (bottom, top) in zip(BANDS, pairwise(edges), strict=True)
    }
    return parts | {NO_WORD: scores != scores}
