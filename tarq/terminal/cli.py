"""The command line: one file a command beside this one; each takes options, calls the API and shows a table."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tarq.errors import TarqError
from tarq.terminal import (
    bench,
    compare,
    demo,
    doctor,
    evaluate,
    exits,
    inspect,
    pool,
    quantize,
    report,
    transcribe,
    words,
)
from tarq.terminal.commands import Command, without_types
from tarq.terminal.console import console, lost_output, never_fail, say_error, say_note
from tarq.terminal.exits import Exit
from tarq.terminal.stopping import Terminated
from tarq.version import __version__

HELP = "Tail-aware 4-bit quantization for speech recognizers."


class ErrorReportingGroup(TyperGroup):
    """Reports every error in one line, with its exit code; a traceback only on request."""

    def get_params(self, ctx: Any) -> list[Any]:
        return without_types(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            term = isinstance(error, Terminated)
            by, code = ("SIGTERM", Exit.TERMINATED) if term else ("Ctrl-C", Exit.INTERRUPTED)
            say_error("stopped", f"by {by}; files are written whole or not at all, so none is incomplete")
            say_notes(error)
            raise typer.Exit(code) from error
        except Exception as error:
            if type(error).__module__.startswith(("click", "typer")):  # usage errors and exits, reported by typer
                raise
            report_error(error)
            raise typer.Exit(Exit.ERROR) from error


def report_error(error: Exception) -> None:
    """Report an error in one line, after its traceback if ``--debug`` or ``TARQ_DEBUG`` asks for it."""
    from tarq.distributed import is_shared

    if is_shared(error) and os.environ.get("RANK", "0") != "0":
        return  # the first process reports it
    if os.environ.get("TARQ_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    text = " ".join(str(error).split("\n")).strip()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text += "; out of memory: try a smaller --batch-size or --activation-memory, fewer --samples, or --offload"
    elif not isinstance(error, TarqError):
        text += " (unexpected; tarq --debug COMMAND shows where)"
    say_error(type(error).__name__, text)
    say_notes(error)


def say_notes(error: BaseException) -> None:
    """Report what was noted at an error: how to go on."""
    for note in getattr(error, "__notes__", ()):
        say_note(note)


class App(typer.Typer):
    """Commands of this command line's own kind, under the heading of the moment."""

    panel = ""

    def command(self, *names: Any, **settings: Any) -> Any:
        own: dict[str, Any] = {"cls": Command, "rich_help_panel": self.panel}
        return super().command(*names, **own | settings)


app = App(
    cls=ErrorReportingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=HELP,
    epilog=exits.HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: Heading of the help to the commands below it.
PANELS = {
    "Models": (quantize, transcribe, inspect),
    "Results": (evaluate, compare, report),
    "Speech and words": (pool, words),
    "This machine": (demo, bench, doctor),
}
for app.panel, modules in PANELS.items():
    for module in modules:
        module.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"tarq {__version__}", highlight=False)
        raise typer.Exit


def _debug(wanted: bool) -> None:
    if wanted:
        os.environ["TARQ_DEBUG"] = "1"


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", callback=_debug, is_eager=True, help="Show the traceback of an error.")
    ] = False,
) -> None:
    # By the environment alone: torch takes a second to import.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and context.invoked_subcommand not in ("quantize", "evaluate"):
        raise typer.BadParameter(
            f"{context.invoked_subcommand} runs in one process, not under torchrun; quantize and evaluate share work"
        )


def main() -> None:
    """Entry point; see :mod:`tarq.terminal.exits` for the exit codes."""
    # Set before transformers is imported: its progress bars and warnings would mix with ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    never_fail()
    try:
        app()
    except SystemExit as end:
        if end.code in (0, None) and (reason := lost_output()):
            say_error("output", f"could not be printed: {reason}")
            sys.exit(Exit.ERROR)
        raise


if __name__ == "__main__":
    main()
