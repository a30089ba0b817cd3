"""Several processes as one: dealing work out, adding moments up, ending together. All of torch.distributed is here.

Every process runs the same program on the same data and comes to the same result; only work that is dealt out differs.
In a single process every function here does nothing. Errors are handled by meetings: whatever processes tell each
other, they first tell whether they failed, so a process that failed goes to its next meeting and takes all with it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from tarq.errors import TarqError
from tarq.method.moments import SIDES, Moments

T = TypeVar("T")

#: Attribute of an error that every process has heard of.
_SHARED = "shared_by_all_processes"


class ProcessError(TarqError):
    """What failed in another process, where its user could not have mended it."""


def launched() -> bool:
    """Whether this process is one of several that ``torchrun`` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; the first, 0, is the one that writes and shows."""
    return dist.get_rank() if world() > 1 else 0


@contextmanager
def joined() -> Iterator[bool]:
    """Be one of the processes ``torchrun`` started, and end together; gives whether this is the first of them.

    Raises:
        Exception: what was raised inside, in any of them.
    """
    if not launched() or dist.is_initialized():
        with together():
            yield rank() == 0
        return
    # Objects and CPU tensors go over gloo, CUDA tensors over nccl.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        with together():
            yield rank() == 0
    finally:
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """An error in one process is raised in all of them: none waits for one that has left.

    Raises:
        Exception: this process's own, or another's: a :class:`TarqError` as it is, anything else as a ProcessError.
    """
    try:
        yield
    except Exception as error:
        if world() > 1 and not is_shared(error):
            setattr(error, _SHARED, True)
            where = f"process {rank()}: {type(error).__name__}: "
            kind = type(error) if isinstance(error, TarqError) else ProcessError
            _exchange((kind, f"{'' if kind is type(error) else where}{error}"), None)
        raise
    _meet(None)


def is_shared(error: BaseException) -> bool:
    """Whether every process raises this error, so that one of them saying so is enough."""
    return getattr(error, _SHARED, False)


def local_device(device: str) -> str:
    """``cuda`` is a GPU of its own for each process of a machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and launched() else device


def dealt(items: Sequence[T]) -> Sequence[T]:
    """This process's share: its rank's turn, round after round."""
    return items[rank() :: world()]


def gathered(own: Sequence[T], device: torch.device | str = "cpu") -> list[T]:
    """Everybody's results of :func:`dealt` items, in the items' order.

    Args:
        own: picklable; results of this process.
        device: where tensors in what the others send go.
    """
    if world() == 1:
        return list(own)
    shares = _meet(list(own), device)
    shares[rank()] = list(own)
    return [share[i] for i in range(max(map(len, shares))) for share in shares if i < len(share)]


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, given to all."""
    return gathered([make()] if rank() == 0 else [])[0]


def add_up(parts: Sequence[Moments]) -> None:
    """Moments over each process's share of the calibration set become those over all of it, in place."""
    if world() == 1:
        return
    counts = _meet([part.positions for part in parts])
    for i, part in enumerate(parts):
        part.positions = {side: sum(theirs[i][side] for theirs in counts) for side in SIDES}
        for sums in (part.hessian, part.cross or {}):
            for side in sums:
                dist.all_reduce(sums[side])


def _meet(payload: T, device: torch.device | str = "cpu") -> list[T]:
    """Everybody's payload, by rank; raises if a process came with an error instead."""
    if world() == 1:
        return [payload]
    # Not a plain pickle: tensors would come back on the sender's device.
    data = io.BytesIO()
    torch.save(payload, data)
    return [
        torch.load(io.BytesIO(their), map_location=device, weights_only=False)
        for their in _exchange(None, data.getvalue())
    ]


def _exchange(failure: tuple[type[TarqError], str] | None, data: bytes | None) -> list[bytes]:
    """One round of telling: failure or data. Raises what another process failed with, unless this one failed itself."""
    told: list = [None] * world()
    dist.all_gather_object(told, (failure, data))
    if failure is None:
        for theirs, _ in told:
            if theirs is not None:
                kind, text = theirs
                error = kind(text)
                setattr(error, _SHARED, True)
                raise error
    return [data for _, data in told]
