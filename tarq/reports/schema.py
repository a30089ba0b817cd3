"""What a value read from JSON should be, as data; :meth:`Schema.check` names the first that is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Raises the caller's error, given the way to a value and what is wrong with it.
Fail = Callable[[str, str], Exception]
#: No figure or count is as large; beyond it sums and plots overflow.
LARGEST = 1e15


class Schema:
    """A kind of value."""

    def check(self, value: Any, key: str, fail: Fail) -> None:
        """Check that a value is of this kind.

        Args:
            value: as ``json`` reads it.
            key: the way to it.
            fail: makes the error that is raised.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Is(Schema):
    """A plain value that passes a test; ``called`` says what it should be."""

    test: Callable[[Any], bool]
    called: str

    def check(self, value: Any, key: str, fail: Fail) -> None:
        if not self.test(value):
            raise fail(key, f"is {shown(value)}, not {self.called}")


@dataclass(frozen=True)
class Maybe(Schema):
    """The kind, or null."""

    kind: Schema

    def check(self, value: Any, key: str, fail: Fail) -> None:
        if value is not None:
            self.kind.check(value, key, fail)


@dataclass(frozen=True)
class Each(Schema):
    """A list of a kind."""

    kind: Schema
    length: int | None = None
    of: str = "utterances"

    def check(self, value: Any, key: str, fail: Fail) -> None:
        if not isinstance(value, list):
            raise fail(key, f"is {shown(value)}, not a list")
        if self.length is not None and len(value) != self.length:
            raise fail(key, f"has {len(value)} entries for {self.length} {self.of}")
        for i, item in enumerate(value):
            self.kind.check(item, f"{key}[{i}]", fail)


@dataclass(frozen=True)
class Table(Schema):
    """An object whose keys are names and whose values are of one kind."""

    kind: Schema

    def check(self, value: Any, key: str, fail: Fail) -> None:
        if not isinstance(value, dict):
            raise fail(key, f"is {shown(value)}, not an object")
        for name, item in value.items():
            self.kind.check(item, join(key, name), fail)


@dataclass(frozen=True)
class Record(Schema):
    """An object with these fields; others are not looked at."""

    needed: Mapping[str, Schema] = field(default_factory=dict)
    optional: Mapping[str, Schema] = field(default_factory=dict)

    def check(self, value: Any, key: str, fail: Fail) -> None:
        if not isinstance(value, dict):
            raise fail(key, f"is {shown(value)}, not an object")
        for name, kind in self.needed.items():
            if name not in value:
                raise fail(join(key, name), "is missing")
            kind.check(value[name], join(key, name), fail)
        for name, kind in self.optional.items():
            Maybe(kind).check(value.get(name), join(key, name), fail)


@dataclass(frozen=True)
class Either(Schema):
    """A plain value, or of the other kind, which errors name."""

    plain: Is
    other: Schema

    def check(self, value: Any, key: str, fail: Fail) -> None:
        if not self.plain.test(value):
            self.other.check(value, key, fail)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a plausible size; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def join(key: str, name: str) -> str:
    return f"{key}/{name}" if key else name


def shown(value: Any) -> str:
    """A value in a message, cut short."""
    if isinstance(value, int) and abs(value) > sys.maxsize:
        return "a number of absurd size"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


ANYTHING = Is(lambda value: True, "anything")
TEXT = Is(lambda value: isinstance(value, str), "text")
NUMBER = Is(is_number, "a finite number")
COUNT = Is(lambda value: is_number(value) and value >= 0, "a count")
SHARE = Is(lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
OBJECT = Table(ANYTHING)
