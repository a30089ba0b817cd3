"""``tarq bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from tarq.config import TarqConfig
from tarq.files import write_json
from tarq.option import Option
from tarq.presets import PRESETS
from tarq.terminal.console import console, progress_console
from tarq.terminal.options import SPEECH, Device, Dtype, JsonFile, number, parser, where_to_run, writable
from tarq.terminal.progress import TerminalReporter

#: What can be benchmarked: the three operations, or a whole walk over a model.
OPERATIONS, WALK = ("gram", "group_quantize", "w4_linear"), "walk"
#: Inputs of a layer come in so many, but for gram, which has no groups.
GROUP = 128
WALK_PANEL = "Only for walk"


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    operations: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OPERATION",
            parser=parser(Option("", "", "choice", (*OPERATIONS, WALK))),
            help=f"{', '.join(OPERATIONS)}; these three when not given. Or {WALK}: a whole quantization, by part.",
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
    dtype: Dtype = "auto",
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
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=WALK_PANEL,
            help="Folder or hub id, or whisper-tiny to whisper-large-v3-turbo: that size with random weights. Default: "
            "whisper-tiny.",
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=number("int", 1, 1000),
            rich_help_panel=WALK_PANEL,
            help="Blocks a stage of random weights. Default: all.",
        ),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEECH",
            rich_help_panel=WALK_PANEL,
            help=f"Transcribed speech: {SPEECH} (repeatable); the packaged pool if not given.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=number("int", 1, 10**9),
            rich_help_panel=WALK_PANEL,
            help="Calibration utterances. Default: 8, or 2 with --quick.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=number("int", 1, 10**9),
            rich_help_panel=WALK_PANEL,
            help="Utterances per forward pass. Default: 4.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            parser=parser(Option("", "", "choice", tuple(PRESETS))),
            rich_help_panel=WALK_PANEL,
            help="Preset, as of tarq quantize. Default: refined.",
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Time the three operations against other implementations: ratios, and shares of the machine's measured peaks.

    Or, as walk, one quantization of a model: the time of each part of it, rows per second, and peak memory.
    """
    walks = WALK in (operations or [])
    if walks and len(operations or []) > 1:
        raise typer.BadParameter(f"{WALK} runs alone", param_hint="OPERATION")
    of_operations = {"--shape": shapes, "--seconds": seconds, "--peer-python": peer_python, "--plot": plot}
    of_walk = {"--model": model, "--blocks": blocks, "--calibration": calibration, "--samples": samples}
    of_walk |= {"--batch-size": batch_size, "--method": method, "--dtype": None if dtype == "auto" else dtype}
    for option, value in (of_operations if walks else of_walk).items():
        if value:
            what = f"is not for {WALK}" if walks else f"is for {WALK} alone: tarq bench {WALK}"
            raise typer.BadParameter(what, param_hint=option)
    where = where_to_run(device, dtype)
    if processor_time:
        _check_processor_time(where["device"], threads or [], peer_python)
        threads = [1]
    clock = "processor" if processor_time else "wall"
    if walks:
        config = TarqConfig.preset(
            method or "refined", samples=samples or (2 if quick else 8), batch_size=batch_size or 4
        )
        _time_walk(
            _Walk(model or "whisper-tiny", config, where, blocks, calibration or (), threads or (), clock), json_file
        )
        return
    if plot is not None and find_spec("matplotlib") is None:
        raise typer.BadParameter("needs matplotlib: pip install matplotlib", param_hint="--plot")
    names = operations or list(OPERATIONS)
    sizes = [_shape(text, names) for text in shapes or ()]
    from tarq.bench import run as benchmarks

    with console.status("") as status:
        records, known = benchmarks.run(
            names,
            device=where["device"],
            thread_counts=threads or (),
            quick=quick,
            shapes=sizes,
            seconds=seconds,
            clock=clock,
            peer_python=peer_python,
            reporter=benchmarks.StatusReporter(status),
        )
    if json_file:
        write_json(json_file, records)
    if plot:
        benchmarks.plot(records, plot)
    benchmarks.show(console, records, known)


@dataclass(frozen=True)
class _Walk:
    """A quantization to be timed.

    Attributes:
        model: folder, hub id or named size.
        config: of the run.
        where: device and dtype, as :func:`tarq.bench.walk.load` takes them.
        blocks: of a named size; all if None.
        calibration: corpora; the packaged pool if there is none.
        threads: numbers of CPU threads, each timed; torch's own if there is none.
        clock: ``wall`` or ``processor``.
    """

    model: str
    config: TarqConfig
    where: Mapping[str, Any]
    blocks: int | None
    calibration: Sequence[str]
    threads: Sequence[int]
    clock: str


def _time_walk(timed: _Walk, json_file: Path | None) -> None:
    with TerminalReporter(progress_console) as reporter:
        reporter.phase("starting")
        import torch

        from tarq import testbed
        from tarq.bench import measure, walk
        from tarq.data.speech import load_speech

        speech: Any = load_speech(timed.calibration, reporter=reporter) or testbed.calibration_pool()
        records = []
        for count in timed.threads or [torch.get_num_threads()]:
            reporter.phase(f"loading {timed.model}")
            recognizer = walk.load(timed.model, **timed.where, blocks=timed.blocks)
            with measure.threads(count):
                name = Path(timed.model).name
                records.append(walk.run(recognizer, speech, timed.config, name, reporter, timed.clock))
        if json_file:
            write_json(json_file, records)
    walk.show(console, records)


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
