"""The sections of a page that hold figures and tables: each is left out where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tarq.reports import text
from tarq.reports.figures import Row, Scale, Series, bars, columns, legend, spans, strips
from tarq.reports.markup import Html, details, element, heading, joined, number, small, table
from tarq.reports.panel import FIGURES, MAIN, Group, Panel, Report
from tarq.scoring.bootstrap import Difference

#: Arms that a figure of columns shows.
SERIES = 4

#: Name within the page, title, content.
Section = tuple[str, str, Html]


def sections(report: Report) -> Iterator[Section]:
    """All of them."""
    yield _headline(report)
    note = element("p", text.ADJUSTED, class_="note")
    for name, title, make, after in (
        ("ablation", "What each part adds", _pairs, note),
        ("swing", "Swing over calibration pools", _swings, None),
        ("frequency", "Damage by word frequency", _bands, None),
        ("errors", "Where errors are", _errors, None),
        ("layers", "Layers", _layers, None),
    ):
        if content := each(report, make, wide=name == "ablation"):
            yield name, title, joined([content, after])
    if further := [_table(panel, panel.figures) for panel in report.panels if panel.further]:
        yield "further", "Other settings", joined(further)


def each(report: Report, make: Callable[[Panel], Html | None], wide: bool = False) -> Html | None:
    """What is made of each panel, under its title where there are several; side by side if there is room."""
    made = [(panel, content) for panel in report.main if (content := make(panel)) is not None]
    several = len(report.main) > 1
    parts = [element("div", element("h3", panel.title) if several else None, content) for panel, content in made]
    return element("div", parts, class_="panels wide" if wide else "panels") if parts else None


# --- the first screen ---


def _headline(report: Report) -> Section:
    main = report.main
    figures = [figure for panel in main if (figure := _bars(panel)) is not None]
    content = [
        element("div", (element("p", sentence) for sentence in text.lead(main)), class_="lead"),
        element("div", figures, class_="figures") if figures else None,
        *(_table(panel, panel.figures) for panel in main),
        element("p", report.intervals, " ", text.MEANINGS, class_="note"),
    ]
    undone = any(panel.recovered for panel in main)
    return "headline", "Damage to rare words, undone" if undone else "Damage to rare words", joined(content)


def _bars(panel: Panel) -> Html | None:
    """The first figure: shares of the base's damage that are undone; without shares, the damage itself."""
    if panel.recovered:
        base = panel.arms[panel.base or ""]
        known = panel.recovered
        rows = [Row(panel.arms[arm], text.share(k), k, k.low > 0 or k.high < 0) for arm, k in known.items()]
        caption = f"Share of {base}’s damage to rare words (ΔNLL of the true token) that each method undoes."
        scale = Scale(max(-1.0, min(0.0, *(row.known.low for row in rows))), 1.0)
        ticks = {0.0: f"0 %: {base}", 0.5: "50 %", 1.0: "100 %: full precision"}
    else:
        figure = MAIN[0]
        known = {a: panel.values[a, figure] for a in panel.arms if (a, figure) in panel.values and a != panel.full}
        if not known:
            return None
        rows = [Row(panel.arms[arm], text.full(figure, k), k, k.low > 0 or k.high < 0) for arm, k in known.items()]
        caption = "What each model costs rare words: ΔNLL of the true token, in nats a target. Shorter is better."
        low, high = min(0.0, *(row.known.low for row in rows)), max(0.0, *(row.known.high for row in rows))
        scale = Scale(low, high if high > low else low + 1e-3)
        ticks = {0.0: "0: full precision"}
    alternative = f"{panel.title}. {caption} " + "; ".join(f"{row.label}: {row.text}" for row in rows)
    title = element("figcaption", element("strong", panel.title), " ", caption)
    return element("figure", title, bars(rows, scale, ticks, alternative))


def _table(panel: Panel, figures: Sequence[str], about: str | None = None) -> Html:
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
    known, apart = panel.values.get((arm, figure)), panel.differences.get((arm, figure))
    if known is None:
        return number(text.NOTHING)
    value = element("span", text.number(figure, known.value), class_="figure-value")
    first = joined([value, " ", small(text.interval(figure, known))])
    return number(first, _difference(text.full(figure, apart), apart) if apart else None)


def _difference(shown: str, known: Difference) -> Html:
    """Bold where it is clear of 0."""
    return element("b" if known.clear_of_zero else "span", shown, class_="difference")


# --- comparisons ---


