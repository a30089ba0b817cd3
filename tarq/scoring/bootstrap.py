"""Paired bootstrap over utterances, for any ratio of sums: WER, rare-WER, mean KL per position.

Utterances are independent; the words or positions within one are not, so a resample draws whole
utterances (Bisani and Ney, ICASSP 2004). Two systems are compared within each resample.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Key = TypeVar("Key", bound=Hashable)

RESAMPLES = 10_000
_CHUNK = 1 << 22  # drawn indices held at a time: 32 MiB, and as much again for the weights


@dataclass(frozen=True)
class Interval:
    """A ratio and its percentile interval; NaN if the denominator is 0."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A difference of two ratios, its percentile interval and how stable its sign is.

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


@dataclass(frozen=True)
class Ratio:
    """A figure of a set: its value is Σ numerator / Σ denominator.

    For word scores: errors and reference words per utterance. For a mean over positions (KL, ΔNLL): the
    utterance's sum over its positions, and how many they are.

    Attributes:
        numerator, denominator: [utterances]; denominators are not negative.
    """

    numerator: ArrayLike
    denominator: ArrayLike


@dataclass(frozen=True)
class Resampled:
    """A ratio, as observed and in every resample.

    Attributes:
        value: as observed; nan without a denominator.
        values: [resamples]; nan where a resample has no denominator.
    """

    value: float
    values: NDArray[np.float64]

    def interval(self, level: float = 0.95) -> Interval:
        """The value between the percentiles ``(1 ∓ level) / 2``; resamples without a denominator are left out.

        Raises:
            ValueError: level is not between 0 and 1.
        """
        return Interval(self.value, *_percentiles(self.values, level))

    def minus(self, base: Resampled, level: float = 0.95) -> Difference:
        """Paired difference from a base on the same resamples; below 0 if this rate is lower.

        Raises:
            ValueError: level is not between 0 and 1.
        """
        value = self.value - base.value
        differences = self.values - base.values
        defined = differences[np.isfinite(differences)]
        flips = float(np.mean(defined * np.sign(value) <= 0)) if np.isfinite(value) else float("nan")
        return Difference(value, *_percentiles(differences, level), flips)


def resample(ratios: Mapping[Key, Ratio], resamples: int = RESAMPLES, seed: int = 0) -> dict[Key, Resampled]:
    """Bootstrap any number of ratios; those over the same number of utterances share their resamples.

    Args:
        ratios: by any key.
        resamples: number of resamples; the same seed and number of utterances draw the same ones in every call.
        seed: see :func:`resampled_sums`.

    Raises:
        ValueError: shapes that do not fit, no utterance, or no resample.
    """
    tables = {key: _columns(ratio.numerator, ratio.denominator) for key, ratio in ratios.items()}
    result: dict[Key, Resampled] = {}
    for size in {len(table) for table in tables.values()}:
        alike = [key for key, table in tables.items() if len(table) == size]
        # One product for all: drawing costs more than summing.
        sums = resampled_sums(np.concatenate([tables[key] for key in alike], axis=1), resamples, seed)
        for place, key in enumerate(alike):
            observed = tables[key].sum(axis=0)
            result[key] = Resampled(float(_ratio(*observed)), _ratio(*sums[:, 2 * place : 2 * place + 2].T))
    return result


def resample_two_way(ratios: Mapping[Key, Ratio], resamples: int = RESAMPLES, seed: int = 0) -> dict[Key, Resampled]:
    """Bootstrap means over draws, for example of calibration speech: each draw gave a model scored on the same set.

    The interval covers other test speech and other draws: both are resampled, independently (the two-way or pigeonhole
    bootstrap; Owen, Annals of Applied Statistics 2007). With few draws it is too narrow, by about the factor √(1 −
    1/draws) where draws differ most.

    Args:
        ratios: by any key; numerators are [draws, utterances], denominators [utterances]. Those with equal
            numbers of both share their resamples, so that their differences are paired.
        resamples, seed: see :func:`resample`.

    Returns:
        the mean over draws of each ratio.

    Raises:
        ValueError: shapes that do not fit, no draw, no utterance, or no resample.
    """
    tables: dict[Key, NDArray[np.float64]] = {}
    for key, ratio in ratios.items():
        numerators, denominator = np.asarray(ratio.numerator, dtype=np.float64), np.asarray(ratio.denominator)
        if numerators.ndim != 2 or len(numerators) == 0 or denominator.shape != numerators.shape[1:]:
            raise ValueError(
                "numerators must be [draws, utterances] and denominators [utterances], "
                f"not {numerators.shape} and {denominator.shape}"
            )
        tables[key] = np.vstack([numerators, denominator]).T
    result: dict[Key, Resampled] = {}
    for shape in {table.shape for table in tables.values()}:
        alike = [key for key, table in tables.items() if table.shape == shape]
        draws = shape[1] - 1
        # Draws need another seed: with equal numbers, draws and utterances would otherwise be resampled in step.
        weights = resampled_sums(np.eye(draws), resamples, seed + 1) / draws
        sums = resampled_sums(np.concatenate([tables[key] for key in alike], axis=1), resamples, seed)
        for key, own in zip(alike, np.split(sums, len(alike), axis=1), strict=True):
            observed = tables[key].sum(axis=0)
            value = float(_ratio(observed[:-1].mean(), observed[-1]))
            result[key] = Resampled(value, _ratio((weights * own[:, :-1]).sum(axis=1), own[:, -1]))
    return result


def resampled_sums(counts: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Column sums over utterances drawn with replacement.

    With the counts of several systems side by side, every resample compares them on the same utterances.

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
        sums[start : start + len(drawn)] = weights.astype(np.float64) @ table
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
