"""Where the variance of a mean over draws and utterances comes from, and how many draws a difference takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Standard errors that a true difference must have to be found with a chance of 80 % at a two-sided 5 %.
POWER = 2.8


@dataclass(frozen=True)
class Components:
    """Variance of a mean over draws and utterances, split (two-way random effects without replication).

    A draw's value of an utterance is the mean plus what the draw does to all utterances, what the utterance does in all
    draws, and a rest: how the codes of this draw fall for this utterance. None of a single draw.

    Attributes:
        draw, utterance, rest: variances of the three, in the figure's unit squared.
        draws, utterances: how many there were.
    """

    draw: float | None
    utterance: float
    rest: float | None
    draws: int
    utterances: int

    @property
    def standard_error(self) -> float | None:
        """Of the mean over other draws and other utterances, so many of each; None of a single draw."""
        if self.draw is None or self.rest is None:
            return None
        draws = (self.draw + self.rest / self.utterances) / self.draws
        return math.sqrt(draws + self.utterance / self.utterances)

    @property
    def over_draws(self) -> float | None:
        """Standard deviation, over draws, of a single draw's value on these utterances; None of a single draw."""
        if self.draw is None or self.rest is None:
            return None
        return math.sqrt(self.draw + self.rest / self.utterances)

    def draws_needed(self, difference: float) -> float:
        """Draws with which a true difference is found with a chance of 80 %, on as many utterances: at least 1; inf
        where no number of draws does on so few utterances; nan of a single draw."""
        if self.draw is None or self.rest is None:
            return math.nan
        left = (difference / POWER) ** 2 - self.utterance / self.utterances
        needed = self.draw + self.rest / self.utterances
        return max(1, math.ceil(needed / left)) if left > 0 else math.inf


def components(numerator: ArrayLike, denominator: ArrayLike) -> Components:
    """Variance of the mean over draws of a ratio, split by analysis of variance on its linearised values.

    Args:
        numerator: [draws, utterances] sums.
        denominator: [utterances]; the ratio is Σ numerator / Σ denominator.
    """
    sums, whole = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    draws, utterances = sums.shape
    if whole.sum() == 0 or utterances < 2:
        return Components(None, math.nan, None, draws, utterances)
    ratio = sums.mean(axis=0).sum() / whole.sum()
    x: NDArray[np.float64] = (sums - ratio * whole) / whole.mean()  # each utterance's share in the ratio's error
    by_draw, by_utterance = x.mean(axis=1), x.mean(axis=0)
    if draws == 1:
        return Components(None, float(by_utterance.var(ddof=1)), None, draws, utterances)
    rest = x - by_draw[:, None] - by_utterance
    error = float((rest**2).sum() / ((draws - 1) * (utterances - 1)))
    draw = max(0.0, float(by_draw.var(ddof=1)) - error / utterances)
    utterance = max(0.0, float(by_utterance.var(ddof=1)) - error / draws)
    return Components(draw, utterance, error, draws, utterances)
