"""Figures as inline SVG. Places across are percentages: a figure fits any width, and its letters keep their size.

Every figure has a text alternative; the table beside it has its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tarq.reports.markup import Html, element
from tarq.scoring.bootstrap import Difference, Interval

#: Heights in pixels.
ROW, BAR, AXIS, STRIP, GAP, PLOT = 42, 8, 22, 44, 26, 220
#: Shapes of the series of one figure, beside their colours.
SHAPES = ("M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-4,-4h8v8h-8z", "M-5,0L0,-5L5,0L0,5z", "M0,-5L5,4H-5z")


@dataclass(frozen=True)
class Row:
    """A line of a figure: label on the left, text on the right, a bar with its interval below."""

    label: str
    text: str
    known: Interval
    strong: bool = True


@dataclass(frozen=True)
class Scale:
    """Values to percent of the width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        return 100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    def place(self, value: float) -> str:
        return f"{self.at(value):.2f}%"


def bars(rows: Sequence[Row], scale: Scale, ticks: Mapping[float, str], alternative: str) -> Html:
    """Bars from 0 with their intervals, a row each."""
    height = ROW * len(rows) + AXIS
    zero = scale.at(0)
    marks = [_axis(scale, ticks, ROW * len(rows))]
    for i, row in enumerate(rows):
        y = ROW * i + 24
        value, weak = scale.at(row.known.value), "" if row.strong else " weak"
        marks += [
            element("text", row.label, x="0", y=y - 8, class_="label"),
            element("text", row.text, x="100%", y=y - 8, text_anchor="end", class_=f"value{weak}"),
            element(
                "rect", x=f"{min(zero, value):.2f}%", y=y, width=f"{abs(value - zero):.2f}%", height=BAR,
                class_=f"bar{weak}",
            ),
            element("line", x1=scale.place(row.known.low), x2=scale.place(row.known.high), y1=y + BAR / 2,
                    y2=y + BAR / 2, class_="whisker"),
            element("circle", cx=f"{value:.2f}%", cy=y + BAR / 2, r=3.5, class_="dot"),
        ]  # fmt: skip
    return _svg(height, alternative, marks)


@dataclass(frozen=True)
class Series:
    """One arm in a figure of columns: a value a column, None where there is none."""

    label: str
    known: Sequence[Interval | Difference | None]


def columns(names: Sequence[str], series: Sequence[Series], alternative: str, unit: str, factor: float = 100) -> Html:
    """Points with their intervals over named columns, the series side by side within each.

    Args:
        factor: that values are shown with.
    """
    ends = [end for one in series for k in one.known if k is not None for end in (k.low, k.high, 0.0)]
    top = max((abs(k.value) for one in series for k in one.known if k is not None), default=0) or 0.01
    low, high = max(min(ends, default=0), -4 * top), min(max(ends, default=0), 4 * top)
    high = high if high > low else low + 0.01

    def y(value: float) -> float:
        return 14 + (PLOT - 28) * (high - min(max(value, low), high)) / (high - low)

    marks: list[Html] = []
    ticks = _nice(low, high)
    for tick in ticks:
        text = f"{factor * tick:+.3g}".replace("-", "−") if tick else "0"
        text += f" {unit}" if tick == ticks[-1] else ""
        marks += [
            element("line", x1="0", x2="100%", y1=y(tick), y2=y(tick), class_="grid" if tick else "zero"),
            element("text", text, x="0", y=y(tick) - 4, class_="tick"),
        ]
    width = 92 / max(len(names), 1)
    for i, name in enumerate(names):
        middle = 8 + width * (i + 0.5)
        marks.append(element("text", name, x=f"{middle:.2f}%", y=PLOT + 14, text_anchor="middle", class_="tick"))
        for s, one in enumerate(series):
            known = one.known[i]
            if known is None:
                continue
            x = f"{middle + (s - (len(series) - 1) / 2) * min(width / (len(series) + 1), 3):.2f}%"
            marks += [
                element("line", x1=x, x2=x, y1=y(known.low), y2=y(known.high), class_=f"reach s{s}"),
                _shape(s, x, y(known.value)),
            ]
    return _svg(PLOT + AXIS, alternative, marks)