def _pairs(panel: Panel) -> Html | None:
    if not panel.pairs:
        return None
    figures = [f for f in MAIN if any(f in pair.differences for pair in panel.pairs)]
    heads = [heading("Comparison", numbers=False), *(heading(text.heading(f), "p · detectable") for f in figures)]
    rows: list[Html] = []
    for family in dict.fromkeys(pair.family for pair in panel.pairs):
        name = element("th", family, colspan=len(heads), scope="rowgroup")
        rows.append(element("tr", name, class_="family"))
        for pair in panel.pairs:
            if pair.family == family:
                cells = []
                for figure in figures:
                    known = pair.differences.get(figure)
                    found = (
                        f"{text.p(pair.adjusted[figure])} · {text.size(figure, pair.detectable[figure])}"
                        if known
                        else ""
                    )
                    shown = _difference(text.full(figure, known), known) if known else text.NOTHING
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


# --- words ---


def _bands(panel: Panel) -> Html | None:
    found = {(group.arm, group.kind): group.change for group in panel.bands}
    names = list(dict.fromkeys(group.kind for group in panel.bands))
    if not names:
        return None
    arms = [arm for arm in panel.arms if any(found.get((arm, name)) for name in names)]
    chosen = list(dict.fromkeys([a for a in (panel.base, text.best(panel)) if a in arms] + arms))[:SERIES]
    parts: list[Html] = []
    if chosen:
        series = [Series(panel.arms[arm], [found.get((arm, name)) for name in names]) for arm in chosen if arm]
        caption = (
            "Word errors added to full precision’s, in points of the error rate on words of each Zipf frequency, the "
            "rarest on the left. Lines that leave the figure are cut; the numbers have all."
        )
        lines = (
            f"{one.label}: "
            + ", ".join(f"{name} {text.points(k, True)}" for name, k in zip(names, one.known, strict=True) if k)
            for one in series
        )
        alternative = f"{panel.title}. {caption} {'; '.join(lines)}"
        figure = columns([name.removeprefix("Zipf ") for name in names], series, alternative, "points")
        parts.append(element("figure", element("figcaption", caption), legend(one.label for one in series), figure))
    return joined([*parts, details("Numbers", _rates(panel, panel.bands))])


def _errors(panel: Panel) -> Html | None:
    parts = [_rates(panel, panel.groups)] if panel.groups else []
    if panel.more:
        parts.append(details("More word scores", _table(panel, panel.more, "Word scores beside WER and rare WER.")))
    return joined(parts) if parts else None


def _rates(panel: Panel, groups: Sequence[Group]) -> Html:
    """A row an arm, a column a kind of word: error rate with interval, change against full precision, S / D / I."""
    kinds = {group.kind: group.words for group in groups}
    found = {(group.arm, group.kind): group for group in groups}
    rows = []
    for arm, title in panel.arms.items():
        if any((arm, kind) in found for kind in kinds):
            cells = (_rate(found.get((arm, kind))) for kind in kinds)
            rows.append(element("tr", element("th", title, scope="row"), cells))
    heads = [heading("Method", numbers=False), *(heading(kind, f"{n} words") for kind, n in kinds.items())]
    return table(f"{panel.title}: error rates by kind of word", heads, rows, text.RATES + text.drawn(groups))


def _rate(group: Group | None) -> Html:
    if group is None:
        return number(text.NOTHING)
    counts = " / ".join(f"{n:.0f}" for n in (group.substitutions, group.deletions, group.insertions))
    change = _difference(text.points(group.change, True), group.change) if group.change else None
    return number(element("span", text.points(group.rate), class_="figure-value"), change, small(counts))


# --- layers ---


def _layers(panel: Panel) -> Html | None:
    plain = {"lam": 1.0, "alpha": 0.0, "loss": None}  # what says nothing: no weights of the tail, no residual
    quantities = {"lam": "λ of the tail", "alpha": "α of the residual", "loss": "loss of rounding"}
    made = []
    for arm, layers in panel.layers.items():
        title = panel.arms.get(arm, arm)
        names = [str(layer["name"]) for layer in layers]
        found = {key: [_finite(layer.get(key)) for layer in layers] for key in quantities}
        known = {quantities[key]: v for key, v in found.items() if set(v) - {None, plain[key]}}
        rows = []
        for i, (name, layer) in enumerate(zip(names, layers, strict=True)):
            cells = (number(text.NOTHING if (v := values[i]) is None else f"{v:.4g}") for values in known.values())
            bits = number(str(layer.get("bits", text.NOTHING)))
            rows.append(element("tr", element("th", name, scope="row"), bits, cells))
        heads = [heading("Layer", numbers=False), heading("bits"), *(heading(shown) for shown in known)]
        alternative = f"{panel.title}, {title}: {', '.join(known)} of {len(names)} layers; the numbers are below."
        content = [
            element("figure", strips(known, names, alternative)) if known else None,
            details("Numbers", table(f"{title}: layers", heads, rows)),
        ]
        made.append(details(title, joined(content), opened=arm == text.best(panel)))
    return joined(made) if made else None


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
