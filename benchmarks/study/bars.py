"""The four bars that the default is held to, from results files.

1. It recovers at least 60 % of the baseline's damage to rare words at four bits, on every model; common damage and WER
   are no worse; rare WER is lower on the models pooled.
2. What is tail-aware in a method is significant on rare targets, or its size is bounded.
3. At three bits its damage to rare words is no worse than the baseline's at four.
4. Its rare WER swings over calibration pools by at most 0.3 points, or less than every other method's.

A claim rests on at least three calibration draws, one about a share of the tail on eight; with fewer it is undecided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tarq.errors import ConfigError
from tarq.reports import text
from tarq.reports.statistics import (
    FULL,
    Cell,
    Comparison,
    Condition,
    Study,
    adjusted_in_families,
    conditions,
    pooled,
    swing,
)
from tarq.scoring.bootstrap import Difference, Interval

#: ``beside``: shown for comparison, decides nothing. ``bounded``: not found, with the size that would have been.
Verdict = Literal["reached", "missed", "undecided", "not measured", "bounded", "beside"]
SHARE, STRETCH = 0.60, 0.75
SWING = 0.003  # of rare WER, a fraction
LEVEL = 0.05
DRAWS, TAIL_DRAWS = 3, 8
DAMAGE, OPINION = "delta_nll_rare", "kl_rare"

TITLES = {
    1: "the default recovers at least 60 % of the baseline's damage to rare words; common words are no worse off",
    2: "the share of the tail is significant on rare targets, or bounded",
    3: "at three bits, rare words are no worse off than under the baseline at four",
    4: "rare WER swings over calibration pools by at most 0.3 points, or least of all methods",
}
#: What measures a bar from nothing: parts of main.yaml.
_POOL = ("pool=uniform", "samples=128")
PARTS = {
    1: (*_POOL, "bits=4", "arm=gptq|gptq, zero points|refined"),
    2: (*_POOL, "bits=4", "arm=refined|refined, c 1|refined, gradient|refined, random"),
    3: (*_POOL, "bits=4|3", "arm=gptq|refined"),
    4: ("samples=128", "bits=4", "arm=gptq|gptq, zero points|refined, symmetric|refined"),
}


@dataclass(frozen=True)
class Names:
    """What the arms of a study are called.

    Attributes:
        default: the arm that is held to the bars.
        baselines: the first one decides, the others stand beside it.
        tail: (arm, base): a tail-aware arm, and the same without the tail or with random positions in its place.
    """

    default: str
    baselines: tuple[str, ...]
    tail: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        results: Mapping[str, Any],
        default: str | None = None,
        baselines: Sequence[str] = (),
        tail: Sequence[str] = (),
    ) -> Names:
        """As given, and otherwise as the study's grid has them.

        Args:
            tail: families of the study's comparisons, or pairs ``OURS|BASE``.

        Raises:
            ConfigError: neither says which arm is meant, or there is no such arm or family.
        """
        named = results.get("bars") or {}
        arms = list(dict.fromkeys([*results.get("arms", {}), *(Cell.parse(key).arm for key in results["cells"])]))
        there = f"there are {', '.join(map(repr, arms))}"
        default = default or named.get("default")
        bases = tuple(baselines or named.get("baselines") or ())
        if default is None or not bases:
            raise ConfigError(f"the results do not name the arms: give --default ARM and --base ARM; {there}")
        pairs: list[tuple[str, str]] = []
        families: dict[str, list[tuple[str, str]]] = {}
        for ours, base, *family in results.get("pairs") or ():
            families.setdefault(family[0] if family else "", []).append((ours, base))
        for entry in tail or named.get("tail") or ():
            ours, cut, base = entry.partition("|")
            members = families.get(entry, [])
            if not cut and not members:
                raise ConfigError(
                    f"there is no family {entry!r} of comparisons: there are {', '.join(sorted(families)) or 'none'}; "
                    "or give OURS|BASE"
                )
            pairs += [(ours, base)] if cut else members
        for arm in (default, *bases, *(arm for pair in pairs for arm in pair)):
            if arm not in arms:
                raise ConfigError(f"there is no arm {arm!r}; {there}")
        return cls(default, bases, tuple(dict.fromkeys(pairs)))


@dataclass(frozen=True)
class Claim:
    """One thing that a bar asks of one model, or of the models pooled.

    Attributes:
        known: what was found; None where it was not measured.
        found: the same in words, or what is lacking.
        draws: it rests on.
    """

    model: str
    what: str
    verdict: Verdict
    found: str
    known: Interval | Difference | None = None
    draws: int = 0


@dataclass(frozen=True)
class Bar:
    """One of the four."""

    number: int
    claims: list[Claim] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"Bar {self.number}: {TITLES[self.number]}"

    @property
    def verdict(self) -> Verdict:
        """The worst of its claims; of bar 2, for which one model is enough, the best."""
        found = {claim.verdict for claim in self.claims} - {"beside"}
        order: tuple[Verdict, ...] = ("missed", "not measured", "undecided", "bounded", "reached")
        if self.number == 2:
            order = ("reached", "not measured", "undecided", "bounded", "missed")
        return next((verdict for verdict in order if verdict in found), "not measured")

    @property
    def draws(self) -> int:
        """Draws that a claim needs."""
        return TAIL_DRAWS if self.number == 2 else DRAWS

    @property
    def command(self) -> str:
        """Measures all that it asks for, in a file of its own."""
        parts = " ".join(f'--only "{part}"' for part in PARTS[self.number])
        return (
            "python -m benchmarks.study run benchmarks/study/main.yaml --models FOLDER --speech FOLDER "
            f"{parts} --out build/study/main.json"
        )


def bars(results: Mapping[str, Any], names: Names) -> list[Bar]:
    """All four of a study's results (``tarq.reports.statistics.merged`` of its files)."""
    # A model on a further set goes by another name than its own.
    models = [name for name, model in results["models"].items() if model.get("model", name) == name]
    return [make(results, names, models) for make in (_recovery, _tail, _fewer_bits, _swings)]


