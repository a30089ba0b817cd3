"""Weights on a lattice, except for a few that keep 16 bits: the result of a solver, and the layer that runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tarq.errors import CheckpointError
from tarq.kernels.group_quantize import Quantized
from tarq.kernels.scheme import Scheme
from tarq.linear import QuantLinear, packed_layer


@dataclass(frozen=True, kw_only=True)
class WithOutliers(Quantized):
    """A weight on its lattice, except for its outliers.

    Attributes:
        places: int64 [k] of those, row after row.
        values: [k] in 16 bits, theirs.
    """

    places: Tensor
    values: Tensor

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        return _with(super().dequantize(), self.places, self.values, dtype)


def _with(weight: Tensor, places: Tensor, values: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A weight of its own memory, changed at these places, then in a dtype."""
    weight.view(-1)[places] = values.to(weight.dtype)
    return weight if dtype is None else weight.to(dtype)


class OutlierLinear(QuantLinear):
    """:class:`QuantLinear` but for some weights, which are kept beside it (:mod:`tarq.method.spqr`).

    There is no such layer in compressed-tensors' ``pack-quantized`` layout, so it has no state dict: asking for one, as
    saving does, is refused. Every call expands the weight.

    Attributes:
        outlier_places: int64 [k], of the outliers in the weight, row after row.
        outlier_values: [k] in 16 bits; a cast of the module does not apply to them.
    """

    outlier_places: Tensor
    outlier_values: Tensor

    def set_outliers(self, places: Tensor, values: Tensor) -> None:
        """Set the outliers."""
        self.register_buffer("outlier_places", places)
        self.register_buffer("outlier_values", values)

    def forward(self, x: Tensor) -> Tensor:
        packed = super().dequantize(torch.float32)
        correction = torch.zeros_like(packed).view(-1)
        at = self.outlier_places
        correction[at] = self.outlier_values.float() - packed.view(-1)[at]
        return super().forward(x) + F.linear(x, correction.view_as(packed).to(x.dtype))

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        return _with(super().dequantize(), self.outlier_places, self.outlier_values, dtype)

    def packed_bytes(self) -> int:
        """With the outliers as SpQR has them: 16 bits for the value, as many for its column, and 32 a row."""
        return super().packed_bytes() + 4 * self.outlier_places.numel() + 4 * self.out_features

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OutlierLinear:
        values = self.outlier_values
        super()._apply(fn, recurse)
        if self.outlier_values.dtype != values.dtype:
            self.outlier_values = values.to(self.outlier_values.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        raise CheckpointError(
            f"not saved: {prefix.rstrip('.')} keeps {self.outlier_places.numel()} weights in 16 bits beside its codes "
            "(solver spqr), which no checkpoint of packed layers can hold: such a model can be measured only"
        )


@packed_layer.register(WithOutliers)
def _outlier_layer(quantized: WithOutliers, scheme: Scheme, bias: Tensor | None) -> OutlierLinear:
    layer = OutlierLinear.of(quantized, scheme, bias)
    layer.set_outliers(quantized.places, quantized.values)
    return layer
