"""Bands of word frequency: where damage is shown, by the Zipf scores of the words that suffer it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

#: Lower ends of the bands of Zipf scores; the last one is open.
BANDS = (0, 1, 2, 3, 4, 5, 6)
#: What is of no word: the end of a transcript, punctuation by itself, timestamps.
NO_WORD = "no word"


#: Names of the bands, the rarest words first, and then of what is of no word.
NAMES = (*(f"Zipf {low}–{high}" for low, high in pairwise(BANDS)), f"Zipf {BANDS[-1]}+", NO_WORD)


def band_masks(scores: Any) -> dict[str, Any]:
    """Which Zipf scores are in each band, and which are NaN; each score is in one of them.

    Args:
        scores: floating-point array or tensor of any shape.

    Returns:
        each of :data:`NAMES`, in that order, to bool of that shape.
    """
    edges = (-math.inf, *BANDS[1:], math.inf)
    masks = [(scores >= low) & (scores < high) for low, high in pairwise(edges)]
    return dict(zip(NAMES, [*masks, scores != scores], strict=True))