def _main(results: Mapping[str, Any], model: str) -> Condition | None:
    """A model's condition at four bits: of its pools and sizes the one with most cells."""
    found = [Cell.parse(key).condition for key in results["cells"]]
    known = [c for c in found if c.model == model and c.bits in (4, None)]
    return max(dict.fromkeys(known), key=known.count) if known else None


def _absent(model: str, what: str, lacking: str) -> Claim:
    return Claim(model, what, "not measured", lacking)


def _enough_draws(verdict: Verdict, draws: int, wanted: int = DRAWS) -> Verdict:
    """A verdict that rests on enough draws."""
    return verdict if draws >= wanted or verdict == "beside" else "undecided"


def _no_worse(known: Difference) -> Verdict:
    return "reached" if known.value <= 0 else "missed" if known.low > 0 else "undecided"


# --- 1 ---


def _recovery(results: Mapping[str, Any], names: Names, models: Sequence[str]) -> Bar:
    bar = Bar(1)
    pairs = [(names.default, base, "") for base in names.baselines]
    figures = (DAMAGE, OPINION, "delta_nll_common", "kl_common", "rare_wer", "wer")
    transcribed: list[Comparison] = []
    for model in models:
        condition = _main(results, model)
        if condition is None:
            bar.claims.append(_absent(model, "all", "no cells at four bits"))
            continue
        study = Study(results, condition, pairs, figures)
        for base in names.baselines:
            decides = base == names.baselines[0]
            compared = {figure: study.compare(names.default, base, figure) for figure in figures}
            bar.claims.extend(_recovered(model, study, base, compared, decides))
            if decides and (rare := compared["rare_wer"]) is not None:
                transcribed.append(rare)
    base = names.baselines[0]
    what = f"rare WER, less {base}’s, models pooled"
    if len(transcribed) < len(models):
        bar.claims.append(_absent("all", what, f"{len(transcribed)} of {len(models)} models were transcribed by both"))
    else:
        known, draws = pooled(transcribed), min(len(each.draws) for each in transcribed)
        verdict: Verdict = "reached" if known.high < 0 else "missed"
        bar.claims.append(Claim("all", what, _enough_draws(verdict, draws), text.full("rare_wer", known), known, draws))
    return bar


