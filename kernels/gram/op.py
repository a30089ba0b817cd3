"""``tarq::gram``: schema, fake implementation and the CPU backend of ``Xᵀ D Y``."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import define, use_reference
from .reference import accumulator, gram_reference

# Side of the square tiles of the lower triangle: BLAS is at full speed from here, and at n = 1,536 the
# three rows of tiles cost 2/3 of the full product.
TILE = 512


def _lower_triangle(x: Tensor, weight: Tensor | None) -> Tensor:
    """Symmetric ``Xᵀ D X`` from its lower-triangular tiles, mirrored once: (k+1)/2k of the arithmetic."""
    n = x.shape[1]
    x = x.to(accumulator(x))
    left = x if weight is None else x * weight.to(x.dtype)[:, None]
    out = x.new_empty(n, n)
    for start in range(0, n, TILE):
        rows = slice(start, min(start + TILE, n))
        torch.mm(left[:, rows].T, x[:, : rows.stop], out=out[rows, : rows.stop])
        out[: rows.start, rows] = out[rows, : rows.start].T
    return out


def _gram(x: Tensor, y: Tensor | None, weight: Tensor | None) -> Tensor:
    if y is None and x.shape[1] > TILE:
        return _lower_triangle(x, weight)
    return gram_reference(x, y, weight)


def _fake(x: Tensor, y: Tensor | None, weight: Tensor | None) -> Tensor:
    n = x.shape[1]
    return x.new_empty((n if y is None else y.shape[1], n), dtype=accumulator(x))


define("gram", "(Tensor x, Tensor? y, Tensor? weight) -> Tensor", _gram, _fake)


def gram(x: Tensor, y: Tensor | None = None, weight: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Weighted sum of outer products ``Σ_t d_t y_t x_tᵀ`` (method.md §3, the ``Xᵀ D X`` of RareBAL).

    Args:
        x: [T, n] activations, float64, float32, bfloat16 or float16; any strides.
        y: [T, k], same dtype; ``x`` itself when not given (the result is then symmetric).
        weight: [T] real weight of each row; all ones when not given.
        backend: ``auto``, ``reference`` or ``native``.

    Returns:
        [k, n] in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes do not agree, or the backend is unknown.
    """
    if x.ndim != 2 or (y is not None and (y.ndim != 2 or y.shape[0] != x.shape[0])):
        other = "" if y is None else f" and {tuple(y.shape)}"
        raise ValueError(f"gram takes matrices with one row per position, got {tuple(x.shape)}{other}")
    if weight is not None and weight.shape != x.shape[:1]:
        raise ValueError(f"gram takes one weight per row: {tuple(weight.shape)} for {x.shape[0]} rows")
    if use_reference(backend):
        return gram_reference(x, y, weight)
    return torch.ops.tarq.gram(x, y, weight)
