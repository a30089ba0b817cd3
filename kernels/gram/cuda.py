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

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import gram_reference, gram_sides_reference

#: Rows between two flushes of the tensor cores' accumulator.
CHUNK = 256

#: Most distinct weights summed one by one; more are multiplied in row by row.
LEVELS = 4

# Tile rows that share their columns' loads through L2: with 8, a wave of 132 tiles reads about 8 + 16 blocks.
SUPERTILE = 8

# Side of the tiles of `finish_kernel`, which only moves memory.
FINISH_BLOCK = 32

# Bytes of partial sums a launch may ask for, for each group.
PARTIAL_BYTES = 1 << 29

# Cost of a program besides its rows, in rows of a tile (estimates): filling the pipeline and writing the tile; where
# rows are split, reading it again.
FIXED_ROWS, SPLIT_ROWS = 224, 160

SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Configuration:
    """How one program of ``gram_kernel`` works.

    Args:
        bits: width of the operands of the tensor cores, 16 or 32.
        block: side of its tile.
        depth: rows it loads at once.
        warps: warps of the program.
        stages: blocks of rows in flight, as Triton's ``num_stages``.
        operands: where the tensor cores it is for read theirs: ``shared`` memory (wgmma, tcgen05), ``registers``
            (mma.sync; it fits the shared memory of compute capability 8.6 and 12) or ``either``.
        rate: multiply-adds per second of one SM, relative to the other configurations of the same width.
    """

    bits: int
    block: int
    depth: int
    warps: int
    stages: int
    operands: str
    rate: float = 1.0


CONFIGURATIONS = (
    # wgmma m64n128k16 in each of two warpgroups; both accumulators are 128 registers a thread: one program an SM.
    Configuration(bits=16, block=128, depth=64, warps=8, stages=4, operands="shared"),
    Configuration(bits=16, block=128, depth=32, warps=8, stages=5, operands="registers"),
    # Twice the bytes a multiply-add; wastes less of a tile on narrow inputs.
    Configuration(bits=16, block=64, depth=64, warps=4, stages=3, operands="either", rate=0.5),
    # Splitting float32 in two takes registers; where operands are held in them too, half the rows at once.
    Configuration(bits=32, block=64, depth=32, warps=4, stages=3, operands="shared"),
    Configuration(bits=32, block=64, depth=16, warps=4, stages=4, operands="registers"),
)


@dataclass(frozen=True)
class Plan:
    """A configuration and into how many parts the rows are split."""

    configuration: Configuration
    splits: int


def candidates(dtype: torch.dtype, capability: tuple[int, int]) -> list[Configuration]:
    """The configurations :func:`choose` picks from, for operands of this dtype on this chip."""
    operands = "shared" if capability[0] in (9, 10, 11) else "registers"
    return [c for c in CONFIGURATIONS if c.bits == 8 * dtype.itemsize and c.operands in (operands, "either")]


