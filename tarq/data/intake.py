"""What a reading of speech leaves out: broken files up to a limit, and what a corpus marks as not to be scored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tarq.errors import DataError


@dataclass
class Intake:
    """Counts what is left out while utterances are loaded, chosen and checked.

    Attributes:
        max_bad: how many broken files may be left out; the next one is an error.
        bad: what was broken, by utterance id (by file where one file holds many utterances), with the reason.
        left_out: utterances left out by a convention of their corpus, counted by reason.
    """

    max_bad: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def broken(self, name: str, error: DataError) -> None:
        """Leave a broken file out.

        Raises:
            DataError: that is one too many; names the file.
        """
        self.bad[name] = str(error)
        if len(self.bad) > self.max_bad:
            before = f"; {self.max_bad} broken files were left out before it" if self.max_bad else ""
            raise DataError(f"{error} (--max-bad N leaves out up to N broken files{before})") from error

    def notes(self) -> list[str]:
        """A line for each reason and for each broken file."""
        notes = [f"{count} utterances left out: {reason}" for reason, count in self.left_out.items()]
        if self.bad:
            notes.append(f"{len(self.bad)} broken files left out: {', '.join(self.bad)}")
            notes += [f"{name}: {reason}" for name, reason in self.bad.items()]
        return notes

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return {"bad": dict(self.bad), "left_out": dict(self.left_out)}
