"""Quantization error propagation, QEP (Arai and Ichikawa, arXiv 2504.09629): half of the drift, strongly damped.

    V = W + α W H_Δ (H + ηI)⁻¹,    η = η₀ · mean(diag H),    α = ½, η₀ = 1 in the authors' code

**What it equals.** Our fixed α (``residual=0.5``) with a damping of its own in the direction: a hundredfold that of the
sweep, which still has ``damp``. A damping shortens D where inputs vary little, so it is a second kind of strength.

**Where it differs.** λ of the metric weighs H_Δ as it does H. The authors set α to 0 in some layers of their largest
models; every layer has the same one here. FADE (arXiv 2601.02455) is QEP with an α of each layer's own, of the
weight's geometry and of how far the calibration can be trusted; here :mod:`tarq.method.coreq` and the cross-fitted
residual answer that question from the data.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tarq.kernels.group_quantize import factorize
from tarq.method.residuals import Quantize, Residual, Statistics, Target, inner


@dataclass(frozen=True)
class QEP(Residual):
    """``V = W + α W H_Δ (H + ηI)⁻¹``.

    Attributes:
        strength: α.
        ridge: η over mean(diag H).
    """

    strength: float = 0.5
    ridge: float = 1.0

    def target(self, weight: Tensor, statistics: Statistics, quantize: Quantize) -> Target:
        moments = statistics.moments
        if moments.cross is None:
            raise ValueError("QEP needs paired moments")
        factor = factorize(moments.hessian, self.ridge, max(self.ridge, 1.0))
        step = self.strength * factor.solve(weight @ moments.cross)
        return Target(weight + step, self.strength, inner(step @ moments.hessian, step))
