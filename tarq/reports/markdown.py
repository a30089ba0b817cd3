"""A report as a Markdown summary."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tarq.report import counted
from tarq.reports import text
from tarq.reports.context import in_reference
from tarq.reports.panel import FIGURES, MAIN, ChangedWord, Group, Panel, Report
from tarq.reports.words import shown_words
from tarq.scoring.bootstrap import Difference

#: Changed words of a panel that are listed.
WORDS = 15


def summary(report: Report) -> str:
    """Everything of the page that goes into tables."""
    parts = [
        f"# {escaped(report.title)}",
        *(escaped(sentence) for sentence in text.lead(report.main)),
    ]
    parts += ["\n\n".join(_panel(panel)) for panel in report.panels]
    parts.append(f"{report.intervals} {text.MEANINGS}".replace("<", "\\<"))
    run = [f"- {label}: {escaped(value)}" for label, value in report.origin.get("run", {}).items()]
    absent = [f"- {escaped(line)}" for line in report.lines("absent")]
    notes = [f"- {escaped(line)}" for line in report.lines("notes")]
    parts += ["## To do it again", "\n".join(run)] if run else []
    parts += ["Notes:", "\n".join(notes)] if notes else []
    parts += ["Not shown:", "\n".join(absent)] if absent else []
    return "\n\n".join(parts) + "\n"


def escaped(given: str) -> str:
    """Text that is neither markup nor the end of a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(given.split()))


def _panel(panel: Panel) -> list[str]:
    parts = [f"## {escaped(panel.title)}", escaped(panel.about), _values(panel)]
    if panel.figures_only:
        return parts
    if panel.differences:
        parts += [f"Paired differences from {escaped(panel.arms[panel.base or ''])}:", _differences(panel)]
    if panel.pairs:
        parts += ["### What each part adds", _pairs(panel)]
    if panel.swings:
        parts += ["### Swing over calibration pools", _swings(panel)]
    if panel.frequency:
        parts += ["### Damage by word frequency", _frequency(panel)]
    if panel.bands:
        parts += ["### Word error rate by word frequency, %", _rates(panel, panel.bands)]
    if panel.groups:
        parts += ["### Where errors are: word error rate, %", _rates(panel, panel.groups)]
    if panel.places:
        parts += ["### Word error rate by place in the utterance, %", _rates(panel, panel.places)]
    if panel.speakers:
        parts += ["### ΔNLL of rare words by speaker", _speakers(panel)]
    if worst := [(arm, sentence) for arm, layers in panel.layers.items() if (sentence := text.worst_layers(layers))]:
        parts += ["### Layers", "\n".join(f"- {escaped(panel.arms.get(arm, arm))}: {escaped(t)}" for arm, t in worst)]
    if panel.changed:
        shown = shown_words(panel)[:WORDS]
        lost = sum(word.kind == "lost" for word in panel.changed)
        counts = f"{counted(lost, 'rare word')} lost by some method, {len(panel.changed) - lost} regained. Most often:"
        parts += ["### Rare words lost and regained", counts, "\n".join(_word(panel, word) for word in shown)]
    return parts


def _values(panel: Panel) -> str:
    figures = panel.figures
    share = ["rare damage undone"] if panel.recovered else []
    rows = [["", *map(text.heading, figures), *share]]
    for arm, title in panel.arms.items():
        known = [panel.values.get((arm, figure)) for figure in figures]
        if any(k is not None for k in known):
            cells = [text.full(f, k) if k else text.NOTHING for f, k in zip(figures, known, strict=True)]
            own = panel.recovered.get(arm)
            rows.append([escaped(title), *cells, *([text.share(own) if own else text.NOTHING] if share else [])])
    return _table(rows)


def _differences(panel: Panel) -> str:
    rows = [["", *map(text.heading, panel.figures)]]
    for arm in dict.fromkeys(arm for arm, _ in panel.differences):
        cells = [_difference(f, panel.differences.get((arm, f))) for f in panel.figures]
        rows.append([escaped(panel.arms[arm]), *cells])
    return _table(rows)


