"""``tarq::gram`` and ``tarq::gram_split``: ``Xᵀ D Y``, whole and split by 0/1 tags, as torch operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import define, use_reference
from ..triton_runtime import installed
from .reference import accumulator, difference, gram_reference, gram_split_reference


def _in_dtype_of(x: Tensor, y: Tensor | None) -> Tensor:
    """``x`` in the dtype of ``y``, which a kernel may need."""
    return x if y is None else x.to(y.dtype)


def _fake(x: Tensor, y: Tensor | None, weight: Tensor | None) -> Tensor:
    n = x.shape[1]
    return x.new_empty((n if y is None else y.shape[1], n), dtype=accumulator(x))


def _fake_split(
    x: Tensor, y: Tensor | None, weight: Tensor | None, tail: Tensor, drift: bool = False
) -> tuple[Tensor, Tensor]:
    return _fake(x, y, weight), _fake(x, y, weight)


define("gram", "(Tensor x, Tensor? y, Tensor? weight) -> Tensor", gram_reference, _fake)
define(
    "gram_split",
    "(Tensor x, Tensor? y, Tensor? weight, Tensor tail, bool drift=False) -> (Tensor, Tensor)",
    gram_split_reference,
    _fake_split,
)
if installed():
    # Importing triton takes a second: only the first call on a GPU pays for it.
    @torch.library.impl("tarq::gram", "CUDA")
    def _gram_cuda(x: Tensor, y: Tensor | None, weight: Tensor | None) -> Tensor:
        from .triton.launch import gram_triton

        return gram_triton(_in_dtype_of(x, y), y, weight)

    @torch.library.impl("tarq::gram_split", "CUDA")
    def _gram_split_cuda(
        x: Tensor, y: Tensor | None, weight: Tensor | None, tail: Tensor, drift: bool = False
    ) -> tuple[Tensor, Tensor]:
        from .triton.launch import gram_split_triton

        y = difference(y, x) if drift else y
        common, rare = gram_split_triton(_in_dtype_of(x, y), y, tail, weight)
        return common.clone(), rare.clone()  # an operator's results own their storage


def gram(x: Tensor, y: Tensor | None = None, weight: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Weighted sum of outer products ``Σ_t d_t y_t x_tᵀ`` (the ``Xᵀ D X`` of RareBAL; arXiv 2605.27808, §3).

    Args:
        x: [T, n] activations, float64, float32, bfloat16 or float16; any strides.
        y: [T, k], same dtype, or float32 beside 16-bit ``x``; by default ``x`` itself (the result is then symmetric).
        weight: [T] real weight of each row; by default all ones.
        backend: ``auto``, ``reference`` or ``native``. float64 always runs on the reference.

    Returns:
        [k, n] in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes do not agree, or the backend is unknown.
    """
    _check(x, y, weight)
    if use_reference(backend, "gram", x.device.type) or x.dtype == torch.float64:
        return gram_reference(x, y, weight)
    return torch.ops.tarq.gram(x, y, weight)


def gram_split(
    x: Tensor,
    tail: Tensor,
    y: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    drift: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`gram` of the rows outside the tail and of those in it, each row read once (``H_C, H_T``).

    With ``y`` the full-precision inputs and ``drift`` these are ``H_Δ,C, H_Δ,T`` (arXiv 2605.27808, §4).

    Args:
        x, y, weight, backend: see :func:`gram`; a row of weight 0 is in neither, even if it is not finite.
        tail: [T] bool.
        drift: take ``y − x``, computed in float32, in place of ``y``, which is of the shape and dtype of ``x`` then.

    Returns:
        Two matrices [k, n]: outside the tail, in the tail.

    Raises:
        ValueError: as :func:`gram`, ``tail`` is not one bool per row, or there is no ``y`` to take a drift of.
    """
    _check(x, y, weight)
    if drift and (y is None or y.shape != x.shape or y.dtype != x.dtype):
        raise ValueError("a drift takes a second matrix of the first one's shape and dtype")
    if tail.dtype != torch.bool or tail.shape != x.shape[:1]:
        raise ValueError(f"tail must be bool [{x.shape[0]}], not {tail.dtype} {list(tail.shape)}")
    if use_reference(backend, "gram_split", x.device.type) or x.dtype == torch.float64:
        return gram_split_reference(x, y, weight, tail, drift)
    return torch.ops.tarq.gram_split(x, y, weight, tail, drift)


def _check(x: Tensor, y: Tensor | None, weight: Tensor | None) -> None:
    if x.ndim != 2 or (y is not None and (y.ndim != 2 or y.shape[0] != x.shape[0])):
        other = "" if y is None else f" and {tuple(y.shape)}"
        raise ValueError(f"gram takes matrices with one row per position, got {tuple(x.shape)}{other}")
    if y is not None and y.dtype != x.dtype and (y.dtype != torch.float32 or x.dtype == torch.float64):
        raise ValueError(f"gram takes matrices of one dtype, got {x.dtype} and {y.dtype}")
    if weight is not None and weight.shape != x.shape[:1]:
        raise ValueError(f"gram takes one weight per row: {tuple(weight.shape)} for {x.shape[0]} rows")
