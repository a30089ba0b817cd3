"""What the parts of a block came to in one pass over a batch, kept for the next one, as far as a budget allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from tarq.walk.inputs import moved, replaced_forward


@dataclass
class MemoryBudget:
    """Memory for activations that are cached between a block's runs.

    Attributes:
        free: bytes left.
    """

    free: float

    def take(self, size: int) -> bool:
        """Reserve so many bytes; False if they are not free."""
        fits = size <= self.free
        self.free -= size if fits else 0
        return fits


class Kept:
    """What a part of a block came to in one pass, for the next.

    Nothing is copied where it stays on its device. A tensor counts what is written into it: then the result is void.

    Args:
        value: a tensor, or a tuple of tensors and None.
        device: where it is kept.
        copy: whether the block is known to write into it.

    Attributes:
        size: bytes taken from the budget.
        attentions: how many attentions were computed for it.
    """

    def __init__(self, value: Any, device: torch.device, copy: bool) -> None:
        tensors = _tensors(value)
        copy = copy or any(t.is_inference() for t in tensors)  # those do not count
        self.from_device, self.copy = tensors[0].device, copy
        self.value = moved(value, device, copy)
        self.written = [] if copy else [t._version for t in _tensors(self.value)]
        self.size, self.attentions = _held_bytes(value), 0

    def get(self) -> Any:
        """The value on the device it came from; None if it is void."""
        if not self.copy and self.written != [t._version for t in _tensors(self.value)]:
            return None
        return moved(self.value, self.from_device, self.copy)


@contextmanager
def caching_outputs(
    block: nn.Module,
    names: Sequence[str],
    cached: dict[str | int, Kept],
    budget: MemoryBudget,
    cache_device: torch.device,
) -> Iterator[None]:
    """While open, for one pass: what a block came to in an earlier pass over the same batch is not computed again.

    That is the outputs of finished children, and those of attentions in front of wherever a pass ends.

    Args:
        block: its children are called at most once per pass.
        names: children whose output is final, since nothing in them or before them changes any more.
        cached: children by name, and attentions by the order of their calls; filled as the budget allows.
        budget: for what is cached.
        cache_device: where it is cached; it returns to the device it came from.
    """
    this = _Pass(cached, budget, cache_device)
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(replaced_forward(block.get_submodule(name), partial(this.child, name)))
        stack.enter_context(this)
        yield


class _Pass(TorchFunctionMode):
    """One pass for :func:`caching_outputs`. Sees every call of a function of torch while it is open."""

    def __init__(self, cached: dict[str | int, Kept], budget: MemoryBudget, cache_device: torch.device) -> None:
        super().__init__()
        self.cached, self.budget, self.cache_device = cached, budget, cache_device
        self.attentions = 0  # called so far, in a cached child or really

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        compute = partial(function, *args, **(kwargs or {}))
        if function is not scaled_dot_product_attention:
            return compute()
        self.attentions += 1
        return self._kept(self.attentions, compute)

    def child(self, name: str, forward: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            before = self.attentions
            value = self._kept(name, partial(forward, *args, **kwargs))
            if name in self.cached:
                kept = self.cached[name]
                kept.attentions = kept.attentions or self.attentions - before
                self.attentions = before + kept.attentions
                for of_child in range(before + 1, self.attentions + 1):  # which it stands for
                    if of_child in self.cached:
                        self.budget.free += self.cached.pop(of_child).size
            return value

        return call

    def _kept(self, key: str | int, compute: Callable[[], Any]) -> Any:
        """What was kept, or else what is computed, which is kept then."""
        before = self.cached.get(key)
        value = None if before is None else before.get()
        if value is not None:
            return value
        value = compute()
        if before is not None or (_tensors(value) and self.budget.take(_held_bytes(value))):
            self.cached[key] = Kept(value, self.cache_device, copy=before is not None)
        return value


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a tensor or of a tuple of tensors and None; empty for anything else."""
    found = [t for t in (value if isinstance(value, tuple) else (value,)) if t is not None]
    return found if all(isinstance(t, Tensor) for t in found) else []


def _held_bytes(value: Any) -> int:
    """What keeping it keeps in memory: of a view, all that it is a view of."""
    return sum(t.untyped_storage().nbytes() for t in _tensors(value))
