"""Score tables: models' scores, their differences, and the rare words lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeVar

from rich.console import Console
from rich.markup import escape

from tarq.report import counted
from tarq.scoring.bootstrap import Difference, Interval
from tarq.scoring.figures import FIGURES, Figure
from tarq.scoring.run import Evaluation, SetScores
from tarq.scoring.words import ChangedWord
from tarq.terminal.tables import frequencies_text, grouped, note, size_text, table

T = TypeVar("T")
#: Characters of a cell with a value above its interval, and of a line's name.
CELL, NAME = 20, 20


def cell(figure: Figure, known: Interval | Difference | None, flips: bool = False) -> str:
    """A value over its interval; those of a difference carry a sign, and are bold where the interval excludes 0."""
    if known is None or math.isnan(known.value):  # nothing to divide by
        return "–"
    sign = "+" if isinstance(known, Difference) else ""
    value, low, high = (figure.text(v, sign) for v in (known.value, known.low, known.high))
    if isinstance(known, Difference):
        value = f"[bold]{value}[/]" if known.clear_of_zero else value
        value += f" ({known.sign_flips:.1%})" if flips else ""
    return f"{value}\n[dim]\\[{low}, {high}][/]"


def show_evaluation(console: Console, evaluation: Evaluation, sizes: Mapping[str, int], examples: int = 3) -> None:
    """Score tables, one per set: values, paired differences, rare words lost and regained."""
    for label, scores in evaluation.sets.items():
        show_set(console, label, scores, sizes)
        show_words(console, scores, examples)
    normalizers = dict.fromkeys(scores.normalizer for scores in evaluation.sets.values())
    frequencies = dict.fromkeys(frequencies_text(scores.word_frequencies) for scores in evaluation.sets.values())
    console.print(
        f"[dim]S, D, I: words substituted, deleted, inserted. Rare: Zipf < {evaluation.thresholds[0]:g}; normalizer "
        f"{', '.join(normalizers)}; word frequencies {escape(', '.join(frequencies))}. KL and ΔNLL: nats per position. "
        f"\\[…]: 95 % paired bootstrap over utterances, {evaluation.resamples} resamples; (…): share of them on the "
        "other side of 0; bold intervals exclude 0.[/]"
    )


def show_set(console: Console, label: str, scores: SetScores, sizes: Mapping[str, int]) -> None:
    """One set: one column per model, then one row per pair of models; as many columns side by side as fit."""
    title = f"{label}: {_amounts(scores)} rare"
    title += f", {sum(scores.protected['entries'].values())} protected" if scores.protected else ""
    title += f", {scores.entities} {'entity' if scores.entities == 1 else 'entities'}" if scores.entities else ""
    figures = [f for f in FIGURES if any(f.name in m.figures for m in scores.models.values())]
    for names in _pieces(list(scores.models), console.width):
        rows = table("", *map(escape, names), title=title)
        rows.add_row("Linear weights", *(size_text(sizes[name]) if name in sizes else "–" for name in names))
        rows.add_row("S / D / I", *(_counts(scores.models[name].counts.get("all")) for name in names))
        for figure in figures:
            if figure.shown:
                cells = [cell(figure, scores.models[name].figures.get(figure.name)) for name in names]
                rows.add_row(figure.title, *cells)
        console.print(rows)
    for unit in ("%", "nats") if scores.differences else ():
        compared = [figure for figure in figures if figure.compared and figure.unit == unit]
        show_differences(console, f"{label}: paired differences", scores.differences, compared)
    for text in grouped(scores.notes):
        note(console, text)


def _amounts(scores: SetScores) -> str:
    """``3 utterances, 40 words, 2``; the last are the rare ones."""
    return f"{counted(scores.utterances, 'utterance')}, {counted(scores.words, 'word')}, {scores.rare_words}"


def show_differences(
    console: Console, title: str, differences: Mapping[str, Mapping[str, Difference]], figures: Sequence[Figure]
) -> None:
    """One row per pair of models that has any of the figures."""
    known = {pair: found for pair, found in differences.items() if any(f.name in found for f in figures)}
    for some in _pieces(figures, console.width) if known else ():
        rows = table("", *(f.title for f in some), title=title)
        for pair, found in known.items():
            rows.add_row(escape(pair), *(cell(f, found.get(f.name), flips=True) for f in some))
        console.print(rows)


def _counts(counts: Mapping[str, int] | None) -> str:
    keys = ("substitutions", "deletions", "insertions")
    return " / ".join(str(counts[key]) for key in keys) if counts else "–"


def _pieces(columns: Sequence[T], width: int) -> list[list[T]]:
    """Columns in pieces that fit beside the row names."""
    fitting = max(1, (width - NAME) // CELL)
    return [list(columns[start : start + fitting]) for start in range(0, len(columns), fitting)]


def show_words(console: Console, scores: SetScores, examples: int) -> None:
    """Rare words lost and regained against full precision, with a few transcripts side by side."""
    for name, model in scores.models.items():
        if model.protected_lost or model.protected_regained:
            away, back = (
                ", ".join(w.word for w in words) for words in (model.protected_lost, model.protected_regained)
            )
            console.print(
                f"[bold]{escape(name)}[/] lost {len(model.protected_lost)} protected: {escape(away) or '–'}; "
                f"regained {len(model.protected_regained)}: {escape(back) or '–'}",
                highlight=False,
            )
        if not model.lost and not model.regained:
            continue
        lost, regained = ", ".join(w.word for w in model.lost), ", ".join(w.word for w in model.regained)
        console.print(f"[bold]{escape(name)}[/] lost {len(model.lost)}: {escape(lost) or '–'}", highlight=False)
        console.print(f"  regained {len(model.regained)}: {escape(regained) or '–'}", highlight=False)
        for word in model.lost[:examples]:
            console.print(f"  [dim]{escape(word.id)}[/] {escape(word.word)}", highlight=False)
            console.print(f"    full  {escape(word.full_precision)}", highlight=False)
            console.print(f"    quant {escape(word.quantized)}", highlight=False)


def show_demo(console: Console, scores: SetScores, sizes: Mapping[str, int], references: Mapping[str, str]) -> None:
    """One table with one row per model, then three transcripts side by side.

    Args:
        scores: of the demo's test set.
        sizes: bytes of each model's Linear weights.
        references: utterance id to its text.
    """
    title = f"{_amounts(scores)} of them rare"
    words, rare = _named("wer", "rare_wer"), _named("delta_nll_rare", "kl_rare")
    rows = table("", "weights", *(figure.title for figure in words), "rare words\nlost, regained", title=title)
    full = next(iter(scores.models))
    for name, model in scores.models.items():
        changed = "–" if name == full else f"{len(model.lost)}, {len(model.regained)}"
        cells = [cell(figure, model.figures.get(figure.name)) for figure in words]
        rows.add_row(escape(name), size_text(sizes[name]), *cells, changed)
    console.print(rows)
    forced = [name for name in scores.models if name != full]
    rows = table("", *(figure.title for figure in rare), title="against full precision, nats per rare position")
    for name in forced:
        rows.add_row(escape(name), *(cell(figure, scores.models[name].figures.get(figure.name)) for figure in rare))
    console.print(rows)
    shown = {
        f"{other} − {base}": scores.differences[f"{other} − {base}"]
        for base, other in combinations(scores.models, 2)
        if base == full or base.split()[-1] == other.split()[-1]  # damage; methods of one width
    }
    show_differences(console, "paired differences", shown, words)
    show_differences(console, "paired differences, nats per rare position", shown, rare)
    for word in _examples(scores):
        console.print(f"\n[bold]{escape(word.word)}[/]  [dim]{escape(word.id)}[/]", highlight=False)
        console.print(f"  {'said':14} {escape(references[word.id])}", highlight=False)
        for name, model in scores.models.items():
            console.print(f"  {escape(name):14} {escape(model.hypotheses[word.id])}", highlight=False)
    for text in grouped(scores.notes):
        note(console, text)


def _named(*names: str) -> list[Figure]:
    return [figure for figure in FIGURES if figure.name in names]


def _examples(scores: SetScores, count: int = 3) -> list[ChangedWord]:
    """Rare words lost, taken in turn from each model's list, each utterance once."""
    lists = [iter(model.lost) for model in scores.models.values() if model.lost]
    chosen: dict[str, ChangedWord] = {}
    while lists and len(chosen) < count:
        for words in list(lists):
            word = next((w for w in words if w.id not in chosen), None)
            if word is None:
                lists.remove(words)
            elif len(chosen) < count:
                chosen[word.id] = word
    return list(chosen.values())
