"""What every command has in common: an empty place is refused by name, and the help names no types of Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

#: Placeholders in the help for a file, a folder or a hub id. An empty one would mean the current folder.
PLACES = ("FILE", "DIR", "MODEL", "OUT", "CHECKPOINT", "RESULTS", "SPEECH", "AUDIO")
#: Key of a context's ``meta``: the command's arguments as they were given.
GIVEN = f"{__name__}.given"


class Command(TyperCommand):
    """A command whose arguments are checked before any of them is read."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[GIVEN] = list(args)
        if args and not ctx.resilient_parsing:
            given, *_ = self.make_parser(ctx).parse_args(args=list(args))
            for parameter in self.get_params(ctx):
                if getattr(parameter, "metavar", None) in PLACES and _empty(given.get(parameter.name)):
                    raise typer.BadParameter("must be a path or a name, not ''", ctx=ctx, param=parameter)
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        return without_types(super().get_params(ctx))


def _empty(given: Any) -> bool:
    """Whether a text is blank, or one of several."""
    if isinstance(given, str):
        return not given.strip()
    return isinstance(given, Sequence) and any(_empty(one) for one in given)


def without_types(parameters: list[Any]) -> list[Any]:
    """Parameters that show no type where their name says it: flags, and arguments, of which some are several."""
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            words = "" if parameter.nargs == 1 else "one or more" if parameter.required else "any number"
            parameter.display_type_rich = lambda ctx, words=words: words or None
        elif getattr(parameter, "is_flag", False):
            parameter.display_type_rich = lambda ctx: None
    return parameters
