"""The Triton kernels of ``gram``: tiles of the products, and what adds up their splits and mirrors them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _triangle_row(tile):
    """Row of a tile of the lower triangle, tiles counted along rows: the largest r with r (r + 1) / 2 ≤ tile."""
    row = ((tl.sqrt((8 * tile + 1).to(tl.float32)) - 1) * 0.5).to(tl.int32)
    # The root may round across an integer.
    row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)
    return tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)


@triton.jit
def _triangle_tile(tile, across, SUPERTILE: tl.constexpr):
    """Row and column of a tile of the lower triangle, in bands of SUPERTILE rows.

    A band is a rectangle, taken column by column, and its triangle on the diagonal, taken row by row.
    """
    first = _triangle_row(tile) // SUPERTILE * SUPERTILE
    height = tl.minimum(SUPERTILE, across - first)
    inside = tile - first * (first + 1) // 2
    corner = inside - first * height
    row = _triangle_row(tl.maximum(corner, 0))
    i = tl.where(corner < 0, inside % height, row)
    j = tl.where(corner < 0, inside // height, first + corner - row * (row + 1) // 2)
    return first + i, j


@triton.jit
def _rectangle_tile(tile, down, across, SUPERTILE: tl.constexpr):
    """Row and column of a tile of a rectangle, in bands of SUPERTILE rows, each column by column."""
    first = tile // (SUPERTILE * across) * SUPERTILE
    height = tl.minimum(SUPERTILE, down - first)
    inside = tile % (SUPERTILE * across)
    return first + inside % height, inside // height


@triton.jit(do_not_specialize=["rows", "n", "k", "x_stride", "y_stride"], do_not_specialize_on_alignment=["bounds_ptr"])
def gram_kernel(
    x_ptr,
    y_ptr,
    weight_ptr,
    order_ptr,
    bounds_ptr,
    partial_ptr,
    rows,
    n,
    k,
    x_stride,
    y_stride,
    scale,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    CHUNK: tl.constexpr,
    SUPERTILE: tl.constexpr,
):
    """One tile of ``scale · Σ_t w_t y_t x_tᵀ`` over one split of one group's rows.

    Grid: tiles, splits, groups. Without ``y_ptr`` the product is symmetric and the tiles are those of the lower
    triangle; without ``order_ptr`` there is one group, all rows in their order; without ``weight_ptr`` weights are one.

    Args:
        x_ptr, y_ptr: [rows, n], [rows, k], the start of every row 16-byte aligned, columns side by side.
        weight_ptr: [rows] float32.
        order_ptr: int32 indices of rows, group after group.
        bounds_ptr: [groups + 1] int32, where in the order each group starts and the last one ends.
        partial_ptr: [splits, groups, k, n] float32.
        n, k, x_stride, y_stride: in units of VECTOR elements, the 16 bytes of a vector load.
        CHUNK: rows between two flushes of the tensor cores' accumulator, a multiple of DEPTH.
    """
    n = n * VECTOR
    k = k * VECTOR
    x_stride = x_stride * VECTOR
    y_stride = y_stride * VECTOR
    across = tl.cdiv(n, BLOCK)
    if y_ptr is None:
        i, j = _triangle_tile(tl.program_id(0), across, SUPERTILE)
        left_ptr, left_stride = x_ptr, x_stride
    else:
        i, j = _rectangle_tile(tl.program_id(0), tl.cdiv(k, BLOCK), across, SUPERTILE)
        left_ptr, left_stride = y_ptr, y_stride
    split, group = tl.program_id(1), tl.program_id(2)
    splits, groups = tl.num_programs(1), tl.num_programs(2)

    if order_ptr is None:
        start, end = 0, rows
    else:
        start, end = tl.load(bounds_ptr + group), tl.load(bounds_ptr + group + 1)
    span = tl.cdiv(tl.cdiv(end - start, splits), CHUNK) * CHUNK
    first = start + split * span
    last = tl.maximum(tl.minimum(first + span, end), first)

    # Columns past the edge wrap round instead of being masked: what they give is not stored.
    row = i * BLOCK + tl.arange(0, BLOCK)
    column = j * BLOCK + tl.arange(0, BLOCK)
    y_column = tl.max_contiguous(tl.multiple_of(row % k, VECTOR), VECTOR)
    x_column = tl.max_contiguous(tl.multiple_of(column % n, VECTOR), VECTOR)

    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    # One loop to the pipeline: rows of the next chunk are under way while the last one is added.
    for base in tl.range(0, tl.cdiv(last - first, CHUNK), flatten=True):
        chunk = tl.zeros((BLOCK, BLOCK), tl.float32)
        for step in range(CHUNK // DEPTH):
            t = first + base * CHUNK + step * DEPTH + tl.arange(0, DEPTH)
            inside = t < last
            token = t if order_ptr is None else tl.load(order_ptr + t, mask=inside, other=0)
            token = token.to(tl.int64)
            x = tl.load(x_ptr + token[:, None] * x_stride + x_column[None, :], mask=inside[:, None], other=0.0)
            # Read as its transpose: before wgmma, tl.trans would keep this load out of the pipeline.
            y = tl.load(left_ptr + token[None, :] * left_stride + y_column[:, None], mask=inside[None, :], other=0.0)
            if weight_ptr is not None:
                weight = tl.load(weight_ptr + token, mask=inside, other=0.0)
                x = x.to(tl.float32)
                y = y.to(tl.float32) * weight[None, :]
            chunk = tl.dot(y, x, chunk, input_precision="tf32x3")  # which says nothing about 16-bit operands
        total += chunk
    total *= scale

    corner = partial_ptr + ((split * groups + group).to(tl.int64) * k + i * BLOCK) * n + j * BLOCK
    offset = tl.arange(0, BLOCK)[:, None] * n + tl.arange(0, BLOCK)[None, :]
    tl.store(corner + offset, total, mask=(row < k)[:, None] & (column < n)[None, :])


@triton.jit(do_not_specialize=["splits", "n", "k", "rows", "pitch"])
def finish_kernel(
    partial_ptr,
    out_ptr,
    splits,
    n,
    k,
    rows,
    pitch,
    SYMMETRIC: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the splits of a tile, add the running sum, mirror what lies below the diagonal.

    Grid: tiles, groups.

    Args:
        partial_ptr: [splits, groups, rows, pitch] float32 of ``gram_kernel``; ``out_ptr`` itself when IN_PLACE.
        out_ptr: [groups, k, n] float32, written, or added to when ACCUMULATE.
    """
    if SYMMETRIC:
        i, j = _triangle_tile(tl.program_id(0), tl.cdiv(n, BLOCK), 1)
    else:
        i, j = _rectangle_tile(tl.program_id(0), tl.cdiv(k, BLOCK), tl.cdiv(n, BLOCK), 1)
    group, groups = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    # Offsets inside a tile fit 32 bits, those of its corner may not.
    first_row, first_column = i.to(tl.int64) * BLOCK, j.to(tl.int64) * BLOCK
    local = tl.arange(0, BLOCK)
    row, column = i * BLOCK + local, j * BLOCK + local
    inside = (row < k)[:, None] & (column < n)[None, :]

    source = partial_ptr + (group * rows + first_row) * pitch + first_column
    value = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(splits):
        value += tl.load(source + local[:, None] * pitch + local[None, :], mask=inside, other=0.0)
        source += groups * rows * pitch

    out_ptr += group * k * n
    if SYMMETRIC:
        mirrored = tl.trans(value)
        if i == j:
            value = tl.where(row[:, None] >= column[None, :], value, mirrored)
        else:
            target = out_ptr + first_column * n + first_row + local[:, None] * n + local[None, :]
            across = (column < n)[:, None] & (row < k)[None, :]
            if ACCUMULATE:
                mirrored += tl.load(target, mask=across)
            tl.store(target, mirrored, mask=across)
    if not IN_PLACE or i == j:
        target = out_ptr + first_row * n + first_column + local[:, None] * n + local[None, :]
        if ACCUMULATE:
            value += tl.load(target, mask=inside)
        tl.store(target, value, mask=inside)
