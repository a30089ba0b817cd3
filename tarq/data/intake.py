"""A record of loading speech: what was left out, what was unusual and how it was read, how much is transcribed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tarq.errors import DataError

#: Names that a note lists.
_NAMED = 5


@dataclass
class Intake:
    """Counts what happens while utterances are loaded, chosen and checked.

    Attributes:
        max_bad: how many broken files or lines may be left out; the next one is an error.
        bad: what was broken, by utterance id (by file where one file holds many utterances), with the reason.
        left_out: utterances left out by a convention of their corpus, counted by reason.
        handled: what was unusual about audio and how it was read, to the ids of the utterances concerned.
        remarks: how a corpus was interpreted: which columns were read as what, which were unknown.
        transcribed, untranscribed: utterances loaded with a transcript and without one.
    """

    max_bad: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    handled: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    transcribed: int = 0
    untranscribed: int = 0

    def broken(self, name: str, error: DataError) -> None:
        """Leave a broken file or line out.

        Raises:
            DataError: there are too many; names the file.
        """
        self.bad[name] = str(error)
        if len(self.bad) > self.max_bad:
            before = f"; {self.max_bad} broken files were left out before it" if self.max_bad else ""
            raise DataError(f"{error} (--max-bad N leaves out up to N broken files{before})") from error

    def odd(self, name: str, notes: Iterable[str]) -> None:
        """Record what was unusual about an utterance's audio."""
        for note in notes:
            names = self.handled.setdefault(note, [])
            if name not in names:
                names.append(name)

    def remark(self, text: str) -> None:
        """Record once how a corpus was interpreted."""
        if text not in self.remarks:
            self.remarks.append(text)

    def notes(self) -> list[str]:
        """A line for each finding."""
        notes = list(self.remarks)
        if self.untranscribed:
            total = self.transcribed + self.untranscribed
            notes.append(f"no transcript was found for {self.untranscribed} of {total} utterances")
        notes += [f"{count} utterances left out: {reason}" for reason, count in self.left_out.items()]
        if self.bad:
            notes.append(f"{len(self.bad)} broken files left out: {', '.join(self.bad)}")
            notes += [f"{name}: {reason}" for name, reason in self.bad.items()]
        for note, names in self.handled.items():
            named = ", ".join(names[:_NAMED] + ["…"] * (len(names) > _NAMED))
            notes.append(f"{len(names)} audio files: {note}: {named}")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return {
            "bad": dict(self.bad),
            "left_out": dict(self.left_out),
            "handled": {note: list(names) for note, names in self.handled.items()},
            "remarks": list(self.remarks),
            "transcripts": {"found": self.transcribed, "missing": self.untranscribed},
        }
