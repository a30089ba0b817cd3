"""Tables of reports, pools, plans and checks; presentation only."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tarq.report import counted, size_text

if TYPE_CHECKING:
    from tarq.data.speech import DrawnPool
    from tarq.report import LayerReport, Report
    from tarq.walk.estimate import Plan
    from tarq.walk.plan import PlannedLayer

#: From this width on, less important columns are shown.
WIDE = 110


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def table(first: str, *headings: str, title: str = "") -> Table:
    """Labels on the left, figures on the right; narrow enough for a terminal of 80 columns."""
    made = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    made.padding = (0, 1, 0, 0)
    made.add_column(first, overflow="fold")
    for heading in headings:
        made.add_column(heading, justify="right", no_wrap=True)
    return made


def note(console: Console, text: str) -> None:
    console.print(f"[yellow]note[/] {escape(text)}", highlight=False)


def show_layers(console: Console, report: Report) -> None:
    """One table per stage, one row per layer; the names' common prefix is shown once."""
    notes = list(dict.fromkeys(text for layer in report.layers for text in _notes(layer)))
    more = console.width >= WIDE
    for stage in dict.fromkeys(layer.stage for layer in report.layers):
        layers = [layer for layer in report.layers if layer.stage == stage]
        prefix = shared_prefix([layer.name for layer in layers])
        rows = table(
            "layer",
            "out×in",
            "bits/\ngroup",
            "λ",
            "α",
            "loss",
            *(("shift", "damp") if more else ()),
            "notes",
            title=f"{stage}: {prefix}…" if prefix else stage,
        )
        for r in layers:
            rows.add_row(
                escape(r.name.removeprefix(prefix)),
                "×".join(map(str, r.shape)),
                f"{r.bits}/{r.group_size}" if r.bits else "–",
                f"{r.lam:.2f}",
                f"{r.alpha:.2f}",
                _scientific(r.loss),
                *((_scientific(r.shift), "–" if r.damp is None else f"{r.damp:g}") if more else ()),
                " ".join(str(notes.index(text) + 1) for text in _notes(r)),
            )
        console.print(rows)
    for number, text in enumerate(notes, 1):
        console.print(f"{number}: {text}", markup=False, highlight=False)


def _notes(layer: LayerReport) -> list[str]:
    return [text for text in (layer.skipped, *layer.notes) if text]


