"""Residuals: the target of a layer's codes once the layers before it are quantized.

The partly quantized network feeds a layer ``x`` where full precision would have fed ``xf``. With
``H_Δ = Σ d (xf − x) xᵀ`` the direction ``D = W H_Δ (H + δI)⁻¹`` undoes the drift, and one scalar α per layer
says how far to go along it (arXiv 2605.27808, §4). A residual may also move the layer's bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Factor, Quantized
from tarq.method.metrics import Rebalanced

_EPSILON = 1e-12


@dataclass(frozen=True)
class Layer:
    """A Linear that is to be quantized.

    Attributes:
        name: in the model.
        weight: [m, n] W.
        bias: [m], which stays in full precision; None if it has none.
        shift_free: whether adding one vector to all its outputs changes nothing (keys of softmax attention).
    """

    name: str
    weight: Tensor
    bias: Tensor | None = None
    shift_free: bool = False


@dataclass(frozen=True)
class Fold:
    """A part of the calibration set, on which a direction fitted on another part is evaluated.

    Attributes:
        moments: of its positions alone, with the λ of the whole set.
        factor: of its metric; None if all its inputs are zero.
    """

    moments: Rebalanced
    factor: Factor | None


@dataclass(frozen=True)
class Statistics:
    """The calibration statistics of one input, in the solver's dtype.

    Attributes:
        moments: the metric H and the cross-moment H_Δ.
        factor: of the damped metric, ``H + δI = L Lᵀ``.
        folds: as many as the residual asked for; empty if it asked for one.
    """

    moments: Rebalanced
    factor: Factor
    folds: Sequence[Fold] = ()


@dataclass(frozen=True)
class Target:
    """What a layer's codes should reproduce.

    Attributes:
        weight: [m, n] ``V = W + α D``.
        alpha: α.
        energy: ``tr(αD H αDᵀ)``, how far the target moved in the metric.
        note: anything degraded or unusual, or "".
    """

    weight: Tensor
    alpha: float = 0.0
    energy: float = 0.0
    note: str = ""


#: From targets to their codes, under the current metric.
Quantize = Callable[[Sequence[Tensor]], list[Quantized]]


class Residual(Protocol):
    """The target of the codes. Inherit from it: the defaults ask the walk for nothing.

    Attributes:
        paired: whether the full-precision network is walked beside the quantized one; without it there is no H_Δ.
        folds: how many parts the calibration set is split into, by utterance.
        weighs_cross: whether λ applies to H_Δ as it does to H.
        first_moments: whether μ and μ_f are accumulated beside H and H_Δ.
        drift_moments: whether ``Σ d (xf − x)(xf − x)ᵀ`` is.
    """

    paired: bool = True
    folds: int = 1
    weighs_cross: bool = True
    first_moments: bool = False
    drift_moments: bool = False

    def centres(self, layer: Layer) -> bool:
        """Whether this layer's moments are taken about the mean (needs first moments)."""
        return False

    def target(self, weight: Tensor, statistics: Statistics, quantize: Quantize) -> Target:
        """The weights to quantize.

        Args:
            weight: [m, n] W in the statistics' dtype.
            statistics: of the layer's input.
            quantize: rounds targets under this metric, for a pilot.
        """
        ...

    def bias(self, layer: Layer, w_hat: Tensor, statistics: Statistics) -> Tensor | None:
        """A new bias for a layer that has one, given its quantized weight [m, n]; None to leave it."""
        return None


def inner(a: Tensor, b: Tensor) -> float:
    """``tr(A Bᵀ)``, summed in float64."""
    return float((a * b).sum(dtype=torch.float64))


def absorbed_mean(layer: Layer, w_hat: Tensor, statistics: Statistics) -> Tensor:
    """``b + W μ_f − Ŵ μ``: the bias that minimises the weighted output error (:mod:`tarq.method.absorb`)."""
    mean, mean_full = statistics.moments.mean, statistics.moments.mean_full
    if mean is None or mean_full is None or layer.bias is None:
        raise ValueError("a bias that absorbs the mean needs first moments and a layer with a bias")
    return layer.bias.to(mean.dtype) + layer.weight.to(mean.dtype) @ mean_full - w_hat.to(mean.dtype) @ mean


@dataclass(frozen=True)
class NoResidual(Residual):
    """``V = W``."""

    paired: bool = False

    def target(self, weight: Tensor, statistics: Statistics, quantize: Quantize) -> Target:
        return Target(weight)


