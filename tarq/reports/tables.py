"""The table in the paper's shape: arms by figures, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Sequence

from tarq.reports import text
from tarq.reports.markup import Html, element, heading, joined, number, small, table
from tarq.reports.panel import Panel
from tarq.scoring.bootstrap import Difference


def by_arm(panel: Panel, figures: Sequence[str], about: str | None = None) -> Html:
    """The paper's table: values with intervals, and below each its paired difference from the base."""
    if not figures:
        return element("p", f"{panel.title}: no figures.", class_="note")
    rows = []
    for arm, title in panel.arms.items():
        if any((arm, figure) in panel.values for figure in figures):
            kind = "full" if arm == panel.full else "base" if arm == panel.base else None
            cells = (_cell(panel, arm, figure) for figure in figures)
            rows.append(element("tr", element("th", title, scope="row"), cells, class_=kind))
    base = f" Second lines: paired difference from {panel.arms[panel.base or '']}." if panel.differences else ""
    caption = joined([element("strong", panel.title), " ", about or panel.about, base])
    heads = [heading("Method", numbers=False), *(heading(text.heading(f)) for f in figures)]
    return table(f"{panel.title}: figures by method", heads, rows, caption)


def _cell(panel: Panel, arm: str, figure: str) -> Html:
    known, change = panel.values.get((arm, figure)), panel.differences.get((arm, figure))
    if known is None:
        return number(text.NOTHING)
    value = element("span", text.number(figure, known.value), class_="figure-value")
    first = joined([value, " ", small(text.interval(figure, known))])
    return number(first, difference(text.full(figure, change), change) if change else None)


def difference(shown: str, known: Difference) -> Html:
    """Bold where it is clear of 0."""
    return element("b" if known.clear_of_zero else "span", shown, class_="difference")
