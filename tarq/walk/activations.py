"""The activations of the block at hand, on both paths: what is held between its runs, and what is computed again.

A block is run once as it was, before anything in it changes, and then up to each group of Linears as it becomes. What
its Linears read in full precision, and what its finished children returned, is held as far as it fits into a budget.
Where not all of its inputs fit, the block's own Linears are put back for a moment and it runs again up to the group;
what a finished child returned is computed again. The result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tarq.linear import QuantLinear
from tarq.models.types import Batch
from tarq.walk.inputs import Group, StageInputs, capture_inputs, input_of, linear_of, moved, replaced_forward


@dataclass
class MemoryBudget:
    """Memory for activations that are held between a block's runs.

    Attributes:
        free: bytes.
    """

    free: float

    def take(self, size: int) -> bool:
        """Whether so many bytes were still free; now they are not."""
        fits = size <= self.free
        self.free -= size if fits else 0
        return fits


@dataclass
class PathPair:
    """One batch on both paths.

    Attributes:
        index: of the batch within the calibration set, of which other processes may hold other batches.
        utterances_before: how many utterances of the set come before it.
        batch: what is said.
        full: on the full-precision path, which is walked only where a residual compares with it.
        quantized: on the path that is quantized as far as the walk has come.
        cached_inputs: first Linear of each group of the block at hand to what it reads in full precision.
        cached_outputs: finished child of the block at hand to what it returned on the quantized path, and where.
    """

    index: int
    utterances_before: int
    batch: Batch
    full: StageInputs | None
    quantized: StageInputs
    cached_inputs: dict[str, Tensor] = field(default_factory=dict)
    cached_outputs: dict[str, tuple[Any, torch.device]] = field(default_factory=dict)


class BlockActivations:
    """What the Linears of one block read, batch by batch, while they are quantized one group after another.

    Args:
        block: on ``device``, its Linears as they were.
        index: of the block within its stage.
        pairs: the calibration batches, in front of the block.
        names: the first Linear of each group whose input the block makes itself, in calling order.
        budget: for what is held.
        device: where the block runs; what is held stays with the hidden states.
    """

    def __init__(
        self,
        block: nn.Module,
        index: int,
        pairs: Sequence[PathPair],
        names: Sequence[str],
        budget: MemoryBudget,
        device: torch.device,
    ) -> None:
        self.block, self.index, self.pairs, self.budget, self.device = block, index, pairs, budget, device
        self.originals: dict[str, nn.Module] = {}  # the block's own Linears, where it runs again as it was
        full = [pair.full for pair in pairs if pair.full is not None]
        held = self._fitting(names, full)
        self.recomputes = bool(full) and len(held) < len(names)
        if held or not self.recomputes:
            for pair in pairs:
                self._run_full(pair, held, advance=not self.recomputes)

    def _fitting(self, names: Sequence[str], full: Sequence[StageInputs]) -> list[str]:
        """Those Linears whose full-precision inputs fit into the budget, the first ones first."""
        width = {name: linear_of(self.block, name).in_features for name in names}
        rows = [(path.hidden.shape[:-1].numel(), path.hidden.element_size()) for path in full]
        return [n for n in names if self.budget.take(sum(count * width[n] * size for count, size in rows))]

    def _run_full(self, pair: PathPair, names: Sequence[str], advance: bool) -> None:
        """Run the block as it was on the full-precision path and hold what these Linears read."""
        if pair.full is None:
            return
        home = pair.full.hidden.device

        def hold(name: str, tensor: Tensor) -> None:
            pair.cached_inputs.setdefault(name, tensor.to(home))

        with capture_inputs(self.block, names, hold):
            hidden = pair.full.block(self.index).on(self.device).run(self.block)
        if advance:
            pair.full.hidden = hidden.to(home)

    def read(self, pair: PathPair, group: Group, waiting: Iterable[str]) -> tuple[Tensor, Tensor | None]:
        """What a group reads on a batch, partly quantized and in full precision (None where that is not walked).

        Args:
            pair: the batch.
            group: whose input.
            waiting: Linears that are still to be quantized, this group's among them.
        """
        finished = finished_children(self.block, waiting)
        home = pair.quantized.hidden.device
        with caching_outputs(self.block, finished, pair.cached_outputs, self.budget, home):
            x = input_of(self.block, group, pair.quantized.block(self.index).on(self.device))
        return x, self._read_full(pair, group)

    def _read_full(self, pair: PathPair, group: Group) -> Tensor | None:
        if pair.full is None:
            return None
        held = pair.cached_inputs.pop(group.names[0], None)  # dropped as soon as it is used
        if held is not None:
            return held.to(self.device)
        with replace_modules(self.block, self.originals):
            return input_of(self.block, group, pair.full.block(self.index).on(self.device))

    def replace(self, name: str, module: nn.Module) -> None:
        """Put a quantized layer in a Linear's place for good."""
        if self.recomputes:
            self.originals[name] = self.block.get_submodule(name)
        self.block.set_submodule(name, module)

    def advance(self) -> None:
        """Take both paths through the finished block and give up what is held of it."""
        finished = finished_children(self.block, [])
        for pair in self.pairs:
            path, home = pair.quantized, pair.quantized.hidden.device
            with caching_outputs(self.block, finished, pair.cached_outputs, MemoryBudget(0), home):
                path.hidden = path.block(self.index).on(self.device).run(self.block).to(home)
            pair.cached_inputs.clear()
            pair.cached_outputs.clear()
        if self.recomputes:
            with replace_modules(self.block, self.originals):
                for pair in self.pairs:
                    self._run_full(pair, [], advance=True)
        self.originals.clear()


def finished_children(block: nn.Module, waiting: Iterable[str]) -> list[str]:
    """Children of a block that hold quantized layers, and none of the Linears that wait to be quantized."""
    parts = {name.partition(".")[0] for name in waiting}
    return [
        name
        for name, child in block.named_children()
        if name not in parts and any(isinstance(module, QuantLinear) for module in child.modules())
    ]


@contextmanager
def caching_outputs(
    block: nn.Module,
    names: Sequence[str],
    cached: dict[str, tuple[Any, torch.device]],
    budget: MemoryBudget,
    home: torch.device,
) -> Iterator[None]:
    """While open, these children of a block do not compute what they computed before on the same batch.

    Args:
        block: its children are called at most once a pass.
        names: children that compute the same again, since nothing in them or before them changes any more.
        cached: child to what it returned, and the device that was on; added to as the budget allows.
        budget: for what is held.
        home: where it is held; it returns to the device it came from.
    """

    def once(name: str) -> Callable[[Callable], Callable]:
        def replacement(forward: Callable) -> Callable:
            def call(*args: Any, **kwargs: Any) -> Any:
                if name in cached:
                    value, device = cached[name]
                    return moved(value, device, copy=True)  # the block may write into it
                value = forward(*args, **kwargs)
                tensors = [t for t in (value if isinstance(value, tuple) else (value,)) if t is not None]
                if all(isinstance(t, Tensor) for t in tensors) and budget.take(sum(t.nbytes for t in tensors)):
                    cached[name] = moved(value, home, copy=True), tensors[0].device
                return value

            return call

        return replacement

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(replaced_forward(block.get_submodule(name), once(name)))
        yield


@contextmanager
def replace_modules(block: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """While open, other modules are in a block's places."""
    now = {name: block.get_submodule(name) for name in modules}
    for name, module in modules.items():
        block.set_submodule(name, module)
    try:
        yield
    finally:
        for name, module in now.items():
            block.set_submodule(name, module)
