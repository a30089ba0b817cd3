"""Changes of weights that leave what a block computes as it is: whether one does is tested by running the block."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.walk.inputs import BlockInputs, InputCapture, offloaded

#: Largest change by the whole of a change, relative to that by half of it: float32's rounding.
_TOLERANCE = 1e-3

Change = TypeVar("Change")


def blocks_on(
    recognizer: Recognizer, batch: Batch, device: torch.device
) -> Iterator[tuple[str, nn.Module, BlockInputs]]:
    """Each block by its name in the model, on the device, with its arguments on a batch."""
    previous = None
    for stage in recognizer.stages():
        inputs = InputCapture(stage, device)(batch, previous)
        for index, (name, block) in enumerate(stage.blocks):
            with offloaded(block, device):
                arguments = inputs.block(index).on(device)
                yield name, block, arguments
                inputs.hidden = arguments.run(block).to(inputs.hidden.device)
        previous = stage.finish(inputs.hidden)


def equivalent(
    block: nn.Module,
    arguments: BlockInputs,
    change: Change,
    whole: Callable[[Change], object],
    *halves: Callable[[Change], object],
) -> bool:
    """Whether a block computes the same after a change, measured by what half of the change does; it is not changed.

    Changes made together have a half each: one that does nothing on this batch would pass unseen among others.

    Args:
        block: the block.
        arguments: of the block.
        change: holds modules of the block.
        whole: makes the change.
        halves: make the part that another part is to undo, of one change each.
    """
    arguments = BlockInputs(arguments.hidden.float(), *(_float32(each) for each in (arguments.args, arguments.kwargs)))

    def computed(apply: Callable[[Change], object] | None) -> Tensor:
        # One copy of all, so that modules in the copy of the change are those of the copied block.
        copied, copied_change = copy.deepcopy((block, change))
        copied.float()
        if apply is not None:
            apply(copied_change)
        return arguments.run(copied)

    plain = computed(None)
    both, *ones = (float((computed(apply) - plain).abs().max()) for apply in (whole, *halves))
    return all(one > 0 and both <= _TOLERANCE * one for one in ones)


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
