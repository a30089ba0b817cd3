"""Shared by corpus loaders: parts of a corpus, tables, text files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tarq.data.intake import Intake
from tarq.errors import DataError

T = TypeVar("T")


def choose_part(source: str | Path, what: str, parts: Mapping[str, T], part: str | None) -> T:
    """The requested part of a corpus, or its only one.

    Args:
        source: name of the corpus in messages.
        what: description of several parts, in messages ("a folder of LibriSpeech subsets").
        parts: name to any representation of the part.
        part: what the user asked for as ``SOURCE:PART``.

    Raises:
        DataError: there is no such part, or there are several and none was requested.
    """
    if part is not None and part in parts:
        return parts[part]
    names = ", ".join(sorted(parts))
    if part is not None:
        raise DataError(f"{source}: no part {part!r} in it; it has {names or 'no parts: leave it out'}")
    if len(parts) == 1:
        return next(iter(parts.values()))
    raise DataError(f"{source}: {what}; name one of them: {names} (as {source}:{min(parts)})")


def read_text(path: Path) -> str:
    """A UTF-8 file, without a byte-order mark.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its location and permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); convert it, or extract the archive again") from error


def header(path: Path, delimiter: str) -> list[str]:
    """Column names of a table, from its first line alone; empty if it is not text."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.readline().rstrip("\r\n").split(delimiter)
    except (OSError, UnicodeDecodeError):
        return []


def read_table(
    path: Path, delimiter: str, columns: Sequence[str], intake: Intake
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a table with a header line; quotation marks are characters like any other.

    Args:
        columns: that must be there.
        intake: a row with more or fewer values than columns is left out as broken.

    Yields:
        The row's location (``file:line``), for messages, and column to value.

    Raises:
        DataError: the file is not UTF-8, a column is missing, or it is one broken row too many.
    """
    first, *lines = read_text(path).split("\n")  # splitlines() would cut at U+2028
    names = first.rstrip("\r").split(delimiter)
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; it has {', '.join(names)}")
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        values = line.rstrip("\r").split(delimiter)
        if len(values) != len(names):
            text = f"{len(values)} values for {len(names)} columns; the file is damaged: extract it anew"
            intake.broken(where, DataError(f"{where}: {text}"))
            continue
        yield where, dict(zip(names, values, strict=True))


def audio_exists(audio: Path, where: str, name: str, intake: Intake) -> bool:
    """Whether an audio file exists; one that does not is left out as broken.

    Args:
        where: the line that names it, for the message.
        name: of the utterance.

    Raises:
        DataError: it is one broken file too many.
    """
    try:
        if audio.is_file():
            return True
        what = "is a folder" if audio.is_dir() else "is not a regular file" if audio.exists() else "does not exist"
    except OSError as error:  # an impossible file name
        what = f"cannot be checked ({error.strerror})"
    intake.broken(name, DataError(f"{where}: audio file {audio} {what}; correct the path or extract it again"))
    return False


def first_file(candidates: Sequence[Path]) -> Path:
    """The first that exists, else the first."""
    return next((path for path in candidates if path.is_file()), candidates[0])


def number(text: str, what: str, where: str) -> float:
    """Seconds in a corpus's own table.

    Raises:
        DataError: it is not a finite number of at least 0.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise DataError(f"{where}: {what} is {text!r}; it needs to be a number of seconds: extract the corpus again")
    return found


def stated_value(value: str | None, *unknown: str) -> str | None:
    """A corpus's value; None if it is empty or one of the corpus's words for unknown."""
    return None if value in (None, "", *unknown) else value
