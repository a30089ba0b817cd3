"""The sections of a page that say where damage is: by frequency and kind of word, place in the utterance, speaker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tarq.report import counted
from tarq.reports import text
from tarq.reports.figures import Series, columns, legend
from tarq.reports.markup import Html, details, element, heading, joined, number, small, table
from tarq.reports.panel import Group, Panel
from tarq.reports.tables import by_arm, difference
from tarq.scoring.bootstrap import Difference, Interval

#: Arms and columns that a figure shows; the numbers have all.
SERIES, COLUMNS = 4, 7
#: Characters of a column's name that fit at the width of a phone.
LETTERS = 7


def by_frequency(panel: Panel) -> Html | None:
    if not panel.bands:
        return None
    about = (
        "Word errors added to full precision’s, in points of the error rate on words of each Zipf frequency, the "
        "rarest on the left."
    )
    return _changes(panel, panel.bands, "", about)


def where(panel: Panel) -> Html | None:
    """Errors by kind of word, by place in the utterance and by speaker."""
    about = "Word errors added to full precision’s, in points of the error rate on each fifth of an utterance’s words."
    parts = [
        _rates(panel, panel.groups) if panel.groups else None,
        details("More word scores", by_arm(panel, panel.more, "Word scores beside WER and rare WER."))
        if panel.more
        else None,
        _changes(panel, panel.places, "By place in the utterance", about) if panel.places else None,
        _speakers(panel),
    ]
    return joined(parts) if any(parts) else None


def _changes(panel: Panel, groups: Sequence[Group], title: str, about: str) -> Html:
    """Columns of changes against full precision, and the rates as numbers."""
    names = list(dict.fromkeys(group.kind for group in groups))
    found = {(group.arm, group.kind): group.change for group in groups}
    lines = {arm: [found.get((arm, name)) for name in names] for arm in panel.arms}
    shown = [name.removeprefix("Zipf ") for name in names]
    figure = _figure(panel, shown, lines, title, about, "points", lambda k: text.points(k, True))
    return joined([figure, details("Numbers", _rates(panel, groups))])


def _speakers(panel: Panel) -> Html | None:
    if not panel.speakers:
        return None
    figure = "delta_nll_rare"
    known = {(one.arm, one.speaker, one.figure): one for one in panel.speakers}
    targets = {one.speaker: one.targets for one in panel.speakers if one.figure == figure}
    arms = [arm for arm in panel.arms if any((arm, name, figure) in known for name in targets)]
    shown = list(targets)[:COLUMNS]
    lines = {arm: [one.damage if (one := known.get((arm, name, figure))) else None for name in shown] for arm in arms}
    about = (
        "Damage to rare words by speaker: ΔNLL of the true token, in nats a target; who said most of them on the left."
    )
    short = [name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}" for name in shown]
    drawn = _figure(panel, short, lines, "By speaker", about, "nats", lambda k: text.full(figure, k), factor=1)
    rows = []
    for arm in arms:
        cells = []
        for name in targets:
            rare, common = (known.get((arm, name, f)) for f in (figure, "delta_nll_common"))
            told = f"common {text.full('delta_nll_common', common.damage)}" if common else ""
            cells.append(
                number(text.full(figure, rare.damage) if rare else text.NOTHING, small(told) if told else None)
            )
        rows.append(element("tr", element("th", panel.arms[arm], scope="row"), cells))
    heads = [heading("Method", numbers=False), *(heading(name, f"{n} rare targets") for name, n in targets.items())]
    return joined([drawn, details("Numbers", table(f"{panel.title}: ΔNLL by speaker", heads, rows))])


def _figure(
    panel: Panel,
    names: Sequence[str],
    lines: Mapping[str, Sequence[Interval | Difference | None]],
    title: str,
    about: str,
    unit: str,
    told: Callable[[Any], str],
    factor: float = 100,
) -> Html | None:
    """The base and the best of the other arms as columns."""
    arms = [arm for arm, known in lines.items() if any(known)]
    first = [arm for arm in (panel.base, *text.ranked(panel)) if arm in arms]
    chosen = list(dict.fromkeys([*first, *arms]))[:SERIES]
    if not chosen:
        return None
    series = [Series(panel.arms[arm], lines[arm]) for arm in chosen]
    caption = f"{about} Lines that leave the figure are cut; the numbers have all."
    said = (
        f"{one.label}: " + ", ".join(f"{name} {told(k)}" for name, k in zip(names, one.known, strict=True) if k)
        for one in series
    )
    drawn = columns(names, series, f"{panel.title}. {caption} {'; '.join(said)}", unit, factor)
    head = element("figcaption", element("strong", title) if title else None, " " if title else "", caption)
    return element("figure", head, legend(one.label for one in series), drawn)


def _rates(panel: Panel, groups: Sequence[Group]) -> Html:
    """A row an arm, a column a kind of word: error rate with interval, change against full precision, S / D / I."""
    kinds = {group.kind: group.words for group in groups}
    found = {(group.arm, group.kind): group for group in groups}
    rows = []
    for arm, title in panel.arms.items():
        if any((arm, kind) in found for kind in kinds):
            cells = (_rate(found.get((arm, kind))) for kind in kinds)
            rows.append(element("tr", element("th", title, scope="row"), cells))
    heads = [heading("Method", numbers=False), *(heading(kind, counted(n, "word")) for kind, n in kinds.items())]
    return table(f"{panel.title}: error rates by kind of word", heads, rows, text.RATES + text.drawn(groups))


def _rate(group: Group | None) -> Html:
    if group is None:
        return number(text.NOTHING)
    counts = " / ".join(f"{n:.0f}" for n in (group.substitutions, group.deletions, group.insertions))
    change = difference(text.points(group.change, True), group.change) if group.change else None
    return number(element("span", text.points(group.rate), class_="figure-value"), change, small(counts))
