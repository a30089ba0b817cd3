"""The Triton kernel of ``group_refine``: one span of columns of a few rows, its scale and then its codes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "n", "groups", "group", "first", "width"])
def refine_kernel(
    gradient_ptr,
    hessian_ptr,
    error_ptr,
    level_ptr,
    scale_ptr,
    zero_ptr,
    change_ptr,
    rows,
    n,
    groups,
    group,
    first,
    width,
    max_code,
    least,
    largest,
    REFIT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """``reference.refit_scale`` and ``reference.descend`` of the columns from ``first`` on, all of one group.

    Grid: blocks of ROWS rows. The steps follow one another; a program holds its rows' gradient in registers.

    Args:
        gradient_ptr: [rows, width] the columns of E H.
        hessian_ptr: [n, n].
        error_ptr, level_ptr: [rows, n] E and the codes less zero points, updated.
        scale_ptr: [rows, groups] in the stored dtype, updated with REFIT.
        zero_ptr: [rows, groups] float32.
        change_ptr: [rows] float64, of the loss; added to.
        width: columns, at most WIDTH. With REFIT they are the whole group.
        max_code, least, largest: the greatest code, the least and the largest scale that can be stored, float32.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    real = row < rows
    inside = real[:, None] & (column < width)[None, :]
    at = row.to(tl.int64)[:, None] * n + first + column[None, :]
    gradient = tl.load(gradient_ptr + row.to(tl.int64)[:, None] * width + column[None, :], mask=inside, other=0.0)
    before = tl.load(level_ptr + at, mask=inside, other=0.0)
    own = row.to(tl.int64) * groups + group
    scale = tl.load(scale_ptr + own, mask=real, other=1.0).to(tl.float32)
    zero = tl.load(zero_ptr + own, mask=real, other=0.0)
    change = tl.zeros((ROWS,), tl.float32)
    block_ptr = hessian_ptr + first.to(tl.int64) * n + first
    error = tl.load(error_ptr + at, mask=inside, other=0.0)

    if REFIT:
        product = tl.zeros((ROWS, WIDTH), tl.float32)
        for i in range(width):
            level = tl.sum(tl.where(column[None, :] == i, before, 0.0), axis=1)
            across = tl.load(block_ptr + i * n + column, mask=column < width, other=0.0)
            product += level[:, None] * across[None, :]
        curvature = tl.sum(product * before, axis=1)
        slope = tl.sum(gradient * before, axis=1)
        wanted = scale + slope / tl.where(curvature > 0, curvature, 1.0)
        rounded = wanted.to(scale_ptr.dtype.element_ty).to(tl.float32)
        delta = rounded - scale
        gained = delta * (delta * curvature - 2 * slope)
        # A group whose levels are all zero has no say; what is no number compares as false.
        usable = (curvature > 0) & (wanted >= least) & (rounded <= largest) & (gained < 0)
        delta = tl.where(usable, delta, 0.0)
        change += tl.where(usable, gained, 0.0)
        scale += delta
        gradient -= delta[:, None] * product
        error -= delta[:, None] * before
        tl.store(scale_ptr + own, scale.to(scale_ptr.dtype.element_ty), mask=real)

    level = before
    for j in range(width):
        here = column[None, :] == j
        right = tl.load(block_ptr + j * n + column, mask=column < width, other=0.0)
        pivot = tl.load(block_ptr + j * n + j)
        pull = tl.sum(tl.where(here, gradient, 0.0), axis=1)
        old = tl.sum(tl.where(here, level, 0.0), axis=1)
        nearest = tl.minimum(tl.maximum(old + pull / (scale * pivot), -zero), max_code - zero)
        best = (nearest + 12582912.0) - 12582912.0  # 1.5 · 2²³ drops the fraction, ties to even
        moved = (best - old) * scale
        change += moved * (moved * pivot - 2 * pull)
        gradient -= moved[:, None] * right[None, :]
        level = tl.where(here, best[:, None], level)

    tl.store(level_ptr + at, level, mask=inside)
    tl.store(error_ptr + at, error - (level - before) * scale[:, None], mask=inside)
    total = tl.load(change_ptr + row, mask=real, other=0.0)
    tl.store(change_ptr + row, total + change.to(tl.float64), mask=real)
