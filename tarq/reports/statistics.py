"""Statistics of a study's cells: values, paired differences, their significance, and where their variance comes from.

A cell is an arm on a draw of calibration speech, under a condition (model, calibration pool, samples, bits). Arms are
compared within a draw, on the same utterances, and averaged over draws. Intervals are those of a two-way bootstrap over
draws and utterances (:func:`tarq.scoring.bootstrap.resample_two_way`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tarq.errors import DataError
from tarq.reports.variance import POWER, Components, components
from tarq.scoring.bootstrap import RESAMPLES, Difference, Interval, Ratio, Resampled, resample_two_way
from tarq.scoring.figures import BANDED
from tarq.scoring.figures import FIGURES as SCORED

#: The arm that others are compared with, and the name full precision goes by beside the arms.
BASE, FULL = "gptq", "full precision"
#: Settings that older results do not state, and what they were then.
STATED_LATER = {"dtype": "float32"}
_ERRORS = ("substitutions", "deletions", "insertions")


class Source(NamedTuple):
    """Where a cell keeps a figure: sums of these ``counts`` of ``part``, over ``whole``, all by utterance."""

    title: str
    part: str
    kind: str
    counts: tuple[str, ...] = ()
    whole: str = "words"


_TITLES = {figure.name: figure.title for figure in SCORED}
#: Figure to where it is kept.
FIGURES = {
    **{
        f"{name}_{kind}": Source(_TITLES[f"{name}_{kind}"], name, kind)
        for kind in ("rare", "common")
        for name in ("delta_nll", "kl")
    },
    "rare_wer": Source(_TITLES["rare_wer"], "words", "rare", _ERRORS),
    "rare_miss_rate": Source(_TITLES["rare_miss_rate"], "words", "rare", _ERRORS[:2]),
    "b_wer": Source(_TITLES["b_wer"], "words", "biased", _ERRORS),
    "numeral_wer": Source("numeral WER %", "words", "numerals", _ERRORS),
    "ne_wer": Source(_TITLES["ne_wer"], "words", "entities", ("errors",)),
    "ne_fnr": Source(_TITLES["ne_fnr"], "words", "entities", ("missed",), "mentions"),
    "wer": Source(_TITLES["wer"], "words", "all", _ERRORS),
    "insertions": Source(_TITLES["insertions"], "words", "all", ("insertions",)),
    "looping": Source(_TITLES["looping"], "words", "signs", ("looping",), "utterances"),
    "timestamp_shift": Source("timestamp shift s", "words", "times", ("shift",), "utterances"),
}
#: Band of frequency to the damage to targets of its words: ΔNLL, then KL.
BANDS = {
    band: {figure.name: Source(figure.title, figure.name.removesuffix(f" {band}"), band) for figure in figures}
    for band, figures in BANDED.items()
}
_SOURCES = FIGURES | {name: source for figures in BANDS.values() for name, source in figures.items()}


class Condition(NamedTuple):
    """What a comparison of arms holds fixed; None where a results file does not say."""

    model: str
    pool: str | None = None
    samples: int | None = None
    bits: int | None = None

    @property
    def title(self) -> str:
        """In words, for the heading of a table."""
        parts = [f"pool {self.pool}"] if self.pool else []
        parts += [f"{self.samples} utterances"] if self.samples else []
        return ", ".join([self.model, *([f"W{self.bits}"] if self.bits else []), *parts])


class Cell(NamedTuple):
    """What a cell's key says: ``MODEL/ARM/DRAW`` or ``MODEL/ARM/DRAW/POOL/SAMPLES/BITS/CORPUS``."""

    condition: Condition
    arm: str
    draw: int

    @classmethod
    def parse(cls, key: str) -> Cell:
        """Raises DataError where the key is neither of the two; names it."""
        parts = key.split("/")
        try:
            if len(parts) == 3:
                return cls(Condition(parts[0]), parts[1], int(parts[2]))
            model, arm, draw, pool, samples, bits, _ = parts
            return cls(Condition(model, pool, int(samples), int(bits)), arm, int(draw))
        except ValueError:
            raise DataError(
                f"cell {key!r} is not named MODEL/ARM/DRAW or MODEL/ARM/DRAW/POOL/SAMPLES/BITS/CORPUS"
            ) from None