def _scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def shared_prefix(names: Sequence[str]) -> str:
    """The common prefix of dotted names, up to and including a dot."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "".join(f"{part}." for part in shared)


def show_report(console: Console, report: Report, layers: bool) -> None:
    """A quantization report: one row per layer if asked, then totals."""
    if layers:
        show_layers(console, report)
    quantized = [r for r in report.layers if not r.skipped]
    before, after = report.sizes["linear_bytes_before"], report.sizes["linear_bytes_after"]
    console.print(
        f"{counted(len(quantized), 'layer')} quantized, {len(report.layers) - len(quantized)} skipped, "
        f"{len(report.left_out)} outside the blocks left alone; Linear weights {size_text(before)} → "
        f"{size_text(after)} ({after / before:.1%} of before)"
    )
    _show_widths(console, report.layers)
    if report.calibration:
        _show_calibration(console, report.calibration)
    for names, reason in _by_reason(report.left_out.items()):
        shown = ", ".join(names) if len(names) < 4 else f"{len(names)} layers such as {names[0]}"
        console.print(f"left in full precision: {escape(shown)} ({escape(reason)})")
    for text, count in Counter(t for r in report.layers for t in _notes(r)).items():
        note(console, f"{counted(count, 'layer')}: {text}")
    for text in grouped(report.notes):
        note(console, text)
    shared = f" in {report.processes} processes" if report.processes > 1 else ""
    peaks = {"RAM": "ram_peak_bytes", "GPU memory": "device_peak_bytes"}
    peak = "".join(f", peak {report.memory[k] / 1e9:.2f} GB {name}" for name, k in peaks.items() if k in report.memory)
    console.print(f"walk: {report.seconds:.1f} s{shared}{peak}")


def _show_calibration(console: Console, c: Mapping[str, Any]) -> None:
    tail = ", ".join(
        f"{n['tail']} of {n['audio'] + n['tokens']} ({name})" for name, n in c["positions"].items() if n["tail"]
    )
    console.print(
        f"calibrated on {counted(c['utterances'], 'utterance')}, {c['seconds'] / 60:.1f} min; rare words "
        f"{c['rare_word_share']:.1%}; tail positions {tail or 'none'}; "
        f"transcripts: {c['transcript_style']}, {c['self_transcribed']} made by the model"
    )
    if "pool" in c:
        rho = c["pool"]["rho"]
        spread = "" if rho is None else f", ρ of an utterance {rho['mean']:.1%} [{rho['min']:.1%}, {rho['max']:.1%}]"
        text = f"{c['pool']['kind']} pool of {counted(c['pool']['candidates'], 'utterance')}{spread}"
        console.print(f"{text}; word frequencies {frequencies_text(c['word_frequencies'])}", markup=False)


def _by_reason(reasons: Iterable[tuple[str, str]]) -> list[tuple[list[str], str]]:
    """Names grouped by reason."""
    alike: dict[str, list[str]] = {}
    for name, reason in reasons:
        alike.setdefault(reason, []).append(name)
    return [(names, reason) for reason, names in alike.items()]


def show_plan(console: Console, plan: Plan) -> None:
    """One table per stage, one row per kind of layer (* is the block's number); totals, estimates, problems."""
    remarks = {layer.name: layer.reason or layer.note for layer in plan.layers}
    reasons = list(dict.fromkeys(filter(None, remarks.values())))
    for stage in dict.fromkeys(layer.stage for layer in plan.layers):
        layers = [layer for layer in plan.layers if layer.stage == stage]
        prefix = shared_prefix([layer.name for layer in layers]) if stage else ""
        title = f"{stage}: {prefix}…" if stage else "outside the blocks"
        rows = table("layer", "×", "out×in", "bits/\ngroup", "before", "after", "notes", title=title)
        kinds: dict[tuple, list[PlannedLayer]] = {}
        for layer in layers:
            name = re.sub(r"(?<=\.)\d+(?=\.)", "*", f".{layer.name.removeprefix(prefix)}")[1:]
            packed_as = f"{layer.bits}/{layer.group_size}" if layer.group_size else "–"
            kinds.setdefault((name, layer.shape, packed_as, remarks[layer.name]), []).append(layer)
        for (name, shape, packed_as, reason), alike in kinds.items():
            rows.add_row(
                escape(name),
                str(len(alike)),
                "×".join(map(str, shape)),
                packed_as,
                size_text(sum(layer.bytes_before for layer in alike)),
                size_text(sum(layer.bytes_after for layer in alike)),
                str(reasons.index(reason) + 1) if reason else "",
            )
        console.print(rows)
    for number, reason in enumerate(reasons, 1):
        console.print(f"{number}: {reason}", markup=False, highlight=False)
    packed = sum(layer.group_size is not None for layer in plan.layers)
    share = plan.bytes_after / plan.bytes_before if plan.bytes_before else 1.0
    console.print(
        f"{counted(packed, 'layer')} packed, {len(plan.layers) - packed} left; Linear weights of the blocks "
        f"{size_text(plan.bytes_before)} → {size_text(plan.bytes_after)} ({share:.1%} of before)"
    )
    _show_widths(console, plan.layers)
    for part in plan.parts:
        console.print(part, markup=False, highlight=False)
    say_estimate(console, plan)
    for problem in plan.problems:
        console.print(f"[red]does not fit[/] {escape(problem)}", highlight=False)


def say_estimate(console: Console, plan: Plan) -> None:
    """What a run will take, in time and memory."""
    e = plan.estimate
    fewer = f" (all there are of the {e.asked} asked for)" if e.utterances < e.asked else ""
    speech = f" on {counted(e.utterances, 'utterance')}{fewer} of {e.utterance_seconds:g} s" if e.utterances else ""
    there = "" if plan.ram_there is None else f" (this machine has {gigabytes(plan.ram_there)})"
    console.print(
        f"takes about {_minutes(e.seconds)}{speech} and {gigabytes(e.ram_bytes)} of RAM{there}; estimated from the "
        "shapes and the measured speed of one matrix product, the time to within a factor of two"
    )


def _show_widths(console: Console, layers: Sequence[LayerReport] | Sequence[PlannedLayer]) -> None:
    """Where bits differ: how many layers have how many, and their mean over the weights."""
    from tarq.method.allocation import mean_bits  # imports torch

    sizes = [(math.prod(layer.shape), layer.bits) for layer in layers if layer.bits]
    widths = Counter(bits for _, bits in sizes)
    if len(widths) > 1:
        counts = ", ".join(f"{counted(count, 'layer')} of {bits} bits" for bits, count in sorted(widths.items()))
        console.print(f"{counts}: {mean_bits(sizes):.2f} bits per weight, without scales", highlight=False)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def grouped(notes: Sequence[str]) -> list[str]:
    """Notes; one that applies to more than three utterances (``id: what``) is shown once."""
    names_by_note: dict[str, list[str]] = {}
    for text in notes:
        name, colon, what = text.partition(": ")
        names_by_note.setdefault(what if colon else text, []).append(name if colon else "")
    lines = []
    for what, names in names_by_note.items():
        if len(names) > 3:
            lines.append(f"{len(names)} utterances such as {names[0]}: {what}")
        else:
            lines += [f"{name}: {what}" if name else what for name in names]
    return lines


def frequencies_text(described: Mapping[str, Any]) -> str:
    """A short description of the word frequencies used."""
    if "wordfreq" in described:
        return f"wordfreq {described['wordfreq']}"
    return f"{described['file']} (sha256 {described['sha256'][:12]}…)"


def show_pool(console: Console, drawn: DrawnPool) -> None:
    """A calibration pool: one row per source, and one for all."""
    pool = drawn.pool
    rows = table(
        "source",
        "utterances",
        "minutes",
        "words",
        "rare",
        "ρ mean",
        "ρ min",
        "ρ max",
        title=f"{pool.kind} pool, of {counted(pool.candidates, 'utterance')}",
    )
    sources = list(dict.fromkeys(pool.sources))
    for source in (*sources, *([None] if len(sources) > 1 else [])):
        figures = pool.summary(source)
        rho = figures["rho"]
        rows.add_row(
            "all" if source is None else escape(source),
            str(figures["utterances"]),
            f"{figures['seconds'] / 60:.2f}",
            str(figures["words"]),
            str(figures["rare_words"]),
            *("–" if rho is None else f"{rho[name]:.1%}" for name in ("mean", "min", "max")),
        )
    console.print(rows)
    settings = drawn.settings
    console.print(
        f"[dim]ρ is an utterance's share of rare words; rare is Zipf < {settings['tail_threshold']:g}; normalizer "
        f"{escape(settings['normalizer'])}; word frequencies {escape(frequencies_text(drawn.word_frequencies))}[/]"
    )
    for text in grouped(drawn.notes):
        note(console, text)


#: How ``tarq doctor`` shows a finding.
MARKS = {"ok": "[green]ok[/]", "slow": "[yellow]slow[/]", "absent": "[yellow]–[/]", "missing": "[red]missing[/]"}


def show_checks(console: Console, checks: Sequence[Any]) -> None:
    """The findings of ``tarq doctor``: what was checked, its state and what to do."""
    rows = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    rows.add_column("check", no_wrap=True)
    rows.add_column("", no_wrap=True)
    rows.add_column("detail", overflow="fold")
    for check in checks:
        rows.add_row(escape(check.name), MARKS[check.state], escape(check.detail))
    console.print(rows)
