"""A configuration field that documents itself, declares which values it takes and refuses all others."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, get_args

from tarq.errors import ConfigError

#: The smallest positive float: the lower end of a number that may not be 0.
POSITIVE = 5e-324

#: Panels of the command line's help.
METHOD, CALIBRATION, CHECKPOINT, RESOURCES = "Method", "Speech", "Checkpoint", "Resources"


@dataclass(frozen=True)
class Option:
    """The metadata of a configuration field beside its name and default.

    Attributes:
        help: one or two sentences, for the command line.
        panel: the heading under which the command line lists it.
        kind: ``int``, ``float``, ``bool``, ``str``, ``choice``, ``path``, ``language``, ``names`` (a tuple of
            strings), ``entries`` (a path, or a tuple of strings), ``widths`` (a mapping from places in a model to
            whole numbers) or ``residual`` (a choice or a float).
        choices: values of a ``choice``, an ``int`` or ``widths``, the names of a ``residual``, words that a
            ``language`` may be; empty for any.
        low: smallest number.
        high: largest number.
        optional: whether None is allowed.
    """

    help: str
    panel: str
    kind: str
    choices: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False

    def check(self, value: Any) -> Any:
        """The value in the field's type.

        Raises:
            ConfigError: the field does not take it; says which values it takes and what was given, without its name.
        """
        if value is None and self.optional:
            return None
        checked = _CHECKS[self.kind](self, value)
        if checked is None:
            raise ConfigError(f"must be {self.wanted()}, not {value!r}")
        return checked

    def wanted(self) -> str:
        """The values the field takes, in words."""
        if self.kind in ("choice", "int") and self.choices:
            return _either(self.choices)
        if self.kind == "residual":
            return _either((*self.choices, f"a number {self._range()}"))
        if self.kind == "widths":
            return f"a mapping from stages or layer names to {_either(self.choices)}"
        kinds = {"int": "a whole number", "float": "a number", "bool": "true or false", "path": "the path of a file"}
        code = ", or ".join(["a language code such as en or pt-BR", *self.choices])
        kinds |= {"language": code, "names": "a list of layer names", "str": "a text"}
        kinds |= {"entries": "the path of a file, or a list of words"}
        return f"{kinds[self.kind]} {self._range()}".strip() + (", or nothing" if self.optional else "")

    def _range(self) -> str:
        if self.kind not in ("int", "float", "residual") or self.low == -math.inf:
            return ""
        above = "above 0" if self.low == POSITIVE else f"of at least {_plain(self.low)}"
        return above if self.high == math.inf else f"{above} and at most {_plain(self.high)}"


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _either(choices: tuple[Any, ...]) -> str:
    *first, last = map(str, choices)
    return f"{', '.join(first)} or {last}" if first else last


def _int(option: Option, value: Any) -> int | None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    fits = whole and option.low <= value <= option.high and (not option.choices or value in option.choices)
    return int(value) if fits else None


def _float(option: Option, value: Any) -> float | None:
    number: Any = value
    # NaN fails every comparison; infinities and the largest integers exceed every float.
    real = isinstance(value, Real) and not isinstance(value, bool) and abs(number) <= sys.float_info.max
    return float(value) if real and option.low <= value <= option.high else None


def _choice(option: Option, value: Any) -> str | None:
    return value if isinstance(value, str) and value in option.choices else None


def _path(option: Option, value: Any) -> str | None:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    return text if isinstance(text, str) and text.strip() and "\0" not in text else None


def _language(option: Option, value: Any) -> str | None:
    shape = r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*"
    return value if isinstance(value, str) and (re.fullmatch(shape, value) or value in option.choices) else None


def _names(option: Option, value: Any) -> tuple[str, ...] | None:
    # A lone string would be taken for the list of its characters.
    if isinstance(value, str) or not isinstance(value, list | tuple):
        return None
    return tuple(value) if all(isinstance(name, str) and name.strip() for name in value) else None


def _entries(option: Option, value: Any) -> str | tuple[str, ...] | None:
    return _names(option, value) if isinstance(value, list | tuple) else _path(option, value)


def _widths(option: Option, value: Any) -> dict[str, int] | None:
    if not isinstance(value, Mapping):
        return None
    found = {place: _int(option, bits) for place, bits in value.items()}
    places = all(isinstance(place, str) and place.strip() for place in found)
    return found if places and None not in found.values() else None  # type: ignore[return-value]


#: Kind of option to its check: the value in the field's type, or None where it is not one of the field's.
_CHECKS: dict[str, Any] = {
    "int": _int,
    "float": _float,
    "bool": lambda option, value: value if isinstance(value, bool) else None,
    "str": lambda option, value: value if isinstance(value, str) and value.strip() else None,
    "choice": _choice,
    "path": _path,
    "language": _language,
    "names": _names,
    "entries": _entries,
    "widths": _widths,
    "residual": lambda option, value: _choice(option, value) if isinstance(value, str) else _float(option, value),
}


def option(default: Any, panel: str, help: str, kind: Any, **limits: Any) -> Any:
    """A field of the configuration; ``kind`` is an :class:`Option`'s, or a ``Literal`` whose values are the choices.

    A default that is a type is called for each configuration; the field then takes no part in its hash.
    """
    if not isinstance(kind, str):
        kind, limits["choices"] = "choice", get_args(kind)
    metadata = {"option": Option(help, panel, kind, **limits)}
    if isinstance(default, type):
        return field(default_factory=default, hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Checked:
    """Fields that are checked when they are set."""

    def __post_init__(self) -> None:
        for name, known in options(type(self)).items():
            try:
                object.__setattr__(self, name, known.check(getattr(self, name)))
            except ConfigError as error:
                raise ConfigError(f"{name} {error}") from None


def options(config: type | Checked) -> dict[str, Option]:
    """Field name to its metadata, in order."""
    return {f.name: f.metadata["option"] for f in fields(config) if "option" in f.metadata}