@dataclass(frozen=True)
class Comparison:
    """One arm less another, paired within draws and utterances.

    Attributes:
        family: of comparisons that are made together; empty where the study names none.
        draws: those that both arms have.
        by_draw: the difference in each of them.
        resampled: the difference in every resample.
        p: two-sided, from the resamples.
        adjusted: ``p`` by Holm within the family; ``p`` itself until :func:`adjusted_in_families` is asked.
        standard_error: of the resamples.
        recovered: the share of the base's damage that the arm does not do.
        components: of the difference's variance.
    """

    condition: Condition
    ours: str
    base: str
    family: str
    figure: str
    draws: tuple[int, ...]
    by_draw: tuple[float, ...]
    resampled: Resampled
    difference: Difference
    p: float
    adjusted: float
    standard_error: float
    recovered: Interval
    components: Components

    @property
    def detectable(self) -> float:
        """The smallest true difference that would be found with a chance of 80 %: 2.8 standard errors."""
        return POWER * self.standard_error


class Study:
    """Cells of one condition, resampled: every arm over its own draws, every pair over the draws that both have.

    An arm that draws no calibration speech has a single cell, which counts in every draw.

    Args:
        results: of the whole study.
        condition: which cells.
        pairs: (arm, base, family); by default those of the results, and every other arm against ``gptq``.
        figures: those of :data:`FIGURES` that there are, by default; or of a band in :data:`BANDS`.

    Attributes:
        arms: in the order of the results' arms, full precision (of figures it has) first.
        figures: those that an arm has.
    """

    def __init__(
        self,
        results: Mapping[str, Any],
        condition: Condition,
        pairs: Sequence[Sequence[str]] | None = None,
        figures: Sequence[str] = tuple(FIGURES),
        resamples: int = RESAMPLES,
    ) -> None:
        self.condition = condition
        self.full = results["models"][condition.model]
        self._rows, self._constant = _tables(results, condition, figures)
        known = {arm for arm, _ in self._rows}
        order = [*results.get("arms", {}), *sorted(known)]
        self.arms = [arm for arm in dict.fromkeys([FULL, *order]) if arm in known]
        self.figures = [figure for figure in figures if any(figure == name for _, name in self._rows)]
        self.pairs = [p for p in (all_pairs(results) if pairs is None else pairs) if {p[0], p[1]} <= known]
        wanted = {(arm, figure, tuple(self.draws(arm, figure))) for arm, figure in self._rows}
        for ours, base, *_ in self.pairs:
            for figure in self.figures:
                shared = self.shared(ours, base, figure)
                wanted |= {(arm, figure, shared) for arm in (ours, base) if shared}
        self._tables = {key: self._table(*key) for key in wanted}
        self._resampled = resample_two_way(self._tables, resamples) if wanted else {}

    def draws(self, arm: str, figure: str) -> list[int]:
        """That an arm was measured in; empty where it has no such figure."""
        return sorted(self._rows.get((arm, figure), {}))

    def shared(self, ours: str, base: str, figure: str) -> tuple[int, ...]:
        """Draws in which two arms can be compared."""
        drawn = [set(self.draws(arm, figure)) for arm in (ours, base) if arm not in self._constant]
        if not all((arm, figure) in self._rows for arm in (ours, base)):
            return ()
        return tuple(sorted(set.intersection(*drawn))) if drawn else (0,)

    def value(self, arm: str, figure: str, draws: Sequence[int] | None = None) -> Resampled | None:
        """An arm's mean over its draws, or over those a pair of it shares; None where it has no such figure."""
        return self._resampled.get((arm, figure, tuple(self.draws(arm, figure) if draws is None else draws)))

    def within(self, figure: str, groups: Mapping[str, NDArray[np.bool_]]) -> dict[tuple[str, str], Resampled]:
        """Each arm's mean over its draws on some of the utterances: (arm, group) to value, where there is something to
        divide by.

        Args:
            groups: name to the utterances of it, bool [utterances].
        """
        tables = {}
        for arm in self.arms:
            whole = self._tables.get((arm, figure, tuple(self.draws(arm, figure))))
            if whole is None:
                continue
            for name, chosen in groups.items():
                if (below := np.asarray(whole.denominator)[chosen]).sum():
                    tables[arm, name] = Ratio(np.asarray(whole.numerator)[:, chosen], below)
        return resample_two_way(tables) if tables else {}

    def components(self, arm: str, figure: str) -> Components | None:
        """What the variance of an arm's value comes from; None where it has no such figure."""
        table = self._tables.get((arm, figure, tuple(self.draws(arm, figure))))
        return None if table is None else components(table.numerator, table.denominator)

    def compare(self, ours: str, base: str, figure: str, family: str = "") -> Comparison | None:
        """A pair's difference; None where they share no draw, or it is not among :attr:`pairs`."""
        draws = self.shared(ours, base, figure)
        a, b = (self._resampled.get((arm, figure, draws)) for arm in (ours, base))
        if a is None or b is None:
            return None
        first, second = (self._tables[arm, figure, draws] for arm in (ours, base))
        difference = np.asarray(first.numerator) - np.asarray(second.numerator)
        whole = np.asarray(first.denominator)
        gap = Resampled(a.value - b.value, a.values - b.values)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = 1 - a.values / b.values
            shares[np.isinf(shares)] = np.nan  # the base did no damage in that resample
            share = Resampled(1 - float(np.divide(a.value, b.value)), shares)
            by_draw = tuple(map(float, difference.sum(axis=1) / whole.sum()))
        p = p_value(a, b)
        return Comparison(
            condition=self.condition,
            ours=ours,
            base=base,
            family=family,
            figure=figure,
            draws=draws,
            by_draw=by_draw,
            resampled=gap,
            difference=a.minus(b),
            p=p,
            adjusted=p,
            standard_error=float(np.nanstd(gap.values)),
            recovered=share.interval(),
            components=components(difference, whole),
        )

    def comparisons(self) -> list[Comparison]:
        """Every pair in every figure that both have."""
        pairs = [(ours, base, family[0] if family else "") for ours, base, *family in self.pairs]
        made = [self.compare(a, b, figure, family) for a, b, family in pairs for figure in self.figures]
        return [comparison for comparison in made if comparison is not None]

    def _table(self, arm: str, figure: str, draws: Sequence[int]) -> Ratio:
        rows = self._rows[arm, figure]
        table = [next(iter(rows.values())) if arm in self._constant else rows[draw] for draw in draws]
        return Ratio(np.array(table, dtype=np.float64), np.array(_denominators(self.full, figure)))


