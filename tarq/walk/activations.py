"""The activations of the current block, on both paths: what is cached between its runs, and what is recomputed.

A block is run once in full precision, before anything in it changes, and then, partly quantized, up to each group of
Linears. The full-precision inputs of its Linears and the outputs of its finished children are cached as far as a budget
allows. If not all inputs fit, the block's original Linears are put back temporarily and it runs again up to the group;
uncached outputs of finished children are recomputed. The result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tarq.linear import QuantLinear
from tarq.timing import timed
from tarq.walk.caching import MemoryBudget, caching_outputs
from tarq.walk.inputs import Group, StageInputs, capture_inputs, input_of, linear_of
from tarq.walk.paths import PathPair


class BlockActivations:
    """The inputs of one block's Linears, batch by batch, while they are quantized group by group.

    Args:
        block: on ``device``, with its original Linears.
        index: of the block within its stage.
        pairs: the calibration batches, at the block's input.
        names: the first Linear of each group whose input the block computes itself, in calling order.
        budget: for what is cached.
        device: where the block runs; caches stay with the hidden states.
        counted: indices of the batches whose inputs will be read; the others only pass through. All by default.
    """

    def __init__(
        self,
        block: nn.Module,
        index: int,
        pairs: Sequence[PathPair],
        names: Sequence[str],
        budget: MemoryBudget,
        device: torch.device,
        counted: Container[int] | None = None,
    ) -> None:
        self.block, self.index, self.pairs, self.budget, self.device = block, index, pairs, budget, device
        self.originals: dict[str, nn.Module] = {}  # the original Linears, if the full-precision block must run again
        read = [pair.index for pair in pairs if counted is None or pair.index in counted]
        full = [pair.full for pair in pairs if pair.full is not None and pair.index in read]
        cached = self._fitting(names, full)
        self.recomputes = bool(full) and len(cached) < len(names)
        if cached or not self.recomputes:
            for pair in pairs:
                if pair.index in read:
                    self._run_full(pair, cached, advance=not self.recomputes)
                elif not self.recomputes:
                    self._run_full(pair, [], advance=True)

    def _fitting(self, names: Sequence[str], full: Sequence[StageInputs]) -> list[str]:
        """Those Linears whose full-precision inputs fit into the budget, the first ones first."""
        width = {name: linear_of(self.block, name).in_features for name in names}
        rows = [(path.hidden.shape[:-1].numel(), path.hidden.element_size()) for path in full]
        return [n for n in names if self.budget.take(sum(count * width[n] * size for count, size in rows))]

    @timed("forward, full precision")
    def _run_full(self, pair: PathPair, names: Sequence[str], advance: bool) -> None:
        """Run the original block on the full-precision path and cache the inputs of these Linears."""
        if pair.full is None:
            return
        cache_device = pair.full.hidden.device

        def cache(name: str, tensor: Tensor) -> None:
            pair.cached_inputs.setdefault(name, tensor.to(cache_device))

        with capture_inputs(self.block, names, cache):
            hidden = pair.full.block(self.index).on(self.device).run(self.block)
        if advance:
            pair.full.hidden = hidden.to(cache_device)

    @timed("forward, quantized")
    def read(self, pair: PathPair, group: Group, waiting: Iterable[str]) -> tuple[Tensor, Tensor | None]:
        """A group's input on a batch, partly quantized and in full precision (None if that path is not walked).

        Args:
            pair: the batch.
            group: whose input.
            waiting: Linears still to be quantized, including this group's.
        """
        finished = finished_children(self.block, waiting)
        cache_device = pair.quantized.hidden.device
        with caching_outputs(self.block, finished, pair.cached_outputs, self.budget, cache_device):
            x = input_of(self.block, group, pair.quantized.block(self.index).on(self.device))
        return x, self._read_full(pair, group)

    @timed("forward, full precision")
    def _read_full(self, pair: PathPair, group: Group) -> Tensor | None:
        if pair.full is None:
            return None
        cached = pair.cached_inputs.pop(group.names[0], None)  # dropped as soon as it is used
        if cached is not None:
            return cached.to(self.device)
        with replace_modules(self.block, self.originals):
            return input_of(self.block, group, pair.full.block(self.index).on(self.device))

    def replace(self, name: str, module: nn.Module) -> None:
        """Replace a Linear by its quantized layer for good."""
        if self.recomputes:
            self.originals[name] = self.block.get_submodule(name)
        self.block.set_submodule(name, module)

    @timed("forward, quantized")
    def advance(self) -> None:
        """Take both paths through the finished block and drop its caches."""
        finished = finished_children(self.block, [])
        for pair in self.pairs:
            path, cache_device = pair.quantized, pair.quantized.hidden.device
            with caching_outputs(self.block, finished, pair.cached_outputs, MemoryBudget(0), cache_device):
                path.hidden = path.block(self.index).on(self.device).run(self.block).to(cache_device)
            pair.cached_inputs.clear()
            pair.cached_outputs.clear()
        if self.recomputes:
            with replace_modules(self.block, self.originals):
                for pair in self.pairs:
                    self._run_full(pair, [], advance=True)
        self.originals.clear()


def finished_children(block: nn.Module, waiting: Iterable[str]) -> list[str]:
    """Children of a block that contain quantized layers and no Linear still to be quantized."""
    unfinished = {name.partition(".")[0] for name in waiting}
    return [
        name
        for name, child in block.named_children()
        if name not in unfinished and any(isinstance(module, QuantLinear) for module in child.modules())
    ]


@contextmanager
def replace_modules(block: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """While open, other modules replace a block's own."""
    own = {name: block.get_submodule(name) for name in modules}
    for name, module in modules.items():
        block.set_submodule(name, module)
    try:
        yield
    finally:
        for name, module in own.items():
            block.set_submodule(name, module)
