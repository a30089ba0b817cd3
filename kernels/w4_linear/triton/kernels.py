"""The Triton kernels of ``w4_linear``, which read the packed weights once and unpack them in registers.

    few tokens   gemv: a program owns some rows of W, its warps share out K and add up in shared memory
    more         gemm: tiles on the tensor cores; K is split over programs where tiles alone leave SMs idle, ``reduce``
    many         dense: ``dequantize`` to a scratch tensor, then the library

Which of them, and with which tiles, ``plan`` says; ``layout`` has the order in which they find the weights.

**W is the left operand.** The kernels compute ``yᵀ = W xᵀ``: mma.sync and wgmma take their left operand from the
registers where W is unpacked, and the tokens are the side of a tile that may be as narrow as 8 (one token is padded to
8 in registers, which costs nothing but idle multipliers). Tensor cores even for one token: with CUDA cores, unpacking
to fp32 and multiplying take 3 instructions a code and more, and Hopper reads codes faster than it could issue them.

**Unpacking** takes 1.2 instructions a code, in bfloat16 1.4: one ``lop3`` puts two codes into the mantissas of two
1024s (bfloat16: 128s), one ``fma`` takes those and the zero points off again. A group's codes less its zero point are
multiplied as the small integers they are, and its scale goes on in fp32 after the dot: weights are not rounded, where
``dense`` rounds each to the dtype of x.

Tensors as stored are dense whatever M is: K-contiguous rows could be read as fast, but their codes would have to
change threads in every tile, or x be gathered one element at a time.

Sums are fp32 and added in a fixed order, without atomics: the same call on the same chip gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import layout

#: Inputs in a K block, and int32 words that hold them.
BLOCK_K = tl.constexpr(layout.BLOCK_K)
WORDS = tl.constexpr(layout.WORDS)

# Two codes of word $2 onto a power of two ($3 masks, $4 is its bits), scaled by $5 and shifted by $6, halves apart.
UNPACK = """{
.reg .b32 pair;
lop3.b32 pair, $2, $3, $4, 0xea;
fma.rn.%s pair, pair, $5, $6;
mov.b32 {$0, $1}, pair;
}"""
REGISTERS = tl.constexpr("=h,=h,r,r,r,r,r")
UNPACK_FP16 = tl.constexpr(UNPACK % "f16x2")
UNPACK_BF16 = tl.constexpr(UNPACK % "bf16x2")


@triton.jit
def _pair(words, zero, PAIR: tl.constexpr, dtype: tl.constexpr):
    """Codes PAIR and PAIR + 4 of each word, less ``zero``, exact in ``dtype``: [rows, 16, 2].

    Args:
        words: [rows, 16] int32.
        zero: [rows, 1] int32, 0 … 15.
    """
    both = zero.to(tl.uint32) * 0x00010001
    if dtype == tl.float16:
        # 1024 + code, or where the code is four bits up in the mantissa, 1024 + 16 · code: a shift saved.
        if PAIR % 2 == 0:
            args = [words >> 4 * PAIR, 0x000F000F, 0x64006400, 0x3C003C00, both + 0xE400E400]  # − (1024 + zero)
        else:
            args = [words >> 4 * PAIR - 4, 0x00F000F0, 0x64006400, 0x2C002C00, both * 16 + 0xD400D400]  # − (64 + zero)
        low, high = tl.inline_asm_elementwise(UNPACK_FP16, REGISTERS, args, (tl.float16, tl.float16), True, 1)
    else:
        args = [words >> 4 * PAIR, 0x000F000F, 0x43004300, 0x3F803F80, both + 0xC300C300]  # 128 + code − (128 + zero)
        low, high = tl.inline_asm_elementwise(UNPACK_BF16, REGISTERS, args, (tl.bfloat16, tl.bfloat16), True, 1)
    return tl.join(low, high)


@triton.jit
def _unpack(words, zero, FIRST: tl.constexpr, PAIRS: tl.constexpr, dtype: tl.constexpr):
    """Codes less zero point of PAIRS pairs of each word from FIRST on: [rows, 32 · PAIRS], pair, word, half in order.

    Args as :func:`_pair`.
    """
    rows: tl.constexpr = words.shape[0]
    if PAIRS == 1:
        tile = _pair(words, zero, FIRST, dtype)
    elif PAIRS == 2:
        tile = tl.join(_pair(words, zero, FIRST, dtype), _pair(words, zero, FIRST + 1, dtype)).permute(0, 3, 1, 2)
    else:
        even = tl.join(_pair(words, zero, 0, dtype), _pair(words, zero, 2, dtype))
        odd = tl.join(_pair(words, zero, 1, dtype), _pair(words, zero, 3, dtype))
        tile = tl.join(even, odd).permute(0, 3, 4, 1, 2)
    return tile.reshape(rows, 32 * PAIRS)


@triton.jit
def _zero(zero_ptr, offset):
    """int32 zero points at ``offset``; 8 without ``zero_ptr``."""
    # Nothing but a load, or the compiler would not move the codes to the dot's layout before they are unpacked.
    return tl.full((1, 1), 8, tl.int32) if zero_ptr is None else tl.load(zero_ptr + offset)


@triton.jit(do_not_specialize=["m", "n"], do_not_specialize_on_alignment=["blocks"])
def gemv_kernel(
    x_ptr,
    packed_ptr,
    scale_ptr,
    zero_ptr,
    bias_ptr,
    y_ptr,
    m,
    n,
    k,
    x_stride,
    blocks,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
    GROUPS: tl.constexpr,
    N_UNIT: tl.constexpr,
):
    """A tile of y, each warp with its own K blocks.

    A dot with a batch dimension gives every warp matrices of its own: the batch is LANES K blocks of the same rows.
    Grid: tiles of rows of W, tiles of tokens.

    Args:
        x_ptr: [m, k], unit stride along k.
        packed_ptr, scale_ptr, zero_ptr: in the layout :data:`~.layout.K_BLOCKS`; the last may be None.
        bias_ptr: [n] or None.
        y_ptr: [m, n].
        n: in units of N_UNIT, which is 1 or the 16 of :data:`.launch.UNIT`.
        k, x_stride: multiples of 16.
        blocks: K blocks in a group.
        LANES: the number of warps.
        GROUPS: groups in a K block; this or ``blocks`` is 1.
    """
    GROUP: tl.constexpr = BLOCK_K // GROUPS
    n = n * N_UNIT
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, LANES)
    last_block = tl.cdiv(k, BLOCK_K) - 1
    last_group = tl.cdiv(k, GROUP * blocks) - 1
    # What lies past an edge of W is read from the edge instead: it is not stored, or multiplies zeros.
    inside = tl.minimum(row, n - 1)
    packed_ptr += inside[None, :, None] * WORDS + tl.arange(0, WORDS)[None, None, :]
    x_ptr += token.to(tl.int64)[None, None, :] * x_stride

    total = tl.zeros((LANES, BLOCK_N, BLOCK_M), tl.float32)
    group = tl.minimum(lane * GROUPS // blocks, last_group)
    next_scale = tl.load(scale_ptr + group[:, None] * n + inside[None, :])
    for first in range(0, last_block + 1, LANES):
        block = tl.minimum(first + lane, last_block)[:, None, None]
        words = tl.load(packed_ptr + block * (n * WORDS)).reshape(LANES * BLOCK_N, WORDS)
        for part in tl.static_range(GROUPS):
            group = tl.minimum((first + lane) * GROUPS // blocks + part, last_group)
            zero = _zero(zero_ptr, group[:, None] * n + inside[None, :])
            # One group ahead: the compiler loads ahead of time only what a dot reads.
            scale = next_scale
            group = (first + (part + 1) // GROUPS * LANES + lane) * GROUPS // blocks + (part + 1) % GROUPS
            next_scale = tl.load(scale_ptr + tl.minimum(group, last_group)[:, None] * n + inside[None, :])
            column = (first + lane)[:, None, None] * BLOCK_K + (tl.arange(0, GROUP) + part * GROUP)[None, :, None]
            x = tl.load(x_ptr + column, mask=(column < k) & (token < m)[None, None, :], other=0.0)
            zero = zero.reshape(zero.shape[0] * zero.shape[1], 1)
            weight = _unpack(words, zero, part * 4 // GROUPS, 4 // GROUPS, x.dtype).reshape(LANES, BLOCK_N, GROUP)
            total += tl.dot(weight, x) * scale.to(tl.float32)[:, :, None]

    y = tl.sum(total, 0)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + inside).to(tl.float32)[:, None]
    tl.store(y_ptr + token[None, :] * n + row[:, None], y, mask=(token < m)[None, :] & (row < n)[:, None])


@triton.jit(do_not_specialize=["m", "n"], do_not_specialize_on_alignment=["blocks"])
def gemm_kernel(
    x_ptr,
    packed_ptr,
    scale_ptr,
    zero_ptr,
    bias_ptr,
    y_ptr,
    m,
    n,
    k,
    x_stride,
    blocks,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUPS: tl.constexpr,
    N_UNIT: tl.constexpr,
):
    """A tile of y, or its sum over one split of the K blocks.

    Grid: tiles of rows of W, tiles of tokens, splits.

    Args:
        y_ptr: [splits, m, n]; fp32 and without bias when there are several splits.
        others: see :func:`gemv_kernel`.
    """
    GROUP: tl.constexpr = BLOCK_K // GROUPS
    n = n * N_UNIT
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    last_block = tl.cdiv(k, BLOCK_K) - 1
    last_group = tl.cdiv(k, GROUP * blocks) - 1
    span = tl.cdiv(last_block + 1, tl.num_programs(2))
    start = tl.program_id(2) * span
    # What lies past an edge is read from the edge instead: it is not stored.
    inside = tl.minimum(row, n - 1)
    packed_ptr += inside[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    x_ptr += tl.minimum(token, m - 1).to(tl.int64)[None, :] * x_stride

    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    next_scale = tl.load(scale_ptr + tl.minimum(start * GROUPS // blocks, last_group) * n + inside)
    for block in range(start, tl.minimum(start + span, last_block + 1)):
        words = tl.load(packed_ptr + block * (n * WORDS))
        for part in tl.static_range(GROUPS):
            group = tl.minimum(block * GROUPS // blocks + part, last_group)
            zero = _zero(zero_ptr, group * n + inside[:, None])
            scale = next_scale
            group = (block + (part + 1) // GROUPS) * GROUPS // blocks + (part + 1) % GROUPS
            next_scale = tl.load(scale_ptr + tl.minimum(group, last_group) * n + inside)
            column = (tl.arange(0, GROUP) + block * BLOCK_K + part * GROUP)[:, None]
            x = tl.load(x_ptr + column, mask=column < k, other=0.0)
            weight = _unpack(words, zero, part * 4 // GROUPS, 4 // GROUPS, x.dtype)
            total += tl.dot(weight, x) * scale.to(tl.float32)[:, None]

    if bias_ptr is not None:
        total += tl.load(bias_ptr + inside).to(tl.float32)[:, None]
    y_ptr += tl.program_id(2) * m * n
    tl.store(y_ptr + token[None, :] * n + row[:, None], total, mask=(token < m)[None, :] & (row < n)[:, None])


@triton.jit(do_not_specialize=["m", "n"])
def reduce_kernel(
    partial_ptr,
    bias_ptr,
    y_ptr,
    m,
    n,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    N_UNIT: tl.constexpr,
):
    """``y = Σ_s partial[s] + bias``, in order.

    Args:
        partial_ptr: [SPLITS, m, n] float32.
        bias_ptr: [n] or None.
        y_ptr: [m, n].
        n, N_UNIT: see :func:`gemv_kernel`.
    """
    n = n * N_UNIT
    count = m * n
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < count
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial_ptr + split * count + offset, mask=inside, other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + offset % n, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + offset, total, mask=inside)


@triton.jit(do_not_specialize=["n", "k", "group_size"])
def dequantize_kernel(
    packed_ptr,
    scale_ptr,
    zero_ptr,
    weight_ptr,
    n,
    k,
    group_size,
    BLOCK_N: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    N_UNIT: tl.constexpr,
    K_UNIT: tl.constexpr,
    PREPACKED: tl.constexpr,
):
    """``(code − zero) · scale``, rounded once to the result's dtype: any group size, from either layout.

    Every element reads its own word, scale and zero point: neighbours share them in cache, and writing takes longer.
    Grid: tiles of rows, of columns.

    Args:
        packed_ptr, scale_ptr, zero_ptr: in the layout :data:`~.layout.K_BLOCKS` if PREPACKED, else as stored.
        weight_ptr: [n, k].
        n, k: in units of N_UNIT and K_UNIT, each 1 or 16.
    """
    n, k = n * N_UNIT, k * K_UNIT
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    inside = (row < n) & (column < k)
    group = column // group_size
    if PREPACKED:
        position = column % BLOCK_K
        word = (column // BLOCK_K * n + row) * WORDS + position % 32 // 2
        shift = position // 32 * 4 + position % 2 * 16
        scale_at = group * n + row
        zero_at, zero_shift = scale_at, 0
    else:
        groups = tl.cdiv(k, group_size)
        word, shift = row * tl.cdiv(k, 8) + column // 8, column % 8 * 4
        scale_at = row * groups + group
        zero_at, zero_shift = row // 8 * groups + group, row % 8 * 4
    code = tl.load(packed_ptr + word, mask=inside, other=0) >> shift & 15
    scale = tl.load(scale_ptr + scale_at, mask=inside, other=0)
    zero = 8
    if zero_ptr is not None:
        zero = tl.load(zero_ptr + zero_at, mask=inside, other=0) >> zero_shift & 15
    weight = (code - zero) * scale.to(tl.float32)
    tl.store(weight_ptr + row.to(tl.int64) * k + column, weight, mask=inside)
