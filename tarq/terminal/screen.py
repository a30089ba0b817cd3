"""What a terminal shows: progress bars and tables. No logic of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from tarq.data.pools import Pool
from tarq.report import LayerReport, Report, Reporter
from tarq.scoring.bootstrap import Difference, Interval
from tarq.scoring.run import DIVERGENCES, ENTITY_RATES, WORD_RATES, Evaluation, SetScores
from tarq.scoring.words import ChangedWord

TITLES = {
    "wer": "WER %",
    "rare_wer": "rare WER %",
    "rare_miss_rate": "rare missed %",
    "common_wer": "common WER %",
    "ne_wer": "entity WER %",
    "ne_fnr": "entities missed %",
    "kl_rare": "KL rare",
    "kl_common": "KL common",
    "delta_nll_rare": "ΔNLL rare",
    "delta_nll_common": "ΔNLL common",
}


@contextmanager
def _transformers_bars_off() -> Iterator[None]:
    """No bars of transformers for weights read and written: they would break up ours. Downloads keep theirs."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    shown, downloads_shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # which takes those of downloads along
    if downloads_shown:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
            if not downloads_shown:
                disable_progress_bars()


class ScreenReporter(Reporter):
    """Progress on a terminal; use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.entered = ExitStack()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            transient=True,
        )
        self.task = self.progress.add_task("", visible=False, detail="")

    def __enter__(self) -> ScreenReporter:
        self.entered.enter_context(_transformers_bars_off())
        self.entered.enter_context(self.progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.entered.__exit__(kind, value, trace)

    def phase(self, text: str, total: int | None = None) -> None:
        self.progress.remove_task(self.task)
        self.task = self.progress.add_task(escape(text), total=total, detail="")

    def advance(self, steps: int = 1) -> None:
        self.progress.advance(self.task, steps)

    def start(self, layers: int) -> None:
        self.phase("quantizing", layers)

    def layer(self, record: LayerReport) -> None:
        loss = "" if record.loss is None else f" loss {record.loss:.2e}"
        detail = f"{record.name} λ {record.lam:.2f} α {record.alpha:.2f}{loss}"
        self.progress.update(self.task, advance=1, detail=escape(detail))

    def note(self, text: str) -> None:
        self.console.print(f"[yellow]note[/] {escape(text)}", highlight=False)


def megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"


def show_report(console: Console, report: Report, layers: bool) -> None:
    """A quantization report: totals, and one row a layer if asked."""
    if layers:
        table = Table(title="layers", header_style="bold")
        for heading in ("layer", "out×in", "bits", "group", "λ", "α", "loss", "shift", "damp", "notes"):
            table.add_column(heading, justify="left" if heading in ("layer", "notes") else "right")
        for r in report.layers:
            table.add_row(
                r.name,
                "×".join(map(str, r.shape)),
                str(r.bits or "–"),
                str(r.group_size or "–"),
                f"{r.lam:.2f}",
                f"{r.alpha:.3f}",
                "–" if r.loss is None else f"{r.loss:.2e}",
                "–" if r.shift is None else f"{r.shift:.2e}",
                "–" if r.damp is None else f"{r.damp:g}",
                escape("; ".join(filter(None, [r.skipped, *r.notes]))),
            )
        console.print(table)
    quantized = [r for r in report.layers if not r.skipped]
    before, after = report.sizes["linear_bytes_before"], report.sizes["linear_bytes_after"]
    console.print(
        f"{len(quantized)} layers quantized, {len(report.layers) - len(quantized)} skipped, "
        f"{len(report.left_out)} outside the blocks left alone; Linear weights {megabytes(before)} → "
        f"{megabytes(after)} ({after / before:.1%})"
    )
    if report.calibration:
        c = report.calibration
        tail = ", ".join(
            f"{n['tail']} of {n['audio'] + n['tokens']} ({name})" for name, n in c["positions"].items() if n["tail"]
        )
        console.print(
            f"calibrated on {c['utterances']} utterances, {c['seconds'] / 60:.1f} min; rare words "
            f"{c['rare_word_share']:.1%}; tail positions {tail or 'none'}; "
            f"transcripts {c['transcript_style']}, {c['self_transcribed']} made by the model"
        )
        if "pool" in c:
            rho = c["pool"]["rho"]
            spread = (
                "" if rho is None else f", ρ of an utterance {rho['mean']:.1%} [{rho['min']:.1%}, {rho['max']:.1%}]"
            )
            text = f"{c['pool']['kind']} pool of {c['pool']['candidates']} utterances{spread}"
            console.print(f"{text}; word frequencies {frequencies_text(c['word_frequencies'])}", markup=False)
    alike: dict[str, list[str]] = {}
    for name, reason in report.left_out.items():
        alike.setdefault(reason, []).append(name)
    for reason, names in alike.items():
        shown = ", ".join(names) if len(names) < 4 else f"{len(names)} layers such as {names[0]}"
        console.print(f"left in full precision: {escape(shown)} ({escape(reason)})")
    for text, count in Counter(t for r in report.layers for t in [r.skipped, *r.notes] if t).items():
        console.print(f"[yellow]note[/] {count} layers: {escape(text)}")
    for text in grouped(report.notes):
        console.print(f"[yellow]note[/] {escape(text)}")
    shared = f" in {report.processes} processes" if report.processes > 1 else ""
    peaks = {"RAM": "ram_peak_bytes", "GPU memory": "device_peak_bytes"}
    peak = "".join(f", peak {report.memory[k] / 1e9:.2f} GB {name}" for name, k in peaks.items() if k in report.memory)
    console.print(f"walk: {report.seconds:.1f} s{shared}{peak}")


def grouped(notes: Sequence[str]) -> list[str]:
    """Notes, with what is said of more than three utterances (``id: what``) said once."""
    said: dict[str, list[str]] = {}
    for note in notes:
        name, colon, what = note.partition(": ")
        said.setdefault(what if colon else note, []).append(name if colon else "")
    lines = []
    for what, names in said.items():
        if len(names) > 3:
            lines.append(f"{len(names)} utterances such as {names[0]}: {what}")
        else:
            lines += [f"{name}: {what}" if name else what for name in names]
    return lines


def frequencies_text(described: Mapping[str, Any]) -> str:
    """Which word frequencies were used, in a few words."""
    if "wordfreq" in described:
        return f"wordfreq {described['wordfreq']}"
    return f"{described['file']} (sha256 {described['sha256'][:12]}…)"


def show_pool(console: Console, pool: Pool, normalizer: str, threshold: float, frequencies: Mapping[str, Any]) -> None:
    """A calibration pool: a row a source, and one for all."""
    table = Table(title=f"{pool.kind} pool, of {pool.candidates} utterances", header_style="bold", box=SIMPLE_HEAD)
    table.add_column("source", overflow="fold")
    for heading in ("utterances", "minutes", "words", "rare", "ρ mean", "ρ min", "ρ max"):
        table.add_column(heading, justify="right", no_wrap=True)
    sources = list(dict.fromkeys(pool.sources))
    for source in (*sources, *([None] if len(sources) > 1 else [])):
        figures = pool.summary(source)
        rho = figures["rho"]
        table.add_row(
            "all" if source is None else escape(source),
            str(figures["utterances"]),
            f"{figures['seconds'] / 60:.2f}",
            str(figures["words"]),
            str(figures["rare_words"]),
            *("–" if rho is None else f"{rho[name]:.1%}" for name in ("mean", "min", "max")),
        )
    console.print(table)
    console.print(
        f"[dim]ρ is an utterance's share of rare words; rare is Zipf < {threshold:g}; normalizer {escape(normalizer)}; "
        f"word frequencies {escape(frequencies_text(frequencies))}[/]"
    )
    if "note" in frequencies:
        console.print(f"[yellow]note[/] {escape(frequencies['note'])}")


def _number(figure: str, value: float, sign: str = "") -> str:
    """Rates as percentages with two decimals, nats with four."""
    return f"{100 * value:{sign}.2f}" if figure in (*WORD_RATES, *ENTITY_RATES) else f"{value:{sign}.4f}"


def _texts(figure: str, known: Interval | Difference) -> tuple[str, str]:
    """A value and its interval; those of a difference carry a sign."""
    sign = "+" if isinstance(known, Difference) else ""
    value, low, high = (_number(figure, v, sign) for v in (known.value, known.low, known.high))
    return value, f"\\[{low}, {high}]"


def _value(figure: str, interval: Interval) -> str:
    value, interval_text = _texts(figure, interval)
    return f"{value} [dim]{interval_text}[/]"


def _difference(figure: str, d: Difference) -> str:
    text = f"{' '.join(_texts(figure, d))} {d.sign_flips:.1%}"
    return f"[bold]{text}[/]" if d.clear_of_zero else text


def show_evaluation(console: Console, evaluation: Evaluation, sizes: Mapping[str, int], examples: int = 3) -> None:
    """Score tables, one a set: values, paired differences, rare words lost and regained."""
    for label, scores in evaluation.sets.items():
        show_set(console, label, scores, sizes)
        show_words(console, scores, examples)
    normalizers = dict.fromkeys(scores.normalizer for scores in evaluation.sets.values())
    frequencies = dict.fromkeys(frequencies_text(scores.word_frequencies) for scores in evaluation.sets.values())
    console.print(
        f"[dim]normalizer {', '.join(normalizers)}; rare is Zipf < {evaluation.thresholds[0]:g}, word frequencies "
        f"{escape(', '.join(frequencies))}; 95 % paired bootstrap over utterances, "
        f"{evaluation.resamples} resamples; bold differences are clear of 0; KL and ΔNLL in nats a position[/]"
    )


def show_set(console: Console, label: str, scores: SetScores, sizes: Mapping[str, int]) -> None:
    """One set: a column a model, then a row a pair of models."""
    title = f"{label}: {scores.utterances} utterances, {scores.words} words, {scores.rare_words} rare"
    title += f", {scores.entities} entities" if scores.entities else ""
    figures = [
        f for f in (*WORD_RATES, *ENTITY_RATES, *DIVERGENCES) if any(f in m.figures for m in scores.models.values())
    ]
    table = Table("", *map(escape, scores.models), title=title, header_style="bold")
    table.add_row("Linear weights", *(megabytes(sizes[name]) if name in sizes else "–" for name in scores.models))
    keys = ("substitutions", "deletions", "insertions")
    counts = [m.counts.get("all") for m in scores.models.values()]
    table.add_row("S / D / I", *(" / ".join(str(c[k]) for k in keys) if c else "–" for c in counts))
    for figure in figures:
        cells = [_value(figure, m.figures[figure]) if figure in m.figures else "–" for m in scores.models.values()]
        table.add_row(TITLES[figure], *cells)
    console.print(table)
    if scores.differences:
        shown = [f for f in ("wer", "rare_wer", *ENTITY_RATES, "kl_rare", "kl_common") if f in figures]
        table = Table(
            "",
            *(TITLES[f] for f in shown),
            title=f"{label}: paired differences, sign flips",
            header_style="bold",
        )
        for pair, differences in scores.differences.items():
            row = [_difference(f, differences[f]) if f in differences else "–" for f in shown]
            table.add_row(escape(pair), *row)
        console.print(table)
    for text in grouped(scores.notes):
        console.print(f"[yellow]note[/] {escape(text)}")


def show_words(console: Console, scores: SetScores, examples: int) -> None:
    """Rare words lost and regained against full precision, with a few transcripts side by side."""
    for name, model in scores.models.items():
        if not model.lost and not model.regained:
            continue
        lost, regained = ", ".join(w.word for w in model.lost), ", ".join(w.word for w in model.regained)
        console.print(f"[bold]{escape(name)}[/] lost {len(model.lost)}: {escape(lost) or '–'}", highlight=False)
        console.print(f"  regained {len(model.regained)}: {escape(regained) or '–'}", highlight=False)
        for word in model.lost[:examples]:
            console.print(f"  [dim]{escape(word.id)}[/] {escape(word.word)}", highlight=False)
            console.print(f"    full  {escape(word.full_precision)}", highlight=False)
            console.print(f"    quant {escape(word.quantized)}", highlight=False)


def show_demo(console: Console, scores: SetScores, sizes: Mapping[str, int], spoken: Mapping[str, str]) -> None:
    """One table, a row a model; then three transcripts side by side.

    Args:
        scores: of the demonstration's test set.
        sizes: bytes of each model's Linear weights.
        spoken: utterance id to what was said.
    """
    title = f"{scores.utterances} utterances, {scores.words} words, {scores.rare_words} of them rare"
    table = Table("", title=title, header_style="bold", box=SIMPLE_HEAD)
    for heading in ("weights", "WER %", "rare WER %", "rare words\nlost, regained"):
        table.add_column(heading, justify="right")
    for name, model in scores.models.items():
        changed = f"{len(model.lost)}, {len(model.regained)}" if "kl_rare" in model.figures else "–"
        table.add_row(escape(name), megabytes(sizes[name]), *_two_lines(model.figures, ("wer", "rare_wer")), changed)
    console.print(table)
    table = Table("", title="paired differences", header_style="bold", box=SIMPLE_HEAD)
    shown = ("wer", "rare_wer", "kl_rare")
    for figure in shown:
        table.add_column(TITLES[figure], justify="right")
    full = next(iter(scores.models))
    for base, other in combinations(scores.models, 2):
        if base == full or base.split()[-1] == other.split()[-1]:  # damage; methods of one width
            pair = f"{other} − {base}"
            table.add_row(escape(pair), *_two_lines(scores.differences[pair], shown))
    console.print(table)
    for word in _examples(scores):
        console.print(f"\n[bold]{escape(word.word)}[/]  [dim]{escape(word.id)}[/]", highlight=False)
        console.print(f"  {'said':14} {escape(spoken[word.id])}", highlight=False)
        for name, model in scores.models.items():
            console.print(f"  {escape(name):14} {escape(model.hypotheses[word.id])}", highlight=False)
    for text in grouped(scores.notes):
        console.print(f"[yellow]note[/] {escape(text)}")


def _two_lines(figures: Mapping[str, Interval] | Mapping[str, Difference], shown: Sequence[str]) -> list[str]:
    """Cells of a value over its interval, narrow enough for a terminal; a difference is bold where clear of 0."""
    cells = []
    for figure in shown:
        known = figures.get(figure)
        if known is None:
            cells.append("–")
            continue
        value, interval_text = _texts(figure, known)
        if isinstance(known, Difference) and known.clear_of_zero:
            value = f"[bold]{value}[/]"
        cells.append(f"{value}\n[dim]{interval_text}[/]")
    return cells


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


def show_checks(console: Console, checks: Sequence[tuple[str, bool, str]]) -> None:
    """The doctor's findings: what, whether it is there, and what to do."""
    table = Table(header_style="bold")
    for heading in ("check", "", "detail"):
        table.add_column(heading)
    for what, fine, detail in checks:
        table.add_row(escape(what), "[green]ok[/]" if fine else "[yellow]–[/]", escape(detail))
    console.print(table)
