"""``python -m benchmarks.study``: run a grid, print tables of results, say where their variance comes from and whether
the default reaches its bars."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tarq.errors import ConfigError, TarqError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure a grid; what the file has already is not measured again")
    run.add_argument("grid", metavar="GRID", help="a YAML file: README.md beside it says what is in one")
    run.add_argument("--out", required=True, type=Path, metavar="FILE.json")
    run.add_argument("--models", metavar="FOLDER", default=os.environ.get("TARQ_MODELS"), help="or TARQ_MODELS")
    run.add_argument("--speech", metavar="FOLDER", default=os.environ.get("TARQ_SPEECH"), help="or TARQ_SPEECH")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as product.draws=2")
    run.add_argument("--only", action="append", default=[], metavar="AXIS=A|B", help="such as arm=gptq|tarq")
    run.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the work")
    run.add_argument("--minutes", type=float, default=float("inf"), help="begin no job that would end after these")
    run.add_argument("--device", help="cuda where there is one, by default; workers share GPUs out")
    run.add_argument("--quiet", action="store_true", help="print no tables at the end")
    tables = commands.add_parser("tables", help="damage by arm, and paired differences, in Markdown")
    tables.add_argument("files", nargs="+", metavar="FILE.json")
    variance = commands.add_parser("variance", help="what comes from draws and what from utterances; draws needed")
    variance.add_argument("files", nargs="+", metavar="FILE.json")
    variance.add_argument("--detect", type=float, nargs="+", metavar="X", help="differences to find, in nats or shares")
    bars = commands.add_parser(
        "bars", help="whether the default reaches its four bars; what is not measured, and how to"
    )
    bars.add_argument("files", nargs="+", metavar="FILE.json", help="of one study")
    bars.add_argument("--default", metavar="ARM", help="that is held to them; by default the one the grid names")
    bars.add_argument(
        "--base", action="append", default=[], metavar="ARM", help="baseline; further ones stand beside it"
    )
    bars.add_argument("--tail", action="append", default=[], metavar="FAMILY|OURS|BASE", help="comparisons of bar 2")
    options = parser.parse_args(arguments)
    try:
        {"run": _run, "tables": _tables, "variance": _variance, "bars": _bars}[options.command](options)
    except TarqError as error:
        sys.exit(f"study: {error}")


def _run(options: argparse.Namespace) -> None:
    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers}: give at least 1")
    if options.workers > 1:
        failed = _workers(options.workers)
        if not options.quiet and options.out.exists():
            _tables(argparse.Namespace(files=[options.out]))
        if failed:
            raise ConfigError(f"{failed} of {options.workers} workers failed; what they say stands above")
        return
    import torch
    from transformers.utils import logging

    from benchmarks.study.places import Places
    from benchmarks.study.reading import load_grid
    from benchmarks.study.runner import Runner

    logging.disable_progress_bar()  # of the weights read
    torch.backends.cudnn.allow_tf32 = False  # or convolutions would round to 10 bits
    places = Places(options.models, options.speech)
    grid = load_grid(options.grid, options.set)
    if grid.otherwise and (absent := places.absent(grid)):
        other = Path(options.grid).parent / grid.otherwise
        print(f"study: {other} is run instead of {options.grid}, for lack of {', '.join(absent)}", flush=True)
        grid = load_grid(other, options.set)
    runner = Runner(
        grid,
        places,
        options.out,
        device=options.device or _device(),
        minutes=options.minutes,
        only=_only(options.only),
        log=lambda line: print(line, flush=True),
    )
    results = runner.run()
    # Of processes that torchrun started, one is enough to print tables, of what there is when it ends.
    if not options.quiet and os.environ.get("RANK", "0") == "0" and results["cells"]:
        from benchmarks.study.tables import markdown

        print(markdown(results))
    if runner.failed:
        raise ConfigError(f"{len(runner.failed)} jobs failed: {', '.join(runner.failed)}")


def _workers(count: int) -> int:
    """Run so many processes with this one's arguments; returns how many failed."""
    arguments = _without(sys.argv[1:], "--workers")
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    command = [sys.executable, "-m", "benchmarks.study", *arguments, "--quiet"]
    started = [subprocess.Popen(command, env=environment | {"LOCAL_RANK": str(rank)}) for rank in range(count)]
    try:
        return sum(process.wait() != 0 for process in started)
    except BaseException:
        for process in started:
            process.terminate()
        raise


def _without(arguments: list[str], option: str) -> list[str]:
    """Command-line arguments less an option and its value."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == option:
            skip = True
        elif not argument.startswith(f"{option}="):
            kept.append(argument)
    return kept


def _device() -> str:
    """A GPU of its own for each process of ``torchrun`` or ``--workers``, as far as they go."""
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % count}" if count else "cpu"


def _only(entries: list[str]) -> dict[str, list[str]]:
    from benchmarks.study.grid import Job

    only: dict[str, list[str]] = {}
    for entry in entries:
        axis, equals, values = entry.partition("=")
        if not equals or axis not in Job._fields[:6]:
            raise ConfigError(f"--only {entry}: write AXIS=A|B, the axis being one of {', '.join(Job._fields[:6])}")
        only[axis] = values.split("|")
    return only


def _tables(options: argparse.Namespace) -> None:
    from benchmarks.study.tables import markdown

    print(markdown(_merged(options.files)))


def _variance(options: argparse.Namespace) -> None:
    from benchmarks.study.tables import variance

    print(variance(_merged(options.files), options.detect))


def _bars(options: argparse.Namespace) -> None:
    from benchmarks.study import tables
    from benchmarks.study.bars import Names, bars

    results = _merged(options.files)
    print(tables.bars(bars(results, Names.of(results, options.default, options.base, options.tail))))


def _merged(files: list[Path]) -> dict[str, Any]:
    """Results files of one study as one, checked."""
    from tarq.reports.results import read
    from tarq.reports.statistics import merged

    found = [read(path) for path in files]
    for path, (kind, _) in zip(files, found, strict=True):
        if kind != "study":
            raise ConfigError(f"{path} holds the scores of tarq evaluate; give the results of a study")
    return merged([results for _, results in found])


if __name__ == "__main__":
    main()
