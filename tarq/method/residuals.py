"""Residual targets: where a layer's weights should aim once the layers before it are quantized.

The partly quantized network feeds a layer ``x`` where full precision would have fed ``xf``. With
``H_Δ = Σ d (xf − x) xᵀ`` the direction ``D = W H_Δ (H + δI)⁻¹`` undoes the drift, and one scalar α a layer
says how far to go along it (method.md §4; arXiv 2605.27808, §4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Factor, Quantized
from tarq.method.metrics import Rebalanced

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


@dataclass(frozen=True)
class Half:
    """One half of the calibration set, for judging on it what the other half suggests."""

    moments: Rebalanced
    factor: Factor


def residual_target(
    weight: Tensor,
    moments: Rebalanced,
    factor: Factor,
    residual: str | float,
    quantize: Callable[[Sequence[Tensor]], list[Quantized]],
    halves: Sequence[Half] = (),
) -> Target:
    """The weights to quantize, ``W + α D``.

    Args:
        weight: [m, n] in the moments' dtype.
        moments: the metric and the cross-moment (for ``paper``, the unweighted one).
        factor: of ``H + δI``, for the solve.
        residual: one of

            - ``least-squares``: D from the cross-moment in the metric itself, and the α that minimises the
              weighted output error ``‖D^½ (Xf Wᵀ − X (W + αD)ᵀ)‖²`` on the calibration set; setting its
              derivative to zero gives ``α = ⟨W H_Δ, D⟩ / ⟨D H, D⟩``.
            - ``cross-fitted``: the same D, and the α that minimises that error on positions D was not
              fitted on; see :func:`cross_fitted_alpha`.
            - ``paper``: D from the unweighted cross-moment and ``α = ⟨E H, D⟩ / ⟨D H, D⟩`` with E the
              rounding error of a pilot quantization.
            - ``none``: W. A number: that α along the least-squares direction.
        quantize: weights under this metric; called by ``paper`` only.
        halves: the two halves of the calibration set; used by ``cross-fitted`` only.
    """
    if residual == "none" or residual == 0:
        return Target(weight)
    if moments.cross is None:
        raise ValueError(f"residual {residual!r} needs paired moments")
    drift = weight @ moments.cross
    direction = factor.solve(drift)
    direction_h = direction @ moments.hessian
    scale = inner(direction_h, direction)
    if residual == "least-squares":
        alpha = inner(drift, direction) / (scale + _EPSILON)
    elif residual == "cross-fitted":
        alpha = cross_fitted_alpha(weight, halves)
    elif residual == "paper":
        (pilot,) = quantize([weight])
        error = pilot.dequantize().to(weight.dtype) - weight
        alpha = inner(error, direction_h) / (scale + _EPSILON)
    else:
        alpha = float(residual)
    return Target(weight + alpha * direction, alpha, alpha**2 * scale)


def cross_fitted_alpha(weight: Tensor, halves: Sequence[Half]) -> float:
    """How far to trust D: each half's direction judged on the other half.

    On its own calibration positions α is never below 1, however much of D is noise: with n inputs and T
    positions, n/T of the drift's energy is fitted by chance. On positions it has not seen, a direction that
    is signal S plus noise N is best shortened to ``a = S / (S + N)``. A half has twice the noise of the
    whole, so the whole deserves ``α = S / (S + N/2) = 2a / (1 + a)``.

    Args:
        weight: [m, n].
        halves: two halves of the calibration set, split by utterance.

    Returns:
        α, not negative.

    Raises:
        ValueError: there are not two halves.
    """
    if len(halves) != 2:
        raise ValueError(f"cross-fitting takes two halves of the calibration set, not {len(halves)}")
    gain = scale = 0.0
    for fitted, judge in (halves, halves[::-1]):
        if fitted.moments.cross is None or judge.moments.cross is None:
            raise ValueError("cross-fitting needs paired moments")
        direction = fitted.factor.solve(weight @ fitted.moments.cross)
        gain += inner(weight @ judge.moments.cross, direction)
        scale += inner(direction @ judge.moments.hessian, direction)
    a = max(gain, 0.0) / (scale + _EPSILON)
    return 2 * a / (1 + a)
