"""The loss decides which positions count, with rare and common words alike in it.

One backward pass of the cross-entropy of the true tokens through the full-precision model, in which all rare targets
together weigh as much as all common ones: ``½ / share`` and ``½ / (1 − share)``. In each Linear a position's weight is
the norm of the gradient g_t at its output against the root mean square over the calibration set,

    d_t = (‖g_t‖² / mean ‖g‖²)^p  within 1/√r … √r,    p = ½

It needs no tags on frames of audio: they inherit the tail through the gradient.

**Effective sample size.** Weights within a … b leave at least ``4ab / (a + b)²`` of the positions, whatever they are:
``(Σd)² / (n Σd²) ≥ 4r / (1 + r)²`` with ``r = b / a`` (Pólya and Szegő). So r follows from the least share ρ that is
to be left, ``r = (2 − ρ + 2√(1 − ρ)) / ρ``: 5.8 for one half. Uncapped and averaged over a stage such weights left 6 %
and did harm (method.md §9).

**What it equals.** GuidedQuant (arXiv 2505.07004) with one group of outputs, at p = 1, without a cap and without the
balance (:class:`Guided`): ``Σ_t ‖g_t‖² x_t x_tᵀ`` is its Fisher block averaged over the outputs. Where it differs:
Linears that read one input share their weights, q, k and v for instance; its four groups of outputs a Linear would
need as many metrics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
        left: ρ, the least share of the positions that the weights leave as an effective sample size.
    """

    power: float = 0.5
    left: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.left <= 1:
            raise ValueError(f"left must be a share above 0 and at most 1, not {self.left}")

    def of(self, squared: Tensor) -> Tensor:
        ratio = (2 - self.left + 2 * math.sqrt(1 - self.left)) / self.left
        return squared.pow(self.power).clamp(ratio**-0.5, ratio**0.5)


@dataclass(frozen=True)
class GradientBalanced(Gradient):
    """The same of the loss in which rare and common targets weigh alike."""

    def target_weight(self, rare: Tensor, share: float) -> Tensor:
        if not 0 < share < 1:
            return torch.ones(rare.shape)
        return torch.where(rare, 0.5 / share, 0.5 / (1 - share))
