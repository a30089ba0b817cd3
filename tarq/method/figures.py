"""The figures of a quantized layer: computed by the method, kept in the report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class Figures:
    """Figures of how a Linear was quantized.

    Attributes:
        lam: λ of the tail positions; 1 is the plain metric.
        alpha: α of the residual; 0 is none.
        loss: ``tr((V − Ŵ) H (V − Ŵ)ᵀ) / tr(W H Wᵀ)``, the squared output error from rounding the target V, relative
            to the squared output; None if it was not measured.
        shift: ``tr((V − W) H (V − W)ᵀ) / tr(W H Wᵀ)``, how far the residual moved the target, likewise.
        damp: δ over mean(diag H), as used.
        damp_retries: how often damping was raised.
        dead_columns: inputs that were always zero.
    """

    lam: float = 1.0
    alpha: float = 0.0
    loss: float | None = None
    shift: float | None = None
    damp: float | None = None
    damp_retries: int = 0
    dead_columns: int = 0
