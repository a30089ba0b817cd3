"""Arguments of the Python interface, checked against their annotations before any work is done."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from tarq.errors import ConfigError

#: Where a model computes.
Device = str | torch.device | int
F = TypeVar("F", bound=Callable[..., Any])

#: Type to what it takes, in words.
_WORDS: dict[Any, str] = {
    str: "a text",
    Path: "a path",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    torch.dtype: "a floating torch.dtype such as torch.float16",
    Device: "a device such as 'cpu' or 'cuda:0'",
    str | Path: "a path",
    NoneType: "None",
}
#: Type to whether a value is one, where isinstance would not do.
_TESTS: dict[Any, Callable[[Any], bool]] = {
    Path: lambda value: isinstance(value, os.PathLike),
    int: lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    float: lambda value: isinstance(value, Real) and not isinstance(value, bool),
    torch.dtype: lambda value: isinstance(value, torch.dtype) and value.is_floating_point,
    # an empty path would stand for the current folder
    str | Path: lambda value: isinstance(value, os.PathLike) or (isinstance(value, str) and bool(value.strip())),
}


def checked_arguments(*own: str) -> Callable[[F], F]:
    """Decorate a function so that a call with an argument of another type than annotated raises ConfigError.

    The error names the argument and what it takes. What is annotated as a list is no text, and a number is no bool.

    Args:
        own: parameters that the function checks itself, with better words than their annotations give.
    """

    def decorate(function: F) -> F:
        signature, hints = inspect.signature(function), functools.cache(lambda: get_type_hints(function))

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            for name, value in signature.bind(*arguments, **named).arguments.items():
                hint = hints().get(name, Any)
                kind = signature.parameters[name].kind
                if name in own or kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
                    continue
                if not _fits(value, hint):
                    raise ConfigError(f"{name} is {value!r:.80}: give {_words(hint)}")
                if Device in _choices(hint):
                    check_device(name, value)
            return function(*arguments, **named)

        return call  # type: ignore[return-value]

    return decorate


def check_device(name: str, device: Any) -> None:
    """Check that a device is there.

    Args:
        name: of the argument.
        device: as torch takes it; None for none.

    Raises:
        ConfigError: it is no device, or cannot be used here; names the argument.
    """
    try:
        if device is not None and torch.device(device).type != "meta":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{name} is {device!r:.80}, which cannot be used: {reason}") from error


def _choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union; a union that has words of its own stays one."""
    if hint in _WORDS or get_origin(hint) not in (Union, UnionType):
        return (hint,)
    members = get_args(hint)
    for whole in (Device, str | Path):
        if set(get_args(whole)) <= set(members):
            members = (whole, *(one for one in members if one not in get_args(whole)))
    return members


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint in _TESTS:
        return _TESTS[hint](value)
    choices = _choices(hint)
    if len(choices) > 1:
        return any(_fits(value, choice) for choice in choices)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is None:
        # a protocol's classes inherit it
        return hint in type(value).__mro__ if getattr(hint, "_is_protocol", False) else isinstance(value, hint)
    if not isinstance(value, origin) or isinstance(value, str | bytes):  # a text is a sequence, too
        return False
    if isinstance(value, Mapping):
        return all(_fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items())
    # an iterator cannot be looked into without being used up
    return not hasattr(value, "__len__") or all(_fits(one, inner[0]) for one in value)


def _words(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    choices = _choices(hint)
    if len(choices) > 1:
        words = [_words(choice) for choice in choices if choice is not NoneType]
        return " or ".join([*dict.fromkeys(words), *(["None"] if NoneType in choices else [])])
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Callable:
        return "a function"
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping from {_words(inner[0])} to {_words(inner[1])}"
    if origin is not None and issubclass(origin, Iterable):
        return f"a list, each {_words(inner[0])}"
    return f"an object of {hint.__module__}.{hint.__qualname__}"
