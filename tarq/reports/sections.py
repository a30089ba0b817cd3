"""The sections of a page that hold figures and tables. What the results lack is said in the section that misses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tarq.reports import text
from tarq.reports.errors import by_frequency, where
from tarq.reports.figures import Row, Scale, bars, spans, strips
from tarq.reports.markup import Html, details, element, heading, joined, number, small, table
from tarq.reports.panel import FIGURES, MAIN, Panel, Report
from tarq.reports.tables import by_arm, difference

#: Methods in the first figure.
FIRST = 8

#: Name within the page, title, content.
Section = tuple[str, str, Html]


def sections(report: Report) -> Iterator[Section]:
    """All of them."""
    yield _headline(report)
    note = element("p", text.ADJUSTED, class_="note")
    for name, title, make, after in (
        ("ablation", "What each part adds", _pairs, note),
        ("swing", "Swing over calibration pools", _swings, None),
        ("frequency", "Damage by word frequency", by_frequency, None),
        ("errors", "Where errors are", where, None),
        ("layers", "Layers", _layers, None),
    ):
        content, lines = each(report, make, wide=name == "ablation"), missing(report.lines("absent", name))
        if content or lines:
            yield name, title, joined([content, after if content else None, lines])
    if further := [by_arm(panel, panel.figures) for panel in report.panels if panel.figures_only]:
        yield "further", "Other settings", joined(further)


def each(report: Report, make: Callable[[Panel], Html | None], wide: bool = False) -> Html | None:
    """The content for each panel, under its title where there are several; side by side if there is room."""
    made = [(panel, content) for panel in report.main if (content := make(panel)) is not None]
    several = len(report.main) > 1
    parts = [element("div", element("h3", panel.title) if several else None, content) for panel, content in made]
    return element("div", parts, class_="panels wide" if wide else "panels") if parts else None


def missing(lines: Sequence[str]) -> Html:
    """What a section does not show, and why."""
    return joined(element("p", line, class_="note") for line in lines)


# --- the first screen ---


def _headline(report: Report) -> Section:
    main = report.main
    figures = [figure for panel in main if (figure := _bars(panel)) is not None]
    content = [
        element("div", (element("p", sentence) for sentence in text.lead(main)), class_="lead"),
        element("div", figures, class_="figures") if figures else None,
        missing(report.lines("absent", "headline")),
        *(by_arm(panel, panel.figures) for panel in main),
        element("p", report.intervals, " ", text.MEANINGS, class_="note"),
    ]
    undone = any(panel.recovered for panel in main)
    return "headline", "Damage to rare words, undone" if undone else "Damage to rare words", joined(content)


def _bars(panel: Panel) -> Html | None:
    """The first figure: shares of the base's damage that are undone; without shares, the damage itself."""
    if panel.recovered:
        base = panel.arms[panel.base or ""]
        known = {arm: panel.recovered[arm] for arm in panel.arms if arm in panel.recovered}
        rows = {arm: Row(panel.arms[arm], text.share(k), k, k.low > 0 or k.high < 0) for arm, k in known.items()}
        caption = f"Share of {base}’s damage to rare words (ΔNLL of the true token) that each method undoes."
        scale = Scale(max(-1.0, min(0.0, *(k.low for k in known.values()))), 1.0)
        ticks = {0.0: f"0 %: {base}", 0.5: "50 %", 1.0: "100 %: full precision"}
    else:
        figure = MAIN[0]
        known = {a: panel.values[a, figure] for a in panel.arms if (a, figure) in panel.values and a != panel.full}
        if not known:
            return None
        rows = {a: Row(panel.arms[a], text.full(figure, k), k, k.low > 0 or k.high < 0) for a, k in known.items()}
        caption = "What each model costs rare words: ΔNLL of the true token, in nats a target. Shorter is better."
        low, high = min(0.0, *(k.low for k in known.values())), max(0.0, *(k.high for k in known.values()))
        scale = Scale(low, high if high > low else low + 1e-3)
        ticks = {0.0: "0: full precision"}

    def drawn(arms: Sequence[str]) -> Html:
        values = "; ".join(f"{rows[arm].label}: {rows[arm].text}" for arm in arms)
        return bars([rows[arm] for arm in arms], scale, ticks, f"{panel.title}. {caption} {values}")

    title = element("figcaption", element("strong", panel.title), " ", caption)
    first = _first(list(rows), text.best(panel))
    rest = details(f"All {len(rows)} methods", drawn(list(rows))) if len(first) < len(rows) else None
    return element("figure", title, drawn(first), rest)