def conditions(results: Mapping[str, Any]) -> list[Condition]:
    """Of the cells, in the order of the results."""
    return list(dict.fromkeys(Cell.parse(key).condition for key in results["cells"]))


def all_pairs(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(Arm, base, family): every arm against ``gptq``, as one family, and then the pairs that the results name."""
    named = [(ours, base, *family, "")[:3] for ours, base, *family in results.get("pairs") or []]
    arms = dict.fromkeys([*results.get("arms", {}), *(Cell.parse(key).arm for key in results["cells"])])
    known = {(ours, base) for ours, base, _ in named}
    return [(arm, BASE, f"against {BASE}") for arm in arms if arm != BASE and (arm, BASE) not in known] + named


def numerators(cell: Mapping[str, Any], figure: str) -> list[float] | None:
    """A figure's sum of every utterance; None where the cell has none."""
    source = _SOURCES[figure]
    kept = (cell.get(source.part) or {}).get(source.kind)
    if kept is None or not source.counts:
        return kept
    return [sum(row) for row in zip(*(kept[count] for count in source.counts), strict=True)]


def _denominators(full: Mapping[str, Any], figure: str) -> list[int]:
    source = _SOURCES[figure]
    return full["words"][source.kind][source.whole] if source.counts else full["positions"][source.kind]


def _tables(
    results: Mapping[str, Any], condition: Condition, figures: Sequence[str]
) -> tuple[dict[tuple[str, str], dict[int, list[float]]], set[str]]:
    """(Arm, figure) to draw to sums by utterance; and the arms whose one cell counts in every draw."""
    rows: dict[tuple[str, str], dict[int, list[float]]] = {}
    constant = {FULL}
    found = {FULL: {0: results["models"][condition.model]}}
    for key, measured in results["cells"].items():
        cell = Cell.parse(key)
        if cell.condition == condition:
            found.setdefault(cell.arm, {})[cell.draw] = measured
            if measured.get("calibration_seconds", 0) is None:
                constant.add(cell.arm)
    for arm, drawn in found.items():
        for draw, measured in sorted(drawn.items()):
            for figure in figures:
                if (row := numerators(measured, figure)) is not None and not (
                    arm in constant and (arm, figure) in rows
                ):
                    rows.setdefault((arm, figure), {})[draw] = row
    return rows, constant


# --- how firm a difference is ---


def p_value(ours: Resampled, base: Resampled) -> float:
    """Two-sided p of a paired difference: twice the share of resamples that are not of its sign, never 0."""
    flips, count = ours.minus(base).sign_flips, len(ours.values)
    return min(1.0, 2 * (flips * count + 1) / (count + 1))


def holm(values: Sequence[float]) -> list[float]:
    """p-values of a family, adjusted so that the chance of any false claim in it is held (Holm, 1979)."""
    order = sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), values[i]))
    adjusted, highest = [math.nan] * len(values), 0.0
    tests = sum(not math.isnan(value) for value in values)
    for rank, i in enumerate(i for i in order if not math.isnan(values[i])):
        highest = max(highest, min(1.0, (tests - rank) * values[i]))
        adjusted[i] = highest
    return adjusted


