"""SIGTERM, by which schedulers and systems ask a process to end, as an exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def raised_on_sigterm(error: Callable[[int], BaseException]) -> Iterator[None]:
    """While open, SIGTERM raises an exception in the main thread, unless something else handles it.

    Args:
        error: makes the exception of the signal's number.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def stop(number: int, frame: FrameType | None) -> None:
        raise error(number)

    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
