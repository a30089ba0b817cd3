"""How much attention each row is given, in the full-precision model: one pass a batch, its attention computed eagerly.

Found by watching: an attention is a module of a block that returns a tuple with [B, heads, queries, keys] weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tarq.errors import ModelError
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.walk.inputs import Group


@dataclass
class AttentionGiven:
    """What the attentions of the blocks gave to their keys.

    Attributes:
        rows: (attention, batch index) to [R] float32, what each key was given by all heads and queries, on the CPU.
        own: block to its self-attention, the first of its attentions with as many keys as queries.
        without: Linears that were asked for whose rows no attention is known to be over.
    """

    rows: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)

    def note(self, layer: str) -> str:
        """What a layer's report says of it, or ""."""
        return "no attention is known over what it reads: its positions count alike" if layer in self.without else ""

    def of(self, block: str, group: Group, index: int, x: Tensor) -> Tensor | None:
        """[R] what the rows of a batch that a group of Linears reads were given.

        None where no one asked, and, with a note, where no attention is known over these rows: of a projector, of
        relative positions, of an attention that keeps its weights to itself.

        Args:
            block: name of theirs.
            group: the Linears. What several blocks read is weighed by the attention the Linears are part of.
            index: of the batch.
            x: [R, n] what they read; the result is on its device.

        Raises:
            ModelError: the model's attention is over other rows than its Linears.
        """
        if not self.rows:
            return None
        attention = f"{block}.{group.names[0].rpartition('.')[0]}" if group.place else self.own.get(block, "")
        given = self.rows.get((attention, index))
        if given is None or (group.place and len(given) != len(x)):
            self.without |= {f"{block}.{name}" for name in group.names}
            return None
        if len(given) != len(x):
            raise ModelError(
                f"{block}.{group.names[0]} reads {len(x)} rows where its block attends to {len(given)}, which a metric "
                "by attention cannot follow: take another metric"
            )
        return given.to(x.device)


@torch.no_grad()
def attention_given(recognizer: Recognizer, batches: Sequence[tuple[int, Batch]]) -> AttentionGiven:
    """Run the model on every batch and sum what each row is given.

    Args:
        recognizer: of the full-precision model, all of it on one device.
        batches: this process's, with their indices in the calibration set.

    Raises:
        ModelError: no attention shows its weights.
    """
    found, model = AttentionGiven(), recognizer.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others do not give their weights
    try:
        for index, batch in batches:
            with ExitStack() as stack:
                for name, block in (pair for stage in recognizer.stages() for pair in stage.blocks):
                    for child, module in block.named_modules():
                        if child:
                            hook = module.register_forward_hook(_watch(found, name, f"{name}.{child}", index))
                            stack.callback(hook.remove)
                recognizer.logits(batch)
    finally:
        model.set_attn_implementation(before)
    if batches and not found.rows:
        raise ModelError(f"{type(model).__name__} shows no attention weights: take another metric")
    return found


def _watch(found: AttentionGiven, block: str, name: str, index: int) -> Callable:
    def hook(module: nn.Module, args: tuple, output: object) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor) and weights.dim() == 4:
            found.rows[name, index] = weights.float().sum((1, 2)).flatten().cpu()
            if weights.shape[2] == weights.shape[3]:
                found.own.setdefault(block, name)

    return hook
