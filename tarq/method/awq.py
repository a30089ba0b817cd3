"""Scales of a layer's inputs, so that salient ones are rounded finer: AWQ (arXiv 2306.00978).

``W x = (W · diag(s)) (x / s)`` for any s > 0. Rounded in the first form a column's error counts ``1 / s_j``, at
the cost of the group's scale, which its largest column sets. AWQ takes ``s = a^ρ`` with a the inputs' magnitudes, over
``√(max · min)``, and the best ρ of a grid of 20 in 0 … 0.95 for the error of the layers' outputs,

    Σ_layers tr(E H Eᵀ),    E = W − Q(W · diag(s)) · diag(s)⁻¹

and lets what makes x divide it by s (:mod:`tarq.walk.folding`), so the checkpoint is one of plain Linears.

**What it equals.** Round to nearest where nothing in front can take the scales, or ρ = 0 is best.

**Where it differs.** Magnitudes are root mean squares, AWQ's mean absolutes; the error is that of the Linears that
read x, where AWQ looks behind the whole attention for q, k and v; padding weighs as little as in any metric. Its
clipping, which comes after, is the solver ``clipped``. Any other residual and solver goes with the scales as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Quantized, round_to_nearest
from tarq.kernels.scheme import Scheme
from tarq.method.metrics import Metric, Plain
from tarq.method.moments import Moments
from tarq.method.scaling import InputScaling

#: Ratios ρ tried, in this order; the first of equally good ones is kept.
RATIOS = tuple(k / 20 for k in range(20))


@dataclass(frozen=True)
class AWQ(InputScaling):
    """Scales by the magnitudes of inputs, to the best of several powers."""

    metric: Metric = field(default_factory=Plain)

    def scales(
        self, weights: Sequence[Tensor], moments: Moments, scheme: Scheme, statistics: Sequence[Tensor]
    ) -> tuple[Tensor, str]:
        hessian = (moments.hessian["common"] + moments.hessian["tail"]).float()
        s, ratio = input_scales(weights, hessian, scheme, torch.float32)
        return s, f"its input is scaled by magnitude to the {ratio:g}"


def input_scales(
    weights: Sequence[Tensor], hessian: Tensor, scheme: Scheme, scale_dtype: torch.dtype
) -> tuple[Tensor, float]:
    """The scales [n] of the inputs that several Linears share, and their ρ.

    Args:
        weights: [m, n] of each.
        hessian: [n, n] H, in the dtype to compute in.
        scheme: the lattice.
        scale_dtype: dtype the lattice's scales are stored in.
    """
    magnitude = hessian.diagonal().sqrt()
    dead = magnitude == 0
    magnitude = magnitude / magnitude[~dead].mean() if bool((~dead).any()) else torch.ones_like(magnitude)
    best, least = (torch.ones_like(magnitude), 0.0), torch.inf
    for ratio in RATIOS:
        s = magnitude.pow(ratio).clamp_min(1e-4).masked_fill(dead, 1.0)
        s = s / (s.max() * s.min()).sqrt()
        error = sum(_output_error(w.to(s.dtype), s, hessian, scheme, scale_dtype) for w in weights)
        if error < least:
            best, least = (s, ratio), error
    return best


def _output_error(w: Tensor, s: Tensor, hessian: Tensor, scheme: Scheme, scale_dtype: torch.dtype) -> float:
    """``tr(E H Eᵀ)`` of rounding ``W · diag(s)`` to nearest."""
    rounded = Quantized(*round_to_nearest(w * s, scheme, scale_dtype), w.new_zeros(len(w)), scheme.group_size)
    error = w - rounded.dequantize(w.dtype) / s
    return float((error @ hessian * error).sum(dtype=torch.float64))
