"""``gram`` on CUDA: Triton kernels for ``Σ_t d_t y_t x_tᵀ``, whole or one sum for each group of rows.

    rows of group g ──► splits ──► BLOCK × BLOCK tiles, fp32 partials [splits, groups, k, n] ──► finish: sum, mirror

``gram_kernel`` gives a tile one program for each split of the rows. bfloat16 and float16 operands go to the tensor
cores as they are. ``finish_kernel`` adds the splits and the running sum, and mirrors the lower triangle of a symmetric
result. No atomics: the same call on the same chip gives the same bits.

**Sums.** Tensor cores truncate when they add to their accumulator, so its error grows with the number of rows. Every
``CHUNK`` rows it is added to a second fp32 accumulator, rounding to nearest, and starts again from zero. Relative error
of a diagonal entry over 4,096 normal rows, truncation emulated: 5e-6 without chunks, 3e-7 with, 4e-6 for fp32 FMAs.

**Weights** never meet low-precision operands. Rows of one weight are summed unweighted and their sum is scaled, as long
as there are at most ``LEVELS`` weights (0/1 tags, a padding weight). Otherwise both operands are upcast and the weight
multiplies in fp32.

**float32** operands, and those upcast, are multiplied as ``tf32x3``: each is split into two TF32 parts and all products
but low × low are kept. What is lost, 2⁻²³ of a product, is less than fp32 FMAs lose in adding up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import triton_runtime as runtime
from ..reference import gram_reference, gram_split_reference
from .kernels import finish_kernel, gram_kernel
from .plan import DTYPES, choose, options, tiles

#: Most distinct weights summed one by one; more are multiplied in row by row.
LEVELS = 4

#: Side of the tiles of `finish_kernel`, which only moves memory.
FINISH_BLOCK = 32


def gram_triton(
    x: Tensor, y: Tensor | None = None, weight: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """``Σ_t d_t y_t x_tᵀ`` on a GPU; see :func:`~tarq.kernels.gram.reference.gram_reference`.

    Args:
        x: [T, n] bfloat16, float16 or float32, any strides; other dtypes run as the reference. Read where it lies when
            rows start on 16-byte boundaries, are whole multiples of 16 bytes and columns lie side by side; else copied.
        y: [T, k], same dtype; ``x`` itself when not given, and the result is symmetric to the bit.
        weight: [T] real weight of each row; a row of weight 0 is not read. Costs a device synchronisation.
        out: [k, n] float32, contiguous: a running sum to add to.

    Returns:
        [k, n] float32 (float64 for float64 inputs), ``out`` where given.

    Raises:
        ValueError: ``out`` is not as described.
    """
    if x.dtype not in DTYPES:
        result = gram_reference(x, y, weight)
        return result if out is None else out.add_(result)
    group = None if weight is None else torch.zeros_like(weight, dtype=torch.int8)
    result = _gram(x, y, weight, group, 1, None if out is None else out[None])[0]
    return result if out is None else out


def gram_split_triton(
    x: Tensor, y: Tensor | None, tail: Tensor, weight: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """:func:`gram_triton` of the rows outside the tail and of those in it, each row read once.

    Args:
        x, y, weight: see :func:`gram_triton`; without weight nothing synchronises.
        tail: [T] bool.
        out: [2, k, n] float32, contiguous: running sums to add to.

    Returns:
        [2, k, n]: outside the tail, in the tail.

    Raises:
        ValueError: ``out`` is not as described.
    """
    if x.dtype not in DTYPES:
        result = torch.stack(gram_split_reference(x, y, weight, tail))
        return result if out is None else out.add_(result)
    return _gram(x, y, weight, tail.to(torch.int8), 2, out)


def _gram(
    x: Tensor, y: Tensor | None, weight: Tensor | None, group: Tensor | None, groups: int, out: Tensor | None
) -> Tensor:
    """[groups, k, n] sums over the rows of each group; without ``group``, one of all rows in their order."""
    n, k = x.shape[1], (x if y is None else y).shape[1]
    accumulate = out is not None
    if out is None:
        out = x.new_empty((groups, k, n), dtype=torch.float32)
    elif out.shape != (groups, k, n) or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"out must be contiguous float32 {[groups, k, n]}, not {out.dtype} {list(out.shape)}")
    if x.shape[0] == 0 or out.numel() == 0:
        return out if accumulate else out.zero_()

    vector = runtime.ALIGNMENT // x.element_size()
    x, y = runtime.aligned_rows(x, vector), None if y is None else runtime.aligned_rows(y, vector)
    with runtime.on_device_of(x):
        if group is None:
            _launch(x, y, None, None, 1.0, out, accumulate)
        elif weight is None:
            _launch(x, y, None, _route(group, groups), 1.0, out, accumulate)
        else:
            values, level = torch.unique(weight, return_inverse=True)
            levels = {index: float(value) for index, value in enumerate(values.tolist()) if value != 0}
            if len(levels) > LEVELS:
                route = _route(group.masked_fill(weight == 0, -1), groups)
                _launch(x, y, weight.float().contiguous(), route, 1.0, out, accumulate)
                return out
            order, bounds = _route((level * groups + group).to(torch.int8), len(values) * groups)
            for index, value in levels.items():
                _launch(x, y, None, (order, bounds[index * groups :]), value, out, accumulate)
                accumulate = True
            if not accumulate:
                out.zero_()
    return out


def _route(group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Indices of rows, group after group, and where each group starts in them; negative groups are left out.

    No synchronisation: how many rows a group has stays on the device.
    """
    ordered, order = torch.sort(group, stable=True)
    edges = torch.arange(groups + 1, dtype=group.dtype, device=group.device)
    return order.to(torch.int32), torch.searchsorted(ordered, edges, out_int32=True)


def _launch(
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    route: tuple[Tensor, Tensor] | None,
    scale: float,
    out: Tensor,
    accumulate: bool,
) -> None:
    """Write to, or add to, ``out`` [groups, k, n] the scaled sums over the groups of ``route``.

    ``x`` and ``y`` have aligned rows and may be wider than ``out`` by their padding.
    """
    groups, k, n = out.shape
    width, height = x.shape[1], (x if y is None else y).shape[1]
    capability, sm_count = runtime.chip(x.device)
    operands = x.dtype if weight is None else torch.float32
    plan = choose(n, None if y is None else k, x.shape[0], operands, capability, sm_count)
    configuration, splits = plan.configuration, plan.splits
    vector = runtime.ALIGNMENT // x.element_size()

    direct = splits == 1 and not accumulate and (k, n) == (height, width)
    partial = out if direct else out.new_empty((splits, groups, height, width))
    order, bounds = (None, None) if route is None else route
    gram_kernel[(tiles(width, None if y is None else height, configuration.block), splits, groups)](
        x,
        y,
        weight,
        order,
        bounds,
        partial,
        x.shape[0],
        width // vector,
        height // vector,
        x.stride(0) // vector,
        0 if y is None else y.stride(0) // vector,
        scale,
        VECTOR=vector,
        **options(configuration, routed=route is not None),
    )
    if direct and y is not None:
        return
    finish_kernel[(tiles(n, None if y is None else k, FINISH_BLOCK), groups)](
        partial,
        out,
        splits,
        n,
        k,
        height,
        width,
        SYMMETRIC=y is None,
        ACCUMULATE=accumulate,
        IN_PLACE=direct,
        BLOCK=FINISH_BLOCK,
        num_warps=4,
    )
