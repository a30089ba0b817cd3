"""A bias that absorbs the mean: layers that have one are quantized about the mean of their input.

A Linear's bias stays in full precision, so it is free to move. ``b' = b + W μ_f − Ŵ μ`` minimises the weighted output
error, whatever Ŵ is, and the remaining error is the same problem under centred moments
``H − n μ μᵀ`` and ``H_Δ − n (μ_f − μ) μᵀ``. So the codes need not represent what is constant.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tarq.method.residuals import CrossFitted, Layer, Statistics, absorbed_mean


@dataclass(frozen=True)
class CrossFittedBias(CrossFitted):
    """The cross-fitted residual about the mean, for layers whose output may be shifted; the others keep it as it is.

    A layer with a bias absorbs the mean there. Keys of softmax attention need no bias: ``q·(k + β)`` adds the same
    number to every score of a query.
    """

    first_moments: bool = True

    def centres(self, layer: Layer) -> bool:
        return layer.bias is not None or layer.shift_free

    def bias(self, layer: Layer, w_hat: Tensor, statistics: Statistics) -> Tensor | None:
        return absorbed_mean(layer, w_hat, statistics)
