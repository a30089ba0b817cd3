"""A log of a run: every phase, layer, note and error with its time, a line each, appended to a file."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TextIO

import typer

from tarq.files import expanded
from tarq.report import LayerReport
from tarq.terminal.console import command
from tarq.terminal.options import OUTPUT, writable

LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log-file",
        metavar="FILE",
        callback=writable,
        rich_help_panel=OUTPUT,
        help="Also append every phase, layer, note and error, with its time, to this file.",
    ),
]


class RunLog:
    """Lines of a run in a file; of several processes the first writes. A full disk loses lines, never the run.

    Args:
        path: of the file; None for no log.
    """

    def __init__(self, path: Path | None) -> None:
        self.file: TextIO | None = None
        if path is not None and os.environ.get("RANK", "0") == "0":
            self.file = expanded(path).open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
            self.line("start", command("tarq", *sys.argv[1:]))

    def line(self, kind: str, text: str) -> None:
        """A line: time, kind, text."""
        if self.file is None:
            return
        try:
            self.file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {kind} {' '.join(text.split())}\n")
        except OSError:
            self.file = None

    def layer(self, record: LayerReport) -> None:
        """A layer's line: what it became, or why it was left."""
        loss = "" if record.loss is None else f" loss {record.loss:.3e}"
        done = record.skipped or f"{record.bits} bits, groups of {record.group_size}, λ {record.lam:.3f}{loss}"
        self.line("layer", "; ".join([f"{record.name}: {done}", *record.notes]))

    def end(self, error: BaseException | None) -> None:
        """The last line: how it ended."""
        if error is None:
            self.line("end", "done")
        elif isinstance(error, KeyboardInterrupt):
            self.line("error", f"stopped ({type(error).__name__})")
        else:
            self.line("error", f"{type(error).__name__}: {error}")
        if self.file is not None:
            self.file.close()
