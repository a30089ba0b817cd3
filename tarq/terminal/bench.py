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
    threads: Annotated[
        list[int] | None, typer.Option(metavar="N", parser=number("int", 1, 4096), help="CPU threads (repeatable).")
    ] = None,
    device: Device = "auto",
    seconds: Annotated[
        float | None,
        typer.Option(metavar="X", parser=number("float", 0.001, 10**5), help="Seconds per contestant and case."),
    ] = None,
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
    from tarq.bench import run as benchmarks

    device = where_to_run(device, "auto")["device"]
    with console.status("") as status:
        records, known = benchmarks.run(
            operations or OPERATIONS,
            device=device,
            thread_counts=threads or (),
            quick=quick,
            seconds=seconds,
            peer_python=peer_python,
            reporter=benchmarks.StatusReporter(status),
        )
    if json_file:
        write_json(json_file, records)
    if plot:
        benchmarks.plot(records, plot)
    benchmarks.show(console, records, known)
