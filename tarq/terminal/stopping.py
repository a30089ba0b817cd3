"""A command that is stopped, and how it goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from tarq.errors import ResumeError
from tarq.files import expanded
from tarq.terminal.commands import GIVEN
from tarq.terminal.console import command


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM."""


def given_again(context: typer.Context, option: str) -> str:
    """The command line of a command with a further option, to be pasted into a shell."""
    given = [argument for argument in context.meta[GIVEN] if argument != option]
    line = command("tarq", context.info_name, *given, option)
    return f"torchrun … -m {line}" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else line


def unfinished_beside(out: Path) -> Path:
    """The folder beside a checkpoint that keeps its blocks until it is written."""
    place = expanded(out)
    place = place.resolve() if place.is_symlink() else place
    return place.with_name(f"{place.name}.unfinished")


@contextmanager
def how_to_go_on(folder: Path, command_line: str) -> Iterator[None]:
    """While open, an exception gets a note with the command that goes on, if the folder holds anything."""
    from tarq.checkpoint.unfinished import progress

    try:
        yield
    except BaseException as error:
        done = progress(folder)
        if done is not None and done.any and not isinstance(error, ResumeError):
            error.add_note(f"go on with: {command_line}")
        raise
