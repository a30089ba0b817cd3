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
    folds: Sequence[Moments],
    arms: Arms,
    scheme: Scheme,
    scale_dtype: torch.dtype,
    outputs: Mapping[str, Tensor] | None = None,
) -> dict[str, Solution]:
    """Quantize the Linears that share one input.

    Layers whose moments the residual centres are solved separately from the others.

    Args:
        layers: with [m, n] weights.
        folds: moments of the shared input, n wide, over each of the residual's folds of the calibration set.
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
        group = [layer for layer in layers if arms.residual.centres(layer) == centred]
        if not group:
            continue
        try:
            solutions |= algorithm_1(group, folds, arms, scheme, scale_dtype, centred, outputs)
        except torch.linalg.LinAlgError:
            if not centred:
                raise
            # Inputs that hardly vary: only rounding is left about their mean. A bias still absorbs the mean.
            plain = algorithm_1(group, folds, arms, scheme, scale_dtype, False, outputs)
            note = "its input hardly varies: quantized about zero, not about the mean"
            solutions |= {name: replace(found, notes=[*found.notes, note]) for name, found in plain.items()}
    return {layer.name: solutions[layer.name] for layer in layers}


def algorithm_1(
    layers: Sequence[Layer],
    folds: Sequence[Moments],
    arms: Arms,
    scheme: Scheme,
    scale_dtype: torch.dtype,
    centred: bool = False,
    outputs: Mapping[str, Tensor] | None = None,
) -> dict[str, Solution]:
    """Algorithm 1 of arXiv 2605.27808 in its letters; see :func:`tail_aware_quantize`.

    Steps 1 and 2 are its §3 (RareBAL), steps 3 and 4 its §4 (residual); step 5 is the host solver. ``W`` are the
    weights of the Linears that read the input, ``H_C`` and ``H_T`` the moments of its common and tail positions, ``H``
    their metric with factor ``L``, ``H_delta`` the cross-moment, ``V`` the targets, ``W_hat`` the quantized weights.
    """
    metric, residual, solver = arms.metric, arms.residual, arms.solver
    W = [layer.weight.to(solver.dtype) for layer in layers]
    G = None if outputs is None else [outputs[layer.name] for layer in layers]  # output-side moments: not the paper's

    # 1. λ = c · tr(H_C) / tr(H_T).
    lam, note = metric.balance(folds)

    # 2. H = H_C + λ H_T and H + δI = L Lᵀ. H_delta is weighted likewise; the paper leaves it unweighted.
    moments = rebalance(folds, lam, lam if residual.weighs_cross else 1.0, solver.dtype, centred)
    H = moments.hessian
    L = solver.factorize(H)
    statistics = Statistics(moments, L, _fold_statistics(folds, lam, arms, centred))

    def quantize(targets: Sequence[Tensor], g: Sequence[Tensor] | None) -> list[Quantized]:
        return solver.quantize(targets, statistics, scheme, scale_dtype, g)

    # 3. D = W H_delta (H + δI)⁻¹ and its length α*, which the paper takes from a pilot quantized like V in step 5.
    # 4. V = W + α* D.
    pilots = [partial(quantize, g=None if G is None else G[i : i + 1]) for i in range(len(W))]
    V = [residual.target(w, statistics, pilot) for w, pilot in zip(W, pilots, strict=True)]

    # 5. W_hat = the lattice points of V under H.
    W_hat = quantize([v.weight for v in V], G)
    return {
        layer.name: _solution(layer, w, v, w_hat, statistics, arms, lam, note)
        for layer, w, v, w_hat in zip(layers, W, V, W_hat, strict=True)
    }


def _fold_statistics(folds: Sequence[Moments], lam: float, arms: Arms, centred: bool) -> list[Fold]:
    """Each fold by itself, if there are several."""
    if len(folds) == 1:
        return []
    each = [rebalance([fold], lam, dtype=arms.solver.dtype, centred=centred) for fold in folds]
    return [Fold(f, arms.solver.factorize(f.hessian) if bool(f.hessian.diagonal().any()) else None) for f in each]


def _solution(
    layer: Layer, W: Tensor, V: Target, codes: Quantized, statistics: Statistics, arms: Arms, lam: float, note: str
) -> Solution:
    """The codes with the figures of the report."""
    L, H = statistics.factor, statistics.moments.hessian
    W_hat = codes.dequantize().to(W.dtype)
    energy = max(inner(W @ H, W), 1e-30)
    # The solver's loss is that of H + δI.
    error = (V.weight - W_hat).masked_fill(L.dead, 0)
    loss = float(codes.loss.sum()) - L.damp * _mean_diagonal(H, L) * inner(error, error)
    notes = [note, V.note]
    if L.retries:
        notes.append(f"damping raised to {L.damp:g} after {L.retries} failed factorisations")
    if not bool(W.any()):
        notes.append("all its weights are zero")
    figures = Figures(
        lam=lam,
        alpha=V.alpha,
        loss=max(loss, 0.0) / energy if math.isfinite(loss) else None,
        shift=V.energy / energy,
        damp=L.damp,
        damp_retries=L.retries,
        dead_columns=int(L.dead.sum()),
    )
    bias = None if layer.bias is None else arms.residual.bias(layer, W_hat, statistics)
    return Solution(codes, figures, bias, [text for text in notes if text])


def _mean_diagonal(H: Tensor, L: Factor) -> float:
    """The unit of damping: mean(diag H) over the inputs that were not always zero."""
    return float(H.diagonal()[~L.dead].double().mean())
