"""Several processes as one: sharing work out, adding sums up, failing together. All of torch.distributed is here.

Every process runs the same program on the same data and comes to the same result; only work that is shared out differs.
In a single process every function here does nothing. Errors are handled where processes meet: whatever they tell each
other, they first tell whether they failed, so a process that failed goes to its next meeting and takes all with it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tarq.errors import TarqError

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
def process_group() -> Iterator[bool]:
    """Be one of the processes ``torchrun`` started, and end together; gives whether this is the first of them.

    Raises:
        Exception: what was raised inside, in any of them.
    """
    if not launched() or dist.is_initialized():
        with raise_everywhere():
            yield rank() == 0
        return
    # Objects and CPU tensors go over gloo, CUDA tensors over nccl.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        with raise_everywhere():
            yield rank() == 0
    finally:
        dist.destroy_process_group()


@contextmanager
def raise_everywhere() -> Iterator[None]:
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
            _exchange(_Failure(kind, f"{'' if kind is type(error) else where}{error}"))
        raise
    barrier()


def is_shared(error: BaseException) -> bool:
    """Whether every process raises this error, so that one of them saying so is enough."""
    return getattr(error, _SHARED, False)


def local_device(device: str) -> str:
    """``cuda`` is a GPU of its own for each process of a machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and launched() else device


def shard(items: Sequence[T]) -> Sequence[T]:
    """This process's share: every item whose turn its rank is, round after round."""
    return items[rank() :: world()]


def all_gather(own: Sequence[T], device: torch.device | str = "cpu") -> list[T]:
    """Everybody's results of :func:`shard` items, in the items' order.

    Args:
        own: picklable; results of this process.
        device: where tensors in what the others send go.
    """
    if world() == 1:
        return list(own)
    shares = _exchange(list(own), device)
    shares[rank()] = list(own)
    return [share[i] for i in range(max(map(len, shares))) for share in shares if i < len(share)]


def broadcast(make: Callable[[], T]) -> T:
    """What the first process makes, given to all."""
    return all_gather([make()] if rank() == 0 else [])[0]


def barrier() -> None:
    """Wait for the others; raises if one comes with an error instead."""
    if world() > 1:
        _exchange(None)


def reduce(sums: Iterable[Tensor], to: int | None = None) -> None:
    """Sums over each process's share of the work become those over all of it, in place.

    Args:
        sums: as many in each process, of the same shapes.
        to: the one process that needs them, where it is one; in the others they are then of no use.
    """
    if world() == 1:
        return
    barrier()
    for tensor in sums:
        if to is None:
            dist.all_reduce(tensor)
        else:
            dist.reduce(tensor, to)


class _Failure:
    """What a process brings to a meeting when it has failed."""

    def __init__(self, kind: type[TarqError], text: str) -> None:
        self.kind, self.text = kind, text


def _exchange(own: Any, device: torch.device | str = "cpu") -> list[Any]:
    """Everybody's payload, by rank. Raises what another process failed with, unless this one failed itself."""
    # Not all_gather_object: tensors would come back on the sender's device.
    file = io.BytesIO()
    torch.save(own, file)
    data = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(data)]))
    longest = max(int(size) for size in sizes)
    shares = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(shares, torch.nn.functional.pad(data, (0, longest - len(data))))
    payloads = [
        torch.load(io.BytesIO(share[: int(size)].numpy().tobytes()), map_location=device, weights_only=False)
        for share, size in zip(shares, sizes, strict=True)
    ]
    if not isinstance(own, _Failure):
        for theirs in payloads:
            if isinstance(theirs, _Failure):
                error = theirs.kind(theirs.text)
                setattr(error, _SHARED, True)
                raise error
    return payloads
