"""A metric regularised towards the original weights, after SARQC (arXiv 2605.05693).

Few calibration positions determine little in directions that inputs seldom take; there a large change of the weight
may buy a small error. So a change has a penalty of its own, larger where the input is salient:

    Σ d ‖W xf − Ŵ x‖² + κ Σ_j s_j ‖w_j − ŵ_j‖²    with  s_j = H_jj

**What it equals.** Its metric is ``H + κ diag(H)``, and its target the residual's at α = 1 under that metric, since
``W + W H_Δ (H + κ diag(H))⁻¹`` minimises it over all weights; any residual and the sweep do the rest. Up to a factor it
is the metric in which every correlation between two inputs is shrunk by ``1 / (1 + κ)``. Damping, ``δI``, is the same
with one saliency for all inputs (the paper's RQC); it is added to this.

**Where it differs.** The saliency is the input's mean square, and κ a constant: what the paper takes for both is not in
its abstract, which is what we had of it. Its scale search is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Factor, Quantized
from tarq.kernels.scheme import Scheme
from tarq.method.residuals import Statistics
from tarq.method.solvers import Sweep


@dataclass(frozen=True)
class Regularized(Sweep):
    """The sweep under ``H + κ diag(H)``.

    Attributes:
        pull: κ.
    """

    pull: float = 0.1

    def factorize(self, hessian: Tensor) -> Factor:
        return super().factorize(hessian + self.pull * hessian.diagonal().diag())

    def quantize(
        self,
        targets: Sequence[Tensor],
        statistics: Statistics | None,
        scheme: Scheme,
        scale_dtype: torch.dtype,
        outputs: Sequence[Tensor] | None = None,
    ) -> list[Quantized]:
        swept = super().quantize(targets, statistics, scheme, scale_dtype, outputs)
        assert statistics is not None
        salient = self.pull * statistics.moments.hessian.diagonal()
        # The report has the layer's error alone, without the penalty on changed weights.
        return [
            replace(q, loss=q.loss - ((v.to(self.dtype) - q.dequantize(self.dtype)).square() @ salient).double())
            for v, q in zip(targets, swept, strict=True)
        ]
