"""Where output goes: results to standard output, progress and errors to standard error. Printing never fails."""

from __future__ import annotations

import codecs
import io
import os
import shlex
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape

#: How a terminal that is not UTF-8 is told what it cannot show.
PLAIN = {
    "λ": "lambda", "α": "alpha", "ρ": "rho", "Δ": "delta ", "δ": "delta", "→": "->", "−": "-", "–": "-", "—": "-",
    "×": "x", "·": ".", "…": "...", "“": '"', "”": '"', "’": "'", "─": "-", "━": "-", "│": "|", "╭": "+", "╮": "+",
    "╰": "+", "╯": "+", "┃": "|", "╸": "-", "╺": "-",
}  # fmt: skip


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    shown = "".join(PLAIN.get(c, "?") for c in characters)
    return shown.encode("ascii", "replace").decode(), error.end


codecs.register_error("tarq-plain", _plain)


class Unfailing(io.TextIOBase):
    """A stream whose reader may go away or whose disk may be full: what cannot be written is dropped.

    Attributes:
        lost: why output was lost; empty where nothing was, or where nobody reads it any more (a closed pipe).
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    # TextIOBase has these itself, so they are not looked up in the stream.
    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.lost = self.lost or error.strerror or str(error)
        # What is still buffered goes nowhere, or the interpreter would fail on it as it ends.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())


def never_fail() -> None:
    """Have this process's output survive other encodings than UTF-8, closed pipes and full disks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # None where the descriptor is closed
            stream.reconfigure(errors="tarq-plain")
            setattr(sys, name, Unfailing(stream))


def lost_output() -> str:
    """Why results could not be printed; empty where they were."""
    return getattr(sys.stdout, "lost", "")


console = Console()
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 160  # rich takes 80 for a file or a pipe, and tables would lose their ends
progress_console = Console(stderr=True)


def say(text: str) -> None:
    """A line of plain text on standard output as it is: not wrapped, tabs kept, so that it can be copied or piped."""
    print(text, flush=True)


def say_error(kind: str, text: str) -> None:
    """One line on standard error."""
    Console(stderr=True).print(f"[red]error[/] {escape(f'{kind}: {text}')}", highlight=False, soft_wrap=True)


def command(*words: object) -> str:
    """A command line that can be pasted into a shell; ``None`` is left out, upper case stands for a word to fill in."""
    return " ".join(shlex.quote(str(word)) for word in words if word is not None)
