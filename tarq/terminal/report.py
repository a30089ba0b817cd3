"""``tarq report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tarq.terminal.console import console, progress_console, say
from tarq.terminal.options import OUTPUT, SPEECH


def register(app: typer.Typer) -> None:
    app.command()(report)


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="Files of a study, or of tarq evaluate --json.")
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", rich_help_panel=OUTPUT, help="Folder that report.html and report.md are written to."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEECH",
            help=f"What was scored, for transcripts and audio that RESULTS lack: {SPEECH} (repeatable).",
        ),
    ] = None,
    audio: Annotated[
        bool,
        typer.Option(
            "--open-audio/--no-audio",
            rich_help_panel=OUTPUT,
            help="Make the utterances in which rare words changed playable in the page.",
        ),
    ] = True,
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Arm or model that others are compared with. Default: gptq, or the first."),
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", rich_help_panel=OUTPUT, help="Title of the page.")
    ] = None,
) -> None:
    """Make one self-contained HTML page and a Markdown summary of results."""
    from tarq.reports.make import write_report
    from tarq.terminal.tables import note, size_text

    with progress_console.status("reading results"):
        written = write_report(results, out, audio=audio, data=data or (), base=base, title=title)
    for line in written.absent:
        note(console, line)
    for path in (written.page, written.summary):
        say(f"{path}  {size_text(path.stat().st_size)}")
