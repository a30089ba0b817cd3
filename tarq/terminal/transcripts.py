"""Where transcripts go: to standard output as they come, or to a file for each recording."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarq.errors import OutputError
from tarq.files import write_whole
from tarq.terminal.console import say, say_part

if TYPE_CHECKING:
    from tarq.models.types import Segment
    from tarq.speech.transcript import Transcript


class Printed:
    """Transcripts on standard output: text on a line each, after its name if there are several; cues one by one.

    Args:
        kind: the format.
        several: whether lines begin with the recording's name.
        hold: print nothing before :meth:`release`.
    """

    def __init__(self, kind: str, *, several: bool, hold: bool) -> None:
        self.kind, self.several, self.hold = kind, several, hold
        self.names: list[str] = []
        self.held: list[tuple[str, str | Transcript]] = []
        self.written = ""  # of the current recording
        self.spaces = ""  # at the end of a segment, which may be the end of all
        self.cues = 0

    @property
    def streams(self) -> bool:
        """Whether segments are printed as they come."""
        return not self.hold and self.kind != "json"

    def segment(self, name: str, segment: Segment) -> None:
        """Print a segment of the recording that is being transcribed."""
        from tarq.speech.transcript import HEADERS, cue

        if self.kind == "text":
            text = segment.text.lstrip() if not self.written else self.spaces + segment.text
            self._part((self._name(name) if not self.written else "") + text.rstrip())
            self.spaces = text[len(text.rstrip()) :]
        else:
            self.cues += 1
            self._part((HEADERS[self.kind] if not self.written else "") + cue(self.kind, self.cues, segment))

    def result(self, name: str, result: str | Transcript) -> None:
        """Print what is left of a transcript; its segments are known already, if they were told at all."""
        if self.hold:
            self.held.append((name, result))
        elif not self.written:
            self._part(self._name(name) + _content(result, self.kind).removesuffix("\n"))
        self.close()

    def release(self) -> None:
        """Print what was held back."""
        self.hold = False
        for name, result in self.held:
            self.result(name, result)

    def close(self) -> None:
        """End the current recording, and the line it is on."""
        if self.written and not self.written.endswith("\n"):
            say("")
        self.written, self.spaces, self.cues = "", "", 0

    def _name(self, name: str) -> str:
        return f"{name}\t" if self.several else ""

    def _part(self, text: str) -> None:
        self.written = text
        say_part(text)


class Written:
    """A file for each recording, written whole as soon as it is transcribed; its path is printed.

    Args:
        kind: the format.
        files: of each recording, by its name.
    """

    streams = False

    def __init__(self, kind: str, files: dict[str, Path]) -> None:
        self.kind, self.files = kind, files

    def segment(self, name: str, segment: Segment) -> None:
        """A file waits for all segments."""

    def result(self, name: str, result: str | Transcript) -> None:
        """Write a recording's file.

        Raises:
            OutputError: it cannot be written.
        """
        file = self.files[name]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"could not make the folder {file.parent}: {error.strerror or error}") from error
        write_whole(file, _content(result, self.kind))
        say(str(file))

    def close(self) -> None:
        """Files are closed already."""

    def release(self) -> None:
        """Nothing is held back."""


def _content(result: str | Transcript, kind: str) -> str:
    """A file's content. A transcript without times is its text, the only format for it."""
    return result + "\n" if isinstance(result, str) else result.formatted(kind)


def to_dict(result: str | Transcript) -> dict[str, Any]:
    """What a file of results holds of a transcript."""
    return {"text": result} if isinstance(result, str) else result.to_dict()