def adjusted_in_families(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same, their p adjusted by Holm over a family: its pairs under all conditions (models, pools …), a figure at a
    time."""
    families: dict[tuple[str, str], list[int]] = {}
    for place, each in enumerate(comparisons):
        families.setdefault((each.family, each.figure), []).append(place)
    adjusted = list(comparisons)
    for places in families.values():
        for place, value in zip(places, holm([comparisons[i].p for i in places]), strict=True):
            adjusted[place] = replace(comparisons[place], adjusted=value)
    return adjusted


def pooled(comparisons: Sequence[Comparison]) -> Difference:
    """The mean of differences, of one pair on several models, say. Those scored on equally many draws and utterances
    were resampled alike, so that what they share stays shared."""
    value = float(np.mean([each.resampled.value for each in comparisons]))
    values = np.mean([each.resampled.values for each in comparisons], axis=0)
    return Resampled(value, values).minus(Resampled(0.0, np.zeros_like(values)))


def swing(values: Sequence[Resampled]) -> Interval:
    """The largest of some values less the smallest, of an arm over calibration pools, say. It is never below 0, and
    noise alone makes it larger, in the resamples more than in what was observed."""
    resampled = np.stack([each.values for each in values])
    spread = max(each.value for each in values) - min(each.value for each in values)
    return Resampled(spread, resampled.max(axis=0) - resampled.min(axis=0)).interval()


def merged(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results that were measured in several runs with the same settings, as one.

    Models that were not decoded in one run keep the transcripts of another, and what one run did not count yet, such as
    targets by band of frequency, is taken from another.

    Raises:
        DataError: they are not of one study.
    """
    if any(STATED_LATER | results["settings"] != STATED_LATER | files[0]["settings"] for results in files):
        raise DataError("the files were measured with different settings: give those of one study")
    whole: dict[str, Any] = {}
    for results in files:
        for name, model in results["models"].items():
            if model["ids"] != whole.get("models", {}).get(name, model)["ids"]:
                raise DataError(f"{name} was scored on different utterances: give the files of one study")
        joined = {part: dict(whole.get(part, {})) | (results.get(part) or {}) for part in ("arms", "models", "cells")}
        for name, model in results["models"].items():
            known = whole.get("models", {}).get(name, {})
            counts = {p: {**(known.get(p) or {}), **model[p]} for p in ("positions", "words") if model.get(p)}
            joined["models"][name] = known | model | counts
        pairs = [*whole.get("pairs", []), *(results.get("pairs") or [])]
        whole |= {**results, **joined, "pairs": [list(pair) for pair in dict.fromkeys(map(tuple, pairs))]}
    return whole
