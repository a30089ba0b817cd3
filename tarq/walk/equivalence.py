"""Changes of weights that leave what a block computes as it is: whether one does is tested by running the block."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.walk.inputs import BlockInputs, InputCapture, offloaded

#: Largest change by the whole of a change, relative to that by half of it: float32's rounding.
_TOLERANCE = 1e-3


def blocks_on(
    recognizer: Recognizer, batch: Batch, device: torch.device
) -> Iterator[tuple[str, nn.Module, BlockInputs]]:
    """Each block by its name in the model, on the device, with its arguments on a batch's first example.

    What leaves a block as it is does so on any example: one is enough, and blocks are run many times. Whatever else
    stages start from than a :class:`Batch` is taken whole.
    """
    batch, previous = batch.first() if isinstance(batch, Batch) else batch, None
    for stage in recognizer.stages():
        inputs = InputCapture(stage, device)(batch, previous)
        for index, (name, block) in enumerate(stage.blocks):
            with offloaded(block, device):
                arguments = inputs.block(index).on(device)
                yield name, block, arguments
                inputs.hidden = arguments.run(block).to(inputs.hidden.device)
        previous = stage.finish(inputs.hidden)


def equivalent(
    block: nn.Module, arguments: BlockInputs, whole: Callable[[], object], *halves: Callable[[], object]
) -> bool:
    """Whether a block computes the same after a change, measured by what half of the change does; it is not changed.

    Changes made together have a half each: one that does nothing on this batch would pass unseen among others.

    Args:
        block: the block.
        arguments: of the block.
        whole: makes the change, of the block's parameters.
        halves: make the part that another part is to undo, of one change each.
    """
    arguments = BlockInputs(arguments.hidden.float(), *(_float32(each) for each in (arguments.args, arguments.kwargs)))

    def computed(apply: Callable[[], object] | None) -> Tensor:
        with _in_float32(block):
            if apply is not None:
                apply()
            return arguments.run(block)

    plain = computed(None)
    both, *ones = (float((computed(apply) - plain).abs().max()) for apply in (whole, *halves))
    return all(one > 0 and both <= _TOLERANCE * one for one in ones)


@contextmanager
def _in_float32(block: nn.Module) -> Iterator[None]:
    """While open, a block has a float32 copy of its weights; afterwards its own again.

    The block itself is not copied: it may hold what cannot be, or a ``forward`` of its own, bound to it.
    """
    own = [(tensor, tensor.data) for tensor in (*block.parameters(), *block.buffers())]
    try:
        for tensor, data in own:
            tensor.data = data.to(torch.float32 if data.is_floating_point() else data.dtype, copy=True)
        yield
    finally:
        for tensor, data in own:
            tensor.data = data


def listed(left: Collection[str], changed: Collection[str]) -> str:
    """Names of layers that were left, for a note: a single one for all blocks where no block's was changed."""

    def place(name: str) -> str:
        return re.sub(r"\.\d+(?=\.)", ".*", name)

    elsewhere = {place(name) for name in changed}
    return ", ".join(sorted({name if place(name) in elsewhere else place(name) for name in left}))


def _float32(value: Any) -> Any:
    """Floating tensors in float32, also within tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _float32(item) for key, item in value.items()}
    return type(value)(_float32(item) for item in value) if type(value) in (tuple, list) else value
