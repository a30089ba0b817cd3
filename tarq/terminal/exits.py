"""Exit codes of every command: one place, for the help, the documentation and scripts."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a command ends with. Ctrl-C and SIGTERM leave files whole: ``tarq quantize --resume`` goes on."""

    OK = 0
    #: Reported in one line; also a dry run that does not fit, audio that could not be read, a part that is missing.
    ERROR = 1
    #: An option or argument that cannot be used; nothing was done.
    USAGE = 2
    #: A limit that a gate of ``tarq evaluate`` or ``tarq compare`` sets is exceeded, or cannot be checked.
    GATE = 3
    INTERRUPTED = 130
    TERMINATED = 143


HELP = (
    f"Exit codes: {Exit.OK} success; {Exit.ERROR} an error, reported in one line (tarq --debug COMMAND, or "
    f"TARQ_DEBUG=1, adds the traceback); {Exit.USAGE} an invalid option; {Exit.GATE} a gate of evaluate or compare is "
    f"exceeded; {Exit.INTERRUPTED} stopped with Ctrl-C, {Exit.TERMINATED} by SIGTERM (tarq quantize --resume then goes "
    "on)."
)
