"""Gates on the command line: limits to how much worse a model may be, and the exit code where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tarq.terminal.console import say_error
from tarq.terminal.exits import Exit
from tarq.terminal.options import number

if TYPE_CHECKING:
    from tarq.scoring.bootstrap import Difference
    from tarq.scoring.gates import Gate

GATES = "Gates"


def _option(name: str, words: str) -> Any:
    help = f"Exit with code {Exit.GATE} if {words} rises by more points than this against the first MODEL."
    return typer.Option(name, metavar="X", parser=number("float", -100, 10**6), rich_help_panel=GATES, help=help)


MaxWer = Annotated[float | None, _option("--max-wer-increase", "the word error rate")]
MaxRareWer = Annotated[float | None, _option("--max-rare-wer-increase", "the error rate on rare words")]
MaxProtectedWer = Annotated[
    float | None, _option("--max-protected-wer-increase", "the error rate on words of --protect")
]


def gates_of(wer: float | None, rare: float | None, protected: float | None) -> list[Gate]:
    """The gates that were asked for."""
    from tarq.scoring.gates import Gate  # imports numpy

    every = (
        ("wer", "WER", wer, "--max-wer-increase"),
        ("rare_wer", "rare WER", rare, "--max-rare-wer-increase"),
        ("protected_wer", "protected WER", protected, "--max-protected-wer-increase"),
    )
    return [Gate(figure, title, limit, option) for figure, title, limit, option in every if limit is not None]


def end_by(
    gates: Sequence[Gate],
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]],
    models: Sequence[str],
    base: str,
) -> None:
    """End the command with its own exit code if a gate is broken; each is named, with value and interval.

    Raises:
        typer.Exit: one is.
    """
    from tarq.scoring.gates import failures

    broken = failures(gates, differences, models, base)
    for line in broken:
        say_error("gate", line)
    if broken:
        raise typer.Exit(Exit.GATE)