def spans(rows: Sequence[tuple[str, str, Sequence[tuple[str, float]]]], alternative: str) -> Html:
    """Where named values of each row lie: label, text, then name and value of each."""
    values = [value for _, _, points in rows for _, value in points]
    margin = 0.05 * (max(values) - min(values)) or 0.01
    scale = Scale(min(values) - margin, max(values) + margin)
    marks: list[Html] = []
    for i, (label, text, points) in enumerate(rows):
        y = ROW * i + 28
        inside = [value for _, value in points]
        marks += [
            element("text", label, x="0", y=y - 12, class_="label"),
            element("text", text, x="100%", y=y - 12, text_anchor="end", class_="value"),
            element("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"),
            element("line", x1=scale.place(min(inside)), x2=scale.place(max(inside)), y1=y, y2=y, class_="span"),
            *(
                element("circle", element("title", name), cx=scale.place(value), cy=y, r=4, class_="dot")
                for name, value in points
            ),
        ]
    return _svg(ROW * len(rows) + 4, alternative, marks)


def strips(rows: Mapping[str, Sequence[float | None]], names: Sequence[str], alternative: str) -> Html:
    """A row of thin bars for each quantity, over the same layers; each row has a scale of its own."""
    marks: list[Html] = []
    width = 100 / max(len(names), 1)
    for r, (title, values) in enumerate(rows.items()):
        top = max((v for v in values if v is not None), default=0) or 1.0
        bottom = (STRIP + GAP) * (r + 1)
        above = bottom - STRIP - 5
        marks.append(element("text", title, x="0", y=above, class_="label"))
        marks.append(element("text", f"up to {top:.3g}", x="100%", y=above, text_anchor="end", class_="tick"))
        marks.append(element("line", x1="0", x2="100%", y1=bottom, y2=bottom, class_="grid"))
        for i, value in enumerate(values):
            if value is not None:
                height = STRIP * max(value, 0) / top
                place = {"x": f"{width * (i + 0.1):.3f}%", "width": f"{width * 0.8:.3f}%"}
                tooltip = element("title", f"{names[i]}: {value:.4g}")
                marks.append(element("rect", tooltip, **place, y=bottom - height, height=height, class_="bar strong"))
    return _svg((STRIP + GAP) * len(rows) + 6, alternative, marks)


def legend(labels: Iterable[str]) -> Html:
    """The series' shapes and colours, with their names."""
    return element(
        "ul",
        (
            element("li", element("svg", _shape(s, "8", 8), width=16, height=16, aria_hidden="true"), label)
            for s, label in enumerate(labels)
        ),
        class_="legend",
    )


def _shape(series: int, x: str, y: float) -> Html:
    path = element("path", d=SHAPES[series % len(SHAPES)], class_=f"mark s{series}")
    return element("svg", path, x=x, y=y, overflow="visible")


def _axis(scale: Scale, ticks: Mapping[float, str], bottom: float) -> Html:
    marks = []
    for value, text in ticks.items():
        x = scale.at(value)
        anchor = "start" if x < 8 else "end" if x > 92 else "middle"
        kind = "zero" if value == 0 else "grid"
        marks.append(element("line", x1=f"{x:.2f}%", x2=f"{x:.2f}%", y1=4, y2=bottom + 4, class_=kind))
        marks.append(element("text", text, x=f"{x:.2f}%", y=bottom + 18, text_anchor=anchor, class_="tick"))
    return element("g", marks)


def _nice(low: float, high: float) -> list[float]:
    """Three to six round values between two others, 0 among them where it lies there."""
    raw = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(s * size for s in (1, 2, 2.5, 5, 10) if s * size >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _svg(height: float, alternative: str, marks: Iterable[Html]) -> Html:
    title = element("title", alternative)
    return element("svg", title, marks, width="100%", height=height, role="img", class_="figure")
