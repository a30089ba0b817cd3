"""The specification of ``gram``: plain PyTorch, one line of mathematics."""

from __future__ import annotations

import torch
from torch import Tensor


def gram_reference(x: Tensor, y: Tensor | None, weight: Tensor | None) -> Tensor:
    """``Σ_t d_t y_t x_tᵀ`` over the rows of ``x`` and ``y`` (by default ``y = x`` and ``d = 1``)."""
    x = x.to(accumulator(x))
    y = x if y is None else y.to(x.dtype)
    if weight is not None:
        y = y * weight.to(x.dtype)[:, None]
    return y.T @ x


def gram_split_reference(
    x: Tensor, y: Tensor | None, weight: Tensor | None, tail: Tensor, drift: bool = False
) -> tuple[Tensor, Tensor]:
    """:func:`gram_reference` of the rows outside the tail and of those in it; rows of weight 0 are in neither.

    With ``drift``, of ``y − x`` in place of ``y``.
    """
    y = difference(y, x) if drift else y

    def subset(rows: Tensor) -> Tensor:
        rows = rows if weight is None else rows & (weight != 0)
        return gram_reference(x[rows], None if y is None else y[rows], None if weight is None else weight[rows])

    return subset(~tail), subset(tail)


def difference(y: Tensor | None, x: Tensor) -> Tensor:
    """``y − x`` in the accumulation dtype: of two 16-bit numbers it is often none."""
    assert y is not None
    return y.to(accumulator(x)) - x.to(accumulator(x))


def accumulator(x: Tensor) -> torch.dtype:
    """Accumulation dtype: float64 for float64 rows, else float32 (low precision never accumulates)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