def _recovered(
    model: str, study: Study, base: str, compared: Mapping[str, Comparison | None], decides: bool
) -> Iterator[Claim]:
    for figure in (DAMAGE, OPINION):
        what = f"{text.heading(figure)}: share of {base}’s damage recovered"
        if (c := compared[figure]) is None:
            yield _absent(model, what, f"the default and {base} share no draw")
            continue
        theirs = study.value(base, figure, c.draws)
        assert theirs is not None
        verdict: Verdict = "reached" if c.recovered.value >= SHARE and c.recovered.low > 0 else "missed"
        found = text.share(c.recovered)
        if not theirs.interval().low > 0:
            verdict, found = "undecided", f"{found}, of damage that is not clear of 0"
        elif verdict == "reached" and c.recovered.value >= STRETCH:
            found += f"; also {STRETCH:.0%}".replace("%", "\u00a0%")
        verdict = _enough_draws(verdict, len(c.draws)) if decides and figure == DAMAGE else "beside"
        yield Claim(model, what, verdict, found, c.recovered, len(c.draws))
    for figure in ("delta_nll_common", "kl_common", "wer", "rare_wer"):
        what = f"{text.heading(figure)}, less {base}’s"
        if (c := compared[figure]) is None:
            if decides and figure != "rare_wer":  # which the models pooled are asked for
                yield _absent(model, what, f"the default and {base} share no draw of it")
            continue
        asked = decides and figure in ("delta_nll_common", "wer")
        verdict = _enough_draws(_no_worse(c.difference), len(c.draws)) if asked else "beside"
        yield Claim(model, what, verdict, text.full(figure, c.difference), c.difference, len(c.draws))


# --- 2 ---


def _tail(results: Mapping[str, Any], names: Names, models: Sequence[str]) -> Bar:
    """An arm has a share of the tail on a model where it is better by ΔNLL than every base it is compared with."""
    bar = Bar(2)
    known_arms = {Cell.parse(key).arm for key in results["cells"]}
    arms = list(dict.fromkeys(arm for arm, _ in names.tail))
    if not known_arms.intersection(arms):
        lacking = f"no cells of {', '.join(arms)}" if arms else "no pairs are named (--tail)"
        bar.claims.append(_absent("all", "share of the tail", lacking))
    elif missing := [arm for arm in arms if arm not in known_arms]:
        bar.remarks.append(f"Not measured: {'; '.join(missing)}.")
    figures = (DAMAGE, OPINION, "rare_wer")
    found: list[Comparison] = []
    for condition in filter(None, (_main(results, model) for model in models)):
        study = Study(results, condition, [(*pair, "tail") for pair in names.tail], figures)
        found += study.comparisons()
    adjusted = {(c.condition.model, c.ours, c.base, c.figure): c for c in adjusted_in_families(found)}
    for model in models:
        for ours in filter(known_arms.__contains__, arms):
            bases = [base for arm, base in names.tail if arm == ours]
            known = [adjusted.get((model, ours, base, DAMAGE)) for base in bases]
            better = all(c is not None and c.adjusted < LEVEL and c.difference.value < 0 for c in known)
            for base in bases:
                for figure in figures:
                    what = f"{ours} − {base}: {text.heading(figure)}"
                    each = adjusted.get((model, ours, base, figure))
                    if each is None:
                        if figure == DAMAGE:
                            bar.claims.append(_absent(model, what, "the two share no draw"))
                        continue
                    verdict: Verdict = "beside"
                    if figure == DAMAGE:
                        verdict = _enough_draws("reached" if better else "bounded", len(each.draws), TAIL_DRAWS)
                    shown = f"{text.full(figure, each.difference)}; Holm’s {text.p(each.adjusted)}; "
                    shown += f"detectable {text.size(figure, each.detectable)}"
                    bar.claims.append(Claim(model, what, verdict, shown, each.difference, len(each.draws)))
            if better or None in known:
                continue
            largest = max(c.detectable for c in known if c is not None)
            gain = max(-c.difference.low for c in known if c is not None)
            bar.remarks.append(
                f"{model}, {ours}: a true difference of {text.size(DAMAGE, largest)} nats would have been found with a "
                f"chance of 80 %; the intervals leave room for a gain of {text.size(DAMAGE, max(gain, 0.0))} at most."
            )
    return bar


