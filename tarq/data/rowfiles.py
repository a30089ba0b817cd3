"""The audio of a data set's row: its bytes, or a file below the data set's own location, never elsewhere."""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Any

from tarq.data.audio import Encoded
from tarq.errors import DataError


def encoded(value: Any, source: str, name: str, location: str | Path | None) -> Path | Encoded:
    """A row's audio: its bytes, or the file it names.

    Args:
        location: the only place it may name files in: a repository's address or a folder; None for any local file.

    Raises:
        DataError: it has no audio, or names something elsewhere.
    """
    value = value if isinstance(value, dict) else {}
    path, data = value.get("path"), value.get("bytes")
    if not isinstance(path, str | None) or not isinstance(data, bytes | None) or not (path or data):
        raise DataError(f"{source}: row {name!r} has no audio; report it to the set's owner")
    suffix = PurePath(path or "").suffix
    if data:
        return Encoded(f"{source} {name}{suffix}", data)
    assert path is not None
    elsewhere = DataError(
        f"{source}: row {name!r} names {path}, outside the data set; nothing but a data set's own files is opened"
    )
    if "://" in path or "::" in path:
        if not (isinstance(location, str) and _is_below(path, location)):
            raise elsewhere
        import fsspec

        with fsspec.open(path) as file:
            return Encoded(f"{source} {name}{suffix}", file.read())
    if isinstance(location, str) or (location is not None and not _is_inside(location / path, location)):
        raise elsewhere
    file_here = Path(path) if location is None else location / path
    if not file_here.is_file():
        raise DataError(f"{source}: row {name!r}: audio file {file_here} does not exist; correct the path")
    return file_here


def _is_below(address: str, location: str) -> bool:
    """Whether an address of fsspec (``hf://datasets/…``, ``zip://a.wav::hf://datasets/…``) is in a repository."""
    *inner, outer = address.split("::")
    archives = all(part.partition("://")[0] in ("zip", "tar", "gzip") for part in inner)
    rest = outer.removeprefix(location.rstrip("/"))
    return archives and rest != outer and rest[:1] in ("/", "@") and ".." not in rest.split("/")


def _is_inside(file: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, links followed; a snapshot in the hub's cache links to its blobs."""
    if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(folder)):
        return False
    parts = folder.absolute().parts
    home = Path(*parts[: parts.index("snapshots")]) if "snapshots" in parts else folder
    return file.resolve().is_relative_to(home.resolve())
