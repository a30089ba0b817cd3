"""Result files, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tarq.errors import OutputError


def expanded(path: str | Path) -> Path:
    """A path, ``~`` and ``~name`` being home folders where there are such."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody of that name
        return Path(path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) whole or not at all; an existing one stays until the new one is complete.

    The content goes to a temporary file beside ``path``, is synced to disk and then renamed. Links are followed. A path
    that is not a regular file (``/dev/stdout``, a pipe) cannot be replaced and is written to directly.

    Raises:
        OutputError: the path cannot be written; names it and the fix.
    """
    path = expanded(path)
    # File names may contain bytes that are not UTF-8.
    data = content if isinstance(content, bytes) else content.encode(errors="surrogateescape")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
        else:
            _replace(path.resolve(), data)
    except OSError as error:
        raise _refused(path, error) from error


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """:func:`write_whole` of a value as strict JSON (:func:`to_json`) with a line end.

    Raises:
        OutputError: the path cannot be written.
        TypeError: something in the value has no JSON form.
    """
    write_whole(path, to_json(value, indent) + "\n")


def to_json(value: Any, indent: int | None = 1) -> str:
    """A value as strict JSON: NaN and infinities, which JSON lacks, become ``null``, so that they never lose a result.

    Raises:
        TypeError: something in the value has no JSON form.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def check_file(path: Path) -> None:
    """Check, before any work is done, that :func:`write_whole` will be able to write a file.

    Raises:
        OutputError: it will not; names the path and the fix.
    """
    path = expanded(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return
        target = path.resolve()
        if target.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".partial", dir=target.parent)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise _refused(path, error) from error


def _replace(path: Path, data: bytes) -> None:
    if path.is_dir():
        raise IsADirectoryError(21, "Is a directory")
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".partial", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~current_umask()
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems refuse; the files themselves are written
        pass
    finally:
        os.close(handle)


def current_umask() -> int:
    """The umask of this process."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _refused(path: Path, error: OSError) -> OutputError:
    mends = {
        FileNotFoundError: f"the folder {path.parent} does not exist; create it or name another place",
        NotADirectoryError: f"{path.parent} is a file, not a folder; name another place",
        IsADirectoryError: "it is a folder; name a file",
        PermissionError: "permission denied; name a place you may write to",
    }
    mend = next((text for kind, text in mends.items() if isinstance(error, kind)), None)
    reason = mend or f"{error.strerror or error}; name another place"
    return OutputError(f"could not write {path}: {reason}")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
