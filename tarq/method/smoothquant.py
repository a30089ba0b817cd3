"""Scales of a layer's inputs that share outliers between inputs and weights: SmoothQuant (arXiv 2211.10438, ICML 2023).

``W x = (W · diag(s)) (x / s)`` for any s > 0. SmoothQuant makes inputs easier to round at the cost of the weights,

    s_j = max_t |x_tj|^α / max_i |w_ij|^(1−α)

At α = ½ the largest input and the largest weight of a column come out alike. What makes x divides it by s
(:mod:`tarq.walk.folding`), so the checkpoint is one of plain Linears.

**What it equals.** What the model computes stays the same; the columns of a group merely share its scale in other
proportions. At α = 0 all columns of the weights have one largest magnitude; α = 1 is AWQ's ρ = 1 with maxima in the
place of means. H follows the weights, ``diag(s)⁻¹ H diag(s)⁻¹``, so any metric, residual and solver may come after.
Paper 2605.27808 has it in front of TARQ.

**Where it differs.** Inputs stay in 16 bits unless ``QuantLinear.int8_activations`` is set, so what the weights pay for
them buys nothing at W4A16. Every input that something in front can scale is scaled; the authors scale what norms make.
Scales are over ``√(max · min)``, which changes no code. Maxima are over rows that the metric counts at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tarq.kernels.scheme import Scheme
from tarq.method.metrics import LayerRows, Plain
from tarq.method.moments import Moments
from tarq.method.scaling import InputScaling

#: α, the authors' for OPT and BLOOM.
STRENGTH = 0.5
#: Least maximum of a weight's column and least scale, as in the authors' code.
LEAST = 1e-5


@dataclass(frozen=True)
class LargestInputs(Plain):
    """The plain metric, which keeps the largest magnitude of each input.

    Attributes:
        seen: first Linear that reads an input to [n] ``max_t |x_tj|`` over the rows so far.
    """

    activations: bool = True
    seen: dict[str, Tensor] = field(default_factory=dict)

    def reassign(self, rows: LayerRows) -> tuple[Tensor, Tensor]:
        counted = torch.where((rows.weight != 0)[:, None], rows.inputs.float().abs(), 0)
        largest, name = counted.amax(0), rows.layers[0]
        self.seen[name] = torch.maximum(self.seen[name], largest) if name in self.seen else largest
        return rows.tail, rows.weight


@dataclass(frozen=True)
class SmoothQuant(InputScaling):
    """Scales by the largest magnitudes of inputs and weights."""

    metric: LargestInputs = field(default_factory=LargestInputs)

    def statistics(self, layer: str) -> Tensor | None:
        """[n] the largest magnitudes of the input over this process's batches; None where it has none."""
        return self.metric.seen.pop(layer, None)

    def scales(
        self, weights: Sequence[Tensor], moments: Moments, scheme: Scheme, statistics: Sequence[Tensor]
    ) -> tuple[Tensor, str]:
        s = smoothing_scales(weights, torch.stack(list(statistics)).amax(0))
        return s, "its input is scaled by its and the weights' maxima"


def smoothing_scales(weights: Sequence[Tensor], largest: Tensor, strength: float = STRENGTH) -> Tensor:
    """The scales [n] of the inputs that several Linears share.

    Args:
        weights: [m, n] of each.
        largest: [n] ``max_t |x_tj|``, in the dtype to compute in. An input that is always zero is not scaled.
        strength: α.
    """
    of_weights = torch.stack([w.to(largest).abs().amax(0) for w in weights]).amax(0).clamp_min(LEAST)
    s = (largest.pow(strength) / of_weights.pow(1 - strength)).clamp_min(LEAST).masked_fill(largest == 0, 1.0)
    nonzero = s[largest > 0]
    return torch.where(largest > 0, s / (nonzero.max() * nonzero.min()).sqrt(), s) if len(nonzero) else s
