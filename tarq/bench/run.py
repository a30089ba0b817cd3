"""Run benchmarks and show them: a table, JSON records, a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from tarq.bench import gram, group_quantize, w4_linear
from tarq.bench.measure import Case, Ceilings, Record, Shape, ceilings, records_of, threads
from tarq.report import Reporter

OPERATIONS: dict[str, Callable[..., Iterator[Case]]] = {
    "gram": gram.cases,
    "group_quantize": group_quantize.cases,
    "w4_linear": w4_linear.cases,
}


class StatusReporter(Reporter):
    """The current phase on one line of a terminal; needs no further packages, which a GPU machine may lack."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def phase(self, text: str, total: int | None = None) -> None:
        self.status.update(escape(text))

    def note(self, text: str) -> None:
        self.status.console.print(f"[yellow]note[/] {escape(text)}", highlight=False)


@torch.inference_mode()
def run(
    operations: Sequence[str],
    *,
    device: str = "cpu",
    thread_counts: Sequence[int] = (),
    quick: bool = False,
    shapes: Sequence[Shape] = (),
    seconds: float | None = None,
    clock: str = "wall",
    peer_python: str | None = None,
    reporter: Reporter | None = None,
) -> tuple[list[Record], dict[int, Ceilings]]:
    """Time operations against their peers.

    Args:
        operations: of :data:`OPERATIONS`.
        device: ``cpu``, ``cuda``, …
        thread_counts: torch threads, one after the other; as many as torch uses when empty. One count on a GPU.
        quick: small problems only, less time for each.
        shapes: sizes to time instead of the usual ones: rows and inputs of gram, outputs and inputs of the others.
        seconds: for each contestant of each case.
        clock: of :data:`~tarq.bench.measure.CLOCKS`; ``processor`` for one thread of a CPU.
        peer_python: interpreter that imports gptqmodel, a peer of group_quantize.
        reporter: receives progress.

    Returns:
        Records (:func:`~tarq.bench.measure.records_of`), and the ceilings by thread count.
    """
    reporter = reporter or Reporter()
    where = torch.device(device)
    seconds = seconds or (0.1 if quick else 0.4)
    records: list[Record] = []
    known: dict[int, Ceilings] = {}
    for count in thread_counts or [torch.get_num_threads()]:
        with threads(count):
            reporter.phase(f"ceilings, {count} threads")
            known[count] = ceilings(where, clock)
            for name in operations:
                reporter.phase(f"{name}, {count} threads")
                options = {"peer_python": peer_python} if name == "group_quantize" else {}
                for case in OPERATIONS[name](where, quick=quick, shapes=shapes, **options):
                    reporter.phase(f"{name} {' × '.join(map(str, case.shape))}, {count} threads")
                    records += records_of(case, known[count], seconds, where, reporter, clock)
    return records, known


def show(console: Console, records: Sequence[Record], known: dict[int, Ceilings]) -> None:
    """One line per case and variant: time, share of the bound, and our time over each peer's."""
    for op in dict.fromkeys(r["op"] for r in records):
        mine = [r for r in records if r["op"] == op]
        peers = list(dict.fromkeys(r["peer"] for r in mine))
        table = Table(title=f"{op}: our time over the peer's (below 1: ours is faster)", header_style="bold")
        for heading in ("threads", "shape", "dtype, variant", "ours", "of bound", *peers):
            table.add_column(heading, justify="right")
        lines: dict[tuple, dict[str, Record]] = {}
        for r in mine:
            key = r["threads"], tuple(r["shape"]), r["dtype"], r["variant"], r["copies"]
            lines.setdefault(key, {})[r["peer"]] = r
        for (count, shape, dtype, variant, copies), cells in lines.items():
            one = next(iter(cells.values()))
            label = variant if dtype == variant else f"{dtype}, {variant}"
            table.add_row(
                str(count),
                "×".join(map(str, shape)) + (f" ({copies} copies)" if copies > 1 else ""),
                label,
                _time(one["seconds"]),
                f"{one['roofline']:.0%} {one['bound']}",
                *(f"{cells[p]['ratio']:.2f}" if p in cells else "–" for p in peers),
            )
        console.print(table)
    for count, most in known.items():
        rates = ", ".join(f"{kind} {rate / 1e9:,.0f} G/s" for kind, rate in most.flops.items())
        console.print(f"ceilings, {count} threads: reads {most.read / 1e9:.1f} GB/s, {rates}", highlight=False)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def plot(records: Sequence[Record], path: Path) -> None:
    """Bars of peer's time over ours, on a logarithmic scale; ours is faster to the right of the line.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    operations = list(dict.fromkeys(r["op"] for r in records))
    heights = [sum(r["op"] == op for r in records) for op in operations]
    figure, axes = pyplot.subplots(
        len(operations),
        figsize=(11, 1.2 * len(operations) + 0.2 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, op in zip(axes[:, 0], operations, strict=True):
        mine = [r for r in records if r["op"] == op]
        labels = [f"{'×'.join(map(str, r['shape']))} {r['variant']}, {r['threads']} thr. : {r['peer']}" for r in mine]
        gains = [1 / r["ratio"] for r in mine]
        axis.barh(range(len(mine)), gains, color=["tab:green" if g >= 1 else "tab:red" for g in gains])
        axis.set_yticks(range(len(mine)), labels, fontsize=6)
        axis.set(xscale="log", title=op, xlabel="peer's time over ours")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
