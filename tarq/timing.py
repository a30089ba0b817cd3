"""Named parts of a run, and how long each takes. Without an open :class:`Timer` a part costs one look at a variable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: What lies in no named part.
OTHER = "other"

_timer: Timer | None = None


class Timer:
    """Seconds by part. Of nested parts the inner one has the time alone, so that all parts add up to the whole.

    On a CUDA device a border between parts is an event on its current stream, so that nothing waits for the device
    until :meth:`seconds` is called. A part then has the device's time between its borders, its idling included.

    Args:
        device: where the work is done.
        clock: the host's.
    """

    def __init__(self, device: torch.device | str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock = torch.device(device), clock
        self._open: list[str] = []
        self._borders: list[tuple[str, float, torch.cuda.Event | None]] = []  # each with the part that begins there

    @contextmanager
    def running(self) -> Iterator[Timer]:
        """While open, the parts of whatever runs are timed."""
        global _timer
        before, _timer = _timer, self
        self._begin(OTHER)
        try:
            yield self
        finally:
            _timer = before
            self._end()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """While open, time belongs to this part, unless to one within it."""
        self._begin(name)
        try:
            yield
        finally:
            self._end()

    def _begin(self, name: str) -> None:
        self._open.append(name)
        self._border()

    def _end(self) -> None:
        self._open.pop()
        self._border()

    def _border(self) -> None:
        event = None
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
        self._borders.append((self._open[-1] if self._open else "", self.clock(), event))

    def seconds(self) -> dict[str, float]:
        """Part to seconds, in the order in which parts first began: the GPU's where the device is one."""
        if self.device.type != "cuda":
            return self.host_seconds()
        torch.cuda.synchronize(self.device)

        def between(start: tuple, end: tuple) -> float:
            return start[2].elapsed_time(end[2]) / 1e3

        return self._sums(between)

    def host_seconds(self) -> dict[str, float]:
        """The same by the host's clock: on a GPU, the time in which work was handed to the device."""
        return self._sums(lambda start, end: end[1] - start[1])

    def _sums(self, between: Callable[[tuple, tuple], float]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for start, end in zip(self._borders, self._borders[1:], strict=False):
            if start[0]:
                sums[start[0]] = sums.get(start[0], 0.0) + between(start, end)
        return sums


def timed(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a part of the run, whose time an open :class:`Timer` counts."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if _timer is None:
                return function(*args, **kwargs)
            with _timer.part(name):
                return function(*args, **kwargs)

        return call

    return decorate


def timed_methods(of: T, **parts: str) -> T:
    """A proxy of an object, some of whose methods are parts of the run; the object itself is unchanged.

    Args:
        of: any object; calls that it makes to itself are not seen.
        parts: name of a method to that of its part.
    """
    return cast(T, _TimedMethods(of, parts))


class _TimedMethods:
    def __init__(self, of: Any, parts: dict[str, str]) -> None:
        self._of, self._parts = of, parts

    def __getattr__(self, name: str) -> Any:
        if name in ("_of", "_parts"):  # a copy asks before it has them
            raise AttributeError(name)
        found = getattr(self._of, name)
        return timed(self._parts[name])(found) if name in self._parts else found
