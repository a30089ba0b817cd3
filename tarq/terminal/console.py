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

#: Substitutes for characters that a terminal without UTF-8 cannot show.
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


class SafeStream(io.TextIOBase):
    """A stream that never fails to write: output is dropped if the reader has gone or the disk is full.

    Attributes:
        lost: why output was lost; empty if nothing was lost, or if nobody reads it any more (a closed pipe).
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
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.lost = self.lost or error.strerror or str(error)
        # Discard what is still buffered, or the interpreter would fail on it at exit.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())


def never_fail() -> None:
    """Make this process's output survive encodings other than UTF-8, closed pipes and full disks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # None where the descriptor is closed
            stream.reconfigure(errors="tarq-plain")
            setattr(sys, name, SafeStream(stream))


def lost_output() -> str:
    """Why results could not be printed; empty if they were."""
    return getattr(sys.stdout, "lost", "")


console = Console(emoji=False)  # :x: may be part of a name
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 160  # rich assumes 80 for a file or a pipe, and tables would be cut off
progress_console = Console(stderr=True, emoji=False)


def say(text: str) -> None:
    """Print a line of plain text verbatim: not wrapped, tabs kept, so that it can be copied or piped."""
    print(text, flush=True)


def say_part(text: str) -> None:
    """Print text verbatim without ending the line."""
    print(text, end="", flush=True)


def say_error(kind: str, text: str) -> None:
    """Print one line on standard error."""
    line = f"[red]error[/] {escape(f'{kind}: {text}')}"
    Console(stderr=True, emoji=False).print(line, highlight=False, soft_wrap=True)


def say_note(text: str) -> None:
    """Print one line on standard error, beside an error."""
    Console(stderr=True, emoji=False).print(f"[yellow]note[/] {escape(text)}", highlight=False, soft_wrap=True)


def command(*words: object) -> str:
    """A command line that can be pasted into a shell; ``None`` is left out, upper case marks a word to fill in."""
    return " ".join(shlex.quote(str(word)) for word in words if word is not None)
