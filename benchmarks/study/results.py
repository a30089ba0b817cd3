"""The results file: written whole after every cell, shared by any number of processes, resumed at any time.

Processes lock bytes of a file beside it, ``FILE.lock``: the first while the results are rewritten, one other for each
job while it is measured. A lock goes with its process, so that a killed one leaves its job to others.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tarq.errors import ConfigError, OutputError
from tarq.files import check_file, to_json, write_whole
from tarq.reports.statistics import STATED_LATER

FORMAT = 1
Results = dict[str, Any]


class ResultsFile:
    """A results file of one study.

    Args:
        path: to be made, or to go on with.
        settings: of the study. What a file already has of them must be the same; mappings may grow.
        arms: likewise.
        bars: of the grid.

    Raises:
        ConfigError: the file is of another study, or is no results file; names it and the key.
        OutputError: it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        arms: dict[str, Any],
        pairs: list[list[str]],
        bars: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            check_file(path)
            self._lock = open(f"{path}.lock", "a")  # noqa: SIM115 - open as long as there are locks
        except OSError as error:
            raise OutputError(f"could not write {path}.lock: {error.strerror or error}; name another place") from error

        def begin(results: Results) -> None:
            known = results["settings"] and STATED_LATER | results["settings"]
            results["settings"] = _agreed(path, "settings", known, settings, 2)
            results["arms"] = _agreed(path, "arms", results["arms"], arms, 1)
            results["pairs"] = pairs
            results["bars"] = dict(bars or results["bars"])

        self.update(begin)

    def read(self) -> Results:
        """What is there; an empty study before the first cell."""
        empty = {"format": FORMAT, "settings": {}, "models": {}, "arms": {}, "pairs": [], "bars": {}, "cells": {}}
        return empty | read_results(self.path) if self.path.exists() else empty

    def update(self, change: Callable[[Results], None]) -> Results:
        """Read, change and write, while no other process does."""
        with self._locked(0):
            results = self.read()
            change(results)
            write_whole(self.path, to_json(results, indent=None) + "\n")
        return results

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Lock a job; yields False where another process has it."""
        place = 1 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place, os.SEEK_SET)
        except (BlockingIOError, PermissionError):
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, place, os.SEEK_SET)

    @contextmanager
    def _locked(self, place: int) -> Iterator[None]:
        fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, place, os.SEEK_SET)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, place, os.SEEK_SET)


def read_results(path: str | Path) -> Results:
    """A results file.

    Raises:
        ConfigError: it is missing or none; names it.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give the results of a study") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}): give the results of a study") from None
    wanted = {"settings", "models", "cells"}
    if not isinstance(results, dict) or not wanted <= results.keys() or results.get("format", FORMAT) != FORMAT:
        raise ConfigError(f"{path} holds no study's results of format {FORMAT}: {', '.join(sorted(wanted))} are wanted")
    return results


def _agreed(path: Path, key: str, old: Any, new: Any, depth: int) -> Any:
    """Old and new settings together: mappings may have grown, down to a depth; whatever stands there is the same."""
    if depth and isinstance(old, dict) and isinstance(new, dict):
        both = {k: _agreed(path, f"{key}/{k}", old[k], v, depth - 1) for k, v in new.items() if k in old}
        return old | new | both
    if old != new:
        raise ConfigError(f"{path}: {key} was {old!r} when it was begun, and is {new!r} now: name another file")
    return new
