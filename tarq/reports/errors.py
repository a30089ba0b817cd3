"""The sections of a page that say where damage is: by frequency and kind of word, place in the utterance, speaker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tarq.report import counted
from tarq.reports import text
from tarq.reports.figures import Series, columns, legend
from tarq.reports.markup import Html, details, element, heading, joined, number, small, table
from tarq.reports.panel import FIGURES, Damage, Group, Panel
from tarq.reports.tables import by_arm, difference
from tarq.scoring.bootstrap import Difference, Interval
from tarq.words.bands import NO_WORD

#: Arms and columns that a figure shows; the numbers have all.
SERIES, COLUMNS = 4, 7
#: Characters of a column's name that fit at the width of a phone.
LETTERS = 7
MORE = (
    "Word scores beside WER and rare WER. Looping: transcripts that repeat themselves. Timestamp shift: by how many "
    "seconds the end moves that a model names, given all of the text, from full precision’s."
)


def by_frequency(panel: Panel) -> Html | None:
    """Damage to targets of each band of frequency, teacher-forced, then word errors."""
    about = (
        "Word errors added to full precision’s, in points of the error rate on words of each Zipf frequency, the "
        "rarest on the left."
    )
    parts = [_frequency(panel), _changes(panel, panel.bands, "Word errors", about) if panel.bands else None]
    return joined(parts) if any(parts) else None


def _frequency(panel: Panel) -> Html | None:
    if not panel.frequency:
        return None
    known = {(one.arm, one.group, one.figure): one for one in panel.frequency}
    targets = {one.group: one.targets for one in panel.frequency}
    arms = [arm for arm in panel.arms if any(one.arm == arm for one in panel.frequency)]
    bands = [band for band in targets if band != NO_WORD]
    drawn = []
    for figure, about in (
        ("delta_nll", "What the true token loses"),
        ("kl", "How far the predictions move from full precision’s"),
    ):
        lines = {
            arm: [one.value if (one := known.get((arm, band, figure))) else None for band in bands] for arm in arms
        }
        caption = f"{about}, in nats a target, by the Zipf frequency of its word, the rarest on the left."
        short = [band.removeprefix("Zipf ") for band in bands]
        title = f"{FIGURES[figure][0]} by word frequency"
        drawn.append(_figure(panel, short, lines, title, caption, "nats", partial(text.full, figure), factor=1))

    def cell(arm: str, band: str) -> Html:
        found = (known.get((arm, band, figure)) for figure in ("delta_nll", "kl"))
        lines: list[str] = [line for one in found if one for line in _lines(one)]
        return number(*lines or [text.NOTHING])

    base = f" Below each its paired difference from {panel.arms[panel.base or '']}." if panel.differences else ""
    caption = f"Damage by the Zipf frequency of the target’s word; no word: ends, punctuation.{base}"
    numbers = _by_group(panel, "damage by word frequency", arms, targets, cell, "targets", caption)
    return joined([element("div", drawn, class_="figures"), details("Numbers", numbers)])


def _lines(one: Damage) -> Iterator[Html]:
    """A figure's name, value and interval; and its paired difference from the base's."""
    value = element("span", text.number(one.figure, one.value.value), class_="figure-value")
    yield joined([f"{FIGURES[one.figure][0]} ", value, " ", small(text.interval(one.figure, one.value))])
    if one.difference:
        yield difference(text.full(one.figure, one.difference), one.difference)


def _by_group(
    panel: Panel,
    title: str,
    arms: Sequence[str],
    targets: Mapping[str, int],
    cell: Callable[[str, str], Html],
    what: str,
    caption: str | None = None,
) -> Html:
    """A row an arm, a column a group of targets, their number in its head."""
    rows = [
        element("tr", element("th", panel.arms[arm], scope="row"), [cell(arm, group) for group in targets])
        for arm in arms
    ]
    heads = [heading("Method", numbers=False), *(heading(group, f"{n} {what}") for group, n in targets.items())]
    return table(f"{panel.title}: {title}", heads, rows, caption)


def where(panel: Panel) -> Html | None:
    """Errors by kind of word, by place in the utterance and by speaker."""
    about = "Word errors added to full precision’s, in points of the error rate on each fifth of an utterance’s words."
    parts = [
        _rates(panel, panel.groups) if panel.groups else None,
        details("More word scores", by_arm(panel, panel.more, MORE)) if panel.more else None,
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
    known = {(one.arm, one.group, one.figure): one for one in panel.speakers}
    targets = {one.group: one.targets for one in panel.speakers if one.figure == figure}
    arms = [arm for arm in panel.arms if any((arm, name, figure) in known for name in targets)]
    shown = list(targets)[:COLUMNS]
    lines = {arm: [one.value if (one := known.get((arm, name, figure))) else None for name in shown] for arm in arms}
    about = (
        "Damage to rare words by speaker: ΔNLL of the true token, in nats a target; who said most of them on the left."
    )
    short = [name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}" for name in shown]
    drawn = _figure(panel, short, lines, "By speaker", about, "nats", partial(text.full, figure), factor=1)

    def cell(arm: str, name: str) -> Html:
        rare, common = (known.get((arm, name, f)) for f in (figure, "delta_nll_common"))
        second = f"common {text.full('delta_nll_common', common.value)}" if common else ""
        return number(text.full(figure, rare.value) if rare else text.NOTHING, small(second) if second else None)

    numbers = _by_group(panel, "ΔNLL by speaker", arms, targets, cell, "rare targets")
    return joined([drawn, details("Numbers", numbers)])


def _figure(
    panel: Panel,
    names: Sequence[str],
    lines: Mapping[str, Sequence[Interval | Difference | None]],
    title: str,
    about: str,
    unit: str,
    shown: Callable[[Any], str],
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
        f"{one.label}: " + ", ".join(f"{name} {shown(k)}" for name, k in zip(names, one.known, strict=True) if k)
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