def _pairs(panel: Panel) -> str:
    figures = [f for f in MAIN if any(f in pair.differences for pair in panel.pairs)]
    rows = [["paired difference; Holm's p · detectable · over draws", *map(text.heading, figures)]]
    for pair in panel.pairs:
        cells = []
        for figure in figures:
            cell = _difference(figure, pair.differences.get(figure))
            if figure in pair.adjusted:
                cell += f"; {escaped(text.significance(pair, figure))}"
            cells.append(cell)
        rows.append([escaped(panel.pair_title(pair)), *cells])
    return _table(rows)


def _swings(panel: Panel) -> str:
    pools = list(dict.fromkeys(pool for swing in panel.swings for pool in swing.pools))
    rows = [["", "figure", *map(escaped, pools), "swing"]]
    for swing in panel.swings:
        cells = [text.full(swing.figure, swing.pools[p]) if p in swing.pools else text.NOTHING for p in pools]
        title = escaped(panel.arms.get(swing.arm, swing.arm))
        rows.append([title, text.heading(swing.figure), *cells, text.full(swing.figure, swing.swing)])
    return _table(rows)


def _rates(panel: Panel, groups: Sequence[Group]) -> str:
    kinds = {group.kind: group.words for group in groups}
    found = {(group.arm, group.kind): group for group in groups}
    rows = [["", *(f"{kind} ({counted(n, 'word')})" for kind, n in kinds.items())]]
    for arm, title in panel.arms.items():
        cells = []
        for kind in kinds:
            group = found.get((arm, kind))
            cell = text.points(group.rate) if group else text.NOTHING
            if group and group.change:
                cell += f"; {_bold(text.points(group.change, True), group.change)}"
            cells.append(cell)
        if any((arm, kind) in found for kind in kinds):
            rows.append([escaped(title), *cells])
    return _table(rows)


def _frequency(panel: Panel) -> str:
    """Two rows an arm, ΔNLL and KL: damage in each band, and its paired difference from the base's."""
    known = {(one.arm, one.group, one.figure): one for one in panel.frequency}
    targets = {one.group: one.targets for one in panel.frequency}
    rows = [["", "", *(f"{band} ({counted(n, 'target')})" for band, n in targets.items())]]
    for arm, title in panel.arms.items():
        for figure in ("delta_nll", "kl"):
            found = [known.get((arm, band, figure)) for band in targets]
            cells = [text.full(figure, one.value) if one else text.NOTHING for one in found]
            changes = [f"; {_difference(figure, one.difference)}" if one and one.difference else "" for one in found]
            if any(found):
                rows.append([escaped(title), FIGURES[figure][0], *map("".join, zip(cells, changes, strict=True))])
    return _table(rows)


def _speakers(panel: Panel) -> str:
    damage = [one for one in panel.speakers if one.figure == "delta_nll_rare"]
    targets = {one.group: one.targets for one in damage}
    rows = [["", *(f"{escaped(name)} ({n} targets)" for name, n in targets.items())]]
    for arm in dict.fromkeys(one.arm for one in damage):
        known = {one.group: text.full(one.figure, one.value) for one in damage if one.arm == arm}
        rows.append([escaped(panel.arms.get(arm, arm)), *(known.get(name, text.NOTHING) for name in targets)])
    return _table(rows)


def _word(panel: Panel, word: ChangedWord) -> str:
    arms = ", ".join(
        panel.arms.get(h.arm, h.arm) + (f" {h.times}/{h.draws}" if h.draws > 1 else "") for h in word.hypotheses
    )
    said = " ".join(piece for piece, _ in in_reference(word.reference, word.position)) if word.reference else word.full
    return f"- **{escaped(word.word)}** {word.kind} ({escaped(arms)}): {escaped(said)} ({escaped(word.id)})"


def _difference(figure: str, known: Difference | None) -> str:
    return _bold(text.full(figure, known), known) if known else text.NOTHING


def _bold(shown: str, known: Difference) -> str:
    return f"**{shown}**" if known.clear_of_zero else shown


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([*head(rows[0]), *map(row, rows[1:])])


def head(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [row(titles), row(["---"] * len(titles))]


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"