# --- 3 ---


def _fewer_bits(results: Mapping[str, Any], names: Names, models: Sequence[str]) -> Bar:
    bar, known = Bar(3), conditions(results)
    base = names.baselines[0]
    for model in models:
        high = _main(results, model)
        low = high and high._replace(bits=3)
        if high is None or low is None or low not in known:
            lacking = f"no cells at W{3 if high else 4}"
            bar.claims.append(_absent(model, f"{names.default} at W3 − {base} at W4", lacking))
            continue
        # As two arms of one condition they are paired within draws and utterances.
        ours, theirs = f"{names.default} at W3", f"{base} at W4"
        cells = {
            f"{model}/{name}/{cell.draw}": results["cells"][key]
            for name, arm, condition in ((ours, names.default, low), (theirs, base, high))
            for key in results["cells"]
            if (cell := Cell.parse(key)).arm == arm and cell.condition == condition
        }
        both = {**results, "arms": {}, "pairs": [], "cells": cells}
        study = Study(both, Condition(model), [(ours, theirs, "")], (OPINION, DAMAGE))
        for figure in (OPINION, DAMAGE):
            what = f"{text.heading(figure)}: {ours} − {theirs}"
            if (c := study.compare(ours, theirs, figure)) is None:
                bar.claims.append(_absent(model, what, "the two share no draw"))
                continue
            verdict = _enough_draws(_no_worse(c.difference), len(c.draws)) if figure == OPINION else "beside"
            bar.claims.append(Claim(model, what, verdict, text.full(figure, c.difference), c.difference, len(c.draws)))
    return bar


# --- 4 ---


def _swings(results: Mapping[str, Any], names: Names, models: Sequence[str]) -> Bar:
    bar = Bar(
        4, remarks=["A swing is never below 0: noise alone makes it larger, in its interval more than in its value."]
    )
    figure, what = "rare_wer", "swing of rare WER over pools"
    for model in models:
        main = _main(results, model)
        alike = [c for c in conditions(results) if main is not None and c._replace(pool=main.pool) == main]
        studies = {c.pool or "": Study(results, c, [], (figure,)) for c in alike}
        pools = [pool for pool, study in studies.items() if study.value(names.default, figure) is not None]
        if len(pools) < 2:
            bar.claims.append(_absent(model, what, f"{names.default} was transcribed in {len(pools)} pools"))
            continue
        found: dict[str, tuple[Interval, int]] = {}
        for arm in dict.fromkeys([names.default, *(a for study in studies.values() for a in study.arms)]):
            values = [value for pool in pools if (value := studies[pool].value(arm, figure)) is not None]
            if arm != FULL and len(values) == len(pools):
                found[arm] = swing(values), _fewest(results, arm, [studies[pool] for pool in pools])
        ours, draws = found.pop(names.default)
        least = bool(found) and all(ours.value < theirs.value for theirs, _ in found.values())
        verdict: Verdict = "reached" if ours.value <= SWING or least else "missed"
        shown = f"{text.full(figure, ours)} over {', '.join(pools)}"
        bar.claims.append(Claim(model, f"{what}: {names.default}", _enough_draws(verdict, draws), shown, ours, draws))
        for arm, (theirs, count) in found.items():
            bar.claims.append(Claim(model, f"{what}: {arm}", "beside", text.full(figure, theirs), theirs, count))
    return bar


def _fewest(results: Mapping[str, Any], arm: str, studies: Iterable[Study]) -> int:
    """Draws of an arm in the pool that has fewest; r-top, which takes the same utterances in every draw, is not one."""
    pools = results["settings"].get("pools", {})
    drawn = {s.condition.pool: len(s.draws(arm, "rare_wer")) for s in studies}
    counted = [n for pool, n in drawn.items() if pools.get(pool, {}).get("pool") != "r-top"]
    return min(counted or drawn.values())
