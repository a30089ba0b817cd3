"""CoreQ's coefficient: the share of the drift of a layer's outputs that is linear in its inputs (arXiv 2602.05902).

A layer's outputs drift by ``W (xf − x)``. Of that, weights can only make up for what is linear in x. CoreQ goes along
the least-squares direction ``D = W H_Δ (H + δI)⁻¹`` by that part's share,

    α = ⟨W H_Δ, D⟩ / tr(W H_ΔΔ Wᵀ)  within 0 … 1,    H_ΔΔ = Σ d (xf − x)(xf − x)ᵀ

**What it equals.** The R² of regressing the drift on the inputs, one scalar a layer, as in the authors' code. A noise
that follows nothing has a small R², so it is hardly corrected: the question that cross-fitting asks of other
utterances is asked here of the fit's own. A drift that follows the inputs by half is shortened to half, though, while
least squares and cross-fitting both go all the way along what is linear in it.

**Where it differs.** λ of the metric weighs all three moments. Their rounding is a sweep in the order of falling
diag(H) with scales fixed first, ``act_order="static"``; their groups are of columns in that order, ours stay natural.
Their beam search is the solver ``beam``. The incoherence processing of their code is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tarq.method.residuals import AlongDrift, Drift, Quantize, Statistics, inner

_EPSILON = 1e-12


@dataclass(frozen=True)
class CoreQ(AlongDrift):
    """``V = W + α D`` with the share of the drift that is linear in the inputs for α."""

    drift_moments: bool = True

    def alpha(self, weight: Tensor, statistics: Statistics, quantize: Quantize, drift: Drift) -> float:
        moments = statistics.moments
        if moments.drift is None:
            raise ValueError("CoreQ needs the second moments of the drift")
        masked = weight.masked_fill(statistics.factor.dead, 0)
        share = inner(drift.moved, drift.direction) / (inner(masked @ moments.drift, masked) + _EPSILON)
        return min(max(share, 0.0), 1.0)
