"""GPTAQ: the sweep that compensates the drift of each input as it visits it (arXiv 2504.02692, ICML 2025).

GPTQ keeps ``W x``, GPTAQ keeps ``W xf``. When column q is rounded, the columns behind it take up, beside the rounding
error, the output ``w_q (xf − x)_q`` that the drift of this one input makes. In closed form and for all q at once

    P = α · triu(H_Δ Uᵀ, 1) U        with  (H + δI)⁻¹ = Uᵀ U
    w_{q+1:} ← w_{q+1:} − (w_q − ŵ_q) / U_qq · U_{q,q+1:} + w_q P_{q,q+1:}

**What it equals.** It is linear in what it rounds, so it is the sweep itself, of another target and with another
feedback. With C the weights as they are met, S the unit upper triangle of U less I and P = P₁ + P₂ (within a block of
columns, and beyond it, where the authors' code takes ŵ_q for w_q):

    C (I − P) = W − (C − Ŵ) (S + P₂)    ⇒    V = W (I − P)⁻¹,    N = (I − P) (I + S − P₁)⁻¹

which is :func:`tarq.kernels.group_quantize.group_quantize` of V with N in the place of the metric's factor: code for
code what the authors' loop gives for the same scales.

**Where it differs from the least-squares residual.** Were P not cut to its triangle and were the drift that of the
original weight, P would be ``α H_Δ (H + δI)⁻¹`` and V the ``W + α D`` of ``residual=α``. The triangle leaves an
input's own column and those before it out of the compensation of its drift; a drift that only scales the inputs, each
for itself, is not corrected at all. So at equal α it is the weaker correction, and needs no second factorisation.

**Where it differs from the authors' code.** A group's scale is taken from V, which has the corrections of the whole
group; theirs, from the weights as the loop stands at the group's first column. λ of the metric weighs H_Δ too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from tarq.kernels.group_quantize import Factor, Quantized, group_quantize_layers
from tarq.kernels.scheme import Scheme
from tarq.method.residuals import Statistics
from tarq.method.solvers import Sweep, damped_loss, in_order


@dataclass(frozen=True)
class GPTAQ(Sweep):
    """The sweep with asymmetric calibration.

    Attributes:
        strength: α; the authors' code has a quarter.
        block: columns between two lazy updates, 128 in the authors' code.
        paired: it reads H_Δ itself, so it goes with ``residual="none"``.
    """

    strength: float = 0.25
    block: int = 128
    paired: bool = True

    def quantize(
        self,
        targets: Sequence[Tensor],
        statistics: Statistics | None,
        scheme: Scheme,
        scale_dtype: torch.dtype,
        outputs: Sequence[Tensor] | None = None,
    ) -> list[Quantized]:
        if statistics is None or statistics.moments.cross is None:
            raise ValueError("GPTAQ needs paired moments")
        factor = statistics.factor
        kept, feedback = self.recursion(statistics.moments.cross, factor)
        masked = [v.to(self.dtype).masked_fill(factor.dead, 0) for v in targets]
        moved = [
            in_order(solve_triangular(kept, in_order(v, factor), upper=True, left=False), factor, back=True)
            for v in masked
        ]
        swept = group_quantize_layers(
            moved, [replace(factor, upper=feedback)] * len(moved), scheme, scale_dtype=scale_dtype
        )
        return [
            replace(q, loss=damped_loss(v - q.dequantize(v.dtype), factor)) for v, q in zip(masked, swept, strict=True)
        ]

    def recursion(self, cross: Tensor, factor: Factor) -> tuple[Tensor, Tensor]:
        """``I − P`` and N, [n, n] each, in the order of visit."""
        upper = factor.upper
        drift = in_order(in_order(cross.to(upper.dtype).masked_fill(factor.dead, 0), factor).mT, factor).mT
        # With L = U⁻¹: H_Δ Uᵀ = H_Δ L⁻ᵀ, and I + S = diag(L) L⁻¹.
        later = solve_triangular(upper.mT, drift, upper=False, left=False).triu(1)
        p = self.strength * solve_triangular(upper, later, upper=True, left=False)
        unit = solve_triangular(upper, upper.diagonal().diag(), upper=True, left=False)
        block = torch.arange(len(p), device=p.device) // self.block
        kept = torch.eye(len(p), dtype=p.dtype, device=p.device) - p
        within = torch.where(block[:, None] == block, p, 0)
        return kept, solve_triangular(unit - within, kept, upper=True, left=False)