@dataclass(frozen=True)
class Drift:
    """The direction that undoes the drift of one layer, and the quantities that determine α.

    Attributes:
        moved: [m, n] ``W H_Δ``.
        direction: [m, n] ``D = W H_Δ (H + δI)⁻¹``.
        direction_h: [m, n] ``D H``.
        energy: ``⟨D H, D⟩``.
    """

    moved: Tensor
    direction: Tensor
    direction_h: Tensor
    energy: float


class AlongDrift(Residual):
    """``V = W + α D``; a subclass computes α."""

    def target(self, weight: Tensor, statistics: Statistics, quantize: Quantize) -> Target:
        moments = statistics.moments
        if moments.cross is None:
            raise ValueError(f"{type(self).__name__} needs paired moments")
        if any(fold.factor is None for fold in statistics.folds):
            return Target(weight, note="part of the calibration set never excites this layer: no residual")
        moved = weight @ moments.cross
        direction = statistics.factor.solve(moved)
        direction_h = direction @ moments.hessian
        drift = Drift(moved, direction, direction_h, inner(direction_h, direction))
        alpha = self.alpha(weight, statistics, quantize, drift)
        return Target(weight + alpha * direction, alpha, alpha**2 * drift.energy)

    def alpha(self, weight: Tensor, statistics: Statistics, quantize: Quantize, drift: Drift) -> float:
        """α, how far to go along the direction."""
        raise NotImplementedError


@dataclass(frozen=True)
class FixedAlpha(AlongDrift):
    """A fixed α along the least-squares direction.

    Attributes:
        length: α.
    """

    length: float

    def alpha(self, weight: Tensor, statistics: Statistics, quantize: Quantize, drift: Drift) -> float:
        return self.length


@dataclass(frozen=True)
class LeastSquares(AlongDrift):
    """The α that minimises the weighted output error ``‖D^½ (Xf Wᵀ − X (W + αD)ᵀ)‖²`` on the calibration set.

    Setting its derivative to zero gives ``α = ⟨W H_Δ, D⟩ / ⟨D H, D⟩``.
    """

    def alpha(self, weight: Tensor, statistics: Statistics, quantize: Quantize, drift: Drift) -> float:
        return inner(drift.moved, drift.direction) / (drift.energy + _EPSILON)


@dataclass(frozen=True)
class PaperResidual(AlongDrift):
    """The paper's: D from the unweighted cross-moment, ``α = ⟨E H, D⟩ / ⟨D H, D⟩`` with E a pilot's rounding error."""

    weighs_cross: bool = False

    def alpha(self, weight: Tensor, statistics: Statistics, quantize: Quantize, drift: Drift) -> float:
        (pilot,) = quantize([weight])
        error = pilot.dequantize().to(weight.dtype) - weight
        return inner(error, drift.direction_h) / (drift.energy + _EPSILON)


@dataclass(frozen=True)
class CrossFitted(AlongDrift):
    """The α that minimises that error on positions D was not fitted on; see :func:`cross_fitted_alpha`."""

    folds: int = 2

    def alpha(self, weight: Tensor, statistics: Statistics, quantize: Quantize, drift: Drift) -> float:
        return cross_fitted_alpha(weight, statistics.folds)


def cross_fitted_alpha(weight: Tensor, folds: Sequence[Fold]) -> float:
    """How far to trust D: the direction of each fold is evaluated on the other fold.

    On its own calibration positions α is never below 1, however much of D is noise: with n inputs and T
    positions, n/T of the drift's energy is fitted by chance. On positions it has not seen, a direction that
    is signal S plus noise N is best shortened to ``a = S / (S + N)``. A fold has twice the
    noise of the whole set, so the whole set's optimum is ``α = S / (S + N/2) = 2a / (1 + a)``.

    Args:
        weight: [m, n].
        folds: two, of equal size, split by utterance.

    Returns:
        α, at least 0.

    Raises:
        ValueError: there are not two folds.
    """
    if len(folds) != 2:
        raise ValueError(f"cross-fitting takes two folds of the calibration set, not {len(folds)}")
    gain = scale = 0.0
    moved = [weight @ fold.moments.cross for fold in folds if fold.moments.cross is not None]
    for fitted, held_out in ((0, 1), (1, 0)):
        factor, hessian = folds[fitted].factor, folds[held_out].moments.hessian
        if len(moved) < len(folds) or factor is None:
            raise ValueError("cross-fitting needs paired moments")
        direction = factor.solve(moved[fitted])
        gain += inner(moved[held_out], direction)
        scale += inner(direction @ hessian, direction)
    a = max(gain, 0.0) / (scale + _EPSILON)
    return 2 * a / (1 + a)
