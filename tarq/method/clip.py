"""Each weight to its nearest lattice point, groups clipped where the layer's output gains by it.

A group's range is cut to a share c of what its weights span, ``c ∈ {1, 0.975, …, 0.525}``: the few outermost are
rounded worse and all others better. What is best is what leaves the least output error of the whole row,
``(w − ŵ) H (w − ŵ)ᵀ``, while the other groups of the row stand as they are; group after group, some rounds of it. It
starts from no clipping and keeps what is best, so the error never rises.

**What it equals.** Round to nearest at c = 1. In one round and with the correlations between groups left out, AWQ's
clipping (arXiv 2306.00978). The search for strengths by the output's error is what OmniQuant's learnable weight
clipping does by gradient descent on its block's output (arXiv 2308.13137).

**Where it differs.** From OmniQuant: a layer's output in the place of a block's, a grid in the place of 20 epochs, one
share for both ends of an asymmetric group, and no learned scales between layers. From the scale rule ``mse``: its
error is the weight's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Quantized
from tarq.kernels.group_quantize.reference import encode, group_scales, round_to_nearest
from tarq.kernels.scheme import Scheme
from tarq.method.residuals import Statistics
from tarq.method.solvers import RoundToNearest, damped_loss

#: Shares of a group's span, tried in this order; the first of equally good ones is kept.
SHARES = tuple(1.0 - 0.025 * k for k in range(20))


@dataclass(frozen=True)
class Clipped(RoundToNearest):
    """Round to nearest under clipping.

    Attributes:
        rounds: over the groups of a row.
    """

    rounds: int = 2
    reads_audio: bool = True

    def quantize(
        self,
        targets: Sequence[Tensor],
        statistics: Statistics | None,
        scheme: Scheme,
        scale_dtype: torch.dtype,
        outputs: Sequence[Tensor] | None = None,
    ) -> list[Quantized]:
        if statistics is None:
            raise ValueError("clipping needs the metric")
        factor = statistics.factor
        metric = factor.damped(statistics.moments.hessian)
        done = []
        for target in targets:
            v = target.to(self.dtype).masked_fill(factor.dead, 0)
            q = clipped(v, metric, scheme, scale_dtype, self.rounds)
            error = v - Quantized(*q, v.new_zeros(len(v)), scheme.group_size).dequantize(v.dtype)
            done.append(Quantized(*q, damped_loss(error, factor), scheme.group_size))
        return done


def clipped(
    v: Tensor, metric: Tensor, scheme: Scheme, scale_dtype: torch.dtype, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [m, n], scales [m, G] in their dtype and zero points uint8 [m, G] of [m, n] targets."""
    codes, scales, zeros = (each.to(v.dtype) for each in round_to_nearest(v, scheme, scale_dtype))
    groups = [slice(first, first + scheme.group_size) for first in range(0, v.shape[1], scheme.group_size)]
    # A group that is all zeros is exact as it is.
    error = v - torch.cat([(codes[:, c] - zeros[:, g, None]) * scales[:, g, None] for g, c in enumerate(groups)], 1)
    for _ in range(rounds):
        for g, columns in enumerate(groups):
            own, w = metric[columns, columns], v[:, columns]
            others = error @ metric[:, columns] - error[:, columns] @ own
            least = ((error[:, columns] @ own + 2 * others) * error[:, columns]).sum(1)
            for share in SHARES:
                s, z = group_scales(_cut(w, share, scheme), scheme, scale_dtype)
                code = encode(w, s[:, None], z[:, None], scheme)
                tried = w - (code - z[:, None]) * s[:, None]
                change = ((tried @ own + 2 * others) * tried).sum(1)
                better = change < least
                least = torch.where(better, change, least)
                codes[:, columns] = torch.where(better[:, None], code, codes[:, columns])
                error[:, columns] = torch.where(better[:, None], tried, error[:, columns])
                scales[:, g], zeros[:, g] = torch.where(better, s, scales[:, g]), torch.where(better, z, zeros[:, g])
    return codes.to(torch.uint8), scales.to(scale_dtype), zeros.to(torch.uint8)


def _cut(w: Tensor, share: float, scheme: Scheme) -> Tensor:
    """[m, g] weights within a share of what their group spans."""
    low, high = w.aminmax(dim=1, keepdim=True)
    if scheme.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    return torch.minimum(torch.maximum(w, share * low), share * high)
