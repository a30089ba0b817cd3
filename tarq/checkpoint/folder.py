"""Checkpoint folders: what may be replaced, and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tarq.errors import CheckpointError, OutputError
from tarq.files import check_file, current_umask, sync_folder
from tarq.report import FILE_NAME
from tarq.signals import raised_on_sigterm

#: SHA-256 of the weights, as ``sha256sum -c`` reads it.
CHECKSUMS = "SHA256SUMS"
#: Tokenizer, processor and normaliser files, which are part of a model.
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tekken.json",
    "*.tiktoken",
    "normalizer.json",
    "alphabet.json",
    "preprocessor_config.json",
    "feature_extractor_config.json",
    "processor_config.json",
    "audio_tokenizer_config.json",
    "chat_template.json",
    "*.jinja",
    "params.json",
)
#: Other files that a checkpoint's folder may contain and still be replaced.
_OWN_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    FILE_NAME,
    CHECKSUMS,
    "README.md",
    "LICENSE*",
    "NOTICE*",
    ".gitattributes",
    ".DS_Store",
)
_FOLDERS = ("additional_chat_templates",)


def check_writable(path: Path, overwrite: bool, model: str | Path | None = None) -> None:
    """Refuse, before any work is done, a folder that cannot or must not be written.

    An existing folder is replaced only with ``overwrite``, and only if it is a tarq checkpoint: its config.json names
    packed weights or it has a report, and it contains only files of a checkpoint. An empty folder is accepted.

    Args:
        path: the folder.
        overwrite: replace an existing checkpoint.
        model: the full-precision model's folder, which ``path`` may not be, contain or be inside.

    Raises:
        CheckpointError: it must not be written; names the reason and the fix.
    """
    path, target = Path(path), Path(path).resolve()
    if not str(path).strip() or str(path) == os.curdir:
        raise CheckpointError("the folder to write is the current one: give the checkpoint a folder of its own")
    source = None if model is None or not Path(model).is_dir() else Path(model).resolve()
    if source is not None and (target == source or target in source.parents or source in target.parents):
        how = "is" if target == source else "contains" if target in source.parents else "lies in"
        raise CheckpointError(f"{path} {how} the model's own folder {model}: choose another folder for the checkpoint")
    if path.is_symlink() and not target.exists():
        raise CheckpointError(f"{path} is a link to {target}, which does not exist: remove the link")
    if target.exists():
        if not target.is_dir():
            raise CheckpointError(f"{path} is a file, not a folder: choose another path")
        if not overwrite:
            raise CheckpointError(f"{path} exists already: choose another folder or pass --overwrite")
        _check_replaceable(path, target)
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise CheckpointError(f"{path} cannot be written: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path} cannot be written: no permission to write in {parent}; choose another folder")


def check_place(path: Path) -> None:
    """Check, by making a file, that a folder can be made at ``path``: permission bits alone do not show it.

    Raises:
        OutputError: it cannot.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # safetensors takes names in UTF-8 alone
        raise OutputError(
            f"{str(path)!r}: not text in this locale: set LC_ALL=C.UTF-8 or PYTHONUTF8=1, or choose another name"
        ) from error
    above = next(folder for folder in path.absolute().parents if folder.exists())
    check_file(above / f".{path.name}.tarq")


def _check_replaceable(path: Path, target: Path) -> None:
    here = Path.cwd()
    if target == here or target in here.parents:
        raise CheckpointError(f"{path} is or contains the current folder: --overwrite does not replace it")
    entries = sorted(target.iterdir())
    if not entries:
        return
    if not (_is_packed(target / "config.json") or (target / FILE_NAME).is_file()):
        raise CheckpointError(
            f"{path} is not a tarq checkpoint: --overwrite replaces nothing else. Choose another folder, or remove it "
            "yourself"
        )
    foreign = next((e.name for e in entries if not _is_ours(e)), None)
    if foreign is not None:
        raise CheckpointError(
            f"{path} holds {foreign}, which is not part of a checkpoint: --overwrite would delete it. Move it away or "
            "choose another folder"
        )


def _is_ours(entry: Path) -> bool:
    if entry.is_dir():
        return entry.name in _FOLDERS and not entry.is_symlink()
    return any(fnmatch(entry.name, pattern) for pattern in SIDE_FILES + _OWN_FILES)


def _is_packed(config: Path) -> bool:
    try:
        stored: Any = json.loads(config.read_text())["quantization_config"]
        return stored["quant_method"] == "compressed-tensors" and stored["format"] == "pack-quantized"
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` if the block succeeds, and is removed if it fails.

    On Linux the two are exchanged atomically, so that ``path`` is always either the old folder or the new one.
    Elsewhere the old one is missing for an instant; if the process is killed then, the next save restores it.
    A SIGTERM ends the process as an exception would, so that nothing temporary stays.

    Raises:
        CheckpointError: the operating system refused to write (full disk, no permission).
    """
    path = path.resolve()  # a link is followed: its target is replaced
    scratch = None
    try:
        with raised_on_sigterm(lambda number: SystemExit(128 + number)):
            path.parent.mkdir(parents=True, exist_ok=True)
            _tidy(path)
            scratch = Path(tempfile.mkdtemp(prefix=f"{_mark(path)}{os.getpid()}.", suffix=".partial", dir=path.parent))
            new, old = scratch / "new", scratch / "old"
            new.mkdir()
            yield new
            _settle(new)
            if not path.exists():
                new.rename(path)
            elif not _exchanged(new, path):
                path.rename(old)
                try:
                    new.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
            sync_folder(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"could not write {path}: {reason}; what was there before is unchanged") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def interrupted(path: Path) -> Path | None:
    """The checkpoint that a process killed while replacing ``path`` left beside it, if there is one."""
    left = sorted(path.parent.glob(f".{escape(path.name)}.*.partial/old"))
    return next((found for found in left if found.is_dir()), None)


def _mark(path: Path) -> str:
    return f".{path.name}.{socket.gethostname()}."


def _tidy(path: Path) -> None:
    """Restore a checkpoint left by a killed process, and remove such processes' temporary folders."""
    left = interrupted(path)
    if left is not None and not path.exists():
        left.rename(path)
    mark = _mark(path)
    for scratch in path.parent.glob(f".{escape(path.name)}.*.partial"):
        pid = scratch.name.removeprefix(mark).split(".")[0]
        if scratch.name.startswith(mark) and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(scratch, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _settle(folder: Path) -> None:
    """Undo the private modes of mkdtemp and safetensors (a checkpoint has ordinary permissions), and sync everything
    to disk, so that a power cut after the renaming leaves no empty files."""
    umask = current_umask()
    folder.chmod(0o777 & ~umask)
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
    sync_folder(folder)


def _exchanged(new: Path, path: Path) -> bool:
    """Exchange two folders atomically, where the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fs.h
    return rename is not None and rename(here, os.fsencode(new), here, os.fsencode(path), exchange) == 0
