"""``w4_linear`` on CUDA: Triton kernels that read the packed weights once and unpack them in registers.

    few tokens   gemv: a program owns some rows of W, its warps share out K and add up in shared memory
    more         gemm: tiles on the tensor cores; K is split over programs where tiles alone leave SMs idle, ``reduce``
    many         dense: ``dequantize`` to a scratch tensor, then the library

Which of them, and with which tiles, :func:`choose` reads from ``regimes.json`` by M, N and compute capability.

**W is the left operand.** The kernels compute ``yᵀ = W xᵀ``: mma.sync and wgmma take their left operand from the
registers where W is unpacked, and the tokens are the side of a tile that may be as narrow as 8 (one token is padded to
8 in registers, which costs nothing but idle multipliers). Tensor cores even for one token: with CUDA cores, unpacking
to fp32 and multiplying take 3 instructions a code and more, and Hopper reads codes faster than it could issue them.

**Unpacking** takes 1.2 instructions a code, in bfloat16 1.4: one ``lop3`` puts two codes into the mantissas of two
1024s (bfloat16: 128s), one ``fma`` takes those and the zero points off again. A group's codes less its zero point are
multiplied as the small integers they are, and its scale goes on in fp32 after the dot: weights are not rounded, where
``dense`` rounds each to the dtype of x.

**Prepacked layout** (:func:`prepack`). A K block is 128 inputs of a row, 16 words. Code ``i`` of its word ``w`` is
input ``32·(i % 4) + 2·w + i // 4`` of the block (on disk: ``8·w + i``). So codes ``s`` and ``s + 4`` of a word, which
one ``lop3`` extracts, are the neighbours that share a register of an operand, no value has to change threads, and x is
read in its own order. Codes ``s`` and ``s + 4`` of all 16 words are 32 consecutive inputs: groups of 32 and 64 are
whole pairs. The words of a block lie together for all rows, and so do the scales and zero points of a group: a tile
reads one stretch of memory of each, words in 128-bit loads.

Tensors as on disk are dense whatever M is: K-contiguous rows could be read as fast, but their codes would have to
change threads in every tile, or x be gathered one element at a time.

Sums are fp32 and added in a fixed order, without atomics: the same call on the same chip gives the same bits.

**Overlap** (a plan's ``overlap``, compute capability 9.0 and later). A layer of Whisper's decoder takes no longer than
the launch of a kernel. Launched dependently on the kernel before it, a kernel starts while that one ends, has its first
weights fetched to L2, and only then waits for what it reads as x.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .packing import pack, pack_zeros, unpack, unpack_zeros

#: Inputs in a K block, which is what a warp or a program multiplies at once.
BLOCK_K = tl.constexpr(128)

#: int32 words that hold them.
WORDS = tl.constexpr(16)

#: Fewest K blocks worth a program of their own: its partial sums cost about as much traffic as one block.
MIN_SPLIT_BLOCKS = 2

#: What a size (of elements) and a pointer (in bytes) must be multiples of for vector loads and stores. Were it left to
#: Triton to specialize on each of them, a kernel would have dozens of forms, each compiled when a call asks for it.
UNIT, ALIGNMENT = 16, 16

#: What activations, scales and biases may be, and what codes and zero points are: for a message and as dtypes.
FLOATS = "float32, bfloat16 or float16", (torch.float32, torch.bfloat16, torch.float16)
WORDS_OF_CODES = "int32", (torch.int32,)

#: K blocks of its rows that a program has fetched to L2 while it waits for the kernel before.
AHEAD = tl.constexpr(16)

#: Elements written by a program of `reduce_kernel`; rows and columns by one of `dequantize_kernel`, and its warps (with
#: four the assembler spills).
REDUCE_BLOCK, DEQUANTIZE_BLOCK, DEQUANTIZE_WARPS = 512, (16, 128), 8

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


# ---- layout ------------------------------------------------------------------------------------------------


class Prepacked(NamedTuple):
    """The weight tensors of a layer as the kernels read them, contiguous.

    - ``weight_packed`` int32 [ceil(K/128), N, 16]
    - ``weight_scale`` [G, N]
    - ``weight_zero_point`` int32 [G, N], one each; or None: zero point 8
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None


