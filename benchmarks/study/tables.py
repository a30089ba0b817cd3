"""A study's results as Markdown: damage by arm, paired differences, where variance comes from, the four bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.study.bars import Bar
from tarq.reports import text
from tarq.reports.markdown import head, row
from tarq.reports.statistics import (
    BASE,
    FIGURES,
    FULL,
    Comparison,
    Condition,
    Study,
    adjusted_in_families,
    conditions,
)
from tarq.reports.variance import Components
from tarq.scoring.bootstrap import Difference, Interval

#: Figures of the tables of damage; the others are in the results.
SHOWN = ("delta_nll_rare", "kl_rare", "delta_nll_common", "kl_common", "rare_wer", "wer")
#: That claims are decided by.
DECISIVE = ("delta_nll_rare", "rare_wer")
#: Differences to find: nats a target, or a share of words.
DETECT = (0.01, 0.02, 0.03)


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of every condition: damage by arm, then every arm less GPTQ and the pairs that the study names; then
    the claims of all conditions, adjusted within their families."""
    studies = [Study(results, condition, figures=SHOWN) for condition in conditions(results)]
    tables = [_tables(results, study) for study in studies]
    compared = [c for study in studies for c in study.comparisons() if c.figure in DECISIVE]
    return "\n\n".join([*tables, _claims(adjusted_in_families(compared))] if compared else tables)


def variance(results: Mapping[str, Any], detect: Sequence[float] | None = None) -> str:
    """For every condition, arms and pairs: standard deviations of what a draw and an utterance do, and draws needed."""
    detect = detect or DETECT
    lines = [
        "sd over draws: of the value on these utterances, in another draw of calibration speech. sd over utterances: "
        "of the value over all draws, on as many other utterances. Draws needed: with which a true difference is found "
        "with a chance of 80 % at a two-sided 5 %, on so many utterances; ∞ where they are too few for any number.",
    ]
    for condition in conditions(results):
        study = Study(results, condition)
        lines += ["", f"**{condition.title}**", ""]
        needed = [f"draws for {difference:g}" for difference in detect]
        lines += head(["", "figure", "draws", "value", "sd over draws", "sd over utterances", *needed])
        for arm in study.arms:
            for figure in study.figures:
                known, value = study.components(arm, figure), study.value(arm, figure)
                if arm != FULL and known is not None and value is not None:
                    lines.append(row(_components(arm, figure, value.value, known, detect)))
        for each in study.comparisons():
            name = f"{each.ours} − {each.base}"
            lines.append(row(_components(name, each.figure, each.difference.value, each.components, detect)))
    return "\n".join(lines)


def bars(found: Sequence[Bar]) -> str:
    """The four, each with its verdict, what it rests on, and what measures it where something is lacking."""
    return "\n\n".join(["\n".join(f"- {bar.title}: **{bar.verdict}**" for bar in found), *map(_bar, found)])


def _bar(bar: Bar) -> str:
    lines = [f"## {bar.title}", "", f"**{bar.verdict}**", "", *head(["model", "", "draws", "found", ""])]
    for claim in bar.claims:
        known = claim.known is None or not math.isnan(claim.known.value)
        found = claim.found.replace("\u00a0", " ") if known else text.NOTHING
        verdict = "" if claim.verdict == "beside" else claim.verdict
        cells = [claim.model, claim.what, str(claim.draws or text.NOTHING), found, verdict]
        lines.append(row([cell.replace("|", "\\|") for cell in cells]))
    if bar.remarks:
        lines += ["", *(f"- {remark}" for remark in bar.remarks)]
    if any(claim.verdict in ("not measured", "undecided") for claim in bar.claims):
        wanted = f"A claim wants {bar.draws} draws. All that this bar asks for is measured, in a file of its own, by"
        lines += ["", wanted, "", "```", bar.command, "```"]
    return "\n".join(lines)


