"""Paired bootstrap over utterances, for any ratio of sums: WER, rare-WER, mean KL per position.

Utterances are what is drawn independently; the words or positions within one are not, so a resample takes
utterances whole (Bisani and Ney, ICASSP 2004). Two systems are compared within each resample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
_CHUNK = 1 << 22  # drawn indices held at a time: 32 MiB, and as much again for the weights


@dataclass(frozen=True)
class Interval:
    """A ratio and its percentile interval; nan where the ratio has no denominator."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A difference of two ratios, its percentile interval and how firm its sign is.

    Attributes:
        sign_flips: share of resamples whose difference is not strictly of the observed sign; 1.0 where
            the observed difference is 0, nan where it is undefined.
    """

    value: float
    low: float
    high: float
    sign_flips: float

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Bootstrap interval of ``sum(numerators) / sum(denominators)``.

    For word scores: errors and reference words per utterance. For a mean over positions (KL, ΔNLL): the
    utterance's sum over its positions, and how many they are.

    Args:
        numerators, denominators: [utterances]; denominators are not negative.
        resamples: how many; the same seed and number of utterances draw the same ones in every call.
        level: of the interval, between 0 and 1.

    Returns:
        The observed ratio between the percentiles ``(1 ∓ level) / 2``. Resamples with a denominator
        of 0 are left out.

    Raises:
        ValueError: shapes that do not fit, no utterance, or resamples or level out of range.
    """
    columns = _columns(numerators, denominators)
    sums = resampled_sums(columns, resamples, seed)
    value = float(_ratio(*columns.sum(axis=0)))
    return Interval(value, *_percentiles(_ratio(*sums.T), level))


def difference_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    base_numerators: ArrayLike,
    base_denominators: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Paired bootstrap interval of a ratio minus a base ratio on the same utterances.

    Args:
        numerators, denominators: [utterances], as in ``ratio_interval``.
        base_numerators, base_denominators: [utterances], of the system compared with, in the same order.
        resamples, seed, level: as in ``ratio_interval``.

    Returns:
        The difference; below 0 where the rate is lower than the base's.

    Raises:
        ValueError: see ``ratio_interval``.
    """
    columns = _columns(numerators, denominators, base_numerators, base_denominators)
    sums = resampled_sums(columns, resamples, seed)
    observed = columns.sum(axis=0)
    value = float(_ratio(*observed[:2]) - _ratio(*observed[2:]))
    differences = _ratio(*sums[:, :2].T) - _ratio(*sums[:, 2:].T)
    defined = differences[np.isfinite(differences)]
    flips = float(np.mean(defined * np.sign(value) <= 0)) if np.isfinite(value) else float("nan")
    return Difference(value, *_percentiles(differences, level), flips)


def resampled_sums(counts: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Column sums over utterances drawn with replacement.

    Put the counts of several systems side by side and every resample compares them on the same utterances.

    Args:
        counts: [utterances, columns].
        resamples: how many.
        seed: resample r takes the utterances in row r of
            ``default_rng(seed).integers(utterances, size=(resamples, utterances))``.

    Returns:
        float64 [resamples, columns].

    Raises:
        ValueError: counts of another shape, no utterance, or no resample.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0:
        raise ValueError(f"counts must be [utterances, columns] with at least one utterance, not {table.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    generator = np.random.default_rng(seed)
    size = len(table)
    sums = np.empty((resamples, table.shape[1]))
    rows = max(1, _CHUNK // size)
    for start in range(0, resamples, rows):
        drawn = generator.integers(size, size=(min(rows, resamples - start), size))
        # How often each utterance was drawn; a product with these is far cheaper than gathering the counts.
        drawn += np.arange(len(drawn))[:, None] * size
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        sums[start : start + len(drawn)] = weights @ table
    return sums


def _columns(*arrays: ArrayLike) -> NDArray[np.float64]:
    """The arrays as columns, [utterances, arrays]."""
    columns = [np.asarray(array, dtype=np.float64) for array in arrays]
    shapes = [column.shape for column in columns]
    if any(column.ndim != 1 for column in columns) or len(set(shapes)) > 1:
        raise ValueError(f"numerators and denominators must be [utterances] alike, not {shapes}")
    return np.stack(columns, axis=1)


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """Element by element; nan where the denominator is 0."""
    result = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)


def _percentiles(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
