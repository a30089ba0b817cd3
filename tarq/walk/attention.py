"""How much attention each row receives in the full-precision model: one pass per batch, with eager attention.

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
class AttentionReceived:
    """The attention that rows receive as keys.

    Attributes:
        rows: (attention, batch index) to [R] float32 on the CPU, each key's weights summed over heads and queries.
        self_attention: block to its self-attention, the first of its attentions with as many keys as queries.
        unobserved: Linears for whose rows no attention is known.
    """

    rows: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    self_attention: dict[str, str] = field(default_factory=dict)
    unobserved: set[str] = field(default_factory=set)

    def note(self, layer: str) -> str:
        """What a layer's report says of it, or ""."""
        return "no attention is known over what it reads: its positions count alike" if layer in self.unobserved else ""

    def of(self, block: str, group: Group, index: int, x: Tensor) -> Tensor | None:
        """[R] the attention received by the rows of a batch that a group of Linears reads.

        None where it was not asked for, and, with a note, where no attention is known over these rows: a projector,
        relative positions, an attention that does not return its weights.

        Args:
            block: name of the block.
            group: the Linears. An input of several blocks is weighted by the attention that the Linears belong to.
            index: of the batch.
            x: [R, n] what they read; the result is on its device.

        Raises:
            ModelError: the model's attention is over other rows than its Linears.
        """
        if not self.rows:
            return None
        attention = (
            f"{block}.{group.names[0].rpartition('.')[0]}" if group.place else self.self_attention.get(block, "")
        )
        received = self.rows.get((attention, index))
        if received is None or (group.place and len(received) != len(x)):
            self.unobserved |= {f"{block}.{name}" for name in group.names}
            return None
        if len(received) != len(x):
            raise ModelError(
                f"{block}.{group.names[0]} reads {len(x)} rows where its block attends to {len(received)}, which a "
                "metric by attention cannot follow: take another metric"
            )
        return received.to(x.device)


@torch.no_grad()
def attention_received(recognizer: Recognizer, batches: Sequence[tuple[int, Batch]]) -> AttentionReceived:
    """Run the model on every batch and sum the attention that each row receives.

    Args:
        recognizer: of the full-precision model, all of it on one device.
        batches: this process's, with their indices in the calibration set.

    Raises:
        ModelError: no attention shows its weights.
    """
    found, model = AttentionReceived(), recognizer.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # other implementations do not return their weights
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


def _watch(found: AttentionReceived, block: str, name: str, index: int) -> Callable:
    def hook(module: nn.Module, args: tuple, output: object) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, Tensor) and weights.dim() == 4:
            found.rows[name, index] = weights.float().sum((1, 2)).flatten().cpu()
            if weights.shape[2] == weights.shape[3]:
                found.self_attention.setdefault(block, name)

    return hook
