"""A model's weights, whatever its family: sizes, which are packed or left, whether all are finite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from tarq.errors import ModelError
from tarq.finite import not_finite
from tarq.linear import Int8Layers, QuantLinear, slow_layers, use_int8_activations
from tarq.models.types import Stage


class ModelWeights(ABC):
    """A transformers model, seen as blocks of layers.

    Args:
        model: the transformers model.
        stored_dtype: dtype of the weights on disk, which scales are stored in and checkpoints saved in.
    """

    #: Why layers outside the blocks stay in full precision: name suffix to reason.
    reasons: ClassVar[Mapping[str, str]] = {}

    def __init__(self, model: nn.Module, stored_dtype: torch.dtype) -> None:
        self.model: Any = model
        self.stored_dtype = stored_dtype

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The model's blocks in order of execution."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def not_finite(self) -> Iterator[str]:
        """Names of the weights that hold NaN or infinity; reads them all."""
        for name, _ in not_finite((*self.model.named_parameters(), *self.model.named_buffers())):
            yield name

    def check_weights(self, label: str = "") -> None:
        """Check that all weights are finite.

        Args:
            label: what the model is called where there are several.

        Raises:
            ModelError: one holds NaN or infinity; names it.
        """
        for name in self.not_finite():
            raise ModelError(
                f"{label and f'{label}: '}{name} holds NaN or infinity, so the model's output is meaningless: "
                "convert or download the checkpoint again"
            )

    @property
    def is_quantized(self) -> bool:
        """Whether any layer is packed."""
        return any(isinstance(module, QuantLinear) for module in self.model.modules())

    def use_int8_activations(self) -> Int8Layers:
        """Have packed layers round their inputs to 8 bits where a kernel gains by it; how many do, and why not all."""
        return use_int8_activations(self.model)

    def slow_layers(self) -> list[str]:
        """Notes on packed layers that are slower than they could be, a sentence for each reason."""
        return slow_layers(self.model)

    def linear_bytes(self) -> int:
        """Bytes of the blocks' Linear weights: packed ones as stored, others in the dtype on disk."""
        modules = [m for stage in self.stages() for _, block in stage.blocks for m in block.modules()]
        packed = sum(m.packed_bytes() for m in modules if isinstance(m, QuantLinear))
        plain = sum(m.weight.numel() for m in modules if isinstance(m, nn.Linear))
        return packed + plain * self.stored_dtype.itemsize

    def left_out(self) -> dict[str, str]:
        """Matrices that stay in full precision, with the reason: Linears outside the blocks, pointwise convolutions."""
        inside = {f"{name}.{inner}" for s in self.stages() for name, b in s.blocks for inner, _ in b.named_modules()}
        inside |= {name for s in self.stages() for name, _ in s.blocks}
        left = {}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1:
                left[name] = self._reason(
                    name, "a pointwise convolution: the checkpoint format packs Linear layers only"
                )
            elif isinstance(module, nn.Linear) and name not in inside:
                left[name] = self._reason(name, "outside the transformer blocks")
        return left

    def _reason(self, name: str, otherwise: str) -> str:
        return next((reason for end, reason in self.reasons.items() if name.endswith(end)), otherwise)
