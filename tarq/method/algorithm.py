"""Algorithm 1 of the paper: from the moments of one input to the codes of the Linears that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Quantized
from tarq.kernels.scheme import Scheme
from tarq.method.metrics import Metric, rebalance
from tarq.method.moments import Moments
from tarq.method.residuals import Half, inner, residual_target
from tarq.method.solvers import Solver


@dataclass(frozen=True)
class Solution:
    """The quantized weight of one Linear and how it came about.

    Attributes:
        quantized: codes, scales and zero points.
        lam: λ of the tail positions.
        alpha: α of the residual correction.
        loss: ``tr((V − Ŵ) H (V − Ŵ)ᵀ) / tr(W H Wᵀ)``, the error made by rounding the target V, relative.
        shift: ``tr((V − W) H (V − W)ᵀ) / tr(W H Wᵀ)``, how far the residual moved the target, relative.
        damp: δ over mean(diag H), as used.
        retries: how often the damping had to be raised.
        dead_columns: inputs that were always zero.
        note: what is unusual about the metric.
    """

    quantized: Quantized
    lam: float = 1.0
    alpha: float = 0.0
    loss: float | None = None
    shift: float | None = None
    damp: float | None = None
    retries: int = 0
    dead_columns: int = 0
    note: str = ""


def tail_aware_quantize(
    weights: Mapping[str, Tensor],
    parts: Sequence[Moments],
    *,
    metric: Metric,
    residual: str | float,
    solver: Solver,
    scheme: Scheme,
    scale_dtype: torch.dtype,
) -> dict[str, Solution]:
    """Quantize the Linears that share one input (arXiv 2605.27808, Algorithm 1).

    In the paper's letters: W weight, H_C and H_T the moments of both sides, λ their balance, H_rB the metric,
    H_Δ the cross-moment, Ŵ0 the pilot, D the residual direction, α* its length, Ŵ the result.

    Args:
        weights: name to [m, n] weight.
        parts: moments of the shared input, n wide, over parts of the calibration set (two halves for
            ``residual="cross-fitted"``, otherwise as many as convenient).
        metric: puts both sides together.
        residual: see :func:`tarq.method.residuals.residual_target`.
        solver: chooses the codes.
        scheme: the lattice.
        scale_dtype: dtype the scales are stored in.

    Raises:
        torch.linalg.LinAlgError: the metric is not positive definite even at the largest damping.
    """
    lam, note = metric.balance(parts)  # λ
    dtype = solver.dtype
    rebalanced = rebalance(parts, lam, 1.0 if residual == "paper" else lam, dtype)  # H_rB, H_Δ
    factor = solver.factorize(rebalanced.hessian)
    each = [rebalance([part], lam, dtype=dtype) for part in parts] if residual == "cross-fitted" else []
    halves = [Half(half, solver.factorize(half.hessian)) for half in each]

    def quantize(aims: Sequence[Tensor]) -> list[Quantized]:
        return solver.quantize(aims, factor, scheme, scale_dtype)

    live = [w.to(dtype).masked_fill(factor.dead, 0) for w in weights.values()]  # an input always zero has no say
    targets = [residual_target(w, rebalanced, factor, residual, quantize, halves) for w in live]
    solutions = {}
    solved = quantize([target.weight for target in targets])  # Ŵ
    for name, w, target, quantized in zip(weights, live, targets, solved, strict=True):
        error = quantized.dequantize().to(dtype) - target.weight
        energy = max(inner(w @ rebalanced.hessian, w), 1e-30)
        solutions[name] = Solution(
            quantized,
            lam,
            target.alpha,
            inner(error @ rebalanced.hessian, error) / energy,
            target.energy / energy,
            factor.damp,
            factor.retries,
            int(factor.dead.sum()),
            note,
        )
    return solutions
