"""The folder of a run of quantization that is not finished yet: what it has finished so far, part by part.

- ``run.json``: what decides the result (:mod:`tarq.walk.identity`), and how many blocks there are.
- a safetensors file for each finished part, such as a block: its tensors, and a record as JSON.
- ``SHA256SUMS``: of all these, in the order of the run. A part is finished once it is listed here.

Each file is written whole or not at all, so a run may be killed at any instant. Parts are taken in the order in which
they were made, up to the first that is missing or damaged: it and all later ones are made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from tarq import distributed
from tarq.checkpoint.folder import CHECKSUMS
from tarq.errors import CalibrationError, ConfigError, DataError, ModelError, OutputError, ResumeError
from tarq.files import check_file, to_json, write_whole
from tarq.report import Reporter

#: Of the folder; another one is refused.
FORMAT = 1
RUN = "run.json"
#: What begins the names of blocks' files, beside which there are those of what comes before the blocks.
_BLOCK = re.compile(r"\d{4}-")
_LINE = re.compile(r"([0-9a-f]{64})  ([\w.-]+)")


@dataclass(frozen=True)
class Part:
    """Something that a run has finished.

    Attributes:
        tensors: by name.
        record: what else there is to it, as JSON holds it.
    """

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]


class Progress(NamedTuple):
    """How far an unfinished run is: its blocks, and whether anything at all is kept."""

    done: int
    total: int
    any: bool

    def __str__(self) -> str:
        return f"{self.done} of {self.total} blocks" if self.total else "blocks"


class UnfinishedRun:
    """What a run has finished so far; without a folder nothing is kept.

    With several processes all make the same calls: the first one reads and writes, and tells the others.

    Attributes:
        finished: how many blocks an earlier run has finished.
    """

    def __init__(self, reporter: Reporter | None = None) -> None:
        self.reporter = reporter or Reporter()
        self.folder: Path | None = None  # the first process's alone
        self.finished = 0
        self._sums: dict[str, str] = {}  # file to checksum, of the parts that were taken or kept
        self._earlier: list[tuple[str, str]] = []  # (file, checksum) of those still to be taken
        self._held: list[tuple[str, Part]] = []  # still to be written
        self._head = ""
        self._open = False
        self._before, self._began = 0.0, time.monotonic()

    @property
    def keeps(self) -> bool:
        """Whether this process keeps parts."""
        return self.folder is not None

    @contextmanager
    def kept_in(self, folder: Path, identity: Mapping[str, Any], blocks: int) -> Iterator[None]:
        """While open, parts are kept in a folder; those that an earlier run left there are taken.

        The folder stays afterwards, until the checkpoint is written (:func:`discard`). If the block is left by an
        exception, a note at it says how far the run is. The folder is removed where it holds nothing yet, and after
        errors of speech, model or settings, which the same run would end with again.

        Args:
            folder: made where there is none.
            identity: what decides the result of the run, as JSON holds it: all that must be as it was.
            blocks: how many the run will finish.

        Raises:
            OutputError: the folder cannot be written, or holds something else.
            ResumeError: another process works there, the run there is another one, or its files are damaged.
        """
        fields = {"format": FORMAT, "blocks": blocks} | dict(identity)
        first = distributed.rank() == 0
        with _locked(folder) if first else _nothing():
            if first:
                self._enter(folder, json.loads(to_json(fields)))
            self.finished = distributed.broadcast(lambda: sum(_is_block(name) for name, _ in self._earlier))
            self._open = True
            try:
                yield
            except BaseException as error:
                if first:
                    self._left(folder, error)
                raise
            finally:
                self._open, self.folder = False, None

    def take(self, name: str) -> Part | None:
        """A part that an earlier run has finished; None if this one has to make it."""
        return distributed.broadcast(lambda: self._take(name)) if self._open else None

    def keep(self, name: str, part: Part, *, alone: bool = True) -> Part:
        """Keep a part. A run does not fail because this does: a note then says that it cannot go on from here.

        Args:
            name: of its file.
            part: itself.
            alone: False for what is made again in no time: it is written only along with the next part.
        """
        if self.folder is not None:
            self._held.append((name, part))
        if self.folder is not None and alone:
            try:
                for held, each in self._held:
                    self._keep(self.folder / f"{held}.safetensors", each)
                self._held.clear()
            except (OSError, OutputError, safetensors.SafetensorError) as error:
                folder, self.folder = self.folder, None
                self.reporter.note(
                    f"{error}: the run goes on, but is not kept from here: if it is stopped, it goes on after "
                    f"{progress(folder) or 'nothing'}"
                )
        return part

    def once(self, name: str, make: Callable[[], Part]) -> Part:
        """A part as an earlier run has made it, or made now and kept."""
        return self.take(name) or self.keep(name, make())

    def seconds(self) -> float:
        """Wall time of the run so far, with that of earlier ones for the parts taken."""
        return self._before + time.monotonic() - self._began

    def _enter(self, folder: Path, fields: dict[str, Any]) -> None:
        self._began = time.monotonic()
        head, earlier = _listed(folder)
        if earlier:
            _check_same(folder, _read_run(folder, head), fields)
            self._earlier = earlier
        else:
            if not head and any(folder.glob("*.safetensors")):  # or of a process that was killed while it discarded it
                self.reporter.note(f"{folder / CHECKSUMS} is missing: what {folder} holds is made again")
            text = json.dumps(fields, indent=1) + "\n"
            head = f"{hashlib.sha256(text.encode()).hexdigest()}  {RUN}\n"
            try:
                write_whole(folder / RUN, text)
                write_whole(folder / CHECKSUMS, head)
            except OutputError:
                discard(folder)
                raise
        self.folder, self._head = folder, head

    def _take(self, name: str) -> Part | None:
        if not self._earlier:
            return None
        assert self.folder is not None
        file = self.folder / f"{name}.safetensors"
        listed, checksum = self._earlier.pop(0)
        try:
            if (listed, checksum) != (file.name, _checksum(file)):
                raise ValueError("its checksum differs")
            part = _read_part(file)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            self._earlier.clear()
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
            self.reporter.note(f"{file} {reason}: what it holds, and all after it, is made again")
            return None
        self._sums[listed] = checksum
        self._before, self._began = part.record["seconds"], time.monotonic()
        return part

    def _keep(self, file: Path, part: Part) -> None:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in part.tensors.items()}
        record = json.dumps(dict(part.record) | {"seconds": self.seconds()})
        data = safetensors_bytes(tensors, {"record": record})
        write_whole(file, data)
        sums = self._sums | {file.name: hashlib.sha256(data).hexdigest()}
        write_whole(file.parent / CHECKSUMS, self._head + "".join(f"{s}  {name}\n" for name, s in sums.items()))
        self._sums = sums

    def _left(self, folder: Path, error: BaseException) -> None:
        """An exception ends the run; after some of them it could not go on."""
        done = progress(folder)
        if isinstance(error, CalibrationError | ConfigError | DataError | ModelError):
            discard(folder)
        elif done is not None and done.any:
            error.add_note(f"{done} are finished and kept in {folder}: the same call goes on from there")
        else:
            discard(folder)


def progress(folder: Path) -> Progress | None:
    """How far the run is whose folder this is; None if there is no such folder."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        total = int(json.loads((folder / RUN).read_text(encoding="utf-8"))["blocks"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Progress(0, 0, True)  # damaged, but there
    parts = [line.rpartition("  ")[2] for line in lines[1:]]
    return Progress(sum(map(_is_block, parts)), total, bool(parts))


