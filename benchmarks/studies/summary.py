"""Summary of a study's cells: means over draws, differences within a draw, intervals over draws and utterances."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tarq.scoring.bootstrap import Difference, Interval, Ratio, Resampled, resample_two_way

#: Figure → title, factor it is shown with, decimals.
FIGURES = {
    "delta_nll_rare": ("ΔNLL rare", 1, 3),
    "kl_rare": ("KL rare", 1, 3),
    "delta_nll_common": ("ΔNLL common", 1, 3),
    "kl_common": ("KL common", 1, 3),
    "rare_wer": ("rare WER %", 100, 1),
    "wer": ("WER %", 100, 1),
}
WORDS = {"rare_wer": "rare", "wer": "all"}
BASE = "gptq"
FULL = "full precision"


def merged(files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results that were measured in several runs with the same settings, as one.

    Models that were not decoded in one run keep the transcripts of another.
    """
    if any(results["settings"] != files[0]["settings"] for results in files):
        sys.exit("the files were measured with different settings: give those of one study")
    models: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    for results in files:
        cells |= results["cells"]
        for name, model in results["models"].items():
            if model["ids"] != models.get(name, model)["ids"]:
                sys.exit(f"{name} was scored on different utterances: give the files of one study")
            models[name] = models.get(name, {}) | model
    return {"settings": files[0]["settings"], "models": models, "cells": cells}


def resampled(results: dict[str, Any], model: str) -> tuple[dict[tuple[str, str], Resampled], dict[str, list[int]]]:
    """(Arm, figure) to its value over draws and utterances, and figure to its draws: those that every arm has it for.

    An arm that draws no calibration speech has a single cell, which stands in every draw.
    """
    constant = set()
    found: dict[str, dict[str, dict[int, list[float]]]] = {figure: {} for figure in FIGURES}
    for key, cell in results["cells"].items():
        name, arm, draw = key.rsplit("/", 2)
        if cell["calibration_seconds"] is None:
            constant.add(arm)
        for figure in FIGURES:
            if name == model and (row := _numerators(cell, figure)) is not None:
                found[figure].setdefault(arm, {})[int(draw)] = row
    ratios: dict[tuple[str, str], Ratio] = {}
    draws: dict[str, list[int]] = {}
    full = results["models"][model]
    for figure, arms in found.items():
        if not arms:
            continue
        drawn = [set(rows) for arm, rows in arms.items() if arm not in constant] or [{0}]
        shared = draws[figure] = sorted(set.intersection(*drawn))
        if not shared:
            continue
        for arm, rows in arms.items():
            table = [next(iter(rows.values())) if arm in constant else rows[draw] for draw in shared]
            ratios[arm, figure] = Ratio(table, _denominators(full, figure))
        if (own := _numerators(full, figure)) is not None:
            ratios[FULL, figure] = Ratio([own] * len(shared), _denominators(full, figure))
    return resample_two_way(ratios), draws


def _numerators(cell: dict[str, Any], figure: str) -> list[float] | None:
    """A figure's sum of every utterance; None where the cell has none."""
    if figure in WORDS:
        counts = cell.get("words", {}).get(WORDS[figure])
        kinds = ("substitutions", "deletions", "insertions")
        return counts and [sum(row) for row in zip(*(counts[kind] for kind in kinds), strict=True)]
    name, kind = figure.rsplit("_", 1)
    return cell.get(name, {}).get(kind)


def _denominators(full: dict[str, Any], figure: str) -> list[int]:
    if figure in WORDS:
        return full["words"][WORDS[figure]]["words"]
    return full["positions"][figure.rsplit("_", 1)[1]]


def markdown(results: dict[str, Any], arms: Sequence[str], pairs: Sequence[tuple[str, str]]) -> str:
    """The tables of every model: damage by arm, then differences from GPTQ and of the pairs asked for."""
    return "\n\n".join(_model_tables(results, model, arms, pairs) for model in results["models"])


def _model_tables(results: dict[str, Any], model: str, arms: Sequence[str], pairs: Sequence[tuple[str, str]]) -> str:
    values, draws = resampled(results, model)
    shown = [figure for figure in FIGURES if any(figure == known for _, known in values)]
    if not shown:
        return f"**{model}**: no cells yet"
    arms = [arm for arm in (FULL, *arms) if any(arm == known for known, _ in values)]
    positions = results["models"][model]["positions"]
    settings, damage = results["settings"], draws["delta_nll_rare"]
    lines = [
        f"**{model}**, W4G128; {_draws(damage)} of {settings['samples']} calibration utterances; scored on "
        f"{len(results['models'][model]['ids'])} utterances of {len(settings['speakers'])} speakers: "
        f"{sum(positions['rare'])} rare targets, {sum(positions['common'])} common ones"
        + "".join(
            f", {sum(_denominators(results['models'][model], figure))} {what} in {_draws(draws[figure])}"
            for figure, what in (("rare_wer", "rare words"), ("wer", "words"))
            if figure in shown
        )
        + ". 95 % intervals over draws and utterances.",
        "",
        _row(["", *(FIGURES[figure][0] for figure in shown), "ΔNLL rare recovered"]),
        _row(["---"] * (len(shown) + 2)),
    ]
    for arm in arms:
        cells = [_text(figure, values[arm, figure].interval()) if (arm, figure) in values else "–" for figure in shown]
        lines.append(_row([arm, *cells, _recovered(values, arm)]))
    wanted = [(arm, BASE) for arm in arms if arm not in (FULL, BASE)] + list(pairs)
    compared = [(arm, base) for arm, base in wanted if {arm, base} <= set(arms)]
    if compared:
        lines += ["", _row(["paired difference", *(FIGURES[figure][0] for figure in shown)])]
        lines.append(_row(["---"] * (len(shown) + 1)))
    for arm, base in compared:
        cells = [
            _text(figure, values[arm, figure].minus(values[base, figure]))
            if (arm, figure) in values and (base, figure) in values
            else "–"
            for figure in shown
        ]
        lines.append(_row([f"{arm} − {base}", *cells]))
    return "\n".join(lines)


def _recovered(values: dict[tuple[str, str], Resampled], arm: str) -> str:
    """The share of GPTQ's ΔNLL on rare targets that an arm recovers."""
    figure = "delta_nll_rare"
    if arm in (FULL, BASE) or (arm, figure) not in values or (BASE, figure) not in values:
        return "–"
    ours, theirs = values[arm, figure], values[BASE, figure]
    share = Resampled(1 - ours.value / theirs.value, 1 - ours.values / theirs.values).interval()
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]".replace("-", "−")


def _text(figure: str, known: Interval | Difference) -> str:
    """A value and its interval; a difference carries a sign, and is bold where it excludes 0."""
    _, factor, decimals = FIGURES[figure]
    if np.isnan(known.value):
        return "–"
    paired = isinstance(known, Difference)
    sign = "+" if paired or figure.startswith("delta") else ""
    value, low, high = (f"{factor * x:{sign}.{decimals}f}" for x in (known.value, known.low, known.high))
    text = f"{value} [{low}, {high}]".replace("-", "−")
    return f"**{text}**" if paired and known.clear_of_zero else text


def _draws(draws: Sequence[int]) -> str:
    return f"{len(draws)} draw{'s' if len(draws) != 1 else ''}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
