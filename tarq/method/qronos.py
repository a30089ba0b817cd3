"""Qronos: the least-squares target, but for the first column (arXiv 2505.11695, ICLR 2026).

Qronos rounds column after column; each is the best one for ``‖W xf − Ŵ x‖²`` while those behind it stand as they are,
and those behind it then become the best ones for what was rounded. Its efficient form does this once, for the first
column, and goes on with a Cholesky sweep. With ``G = Σ d xf xᵀ = H + H_Δ``, columns in the order of visit:

    q₁ = round((W G_{:,1} − W_{2:} H_{2:,1}) / H₁₁)
    w_{2:} ← (W (G + δI)_{:,2:} − q₁ H_{1,2:}) (H_{2:,2:} + δI)⁻¹, then GPTQ's sweep of w_{2:}

**What it equals.** The second line is the minimiser given q₁, which is how a sweep of the minimiser itself,
``V = W (G + δI) (H + δI)⁻¹ = W + D``, goes on after q₁. So from the second column on Qronos is ``residual=1.0``: the
least-squares direction at α = 1. Only the first column aims elsewhere: at ``u = w₁ + (W H_Δ)_{:,1} / H₁₁`` instead of
V₁. The target here slides V along what the other columns can make up for, until its first column is u:

    V' = V + (V₁ − u) K,    K = −row₁((H + δI)⁻¹) / ((H + δI)⁻¹)₁₁

and the sweep of V' gives Qronos, code for code for the same scales.

**Where it differs.** The authors damp by 1e-6 of the largest eigenvalue, the damping here is the sweep's ``damp``. A
group's scale is taken from V', where they fix scales by the original weight. λ of the metric weighs G as it does H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tarq.method.residuals import Quantize, Residual, Statistics, Target, inner


@dataclass(frozen=True)
class Qronos(Residual):
    """V' of the module's text."""

    def target(self, weight: Tensor, statistics: Statistics, quantize: Quantize) -> Target:
        moments, factor = statistics.moments, statistics.factor
        if moments.cross is None:
            raise ValueError("Qronos needs paired moments")
        masked = weight.masked_fill(factor.dead, 0)
        moved = masked @ moments.cross
        target = masked + factor.solve(moved)
        # The first column that is ever read: one that never is does not matter, and has no H₁₁ to divide by.
        visit_order = torch.arange(len(factor.dead), device=weight.device) if factor.order is None else factor.order
        first = visit_order[~factor.dead[visit_order]][0]
        aim = masked[:, first] + moved[:, first] / moments.hessian[first, first]
        unit = torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
        unit[0, first] = 1
        row = factor.solve(unit)[0]
        target = target - (target[:, first] - aim)[:, None] * (row / row[first])
        step = target - weight
        return Target(target, 1.0, inner(step @ moments.hessian, step))
