"""Rounding under a Kronecker-factored Hessian of the loss: a sweep over rows of column sweeps (YAQA, arXiv 2505.22988).

To second order an error E of a weight changes the loss by ``tr(G E H Eᵀ)``, with ``H = Σ d x xᵀ`` on the input's side
and ``G = Σ g gᵀ`` of the loss's gradients on the output's, a Kronecker product in the place of GPTQ's ``I ⊗ H``. With
``G + γI = M Mᵀ``, M upper triangular as the metric's L is, it is a sum over rows in the order of visit,

    tr(G E H Eᵀ) = Σ_i M_ii² ‖(t_i − v̂_i) L‖²,    t_i = v_i + Σ_{k<i} (M_ki / M_ii) (v_k − v̂_k)

so each row is swept towards a target that compensates the errors of the rows before it.

**What it equals.** YAQA's rounding with scalar codes, whose three feedback terms are these two and their product; the
sweep itself where G is diagonal.

**Where it differs.** G is of the true tokens' cross-entropy, each position by itself (YAQA's first sketch without its
power iteration, and the empirical Fisher in the place of one whose tokens are drawn from the model). H is that of the
partly quantized network, with the metric's weights, and the target any residual's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Quantized, factorize
from tarq.kernels.scheme import Scheme
from tarq.method.residuals import Statistics
from tarq.method.solvers import Sweep, damped_loss


@dataclass(frozen=True)
class Kronecker(Sweep):
    """Rows in the order of falling diag(G), each by the sweep.

    Attributes:
        output_damp: γ over mean(diag G).
        output_moments: asks for G.
    """

    output_damp: float = 0.01
    output_moments: bool = True

    def quantize(
        self,
        targets: Sequence[Tensor],
        statistics: Statistics | None,
        scheme: Scheme,
        scale_dtype: torch.dtype,
        outputs: Sequence[Tensor] | None = None,
    ) -> list[Quantized]:
        if statistics is None or outputs is None:
            raise ValueError("the Kronecker sweep needs the metric and the moments of the output's gradients")
        done = []
        for v, g in zip(targets, outputs, strict=True):
            if not bool(g.diagonal().any()):  # the loss does not depend on this layer: all rows count the same
                g = torch.eye(len(v), dtype=g.dtype, device=g.device)
            done.append(self._rows(v, g, statistics, scheme, scale_dtype))
        return done

    def _rows(
        self, v: Tensor, g: Tensor, statistics: Statistics, scheme: Scheme, scale_dtype: torch.dtype
    ) -> Quantized:
        v = v.to(self.dtype).masked_fill(statistics.factor.dead, 0)
        order = g.diagonal().argsort(descending=True, stable=True)
        upper = factorize(g.to(self.dtype), self.output_damp, order=order).upper
        share = upper / upper.diagonal()
        errors, rows = torch.zeros_like(v), []
        for i, row in enumerate(order.tolist()):
            target = v[row] + share[:i, i] @ errors[:i]
            (q,) = super().quantize([target[None]], statistics, scheme, scale_dtype)
            errors[i] = v[row] - q.dequantize(self.dtype)[0]
            rows.append(q)
        back = torch.argsort(order)

        def concatenated(name: str) -> Tensor:
            return torch.cat([getattr(q, name) for q in rows])[back]

        loss = damped_loss(errors[back], statistics.factor)
        return Quantized(concatenated("codes"), concatenated("scales"), concatenated("zeros"), loss, scheme.group_size)
