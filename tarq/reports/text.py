"""How figures are written, and what a report says of them in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tarq.reports.panel import FIGURES, Group, Pair, Panel
from tarq.scoring.bootstrap import Difference, Interval

#: Shown in place of a missing figure.
NOTHING = "–"
MEANINGS = (
    "ΔNLL: how much likelihood the true token loses; KL: how far the model's predictions moved from full precision's; "
    "both teacher-forced, in nats a target, on targets of rare words and on all others. Rare: less than one in a "
    "million words (Zipf < 3), unless the settings say otherwise. WER and rare WER are in percent."
)

RATES = (
    "Error rate in percent with its interval; its change against full precision, in points; words substituted / "
    "deleted / inserted."
)
ADJUSTED = (
    "p: two-sided, from the bootstrap, adjusted within a family of comparisons (Holm, a figure at a time). Detectable: "
    "the smallest true difference that would be found with a chance of 80 %. Over draws: the standard deviation of the "
    "difference from one draw of calibration speech to another, on these utterances."
)


def number(figure: str, value: float, signed: bool = False) -> str:
    """A figure's value; signed where it is a difference, as ΔNLL always is."""
    _, factor, decimals, _ = FIGURES[figure]
    sign = "+" if signed or figure.startswith("delta") else ""
    return minus(f"{factor * value:{sign}.{decimals}f}")


def interval(figure: str, known: Interval | Difference) -> str:
    signed = isinstance(known, Difference)
    return f"[{number(figure, known.low, signed)}, {number(figure, known.high, signed)}]"


def full(figure: str, known: Interval | Difference) -> str:
    """Value and interval."""
    return f"{number(figure, known.value, isinstance(known, Difference))} {interval(figure, known)}"


def share(known: Interval) -> str:
    """``55 % [44, 64]``."""
    return minus(f"{100 * known.value:.0f}\u00a0% [{100 * known.low:.0f}, {100 * known.high:.0f}]")


def points(known: Interval | Difference, signed: bool = False) -> str:
    """A rate, or a change of one, in percent with its interval."""
    sign = "+" if signed else ""
    return minus(f"{100 * known.value:{sign}.1f} [{100 * known.low:{sign}.1f}, {100 * known.high:{sign}.1f}]")


def minus(text: str) -> str:
    """With the sign that is as wide as a plus."""
    return text.replace("-", "−")


def p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p {value:.3f}"


def size(figure: str, value: float) -> str:
    """A figure without a sign."""
    return number(figure, value).lstrip("+")


def significance(pair: Pair, figure: str) -> str:
    """How firm a difference is: p by Holm, what would be detected, what draws differ by."""
    spread = pair.over_draws.get(figure)
    known = size(figure, spread) if spread is not None else NOTHING
    return f"{p(pair.adjusted[figure])} · {size(figure, pair.detectable[figure])} · {known}"


def drawn(groups: Sequence[Group]) -> str:
    """In how many draws words were transcribed, where that is not one."""
    draws = sorted({group.draws for group in groups})
    if draws[-1] == 1:
        return ""
    return f" Counts are means; of {' to '.join(map(str, dict.fromkeys((draws[0], draws[-1]))))} transcribed draws."


def heading(figure: str) -> str:
    title, _, _, unit = FIGURES[figure]
    return title if unit == "nats" else f"{title} {unit}"


def ranked(panel: Panel) -> list[str]:
    """The arms that recover most of the base's rare damage first; without shares, those that do least of it."""
    if panel.recovered:
        return sorted(panel.recovered, key=lambda arm: -panel.recovered[arm].value)
    damage = {
        arm: known.value for (arm, f), known in panel.values.items() if f == "delta_nll_rare" and arm != panel.full
    }
    return sorted(damage, key=lambda arm: damage[arm])


def best(panel: Panel) -> str | None:
    """The first of :func:`ranked`."""
    return next(iter(ranked(panel)), None)


def finite(value: object) -> float | None:
    """A number; None of another value."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def worst_layers(layers: Sequence[Mapping[str, Any]], count: int = 3) -> str:
    """Where rounding loses most, in words; nothing where losses are not known."""
    known = {str(layer["name"]): loss for layer in layers if (loss := finite(layer.get("loss")))}
    worst = sorted(known, key=lambda name: -known[name])[:count]
    worst_text = ", ".join(f"{name} ({100 * known[name]:.2g}\u00a0%)" for name in worst)
    return f"Layers in their order. Rounding loses most of the output, by its square, in {worst_text}." if worst else ""


def lead(panels: Sequence[Panel]) -> list[str]:
    """A sentence a panel: what the figure shows, in words."""
    sentences = []
    for panel in panels:
        arm = best(panel)
        if arm is None:
            continue
        damage = full("delta_nll_rare", panel.values[arm, "delta_nll_rare"])
        clear = [name for name in ranked(panel) if name in panel.recovered and panel.recovered[name].low > 0]
        if panel.recovered and not clear:
            beginning = (
                f"{panel.title}: no method is shown to undo what {panel.arms[panel.base or '']} costs rare words; the "
            )
            sentences.append(f"{beginning}largest share is {panel.arms[arm]}’s, {share(panel.recovered[arm])}.")
        elif panel.recovered:
            arm = clear[0]
            damage = full("delta_nll_rare", panel.values[arm, "delta_nll_rare"])
            base = full("delta_nll_rare", panel.values[panel.base or "", "delta_nll_rare"])
            sentences.append(
                f"{panel.title}: {panel.arms[arm]} undoes {share(panel.recovered[arm])} of what "
                f"{panel.arms[panel.base or '']} costs rare words (ΔNLL {damage}, not {base})."
            )
        else:
            sentence = f"{panel.title}: {panel.arms[arm]} costs rare words ΔNLL {damage} nats a target"
            if change := panel.differences.get((arm, "delta_nll_rare")):
                sentence += f", {full('delta_nll_rare', change)} against {panel.arms[panel.base or '']}"
            sentences.append(f"{sentence}.")
    return sentences