@lru_cache(maxsize=1024)
def choose(n: int, k: int | None, rows: int, dtype: torch.dtype, capability: tuple[int, int], sm_count: int) -> Plan:
    """The plan whose slowest SM is done first, by a model that counts rows of tiles.

    Args:
        n: columns of x.
        k: columns of y; None for the symmetric product.
        rows: rows to sum, of all groups: the model takes the largest group for the whole.
        dtype: of the operands of the tensor cores, so float32 where real weights multiply in.
        capability: compute capability of the chip, ``(9, 0)``.
        sm_count: its streaming multiprocessors.
    """

    def cost(plan: Plan) -> float:
        configuration, splits = plan.configuration, plan.splits
        waves = -(-_tiles(n, k, configuration.block) * splits // sm_count)
        length = -(-rows // splits) + FIXED_ROWS + (SPLIT_ROWS if splits > 1 else 0)
        return waves * length * configuration.block**2 / configuration.rate

    plans = [
        Plan(configuration, splits)
        for configuration in candidates(dtype, capability)
        for splits in SPLITS
        if splits == 1 or (splits * CHUNK < rows + CHUNK and 4 * splits * (k or n) * n <= PARTIAL_BYTES)
    ]
    return min(plans, key=cost)


def _tiles(n: int, k: int | None, block: int) -> int:
    across = -(-n // block)
    return across * (across + 1) // 2 if k is None else across * -(-k // block)


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


def gram_cuda(x: Tensor, y: Tensor | None = None, weight: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
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
    if x.dtype not in NAMES:
        result = gram_reference(x, y, weight)
        return result if out is None else out.add_(result)
    side = None if weight is None else torch.zeros_like(weight, dtype=torch.int8)
    result = _gram(x, y, weight, side, 1, None if out is None else out[None])[0]
    return result if out is None else out


def gram_cuda_sides(
    x: Tensor, y: Tensor | None, tail: Tensor, weight: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """:func:`gram_cuda` of the rows outside the tail and of those in it, each row read by one side only.

    Args:
        x, y, weight: see :func:`gram_cuda`; without weight nothing synchronises.
        tail: [T] bool.
        out: [2, k, n] float32, contiguous: running sums to add to.

    Returns:
        [2, k, n]: outside the tail, in the tail.

    Raises:
        ValueError: ``out`` is not as described.
    """
    if x.dtype not in NAMES:
        result = torch.stack(gram_sides_reference(x, y, weight, tail))
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

    x, y = _aligned(x), None if y is None else _aligned(y)
    with torch.cuda.device_of(x) if x.is_cuda else nullcontext():
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


def _aligned(x: Tensor) -> Tensor:
    """``x`` where vector loads can read it, else a copy whose rows are padded to whole vectors.

    Copying reads and writes each value once; unaligned loads would be slower n / BLOCK times over.
    """
    vector = 16 // x.element_size()
    rows, n = x.shape
    if x.stride(1) == 1 and n % vector == 0 and x.stride(0) % vector == 0 and x.data_ptr() % 16 == 0:
        return x
    copy = x.new_zeros((rows, n + -n % vector))
    copy[:, :n] = x
    return copy


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

    ``x`` and ``y`` come from :func:`_aligned` and may be wider than ``out`` by their padding.
    """
    groups, k, n = out.shape
    width, height = x.shape[1], (x if y is None else y).shape[1]
    capability, sm_count = _chip(x.device)
    operands = x.dtype if weight is None else torch.float32
    plan = choose(n, None if y is None else k, x.shape[0], operands, capability, sm_count)
    configuration, splits = plan.configuration, plan.splits
    vector = 16 // x.element_size()

    direct = splits == 1 and not accumulate and (k, n) == (height, width)
    partial = out if direct else out.new_empty((splits, groups, height, width))
    order, bounds = (None, None) if route is None else route
    gram_kernel[(_tiles(width, None if y is None else height, configuration.block), splits, groups)](
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
        **_options(configuration, routed=route is not None),
    )
    if direct and y is not None:
        return
    finish_kernel[(_tiles(n, None if y is None else k, FINISH_BLOCK), groups)](
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


def _options(configuration: Configuration, routed: bool) -> dict[str, int]:
    """Constants and compiler options of ``gram_kernel``."""
    return {
        "BLOCK": configuration.block,
        "DEPTH": configuration.depth,
        "CHUNK": CHUNK,
        "SUPERTILE": SUPERTILE,
        "num_warps": configuration.warps,
        # The indices are loaded ahead of the rows they name: as many stages again, for the same blocks in flight.
        "num_stages": 2 * configuration.stages - 1 if routed else configuration.stages,
    }


def _chip(device: torch.device) -> tuple[tuple[int, int], int]:
    """Compute capability and number of SMs; an H200's where the kernels are interpreted."""
    if device.type != "cuda":
        return (9, 0), 132
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


def compilations(capability: tuple[int, int]) -> Iterator[tuple[str, Any, dict, dict, dict, dict]]:
    """Every specialization a launch can ask for on a chip, for ahead-of-time compilation.

    Yields:
        name, kernel, then what ``triton.compiler.ASTSource`` takes: signature, constexprs, attrs; compiler options.
    """
    for dtype, element in NAMES.items():
        for weighted, routed in ((False, False), (False, True), (True, True)):
            for configuration in candidates(torch.float32 if weighted else dtype, capability):
                for pair in (False, True):
                    constants = _options(configuration, routed) | {"VECTOR": 16 // dtype.itemsize}
                    pointers = {
                        "x_ptr": f"*{element}",
                        "y_ptr": f"*{element}" if pair else None,
                        "weight_ptr": "*fp32" if weighted else None,
                        "order_ptr": "*i32" if routed else None,
                        "bounds_ptr": "*i32" if routed else None,
                        "partial_ptr": "*fp32",
                    }
                    kind = ("_weighted" if weighted else "_routed" if routed else "") + ("_pair" if pair else "")
                    name = f"gram_{element}_{configuration.block}{kind}"
                    yield name, gram_kernel, *_specialization(gram_kernel, pointers, constants, {"bounds_ptr"})
    for symmetric, accumulate, in_place in (
        (True, False, False),
        (True, False, True),
        (True, True, False),
        (False, False, False),
        (False, True, False),
    ):
        constants = {
            "SYMMETRIC": symmetric,
            "ACCUMULATE": accumulate,
            "IN_PLACE": in_place,
            "BLOCK": FINISH_BLOCK,
            "num_warps": 4,
        }
        pointers = {"partial_ptr": "*fp32", "out_ptr": "*fp32"}
        for unaligned in ({"out_ptr"}, set()) if accumulate else (set(),):
            flags = (symmetric, "symmetric"), (accumulate, "add"), (in_place, "in_place"), (unaligned, "unaligned")
            name = "_".join(["finish", *(word for flag, word in flags if flag)])
            yield name, finish_kernel, *_specialization(finish_kernel, pointers, constants, unaligned)


def _specialization(
    kernel: Any, pointers: dict[str, str | None], constants: dict[str, int], unaligned: set[str]
) -> tuple[dict, dict, dict, dict]:
    """Signature, constexprs, attrs and compiler options of a kernel, as the launches above have them."""
    constexprs: dict[str, int | None] = {name: constants[name] for name in kernel.arg_names if name in constants}
    constexprs |= {name: None for name, pointer in pointers.items() if pointer is None}
    signature = {name: pointers.get(name) or "i32" for name in kernel.arg_names}
    signature |= dict.fromkeys(constexprs, "constexpr") | ({"scale": "fp32"} if "scale" in signature else {})
    attrs = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if pointers.get(name) and name not in unaligned
    }
    return signature, constexprs, attrs, {name: value for name, value in constants.items() if name.startswith("num_")}