def _first(arms: Sequence[str], best: str | None) -> list[str]:
    """As many as fit the first screen: those that the study names first, and the best of all."""
    kept = {*arms[:FIRST]} if best in arms[:FIRST] or best is None else {*arms[: FIRST - 1], best}
    return [arm for arm in arms if arm in kept]


# --- comparisons ---


def _pairs(panel: Panel) -> Html | None:
    if not panel.pairs:
        return None
    figures = [f for f in MAIN if any(f in pair.differences for pair in panel.pairs)]
    under = "p · detectable · over draws"
    heads = [heading("Comparison", numbers=False), *(heading(text.heading(f), under) for f in figures)]
    rows: list[Html] = []
    for family in dict.fromkeys(pair.family for pair in panel.pairs):
        name = element("th", family, colspan=len(heads), scope="rowgroup")
        rows.append(element("tr", name, class_="family"))
        for pair in panel.pairs:
            if pair.family == family:
                cells = []
                for figure in figures:
                    known = pair.differences.get(figure)
                    found = text.significance(pair, figure) if known else ""
                    shown = difference(text.full(figure, known), known) if known else text.NOTHING
                    cells.append(number(shown, small(found) if found else None))
                rows.append(element("tr", element("th", panel.pair_title(pair), scope="row"), cells))
    return table(f"{panel.title}: paired comparisons", heads, rows)


def _swings(panel: Panel) -> Html | None:
    parts: list[Html] = []
    for figure in dict.fromkeys(swing.figure for swing in panel.swings):
        swings = [swing for swing in panel.swings if swing.figure == figure]
        title, factor = text.heading(figure), FIGURES[figure][1]
        lines = [
            (
                panel.arms.get(s.arm, s.arm),
                f"swing {text.full(figure, s.swing)}",
                [(f"{pool}: {text.full(figure, known)}", factor * known.value) for pool, known in s.pools.items()],
            )
            for s in swings
        ]
        alternative = f"{panel.title}, {title} by pool. " + "; ".join(f"{arm}: {swing}" for arm, swing, _ in lines)
        pools = list(dict.fromkeys(pool for swing in swings for pool in swing.pools))
        rows = []
        for s in swings:
            cells = (number(text.full(figure, s.pools[p]) if p in s.pools else text.NOTHING) for p in pools)
            name = element("th", panel.arms.get(s.arm, s.arm), scope="row")
            rows.append(element("tr", name, cells, number(text.full(figure, s.swing))))
        heads = [heading("Method", numbers=False), *(heading(name) for name in (*pools, "swing"))]
        caption = element("figcaption", f"{title}: each dot is a pool; swing is the largest less the smallest.")
        parts.append(element("figure", caption, spans(lines, alternative)))
        parts.append(details("Numbers", table(f"{panel.title}: {title} by pool", heads, rows)))
    return joined(parts) if parts else None


# --- layers ---


def _layers(panel: Panel) -> Html | None:
    plain = {"lam": 1.0, "alpha": 0.0, "loss": None}  # what says nothing: no weights of the tail, no residual
    quantities = {"lam": "λ of the tail", "alpha": "α of the residual", "loss": "loss of rounding"}
    made = []
    for arm, layers in panel.layers.items():
        title = panel.arms.get(arm, arm)
        names = [str(layer["name"]) for layer in layers]
        found = {key: [text.finite(layer.get(key)) for layer in layers] for key in quantities}
        known = {quantities[key]: v for key, v in found.items() if set(v) - {None, plain[key]}}
        rows = []
        for i, (name, layer) in enumerate(zip(names, layers, strict=True)):
            cells = (number(text.NOTHING if (v := values[i]) is None else f"{v:.4g}") for values in known.values())
            bits = number(str(layer.get("bits", text.NOTHING)))
            rows.append(element("tr", element("th", name, scope="row"), bits, cells))
        heads = [heading("Layer", numbers=False), heading("bits"), *(heading(shown) for shown in known)]
        alternative = f"{panel.title}, {title}: {', '.join(known)} of {len(names)} layers; the numbers are below."
        content = [
            element("p", worst, class_="note") if (worst := text.worst_layers(layers)) else None,
            element("figure", strips(known, names, alternative)) if known else None,
            details("Numbers", table(f"{title}: layers", heads, rows)),
        ]
        made.append(details(title, joined(content), opened=arm == text.best(panel)))
    return joined(made) if made else None
