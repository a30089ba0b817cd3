"""The order in which the Triton kernels read a packed weight. Plain PyTorch: it needs neither Triton nor a GPU.

A K block is 128 inputs of a row, 16 words. Code ``i`` of its word ``w`` is input ``32·(i % 4) + 2·w + i // 4`` of the
block (as stored: ``8·w + i``). So codes ``s`` and ``s + 4`` of a word, which one ``lop3`` extracts, are the neighbours
that share a register of an operand, no value has to change threads, and x is read in its own order. Codes ``s`` and
``s + 4`` of all 16 words are 32 consecutive inputs: groups of 32 and 64 are whole pairs. The words of a block lie
together for all rows, and so do the scales and zero points of a group: a tile reads one stretch of memory of each,
words in 128-bit loads.
"""

from __future__ import annotations

import torch

from ...triton_runtime import aligned
from ..packing import pack, pack_zeros, unpack, unpack_zeros
from ..weight import STORED, PackedWeight

#: Name of the layout.
K_BLOCKS = "triton"

#: Inputs in a K block, which is what a warp or a program multiplies at once; int32 words that hold them.
BLOCK_K, WORDS = 128, 16


def prepack(weight: PackedWeight) -> PackedWeight:
    """Reorder a 4-bit weight for the kernels; to be done once, when it is loaded. Waits for the device.

    Args:
        weight: of the layout ``stored``; K is padded to whole blocks with codes of zero.

    Returns:
        The same weight, all its tensors contiguous and aligned for vector loads:

        - ``packed`` int32 [ceil(K/128), N, 16]
        - ``scale`` [G, N]
        - ``zeros`` int32 [G, N], one each; or None: zero point 8
        - ``bias`` as it was

    Raises:
        ValueError: the weight is not sound (:meth:`~tarq.kernels.w4_linear.PackedWeight.check`).
    """
    weight.check()
    n, words = weight.packed.shape
    padded = torch.nn.functional.pad(weight.packed, (0, -words % WORDS))
    # The codes of a block come as (pair, word, half), in the order of the inputs.
    codes = unpack(padded, 4, 8 * padded.shape[1]).reshape(n, -1, 4, WORDS, 2)
    packed = pack(codes.permute(0, 1, 3, 4, 2).reshape(n, -1), 4).reshape(n, -1, WORDS)
    zeros = None if weight.zeros is None else aligned(unpack_zeros(weight.zeros, 4, n).int().T)
    bias = None if weight.bias is None else aligned(weight.bias)
    return weight._replace(
        packed=aligned(packed.transpose(0, 1)), scale=aligned(weight.scale.T), zeros=zeros, bias=bias, layout=K_BLOCKS
    )


def unprepack(weight: PackedWeight) -> PackedWeight:
    """Undo :func:`prepack`."""
    blocks, n, words = weight.packed.shape
    packed = weight.packed.transpose(0, 1).reshape(n, blocks * words)
    codes = unpack(packed, 4, blocks * BLOCK_K).reshape(n, blocks, words, 2, 4)
    codes = codes.permute(0, 1, 4, 2, 3).reshape(n, -1)[:, : weight.in_features]
    zeros = None if weight.zeros is None else pack_zeros(weight.zeros.T.to(torch.uint8), 4)
    return weight._replace(packed=pack(codes, 4), scale=weight.scale.T.contiguous(), zeros=zeros, layout=STORED)


def groups_of(in_features: int, group_size: int) -> tuple[int, int] | None:
    """Groups in a K block and K blocks in a group, one of them 1; None where groups and blocks do not fit."""
    if group_size % BLOCK_K == 0:
        return 1, group_size // BLOCK_K
    if group_size >= in_features:
        return 1, -(-in_features // BLOCK_K)
    return (BLOCK_K // group_size, 1) if group_size in (32, 64) else None