def prepack(weight_packed: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None) -> Prepacked:
    """Reorder a layer for the kernels; to be done once, when it is loaded. Waits for the device.

    Args:
        weight_packed: int32 [N, ceil(K/8)], the layout on disk; K is padded to whole blocks with codes of zero.
        weight_scale: [N, G].
        weight_zero_point: int32 [ceil(N/8), G] or None.
    """
    n, words = weight_packed.shape
    padded = torch.nn.functional.pad(weight_packed, (0, -words % WORDS.value))
    # The codes of a block come as (pair, word, half), in the order of the inputs.
    codes = unpack(padded, 4, 8 * padded.shape[1]).reshape(n, -1, 4, WORDS.value, 2)
    packed = pack(codes.permute(0, 1, 3, 4, 2).reshape(n, -1), 4).reshape(n, -1, WORDS.value)
    zero = None if weight_zero_point is None else unpack_zeros(weight_zero_point, 4, n).int()
    return Prepacked(
        packed.transpose(0, 1).contiguous(),
        weight_scale.T.contiguous(),
        None if zero is None else zero.T.contiguous(),
    )


def unprepack(prepacked: Prepacked, in_features: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Undo :func:`prepack`: ``weight_packed``, ``weight_scale`` and ``weight_zero_point`` as on disk."""
    blocks, n, words = prepacked.weight_packed.shape
    packed = prepacked.weight_packed.transpose(0, 1).reshape(n, blocks * words)
    codes = unpack(packed, 4, blocks * BLOCK_K.value).reshape(n, blocks, words, 2, 4)
    codes = codes.permute(0, 1, 4, 2, 3).reshape(n, -1)[:, :in_features]
    zero = prepacked.weight_zero_point
    return (
        pack(codes, 4),
        prepacked.weight_scale.T.contiguous(),
        None if zero is None else pack_zeros(zero.T.to(torch.uint8), 4),
    )


# ---- choice ------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How a product is computed.

    - ``kernel``: ``gemv``, ``gemm`` or ``dense``, which has no other fields
    - ``block_m``, ``block_n``: tokens and rows of W of a tile
    - ``warps``, ``stages``: of a program, as Triton's ``num_warps`` and ``num_stages``
    - ``split_k``: programs that share the K blocks of a tile of ``gemm``, a power of two
    - ``overlap``: launched dependently on the kernel before
    - ``registers``: at most, for each thread, where the assembler, left to itself, spills some to have room for one
      more program
    """

    kernel: str
    block_m: int = 0
    block_n: int = 0
    warps: int = 0
    stages: int = 0
    split_k: int = 1
    overlap: bool = False
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """What Triton compiles a program of ``gemv`` or ``gemm`` with."""
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


DENSE = Plan("dense")

#: Regimes in rising order of ``max_m`` by compute capability (``"90"``), and whether they were measured or estimated.
TABLE: dict[str, dict] = json.loads(Path(__file__).with_name("regimes.json").read_text())


def regimes(capability: tuple[int, int]) -> list[dict]:
    """The regimes of a chip: of the newest capability in the table that is no newer; none before 8.0."""
    known = [int(key) for key in TABLE if int(key) <= 10 * capability[0] + capability[1]]
    return TABLE[str(max(known))]["regimes"] if known else []


@lru_cache(maxsize=4096)
def choose(m: int, n: int, k: int, capability: tuple[int, int], sm_count: int, groups: int = 1) -> Plan:
    """The plan for ``[m, k] · [n, k]ᵀ``: what :func:`pick` says of the first regime with ``m ≤ max_m``.

    Dense beyond the last regime, and where ``groups > max_groups``: each takes a sum of its own, for which the
    registers may not suffice.

    Args:
        m, n, k: tokens, outputs, inputs.
        capability: compute capability of the chip, ``(9, 0)``; before 8.0 everything is dense.
        sm_count: its streaming multiprocessors.
        groups: groups in a K block.
    """
    regime = next((regime for regime in regimes(capability) if m <= regime["max_m"]), None)
    if regime is None or groups > regime["max_groups"]:
        return DENSE
    return pick(regime, m, n, k, sm_count)


def pick(regime: dict, m: int, n: int, k: int, sm_count: int) -> Plan:
    """The plan of a regime for ``[m, k] · [n, k]ᵀ``.

    Its tiles go from wide to narrow: wide ones read x less often, narrow ones make more programs. The first that makes
    ``programs_per_sm`` is taken, or else the last, and if that is one of ``gemm`` its K is split until there are as
    many, at most ``max_split_k`` times.
    """
    wanted = regime["programs_per_sm"] * sm_count
    plans = [Plan(**tile) for tile in regime["tiles"]]
    programs = [-(-n // plan.block_n) * -(-m // plan.block_m) for plan in plans]
    index = next((i for i, count in enumerate(programs) if count >= wanted), len(plans) - 1)
    most = 1
    if plans[index].kernel == "gemm":
        most = min(regime["max_split_k"], -(-k // BLOCK_K.value) // MIN_SPLIT_BLOCKS)
    split = 1
    while split * 2 <= most and programs[index] * split < wanted:
        split *= 2
    return plans[index]._replace(split_k=split)


# ---- kernels -----------------------------------------------------------------------------------------------


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


@triton.jit
def _overlap(packed_ptr, first_row, n, first_block, last_block, BLOCK_N: tl.constexpr):
    """Let the kernel behind start, have the first weights fetched to L2, and wait for the kernel before."""
    tl.extra.cuda.gdc_launch_dependents()
    block = tl.minimum(first_block + tl.arange(0, AHEAD), last_block)
    row = tl.minimum(first_row + 2 * tl.arange(0, BLOCK_N // 2), n - 1)  # 64 bytes each: two a line
    line = packed_ptr + (block[:, None] * n + row[None, :]) * WORDS
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [line], tl.int32, False, 1)
    tl.extra.cuda.gdc_wait()


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
    OVERLAP: tl.constexpr,
):
    """A tile of y, each warp with its own K blocks.

    A dot with a batch dimension gives every warp matrices of its own: the batch is LANES K blocks of the same rows.
    Grid: tiles of rows of W, tiles of tokens.

    Args:
        x_ptr: [m, k], unit stride along k.
        packed_ptr, scale_ptr, zero_ptr: a :class:`Prepacked`; the last may be None.
        bias_ptr: [n] or None.
        y_ptr: [m, n].
        n: in units of N_UNIT, which is 1 or :data:`UNIT`.
        k, x_stride: multiples of :data:`UNIT`.
        blocks: K blocks in a group.
        LANES: the number of warps.
        GROUPS: groups in a K block; this or ``blocks`` is 1.
        OVERLAP: launched dependently on the kernel before.
    """
    GROUP: tl.constexpr = BLOCK_K // GROUPS
    n = n * N_UNIT
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, LANES)
    last_block = tl.cdiv(k, BLOCK_K) - 1
    last_group = tl.cdiv(k, GROUP * blocks) - 1
    if OVERLAP:
        _overlap(packed_ptr, tl.program_id(0) * BLOCK_N, n, 0, last_block, BLOCK_N)
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
    OVERLAP: tl.constexpr,
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
    if OVERLAP:
        _overlap(packed_ptr, tl.program_id(0) * BLOCK_N, n, start, last_block, BLOCK_N)
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
    OVERLAP: tl.constexpr,
):
    """``y = Σ_s partial[s] + bias``, in order.

    Args:
        partial_ptr: [SPLITS, m, n] float32.
        bias_ptr: [n] or None.
        y_ptr: [m, n].
        n, N_UNIT: see :func:`gemv_kernel`.
        OVERLAP: launched dependently on the kernel that writes the partial sums.
    """
    n = n * N_UNIT
    count = m * n
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
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
        packed_ptr, scale_ptr, zero_ptr: a :class:`Prepacked` if PREPACKED, else as on disk.
        weight_ptr: [n, k].
        n, k: in units of N_UNIT and K_UNIT, each 1 or :data:`UNIT`.
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


# ---- launch ------------------------------------------------------------------------------------------------


def w4_linear_cuda(
    x: Tensor,
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    group_size: int,
    *,
    plan: Plan | None = None,
) -> Tensor:
    """``y = x · Wᵀ + bias`` on a GPU; see :func:`~tarq.kernels.w4_linear.w4_linear`.

    Nothing waits for the device and every shape follows from the arguments' shapes: CUDA graphs can capture it.

    Args:
        x: float32, bfloat16 or float16 [..., K], any strides; copied where its rows are not vectors: columns side by
            side, K and the stride between rows multiples of 16, the first at a multiple of 16 bytes. Other tensors are
            copied where they are not contiguous from a multiple of 16 bytes on.
        weight_packed, weight_scale, weight_zero_point: a :class:`Prepacked`, or the tensors as on disk, which are dense
            whatever M is. They are told apart by the dimensions of ``weight_packed``, 3 or 2.
        bias: [N] or None.
        in_features: K.
        group_size: others than 32, 64 and multiples of 128 are dense, unless one group is all of K.
        plan: in place of what :func:`choose` says, where the layout, group size and dtype allow another than dense.

    Returns:
        [..., N], contiguous, in the dtype of ``x``. float32 is always dense.

    Raises:
        RuntimeError: a tensor's shape, dtype or device does not fit; the message names it.
    """
    _check(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size)
    n, k = weight_packed.shape[-2], in_features
    y = x.new_empty((*x.shape[:-1], n))
    if y.numel() == 0:
        return y
    packed, scale = _aligned(weight_packed), _aligned(weight_scale)
    zero = None if weight_zero_point is None else _aligned(weight_zero_point)
    bias = None if bias is None else _aligned(bias)
    groups = None if packed.dim() == 2 or x.dtype == torch.float32 else _groups(k, group_size)
    with torch.cuda.device_of(x) if x.is_cuda else nullcontext():
        if groups is None:
            plan = DENSE
        elif plan is None:
            plan = choose(y.numel() // n, n, k, *_chip(x.device), groups[0])
        if groups is None or plan.kernel == "dense":
            weight = _dequantize(packed, scale, zero, k, group_size, x.dtype)
            with torch.autocast(x.device.type, enabled=False):
                return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        _launch(_vectors(x.reshape(-1, k)), packed, scale, zero, bias, y, groups, plan)
    return y


def _check(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    k: int,
    group_size: int,
) -> None:
    """Raise RuntimeError, which names it, where a tensor does not fit: the kernels would read and write past it."""
    if k <= 0 or group_size <= 0:
        name, value = ("in_features", k) if k <= 0 else ("group_size", group_size)
        raise RuntimeError(f"w4_linear: {name} must be positive, not {value}")
    if x.dim() == 0 or x.shape[-1] != k:
        raise RuntimeError(
            f"w4_linear: the last dimension of x must be in_features = {k}, but x has shape {list(x.shape)}"
        )
    if packed.dim() not in (2, 3):
        raise RuntimeError(
            f"w4_linear: weight_packed must have two dimensions, or three prepacked, not shape {list(packed.shape)}"
        )
    n, groups, words = packed.shape[-2], -(-k // group_size), -(-k // 8)
    shapes: tuple[tuple[int, ...], ...] = (n, words), (n, groups), (-(-n // 8), groups)
    if packed.dim() == 3:
        shapes = (-(-words // WORDS.value), n, WORDS.value), (groups, n), (groups, n)
    device = x.device
    for name, tensor, shape, (wanted, dtypes) in (
        ("x", x, x.shape, FLOATS),
        ("weight_packed", packed, shapes[0], WORDS_OF_CODES),
        ("weight_scale", scale, shapes[1], FLOATS),
        ("weight_zero_point", zero, shapes[2], WORDS_OF_CODES),
        ("bias", bias, (n,), FLOATS),
    ):
        if tensor is None:
            continue
        if tensor.dtype not in dtypes:
            raise RuntimeError(f"w4_linear: {name} must be {wanted}, not {tensor.dtype}")
        if tensor.device != device:
            raise RuntimeError(f"w4_linear: {name} is on {tensor.device} but x is on {device}; move one of them")
        if tensor.shape != shape:
            raise RuntimeError(f"w4_linear: {name} must have shape {list(shape)}, not {list(tensor.shape)}")


def _launch(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    y: Tensor,
    groups: tuple[int, int],
    plan: Plan,
) -> None:
    """Write ``x`` times W to ``y`` with the kernel that ``plan`` names.

    Args:
        x: from :func:`_vectors`; other tensors from :func:`_aligned`.
        groups: from :func:`_groups`.
    """
    (m, k), n, split = x.shape, packed.shape[1], plan.split_k
    out = y if split == 1 else y.new_empty((split, m, n), dtype=torch.float32)
    n_unit = _unit(n)
    kernel, own = (gemv_kernel, {"LANES": plan.warps}) if plan.kernel == "gemv" else (gemm_kernel, {})
    dependent = {"launch_pdl": True} if plan.overlap else {}
    kernel[(-(-n // plan.block_n), -(-m // plan.block_m), split)](
        x,
        packed,
        scale,
        zero,
        bias if split == 1 else None,
        out,
        m,
        n // n_unit,
        k,
        x.stride(0),
        groups[1],
        BLOCK_M=plan.block_m,
        BLOCK_N=plan.block_n,
        GROUPS=groups[0],
        N_UNIT=n_unit,
        OVERLAP=plan.overlap,
        **plan.options,
        **own,
        **dependent,
    )
    if split > 1:
        reduce_kernel[(-(-m * n // REDUCE_BLOCK),)](
            out,
            bias,
            y,
            m,
            n // n_unit,
            SPLITS=split,
            BLOCK=REDUCE_BLOCK,
            N_UNIT=n_unit,
            OVERLAP=plan.overlap,
            **dependent,
        )


def _dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor | None, k: int, group_size: int, dtype: torch.dtype
) -> Tensor:
    """W [N, K] in ``dtype``."""
    n = packed.shape[-2]
    weight = scale.new_empty((n, k), dtype=dtype)
    block_n, block_columns = DEQUANTIZE_BLOCK
    n_unit, k_unit = _unit(n), _unit(k)
    dequantize_kernel[(-(-n // block_n), -(-k // block_columns))](
        packed,
        scale,
        zero,
        weight,
        n // n_unit,
        k // k_unit,
        group_size,
        BLOCK_N=block_n,
        BLOCK_COLUMNS=block_columns,
        N_UNIT=n_unit,
        K_UNIT=k_unit,
        PREPACKED=packed.dim() == 3,
        num_warps=DEQUANTIZE_WARPS,
    )
    return weight


def _unit(size: int) -> int:
    """What a kernel counts a size in."""
    return 1 if size % UNIT else UNIT


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor if it is contiguous and starts where vector loads may, else a copy that does."""
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _vectors(x: Tensor) -> Tensor:
    """``x`` [M, K] if its rows can be read as vectors, else a copy that can, zeros behind its columns."""
    (m, k), (stride, step) = x.shape, x.stride()
    if step == 1 and (k | stride) % UNIT == 0 and x.data_ptr() % ALIGNMENT == 0:
        return x
    rows = x.new_zeros(m, -(-k // UNIT) * UNIT)
    rows[:, :k] = x
    return rows


@lru_cache(maxsize=256)
def _groups(k: int, group_size: int) -> tuple[int, int] | None:
    """Groups in a K block and K blocks in a group, one of them 1; None where groups and blocks do not fit."""
    block = BLOCK_K.value
    if group_size % block == 0:
        return 1, group_size // block
    if group_size >= k:
        return 1, -(-k // block)
    return (block // group_size, 1) if group_size in (32, 64) else None


@lru_cache(maxsize=64)
def _chip(device: torch.device) -> tuple[tuple[int, int], int]:
    """Compute capability and number of SMs; an H200's where the kernels are interpreted."""
    if device.type != "cuda":
        return (9, 0), 132
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


# ---- ahead of time -----------------------------------------------------------------------------------------


class Variant(NamedTuple):
    """What a kernel is specialized for besides its tile.

    - ``dtype``, ``scale``: of x, of the scales
    - ``groups``: in a K block
    - ``asymmetric``: zero points other than 8
    - ``partial``: partial sums in place of a result, where K can be split; without a bias
    - ``bias``: its dtype, or None
    - ``blocks``: K blocks in a group; any number but 1 is the same kernel
    - ``n_unit``: what N is counted in
    """

    dtype: str
    scale: str
    groups: int
    asymmetric: bool
    partial: bool
    bias: str | None = "fp16"
    blocks: int = 1
    n_unit: int = UNIT


ELEMENTS, HALVES = ("bf16", "fp16", "fp32"), ("bf16", "fp16")

#: Together they have every branch of the kernels.
VARIANTS = (
    Variant("fp16", "fp16", 1, True, False, "fp16"),
    Variant("bf16", "bf16", 4, True, False, None),
    Variant("fp16", "fp16", 1, False, True, "fp32", blocks=2, n_unit=1),
)


def _all_variants() -> Iterator[Variant]:
    """All that matters while K is summed, each with the next of the ways to end, which do not depend on it."""
    ends = list(product([(True, None), *((False, bias) for bias in (None, *ELEMENTS))], (UNIT, 1)))
    # Eleven, and dtypes by turns: each dtype meets all ten within the variants of one group a block.
    turns = cycle([*ends, ends[0]])
    loops = product(((1, 1), (1, 2), (2, 1), (4, 1)), ELEMENTS, (True, False), HALVES)
    for ((groups, blocks), scale, asymmetric, dtype), ((partial, bias), n_unit) in zip(loops, turns, strict=False):
        yield Variant(dtype, scale, groups, asymmetric, partial, bias, blocks, n_unit)


ALL_VARIANTS = tuple(_all_variants())


def compilations(
    capability: tuple[int, int], plans: Iterable[Plan] | None = None, variants: Sequence[Variant] = VARIANTS
) -> Iterator[tuple]:
    """Every tile :func:`choose` can pick on a chip, in a few variants, for compiling without one.

    Args:
        capability: of the chip.
        plans: others than those of the table.
        variants: with :data:`ALL_VARIANTS` it is all that a call can ask for, but that a tile is not compiled for
            every bias, unit of N and partial sums with every variant of the loop over K: for each at least once.

    Yields:
        name, kernel, signature, constexprs, attrs, options: the arguments of ``triton.compiler.ASTSource`` (constexprs
        and attrs by ``(argument index,)``) and of ``triton.compile``.
    """
    most_groups: dict[Plan, int] = {} if plans is None else dict.fromkeys(plans, 4)
    most_split = max(regime["max_split_k"] for regime in regimes(capability))
    if plans is None:
        for regime in regimes(capability):
            for tile in regime["tiles"]:
                plan = Plan(**tile)
                most_groups[plan] = max(regime["max_groups"], most_groups.get(plan, 0))
    most_groups.pop(DENSE, None)
    for (plan, most), variant in product(most_groups.items(), variants):
        if variant.groups > most:
            continue
        kernel, constants = gemm_kernel, {"BLOCK_M": plan.block_m, "BLOCK_N": plan.block_n, "GROUPS": variant.groups}
        constants |= {"N_UNIT": variant.n_unit, "OVERLAP": plan.overlap}
        if plan.kernel == "gemv":
            kernel, constants["LANES"] = gemv_kernel, plan.warps
        if variant.blocks == 1:
            constants["blocks"] = 1  # Triton specializes on it
        partial = variant.partial and plan.kernel == "gemm"
        types = {
            "x_ptr": variant.dtype,
            "packed_ptr": "i32",
            "scale_ptr": variant.scale,
            "zero_ptr": "i32" if variant.asymmetric else None,
            "bias_ptr": None if partial else variant.bias,
            "y_ptr": "fp32" if partial else variant.dtype,
        }
        title = f"{plan.kernel} {plan.block_m}x{plan.block_n}"
        yield _compilation(title, kernel, types, constants, plan.options, ("k", "x_stride"))
    for dtype, bias, n_unit in dict.fromkeys((v.dtype, v.bias, v.n_unit) for v in variants):
        types = {"partial_ptr": "fp32", "bias_ptr": bias, "y_ptr": dtype}
        for overlap in {plan.overlap for plan in most_groups if plan.kernel == "gemm"}:
            for split in (2**i for i in range(1, most_split.bit_length())):
                constants = {"SPLITS": split, "BLOCK": REDUCE_BLOCK, "N_UNIT": n_unit, "OVERLAP": overlap}
                yield _compilation("reduce", reduce_kernel, types, constants, {})
    # A float32 x is always dense.
    dense = dict.fromkeys((dtype, v.scale, v.asymmetric, v.n_unit) for v in variants for dtype in (v.dtype, "fp32"))
    for (dtype, scale, asymmetric, n_unit), k_unit, prepacked in product(dense, (UNIT, 1), (True, False)):
        types = {
            "packed_ptr": "i32",
            "scale_ptr": scale,
            "zero_ptr": "i32" if asymmetric else None,
            "weight_ptr": dtype,
        }
        constants = {"BLOCK_N": DEQUANTIZE_BLOCK[0], "BLOCK_COLUMNS": DEQUANTIZE_BLOCK[1]}
        constants |= {"N_UNIT": n_unit, "K_UNIT": k_unit, "PREPACKED": prepacked}
        options = {"num_warps": DEQUANTIZE_WARPS}
        yield _compilation("dequantize", dequantize_kernel, types, constants, options)


def _compilation(
    title: str,
    kernel: triton.JITFunction,
    types: dict[str, str | None],
    constants: dict[str, int],
    options: dict[str, int],
    multiples: Sequence[str] = (),
) -> tuple:
    """An entry of :func:`compilations`, its name the title and everything that tells it from others of this title.

    Args:
        types: of all pointers, None where there is none; other arguments are int32.
        constants: of all constant arguments.
        multiples: arguments that are multiples of :data:`UNIT`, as all pointers are.
    """
    if constants.get("OVERLAP"):
        options = options | {"launch_pdl": True}
    told = [f"{name.removesuffix('_ptr')} {kind}" for name, kind in types.items()]
    told += [f"{name} {value}" for name, value in (constants | options).items()]
    arguments = kernel.arg_names
    pointers = {name: f"*{kind}" for name, kind in types.items() if kind}
    constexprs: dict[str, int | None] = {**dict.fromkeys(types.keys() - pointers.keys()), **constants}
    signature = {name: pointers.get(name, "constexpr" if name in constexprs else "i32") for name in arguments}
    attrs = {(arguments.index(name),): [["tt.divisibility", UNIT]] for name in (*pointers, *multiples)}
    values = {(arguments.index(name),): value for name, value in constexprs.items()}
    return f"{title}: {', '.join(told)}", kernel, signature, values, attrs, options