def _components(name: str, figure: str, value: float, known: Components, detect: Sequence[float]) -> list[str]:
    over_utterances = math.sqrt(known.utterance / known.utterances)
    spread = ["–" if x is None else f"{x:.4f}" for x in (known.over_draws, over_utterances)]
    title = FIGURES[figure].title.removesuffix(" %")
    return [name, title, str(known.draws), f"{value:+.4f}", *spread, *(_count(known.draws_needed(x)) for x in detect)]


def _count(number: float) -> str:
    return "–" if math.isnan(number) else "∞" if math.isinf(number) else f"{number:.0f}"


def _tables(results: Mapping[str, Any], study: Study) -> str:
    model, shown = study.full, study.figures
    positions, settings = model["positions"], results["settings"]
    drawn = {
        figure: max((len(study.draws(arm, figure)) for arm in study.arms if arm != FULL), default=0) for figure in shown
    }
    words = [
        f"{sum(model['words'][kind]['words'])} {what} in {_draws(drawn[figure])}"
        for figure, kind, what in (("rare_wer", "rare", "rare words"), ("wer", "all", "words"))
        if drawn.get(figure)
    ]
    speakers = len(set(model["speakers"])) if model.get("speakers") else len(settings["speakers"])
    lines = [
        f"**{study.condition.model}**, {_condition(study.condition, settings)}; "
        f"{_draws(drawn.get('delta_nll_rare', 0))} of "
        f"{study.condition.samples or settings['samples']} calibration utterances; scored on {len(model['ids'])} "
        f"utterances of {speakers} speakers: "
        + ", ".join([f"{sum(positions['rare'])} rare targets", f"{sum(positions['common'])} common ones", *words])
        + ". 95 % intervals over draws and utterances.",
        "",
        *head(["", *(FIGURES[figure].title for figure in shown), "ΔNLL rare recovered"]),
    ]
    compared = {(c.ours, c.base, c.figure): c for c in study.comparisons()}
    for arm in study.arms:
        values = {figure: study.value(arm, figure) for figure in shown}
        cells = [_text(figure, value.interval()) if value else "–" for figure, value in values.items()]
        lines.append(row([arm, *cells, _recovered(compared.get((arm, BASE, "delta_nll_rare")))]))
    pairs = dict.fromkeys((ours, base) for ours, base, *_ in study.pairs if ours != FULL)
    if pairs:
        lines += ["", *head(["paired difference", *(FIGURES[figure].title for figure in shown)])]
    for ours, base in pairs:
        found = [compared.get((ours, base, figure)) for figure in shown]
        lines.append(row([f"{ours} − {base}", *(_text(c.figure, c.difference) if c else "–" for c in found)]))
    return "\n".join(lines)


def _claims(compared: Sequence[Comparison]) -> str:
    titles = ["family", "condition", "pair", "figure", "draws", "difference", "p", "p by Holm", "detectable"]
    lines = head(titles)
    for each in compared:
        lines.append(
            row(
                [
                    each.family,
                    each.condition.title,
                    f"{each.ours} − {each.base}",
                    FIGURES[each.figure].title,
                    str(len(each.draws)),
                    _text(each.figure, each.difference),
                    f"{each.p:.4f}",
                    f"{each.adjusted:.4f}",
                    text.size(each.figure, each.detectable),
                ]
            )
        )
    return "\n".join(lines)


def _condition(condition: Condition, settings: Mapping[str, Any]) -> str:
    pools = settings.get("pools", {})
    pool = f", pool {condition.pool}" if condition.pool and len(pools) > 1 else ""
    return f"W{condition.bits or 4}G128{pool}"


def _recovered(comparison: Comparison | None) -> str:
    """The share of GPTQ's damage to the true rare token that an arm does not do."""
    if comparison is None:
        return "–"
    return text.share(comparison.recovered).replace("\u00a0", " ")


def _text(figure: str, known: Interval | Difference) -> str:
    """A value and its interval; a difference carries a sign, and is bold where it is clear of 0."""
    if math.isnan(known.value):
        return "–"
    shown = text.full(figure, known)
    return f"**{shown}**" if isinstance(known, Difference) and known.clear_of_zero else shown


def _draws(count: int) -> str:
    return f"{count} draw{'s' if count != 1 else ''}"
