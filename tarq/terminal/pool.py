"""``tarq pool``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tarq.config import TarqConfig
from tarq.files import write_json
from tarq.option import CALIBRATION
from tarq.terminal.console import command, console, progress_console, say
from tarq.terminal.options import (
    FIELDS,
    OUTPUT,
    SPEECH,
    JsonFile,
    Overwrite,
    Where,
    configured,
    number,
    parser,
    writable,
)
from tarq.terminal.progress import TerminalReporter


def register(app: typer.Typer) -> None:
    app.command()(pool)


@configured(
    "ids", "samples", "normalizer", "tail_threshold", "language", "word_frequencies", "max_bad", "seed",
    seed="Random seed of the draws and of the order among ties.",
)  # fmt: skip
def pool(
    sources: Annotated[list[str], typer.Argument(metavar="SPEECH", help=f"Transcribed speech: {SPEECH}.")],
    *,
    kind: Annotated[
        str | None,
        typer.Option(
            "--pool",
            "--kind",
            metavar="NAME",
            parser=parser(FIELDS["pool"]),
            show_default=False,
            rich_help_panel=CALIBRATION,
            help=FIELDS["pool"].help,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=writable, rich_help_panel=OUTPUT, help="Write the pool as a JSONL manifest."
        ),
    ] = None,
    max_duration: Annotated[
        float,
        typer.Option(
            metavar="X",
            parser=number("float", 0.01, 10**6),
            show_default=False,
            help="Longer utterances are left out (seconds). Default: 30.",
        ),
    ] = 30.0,
    where: Where = None,
    chosen: dict,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Draw a calibration pool, show its share of rare words, and write it as a manifest that every command reads."""
    if out is not None and out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists: --overwrite replaces it", param_hint="--out")
    config = TarqConfig(**chosen | ({} if kind is None else {"pool": kind}))
    with TerminalReporter(progress_console) as reporter:
        reporter.phase("starting")
        from tarq import api
        from tarq.data.speech import load_speech
        from tarq.terminal.tables import show_pool

        config.frequencies()
        speech = load_speech(sources, where or [], max_bad=config.max_bad, reporter=reporter)
        drawn = api.pool(speech, config, max_duration=max_duration, reporter=reporter)
        if out is not None:
            drawn.write_manifest(out)
        if json_file:
            write_json(json_file, drawn.to_dict())
    show_pool(console, drawn)
    if out is not None:
        say(f"written to {out}")
        count = len(drawn.utterances)
        say(f"next: {command('tarq', 'quantize', 'MODEL', 'OUT', '--calibration', out, '--samples', count)}")
