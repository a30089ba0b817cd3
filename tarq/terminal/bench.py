"""``tarq bench``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tarq.files import write_json
from tarq.option import Option
from tarq.terminal.console import console
from tarq.terminal.options import Device, JsonFile, number, parser, where_to_run, writable

#: What can be benchmarked.
OPERATIONS = ("gram", "group_quantize", "w4_linear")
#: Inputs of a layer come in so many, but for gram, which has no groups.
GROUP = 128


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    operations: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OPERATION",
            parser=parser(Option("", "", "choice", OPERATIONS)),
            help=f"{', '.join(OPERATIONS)}; all when not given.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small problems only; under a minute.")] = False,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="AxB",
            help="Sizes instead of the usual ones: rows x inputs of gram, outputs x inputs of the others (repeatable).",
        ),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(metavar="N", parser=number("int", 1, 4096), help="CPU threads (repeatable).")
    ] = None,
    device: Device = "auto",
    seconds: Annotated[
        float | None,
        typer.Option(metavar="X", parser=number("float", 0.001, 10**5), help="Seconds per contestant and case."),
    ] = None,
    processor_time: Annotated[
        bool,
        typer.Option(
            "--processor-time",
            help="Count one thread's time on the processor, not wall time: other processes then count little.",
        ),
    ] = False,
    peer_python: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Interpreter that imports gptqmodel, a peer of group_quantize."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=writable, help="Draw the ratios to this PNG.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Time the three operations against other implementations: ratios, and shares of the machine's measured peaks."""
    if plot is not None and find_spec("matplotlib") is None:
        raise typer.BadParameter("needs matplotlib: pip install matplotlib", param_hint="--plot")
    sizes = [_shape(text, operations or list(OPERATIONS)) for text in shapes or ()]
    from tarq.bench import run as benchmarks

    device = where_to_run(device, "auto")["device"]
    if processor_time:
        _check_processor_time(device, threads or [], peer_python)
    with console.status("") as status:
        records, known = benchmarks.run(
            operations or OPERATIONS,
            device=device,
            thread_counts=threads or ([1] if processor_time else ()),
            quick=quick,
            shapes=sizes,
            seconds=seconds,
            clock="processor" if processor_time else "wall",
            peer_python=peer_python,
            reporter=benchmarks.StatusReporter(status),
        )
    if json_file:
        write_json(json_file, records)
    if plot:
        benchmarks.plot(records, plot)
    benchmarks.show(console, records, known)


def _shape(text: str, operations: list[str]) -> tuple[int, int]:
    sizes = text.lower().replace("×", "x").split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and 0 < int(size) <= 10**6 for size in sizes):
        raise typer.BadParameter(f"must be two whole numbers such as 1280x1280, not {text!r}", param_hint="--shape")
    grouped = [name for name in operations if name != "gram"]
    if grouped and int(sizes[1]) % GROUP:
        raise typer.BadParameter(
            f"{text}: {grouped[0]} has groups of {GROUP} inputs: give a multiple", param_hint="--shape"
        )
    return int(sizes[0]), int(sizes[1])


def _check_processor_time(device: str, threads: list[int], peer_python: str | None) -> None:
    if device != "cpu" or set(threads) - {1}:
        raise typer.BadParameter(
            "is for one thread of a CPU, as waiting threads count too: add --device cpu --threads 1",
            param_hint="--processor-time",
        )
    if peer_python is not None:
        raise typer.BadParameter(
            "cannot time --peer-python, another process with a clock of its own: leave one out",
            param_hint="--processor-time",
        )
