"""Residual targets: where a layer's weights should aim once the layers before it are quantized.

The partly quantized network feeds a layer ``x`` where full precision would have fed ``xf``. With
``H_Δ = Σ d (xf − x) xᵀ`` the direction ``D = W H_Δ (H + δI)⁻¹`` undoes the drift, and one scalar α a layer
says how far to go along it (method.md §4; arXiv 2605.27808, §4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.group_quantize import Factor, Quantized
from .metrics import Rebalanced

_EPSILON = 1e-12


@dataclass(frozen=True)
class Target:
    """What a layer's codes should reproduce.

    Attributes:
        weight: [m, n] ``W + α D``.
        alpha: α.
        energy: ``tr(αD H αDᵀ)``, how far the target moved in the metric.
    """

    weight: Tensor
    alpha: float = 0.0
    energy: float = 0.0


def inner(a: Tensor, b: Tensor) -> float:
    """``tr(A Bᵀ)``, summed in float64."""
    return float((a * b).sum(dtype=torch.float64))


def residual_target(
    weight: Tensor,
    moments: Rebalanced,
    factor: Factor,
    residual: str | float,
    pilot: Callable[[], Quantized],
) -> Target:
    """The weights to quantize, ``W + α D``.

    Args:
        weight: [m, n] in the moments' dtype.
        moments: the metric and the cross-moments.
        factor: of ``H + δI``, for the solve.
        residual: ``least-squares``: D from the cross-moment in the metric itself, and the α that minimises
            the weighted output error ``‖D^½ (Xf Wᵀ − X (W + αD)ᵀ)‖²``; setting its derivative to zero gives
            ``α = ⟨W H_Δ, D⟩ / ⟨D H, D⟩``. ``paper``: D from the unweighted cross-moment and
            ``α = ⟨E H, D⟩ / ⟨D H, D⟩`` with E the rounding error of a pilot quantization. ``none``: W. A
                number: that α along the least-squares direction.
        pilot: quantizes the weights as they are; called by ``paper`` only.
    """
    if residual == "none" or residual == 0:
        return Target(weight)
    cross = moments.plain_cross if residual == "paper" else moments.cross
    if cross is None:
        raise ValueError(f"residual {residual!r} needs paired moments")
    drift = weight @ cross
    direction = factor.solve(drift)
    direction_h = direction @ moments.hessian
    scale = inner(direction_h, direction)
    if residual == "least-squares":
        alpha = inner(drift, direction) / (scale + _EPSILON)
    elif residual == "paper":
        error = pilot().dequantize().to(weight.dtype) - weight
        alpha = inner(error, direction_h) / (scale + _EPSILON)
    else:
        alpha = float(residual)
    return Target(weight + alpha * direction, alpha, alpha**2 * scale)
