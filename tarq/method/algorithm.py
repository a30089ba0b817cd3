"""Algorithm 1 of the paper: from the moments of one input to the codes of the Linears that read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Factor, Quantized
from tarq.kernels.scheme import Scheme
from tarq.method.arms import Arms
from tarq.method.figures import Figures
from tarq.method.metrics import rebalance
from tarq.method.moments import Moments
from tarq.method.residuals import Fold, Layer, Statistics, Target, inner
from tarq.timing import timed


@dataclass(frozen=True)
class Solution:
    """The quantized weight of one Linear, with figures and notes.

    Attributes:
        quantized: codes, scales and zero points.
        figures: λ, α, losses, damping.
        bias: [m] a new bias; None to keep the Linear's own.
        notes: everything degraded or unusual.
    """

    quantized: Quantized
    figures: Figures = field(default_factory=Figures)
    bias: Tensor | None = None
    notes: Sequence[str] = ()


def tail_aware_quantize(
    layers: Sequence[Layer],
    parts: Sequence[Moments],
    arms: Arms,
    scheme: Scheme,
    scale_dtype: torch.dtype,
    outputs: Mapping[str, Tensor] | None = None,
) -> dict[str, Solution]:
    """Quantize the Linears that share one input.

    Layers whose moments the residual centres are solved separately from the others.

    Args:
        layers: with [m, n] weights.
        parts: moments of the shared input, n wide, over parts of the calibration set: one per fold of the residual.
        arms: metric, residual and solver.
        scheme: the lattice.
        scale_dtype: dtype the scales are stored in.
        outputs: name to [m, m] second moments of the gradients at a layer's output, if the solver asks for them.

    Returns:
        Solutions by name, in the layers' order.

    Raises:
        torch.linalg.LinAlgError: the metric is not positive definite even at the largest damping.
        ValueError: the input is always zero, or something is not finite.
    """
    solutions: dict[str, Solution] = {}
    for centred in (False, True):
        alike = [layer for layer in layers if arms.residual.centres(layer) == centred]
        if not alike:
            continue
        try:
            solutions |= algorithm_1(alike, parts, arms, scheme, scale_dtype, centred, outputs)
        except torch.linalg.LinAlgError:
            if not centred:
                raise
            # Inputs that hardly vary: what is left about their mean is rounding. A bias takes up the mean all the same.
            plain = algorithm_1(alike, parts, arms, scheme, scale_dtype, False, outputs)
            note = "its input hardly varies: quantized about zero, not about the mean"
            solutions |= {name: replace(found, notes=[*found.notes, note]) for name, found in plain.items()}
    return {layer.name: solutions[layer.name] for layer in layers}


def algorithm_1(
    layers: Sequence[Layer],
    parts: Sequence[Moments],
    arms: Arms,
    scheme: Scheme,
    scale_dtype: torch.dtype,
    centred: bool = False,
    outputs: Mapping[str, Tensor] | None = None,
) -> dict[str, Solution]:
    """arXiv 2605.27808, Algorithm 1, in its notation; see :func:`tail_aware_quantize`.

    W weight, H_C and H_T the moments of common and tail positions, λ their balance, H = H_rB the metric with factor L,
    H_Δ the cross-moment, V = W + α* D the target, Ŵ the result.
    """
    metric, residual, solver = arms.metric, arms.residual, arms.solver
    G = None if outputs is None else [outputs[layer.name] for layer in layers]

    # Balance: λ = c · tr(H_C) / tr(H_T) and H = H_C + λ H_T; the paper leaves H_Δ unweighted. H + δI = L Lᵀ.
    lam, note = metric.balance(parts)
    moments = rebalance(parts, lam, lam if residual.weighs_cross else 1.0, solver.dtype, centred)
    factorize = timed("factorization")(solver.factorize)
    L = factorize(moments.hessian)
    statistics = Statistics(moments, L, _folds(parts, lam, arms, centred))

    # Aim: V = W + α* D with D = W H_Δ (H + δI)⁻¹; the paper computes α* from a pilot rounded like V.
    @timed("sweep and refinement")
    def rounded(targets: Sequence[Tensor], g: Sequence[Tensor] | None) -> list[Quantized]:
        return solver.quantize(targets, statistics, scheme, scale_dtype, g)

    W = [layer.weight.to(solver.dtype) for layer in layers]
    pilots = [partial(rounded, g=None if G is None else [G[i]]) for i in range(len(W))]
    target = timed("residual")(residual.target)
    V = [target(w, statistics, pilot) for w, pilot in zip(W, pilots, strict=True)]

    # Round: the codes of V under H.
    Q = rounded([v.weight for v in V], G)
    return {
        layer.name: _solution(layer, w, v, q, statistics, arms, lam, note)
        for layer, w, v, q in zip(layers, W, V, Q, strict=True)
    }


@timed("factorization")
def _folds(parts: Sequence[Moments], lam: float, arms: Arms, centred: bool) -> list[Fold]:
    """Each part by itself, if there are several."""
    if len(parts) == 1:
        return []
    each = [rebalance([part], lam, dtype=arms.solver.dtype, centred=centred) for part in parts]
    return [Fold(f, arms.solver.factorize(f.hessian) if bool(f.hessian.diagonal().any()) else None) for f in each]


def _solution(
    layer: Layer, w: Tensor, v: Target, q: Quantized, statistics: Statistics, arms: Arms, lam: float, note: str
) -> Solution:
    """The codes with the figures of the report."""
    L, hessian = statistics.factor, statistics.moments.hessian
    w_hat = q.dequantize().to(w.dtype)
    energy = max(inner(w @ hessian, w), 1e-30)
    # The solver's loss is that of H + δI.
    error = (v.weight - w_hat).masked_fill(L.dead, 0)
    loss = float(q.loss.sum()) - L.damp * _mean_diagonal(hessian, L) * inner(error, error)
    notes = [note, v.note]
    if L.retries:
        notes.append(f"damping raised to {L.damp:g} after {L.retries} failed factorisations")
    if not bool(w.any()):
        notes.append("all its weights are zero")
    figures = Figures(
        lam=lam,
        alpha=v.alpha,
        loss=max(loss, 0.0) / energy if math.isfinite(loss) else None,
        shift=v.energy / energy,
        damp=L.damp,
        damp_retries=L.retries,
        dead_columns=int(L.dead.sum()),
    )
    bias = None if layer.bias is None else arms.residual.bias(layer, w_hat, statistics)
    return Solution(q, figures, bias, [text for text in notes if text])


def _mean_diagonal(hessian: Tensor, factor: Factor) -> float:
    """The unit of damping: mean(diag H) over the inputs that were not always zero."""
    return float(hessian.diagonal()[~factor.dead].double().mean())
