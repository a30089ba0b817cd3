"""``tarq inspect``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tarq.files import write_json
from tarq.report import Report
from tarq.terminal.console import console
from tarq.terminal.options import JsonFile


def register(app: typer.Typer) -> None:
    app.command()(inspect)


def inspect(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder written by tarq quantize.")],
    json_file: JsonFile = None,
) -> None:
    """Show how each layer of a checkpoint was quantized, and the sizes before and after."""
    from tarq.terminal.tables import show_report

    report = Report.read(checkpoint)
    if json_file:
        write_json(json_file, asdict(report))
    show_report(console, report, layers=True)
