"""Several processes as one: sharding work, reducing sums, failing together. Only this module uses torch.distributed.

Every process runs the same program on the same data and arrives at the same result; only sharded work differs. In a
single process every function here does nothing. Errors are handled at collectives: before any payload, processes
exchange whether they failed, so a process that failed joins the next collective and makes all others raise too.
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

#: Attribute that marks an error known to every process.
_SHARED = "shared_by_all_processes"


class ProcessError(TarqError):
    """A failure in another process that is not a :class:`TarqError`."""


def launched() -> bool:
    """Whether this process is one of several that ``torchrun`` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; the first, 0, writes files and shows results."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def process_group() -> Iterator[bool]:
    """Join the processes that ``torchrun`` started, and end together; yields whether this is the first of them.

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
    """Raise an error of one process in all of them, so that none waits for one that has left.

    Raises:
        Exception: this process's own, or another's: a :class:`TarqError` as it is, anything else as a ProcessError.
    """
    try:
        yield
    except Exception as error:
        if world_size() > 1 and not is_shared(error):
            setattr(error, _SHARED, True)
            where = f"process {rank()}: {type(error).__name__}: "
            kind = type(error) if isinstance(error, TarqError) else ProcessError
            _exchange(_Failure(kind, f"{'' if kind is type(error) else where}{error}"))
        raise
    barrier()


def is_shared(error: BaseException) -> bool:
    """Whether every process raises this error, so that one of them can report it."""
    return getattr(error, _SHARED, False)


def local_device(device: str) -> str:
    """The device of this process: ``cuda`` becomes a separate GPU for each process of a machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and launched() else device


def shard(items: Sequence[T]) -> Sequence[T]:
    """This process's share of the items, assigned round-robin by rank."""
    return items[rank() :: world_size()]


def rank_of(index: int) -> int:
    """The process whose :func:`shard` has the item at this index."""
    return index % world_size()


def all_gather(own: Sequence[T], device: torch.device | str = "cpu") -> list[T]:
    """The results of all processes for :func:`shard`ed items, in the items' order.

    Args:
        own: picklable; results of this process.
        device: where tensors received from the others go.
    """
    if world_size() == 1:
        return list(own)
    shares = _exchange(list(own), device)
    shares[rank()] = list(own)
    return [share[i] for i in range(max(map(len, shares))) for share in shares if i < len(share)]


def broadcast(make: Callable[[], T]) -> T:
    """Broadcast the first process's result to all."""
    return all_gather([make()] if rank() == 0 else [])[0]


def barrier() -> None:
    """Wait for the others; raises if one of them failed."""
    if world_size() > 1:
        _exchange(None)


def reduce(sums: Iterable[Tensor], to: int | None = None) -> None:
    """Add the sums of all processes' shares, in place.

    Args:
        sums: the same number in each process, of the same shapes.
        to: the only process that needs them, if there is one; in the others their contents are then undefined.
    """
    if world_size() == 1:
        return
    barrier()
    for tensor in sums:
        if to is None:
            dist.all_reduce(tensor)
        else:
            dist.reduce(tensor, to)


class _Failure:
    """The payload of a process that has failed."""

    def __init__(self, kind: type[TarqError], text: str) -> None:
        self.kind, self.text = kind, text


def _exchange(own: Any, device: torch.device | str = "cpu") -> list[Any]:
    """The payloads of all processes, by rank. Raises another process's error, unless this one failed itself."""
    # Not all_gather_object: tensors would come back on the sender's device.
    file = io.BytesIO()
    torch.save(own, file)
    data = torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(data)]))
    longest = max(int(size) for size in sizes)
    shares = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(shares, torch.nn.functional.pad(data, (0, longest - len(data))))
    payloads = [
        torch.load(io.BytesIO(share[: int(size)].numpy().tobytes()), map_location=device, weights_only=False)
        for share, size in zip(shares, sizes, strict=True)
    ]
    if not isinstance(own, _Failure):
        for payload in payloads:
            if isinstance(payload, _Failure):
                error = payload.kind(payload.text)
                setattr(error, _SHARED, True)
                raise error
    return payloads