def check_unfinished(folder: Path, again: str | None) -> None:
    """Check, before any work is done, that no other process works in a folder, and that nothing in it would be lost.

    Args:
        folder: of an unfinished run, if there is one.
        again: how to go on from there; None if that is what is done.

    Raises:
        ResumeError: one does, or an earlier run has left something; names the folder, and how to go on or start over.
    """
    done = progress(folder)
    if done is not None:
        with _locked(folder):
            pass
    if again is not None and done is not None and done.any:
        raise ResumeError(
            f"{folder} holds {done} of a run that was stopped: {again} goes on from there; to start over, delete it"
        )


def discard(folder: Path) -> None:
    """Remove an unfinished run, once its checkpoint is written; whatever else is in the folder stays."""
    with suppress(OSError):
        listed = [file for file in folder.iterdir() if _is_ours(file.name)]
        # The list of what is finished goes first: a run without one has nothing to go on from.
        for file in sorted(listed, key=lambda file: file.name != CHECKSUMS):
            file.unlink(missing_ok=True)
        folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While open, the folder exists, holds nothing but an unfinished run, and no other process works in it.

    Raises:
        OutputError: it cannot be written, or holds something else.
        ResumeError: another process works in it.
    """
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        what = "it is a file" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror or error
        raise OutputError(
            f"{folder}, which keeps finished blocks, cannot be made: {what}; name another place"
        ) from error
    try:
        _lock(handle, folder)
        foreign = next((name for name in sorted(os.listdir(folder)) if not _is_ours(name)), None)
        if foreign is not None:
            raise OutputError(f"{folder} holds {foreign}, which is no part of an unfinished run: name another folder")
        check_file(folder / RUN)
        for scratch in folder.glob(".*.partial"):  # of a process that was killed
            scratch.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)  # which unlocks it
        for above in made:
            with suppress(OSError):  # it holds something
                above.rmdir()


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ResumeError(
                f"{folder}: another process is at work there: wait for it, or give this run another folder"
            ) from error  # other errors: a file system without locks


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _is_block(name: str) -> bool:
    return _BLOCK.match(name) is not None


def _is_ours(name: str) -> bool:
    return name in (RUN, CHECKSUMS) or name.endswith((".safetensors", ".partial"))


def _listed(folder: Path) -> tuple[str, list[tuple[str, str]]]:
    """The line of ``run.json``, and (file, checksum) of each part; both empty where a run had not begun yet."""
    file = folder / CHECKSUMS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return "", []
    except (OSError, ValueError) as error:
        raise ResumeError(f"{file} cannot be read ({error}): delete {folder}, and start over") from error
    rows = [match.groups() if (match := _LINE.fullmatch(line)) else ("", line) for line in lines]
    return (lines[0] + "\n" if lines else ""), [(name, checksum) for checksum, name in rows[1:]]


def _read_run(folder: Path, head: str) -> dict[str, Any]:
    file = folder / RUN
    try:
        if head != f"{_checksum(file)}  {RUN}\n":
            raise ValueError("its checksum differs")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeError(
            f"{file} is damaged ({error}), so it is unknown which run is to go on: delete {folder}, and start over"
        ) from error


def _read_part(file: Path) -> Part:
    with safetensors.safe_open(file, framework="pt") as opened:
        # Cloned: kernels may compute other last bits where memory is aligned otherwise.
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        return Part(tensors, json.loads(opened.metadata()["record"]))


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_same(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a run is the one that is to go on.

    Raises:
        ResumeError: it is another one; names what differs.
    """
    found = list(_differences(then, now, ""))
    if not found:
        return
    shown = "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
    raise ResumeError(
        f"{folder} is of another run: {shown}. Run it as it was to go on, or start over: delete that folder, or name "
        "another one to write"
    )


def _differences(then: Any, now: Any, place: str) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            where = f"{place} {key}".strip()
            if key not in now or key not in then:
                yield f"{where} {'is new' if key in now else 'is gone'}"
            else:
                yield from _differences(then[key], now[key], where)
    elif then != now:
        digests = isinstance(then, str) and re.fullmatch("[0-9a-f]{64}", then)
        yield f"{place} differs" if digests else f"{place} was {then!r:.60}, is {now!r:.60}"
