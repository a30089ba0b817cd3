"""The loss decides which positions count, with rare and common words alike in it.

One backward pass of the cross-entropy of the true tokens through the full-precision model, in which all rare targets
together weigh as much as all common ones: ``½ / share`` and ``½ / (1 − share)``. In each Linear a position's weight is
the norm of the gradient g_t at its output against the root mean square over the calibration set,

    d_t = (‖g_t‖² / mean ‖g‖²)^p  within 1/√r … √r,    p = ½

It needs no tags on frames of audio: they inherit the tail through the gradient.

**Effective sample size.** Of n positions with weights d it is ``(Σd)² / Σd²``. Weights within a … b keep at least
``4r / (1 + r)²`` of n, with ``r = b / a`` (Pólya and Szegő). So r follows from the least share ρ that is to be kept,
``r = (2 − ρ + 2√(1 − ρ)) / ρ``: 5.8 for one half. Uncapped weights averaged over a stage kept 6 %, and quantization
became worse.

**What it equals.** GuidedQuant (arXiv 2505.07004) with one group of outputs, at p = 1, without a cap and without the
balance (:class:`Guided`): ``Σ_t ‖g_t‖² x_t x_tᵀ`` is its Fisher block averaged over the outputs. Where it differs:
Linears that read one input share their weights, q, k and v for instance; its four groups of outputs a Linear would
need as many metrics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tarq.method.metrics import LayerRows, Plain


@dataclass(frozen=True)
class Guided(Plain):
    """``d = ‖g‖² / mean ‖g‖²`` of the plain loss: GuidedQuant with one group."""

    gradients: bool = True

    def reassign(self, rows: LayerRows) -> tuple[Tensor, Tensor]:
        if rows.gradients is None:  # no target is reached from here
            return rows.tail, rows.weight
        return rows.tail, rows.weight * self.of(rows.gradients / rows.gradient_scale)

    def of(self, squared: Tensor) -> Tensor:
        """Weights of squared norms whose mean is one."""
        return squared


@dataclass(frozen=True)
class Gradient(Guided):
    """Tempered and capped weights of the plain loss: the control that leaves the balance out.

    Attributes:
        power: p.
        min_ess: ρ, the least effective sample size under these weights, as a share of the positions.
    """

    power: float = 0.5
    min_ess: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.min_ess <= 1:
            raise ValueError(f"min_ess must be a share above 0 and at most 1, not {self.min_ess}")

    def of(self, squared: Tensor) -> Tensor:
        ratio = (2 - self.min_ess + 2 * math.sqrt(1 - self.min_ess)) / self.min_ess
        return squared.pow(self.power).clamp(ratio**-0.5, ratio**0.5)


@dataclass(frozen=True)
class GradientBalanced(Gradient):
    """The same of the loss in which rare and common targets weigh alike."""

    reads_tail: ClassVar[bool] = True

    def target_weight(self, rare: Tensor, share: float) -> Tensor:
        if not 0 < share < 1:
            return torch.ones(rare.shape)
        return torch.where(rare, 0.5 / share, 0.5 / (1 - share))
