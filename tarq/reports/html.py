"""A report as one HTML page that asks for nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from tarq.reports import text
from tarq.reports.clips import Clips
from tarq.reports.context import Piece, in_hypothesis, in_reference
from tarq.reports.figures import Row, Scale, Series, bars, columns, legend, spans, strips
from tarq.reports.markup import Html, element, joined
from tarq.reports.panel import FIGURES, ChangedWord, Group, Panel, Report
from tarq.scoring.bootstrap import Difference
from tarq.version import __version__

#: Changed words a panel shows, and arms a figure of columns.
WORDS, SERIES = 40, 4


def page(report: Report, clips: Clips) -> str:
    """The whole page."""
    sections = [
        section
        for section in (
            _headline(report),
            _ablation(report),
            _swing(report),
            _bands(report),
            _groups(report),
            _words(report, clips),
            _layers(report),
            _origin(report, clips),
        )
        if section is not None
    ]
    body = element(
        "body",
        element("a", "Skip to the results", href="#results", class_="skip"),
        element(
            "header",
            element("h1", report.title),
            element("nav", (element("a", title, href=f"#{name}") for name, title, _ in sections), aria_label="Sections"),
        ),
        element("main", (_section(*section) for section in sections), id="results"),
        element("script", Html(_asset("page.js"))),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", report.title),
        element("style", Html(_asset("page.css"))),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def shown_words(panel: Panel) -> list[ChangedWord]:
    """Those of a panel's changed words that are shown: most of them lost, as is most of what changes."""
    lost = [word for word in panel.changed if word.kind == "lost"]
    regained = [word for word in panel.changed if word.kind == "regained"]
    return lost[: max(WORDS * 3 // 4, WORDS - len(regained))] + regained[: max(WORDS // 4, WORDS - len(lost))]


Section = tuple[str, str, Html]


def _section(name: str, title: str, content: Html) -> Html:
    return element("section", element("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title")


def _each(report: Report, make: Any) -> list[Html]:
    """What is made of each panel, under its title where there are several."""
    made = [(panel, content) for panel in report.panels if (content := make(panel)) is not None]
    several = len(report.panels) > 1
    return [element("div", element("h3", p.title) if several else None, content, class_="panel") for p, content in made]


# --- the first screen ---


def _headline(report: Report) -> Section:
    shares = any(panel.recovered for panel in report.panels)
    panels = [figure for panel in report.panels if (figure := _bars(panel)) is not None]
    title = "Damage to rare words, undone" if shares else "Damage to rare words"
    content = [
        element("div", (element("p", sentence) for sentence in text.lead(report)), class_="lead"),
        element("div", panels, class_="figures") if panels else None,
        *(_table(panel) for panel in report.panels),
        element("p", report.intervals, " ", text.MEANINGS, class_="note"),
    ]
    return "headline", title, joined(content)


def _bars(panel: Panel) -> Html | None:
    """The first figure: shares of the base's damage that are undone; without shares, the damage itself."""
    if panel.recovered:
        base = panel.arms[panel.base or ""]
        rows = [Row(panel.arms[a], text.share(k), k, k.low > 0 or k.high < 0) for a, k in panel.recovered.items()]
        low = max(-1.0, min(0.0, *(row.known.low for row in rows)))
        ticks = {0.0: f"0 %: {base}", 0.5: "50 %", 1.0: "100 %: full precision"}
        caption = f"Share of {base}'s damage to rare words (ΔNLL of the true token) that each method undoes."
        scale = Scale(low, 1.0)
    else:
        figure = "delta_nll_rare"
        known = {a: panel.values[a, figure] for a in panel.arms if (a, figure) in panel.values and a != panel.full}
        if not known:
            return None
        rows = [Row(panel.arms[a], text.full(figure, k), k, k.low > 0 or k.high < 0) for a, k in known.items()]
        low, high = min(0.0, *(r.known.low for r in rows)), max(0.0, *(r.known.high for r in rows))
        ticks = {0.0: "0: full precision"}
        caption = "What each model costs rare words: ΔNLL of the true token, nats a target."
        scale = Scale(low, high if high > low else low + 1e-3)
    alternative = f"{panel.title}. {caption} " + "; ".join(f"{row.label}: {row.text}" for row in rows)
    return element(
        "figure",
        element("figcaption", element("strong", panel.title), " ", caption),
        bars(rows, scale, ticks, alternative),
    )


def _table(panel: Panel) -> Html:
    """The paper's table: values with intervals, and below each its paired difference from the base."""
    figures = panel.figures
    if not figures:
        return element("p", f"{panel.title}: no figures.", class_="note")
    heads = [element("th", "Method", scope="col")]
    heads += [element("th", text.heading(f), scope="col", class_="number") for f in figures]
    heads += [element("th", "Rare damage undone", scope="col", class_="number")] if panel.recovered else []
    rows = []
    for arm, title in panel.arms.items():
        if not any((arm, figure) in panel.values for figure in figures):
            continue
        cells = [_cell(panel, arm, figure) for figure in figures]
        if panel.recovered:
            known = panel.recovered.get(arm)
            cells.append(element("td", text.share(known) if known else text.NOTHING, class_="number"))
        role = "full" if arm == panel.full else "base" if arm == panel.base else None
        rows.append(element("tr", element("th", title, scope="row"), cells, class_=role))
    base = f" Second lines: difference from {panel.arms[panel.base]}, paired." if panel.differences else ""
    caption = element("caption", element("strong", panel.title), " ", panel.about, base)
    return _scrolled(f"{panel.title}: figures by method", caption, heads, rows)


def _cell(panel: Panel, arm: str, figure: str) -> Html:
    known = panel.values.get((arm, figure))
    if known is None:
        return element("td", text.NOTHING, class_="number")
    difference = panel.differences.get((arm, figure))
    return element(
        "td",
        element("span", text.number(figure, known.value), class_="figure-value"),
        " ",
        element("span", text.interval(figure, known), class_="interval"),
        element("br") if difference else None,
        _difference(text.full(figure, difference), difference) if difference else None,
        class_="number",
    )


def _difference(shown: str, known: Difference) -> Html:
    return element("b" if known.clear_of_zero else "span", shown, class_="difference")


def _scrolled(label: str, caption: Html | None, heads: Iterable[Html], rows: Iterable[Html]) -> Html:
    """A table that scrolls within itself where it is wider than the page."""
    table = element("table", caption, element("thead", element("tr", heads)), element("tbody", rows))
    return element("div", table, class_="scroll", role="region", aria_label=label, tabindex=0)


# --- what follows ---


def _ablation(report: Report) -> Section | None:
    content = _each(report, _pairs)
    note = element(
        "p",
        "p: two-sided, by the share of resamples on the other side of 0, adjusted within a family of comparisons (Holm). "
        "Detectable: the smallest true difference that would be found with a chance of 80 %.",
        class_="note",
    )
    return ("ablation", "What each part adds", joined([*content, note])) if content else None


def _pairs(panel: Panel) -> Html | None:
    if not panel.pairs:
        return None
    figures = [f for f in FIGURES if any(f in pair.differences for pair in panel.pairs)]
    heads = [element("th", "Comparison", scope="col")]
    heads += [element("th", text.heading(f), scope="col", class_="number") for f in figures]
    rows = []
    family = ""
    for pair in panel.pairs:
        if pair.family != family:
            family = pair.family
            rows.append(element("tr", element("th", family, colspan=len(heads), scope="rowgroup"), class_="family"))
        cells = []
        for figure in figures:
            known = pair.differences.get(figure)
            if known is None:
                cells.append(element("td", text.NOTHING, class_="number"))
                continue
            extra = f"p {_p(pair.adjusted[figure])}" if figure in pair.adjusted else ""
            if figure in pair.detectable:
                extra += f", detectable {text.number(figure, pair.detectable[figure]).lstrip('+')}"
            small = element("span", extra, class_="interval")
            cells.append(
                element("td", _difference(text.full(figure, known), known), element("br"), small, class_="number")
            )
        name = f"{panel.arms.get(pair.ours, pair.ours)} − {panel.arms.get(pair.base, pair.base)}"
        rows.append(element("tr", element("th", name, scope="row"), cells))
    return _scrolled(f"{panel.title}: paired comparisons", None, heads, rows)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _swing(report: Report) -> Section | None:
    content = _each(report, _spans)
    return ("swing", "Swing over calibration pools", joined(content)) if content else None


def _spans(panel: Panel) -> Html | None:
    if not panel.swings:
        return None
    parts = []
    for figure in dict.fromkeys(swing.figure for swing in panel.swings):
        swings = [swing for swing in panel.swings if swing.figure == figure]
        factor = FIGURES[figure][1]
        rows = [
            (panel.arms.get(s.arm, s.arm), f"swing {text.full(figure, s.swing)}",
             [(f"{pool}: {text.full(figure, k)}", factor * k.value) for pool, k in s.pools.items()])
            for s in swings
        ]  # fmt: skip
        alternative = f"{panel.title}, {text.heading(figure)} by pool. " + "; ".join(f"{a}: {t}" for a, t, _ in rows)
        pools = list(dict.fromkeys(pool for swing in swings for pool in swing.pools))
        heads = [element("th", name, scope="col", class_="number" if i else None) for i, name in
                 enumerate(("Method", *pools, "swing"))]  # fmt: skip
        lines = [
            element("tr", element("th", panel.arms.get(s.arm, s.arm), scope="row"),
                    (element("td", text.full(figure, s.pools[p]) if p in s.pools else text.NOTHING, class_="number")
                     for p in pools), element("td", text.full(figure, s.swing), class_="number"))
            for s in swings
        ]  # fmt: skip
        caption = element("figcaption", f"{text.heading(figure)}: each dot is a pool; swing is the largest less the smallest.")
        parts.append(element("figure", caption, spans(rows, alternative)))
        parts.append(_details("Numbers", _scrolled(f"{panel.title}: {text.heading(figure)} by pool", None, heads, lines)))
    return joined(parts)


def _bands(report: Report) -> Section | None:
    content = _each(report, _columns)
    return ("frequency", "Damage by word frequency", joined(content)) if content else None


def _columns(panel: Panel) -> Html | None:
    changes = {(g.arm, g.kind): g for g in panel.bands}
    names = list(dict.fromkeys(group.kind for group in panel.bands))
    arms = [arm for arm in panel.arms if any(g.arm == arm and g.change for g in panel.bands)]
    if not names:
        return None
    parts: list[Html] = []
    if arms:
        chosen = list(dict.fromkeys([a for a in (panel.base, text.best(panel)) if a in arms] + arms))[:SERIES]
        series = [
            Series(panel.arms[a], [changes[a, n].change if (a, n) in changes else None for n in names]) for a in chosen
        ]
        caption = (
            "Word errors that each method adds to full precision's, in points of the error rate on words of each frequency, "
            "rarest on the left. Lines that leave the figure are cut; the table has all."
        )
        alternative = f"{panel.title}. {caption} " + "; ".join(
            f"{one.label}: " + ", ".join(f"{n} {text.points(k, True)}" for n, k in zip(names, one.known, strict=True) if k)
            for one in series
        )
        parts.append(
            element("figure", element("figcaption", caption), legend(s.label for s in series),
                    columns([n.removeprefix("Zipf ") for n in names], series, alternative, "points"))
        )  # fmt: skip
    return joined([*parts, _details("Numbers", _rates(panel, panel.bands))])


def _rates(panel: Panel, groups: Sequence[Group]) -> Html:
    """A row an arm, a column a kind of word: error rate with interval, change against full precision below."""
    kinds = {group.kind: group.words for group in groups}
    found = {(group.arm, group.kind): group for group in groups}
    heads = [element("th", "Method", scope="col")]
    heads += [
        element("th", kind, element("br"), element("span", f"{n} words", class_="interval"), scope="col", class_="number")
        for kind, n in kinds.items()
    ]
    rows = []
    for arm, title in panel.arms.items():
        cells = []
        for kind in kinds:
            group = found.get((arm, kind))
            if group is None:
                cells.append(element("td", text.NOTHING, class_="number"))
                continue
            change = group.change
            counts = " / ".join(f"{n:.0f}" for n in (group.substitutions, group.deletions, group.insertions))
            cells.append(
                element(
                    "td", element("span", text.points(group.rate), class_="figure-value"), element("br"),
                    _difference(text.points(change, True), change) if change else None, element("br") if change else None,
                    element("span", counts, class_="interval"), class_="number",
                )  # fmt: skip
            )
        if any((arm, kind) in found for kind in kinds):
            rows.append(element("tr", element("th", title, scope="row"), cells))
    caption = element(
        "caption",
        "Error rate in percent with its interval; its change against full precision, in points; words substituted / deleted "
        "/ inserted (means over draws).",
    )
    return _scrolled(f"{panel.title}: error rates by kind of word", caption, heads, rows)


def _groups(report: Report) -> Section | None:
    content = _each(report, lambda panel: _rates(panel, panel.groups) if panel.groups else None)
    return ("errors", "Where errors are", joined(content)) if content else None


# --- words ---


def _words(report: Report, clips: Clips) -> Section | None:
    content = _each(report, lambda panel: _changed(panel, clips) if panel.changed else None)
    if not content:
        return None
    arms = dict.fromkeys(
        (heard.arm, panel.arms.get(heard.arm, heard.arm))
        for panel in report.panels for word in shown_words(panel) for heard in word.heard
    )  # fmt: skip
    options = [element("option", title, value=arm) for arm, title in arms]
    controls = element(
        "form",
        element("label", "Method ", element("select", element("option", "all", value=""), options, name="arm")),
        element(
            "label", "Words ",
            element("select", *(element("option", n, value="" if n == "all" else n) for n in ("all", "lost", "regained")),
                    name="kind"),
        ),
        element("output", aria_live="polite"),
        class_="controls", hidden=True,
    )  # fmt: skip
    return "words", "Rare words lost and regained", joined([controls, *content, *_audio(clips)])


def _audio(clips: Clips) -> list[Html]:
    """Each clip once, as data that the page's script hands to its players."""
    sources = list(dict.fromkeys(clips.found.values()))
    if not sources:
        return []
    # "<" would end the element; base64 has none, so this only makes sure.
    data = json.dumps(sources).replace("<", "\\u003c")
    silent = element("noscript", element("p", "Audio needs JavaScript.", class_="note"))
    return [element("script", Html(data), type="application/json", id="clips"), silent]


def _changed(panel: Panel, clips: Clips) -> Html:
    shown = shown_words(panel)
    lost = sum(word.kind == "lost" for word in panel.changed)
    cut = f" The {len(shown)} that changed most often are shown." if len(shown) < len(panel.changed) else ""
    summary = f"{lost} rare words lost by some method in some draw, {len(panel.changed) - lost} regained.{cut}"
    sources = list(dict.fromkeys(clips.found.values()))
    items = (_word(panel, word, sources, clips.found.get((panel.title, word.id))) for word in shown)
    return joined([element("p", summary, class_="note"), element("ol", items, class_="words")])


def _word(panel: Panel, word: ChangedWord, sources: list[str], clip: str | None) -> Html:
    lines = [("said", in_reference(word.reference, word.position))] if word.reference else []
    lines.append((panel.arms.get(panel.full or "", "full precision"), in_hypothesis(word.full, word.reference, word.position)))
    texts: dict[str, tuple[list[Piece], list[str]]] = {}
    for heard in word.heard:
        pieces = in_hypothesis(heard.text, word.reference, word.position)
        name = panel.arms.get(heard.arm, heard.arm)
        name += f" {heard.times}/{heard.draws}" if heard.draws > 1 else ""
        texts.setdefault(str(pieces), (pieces, []))[1].append(name)
    lines += [(" · ".join(names), pieces) for pieces, names in texts.values()]
    player = None
    if clip is not None:
        player = element("audio", controls=True, preload="none", data_clip=sources.index(clip), aria_label=f"Audio of {word.id}")
    return element(
        "li",
        element(
            "div",
            element("strong", word.word, class_=f"word {word.kind}"), " ",
            element("span", word.kind, class_=f"kind {word.kind}"), " ",
            element("span", word.id, class_="id"), player, class_="word-head",
        ),
        element("dl", ((element("dt", name), element("dd", _pieces(pieces))) for name, pieces in lines)),
        data_arms=json.dumps([heard.arm for heard in word.heard]), data_kind=word.kind,
    )  # fmt: skip


def _pieces(pieces: list[Piece]) -> Html:
    parts: list[Any] = []
    for piece, marked in pieces:
        parts += [" ", element("mark", piece) if marked else piece]
    return joined(parts[1:])


# --- layers, and how to do it again ---


def _layers(report: Report) -> Section | None:
    content = _each(report, lambda panel: joined(_strips(panel)) if panel.layers else None)
    return ("layers", "Layers", joined(content)) if content else None


def _strips(panel: Panel) -> list[Html]:
    made = []
    titles = {"lam": "λ of the tail", "alpha": "α of the residual", "loss": "loss of rounding"}
    for arm, layers in panel.layers.items():
        names = [str(layer["name"]) for layer in layers]
        rows = {
            title: [v if isinstance(v := layer.get(key), int | float) else None for layer in layers]
            for key, title in titles.items()
        }
        known = {title: values for title, values in rows.items() if any(v is not None for v in values)}
        heads = [element("th", h, scope="col", class_="number" if i else None) for i, h in enumerate(("Layer", "bits", *known))]
        lines = [
            element("tr", element("th", name, scope="row"), element("td", str(layers[i].get("bits", text.NOTHING)), class_="number"),
                    (element("td", f"{v:.4g}" if (v := values[i]) is not None else text.NOTHING, class_="number")
                     for values in known.values()))
            for i, name in enumerate(names)
        ]  # fmt: skip
        alternative = f"{panel.title}, {panel.arms.get(arm, arm)}: {', '.join(known)} of {len(names)} layers, in the table below"
        content = [
            element("figure", strips(known, names, alternative)) if known else None,
            _details("Numbers", _scrolled(f"{arm}: layers", None, heads, lines)),
        ]
        made.append(_details(panel.arms.get(arm, arm), joined(content), opened=arm == text.best(panel)))
    return made


def _origin(report: Report, clips: Clips) -> Section:
    told = report.origin.get("told", {})
    parts: list[Html | None] = [
        element("dl", ((element("dt", label), element("dd", value)) for label, value in told.items()), class_="told")
    ]
    configurations = report.origin.get("configurations") or {}
    if any(configurations.values()):
        listed = [
            (element("dt", arm), element("dd", element("code", json.dumps(config, ensure_ascii=False))))
            for arm, config in configurations.items()
            if config
        ]
        parts.append(_details("Configuration of each method", element("dl", listed, class_="told")))
    several = len(report.panels) > 1
    notes = [f"{p.title}: {note}" if several else note for p in report.panels for note in p.notes]
    absent = [f"{p.title}: {note}" if several else note for p in report.panels for note in p.absent] + clips.absent
    for title, lines in (("Notes", notes), ("Not shown", absent)):
        if lines:
            parts += [element("h3", title), element("ul", (element("li", line) for line in dict.fromkeys(lines)))]
    parts.append(element("p", f"Made by tarq {__version__}.", class_="note"))
    return "origin", "To do it again", joined(parts)


def _details(title: str, content: Html, opened: bool = False) -> Html:
    return element("details", element("summary", title), content, open=opened)


def _asset(name: str) -> str:
    return files("tarq.reports").joinpath(name).read_text(encoding="utf-8")
