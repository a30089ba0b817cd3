"""A peer of ``group_quantize`` on a GPU: GPTQ's sweep, fused as in llm-compressor.

The Hessian is inverted (Cholesky, inverse, Cholesky); then a kernel walks the 128 columns of a block with 16 rows of
the weight in registers, and a matrix product updates the columns after them. Scales are fixed beforehand, from the
original weights. Layers of one shape are processed together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tarq.kernels.group_quantize.reference import all_group_scales
from tarq.kernels.scheme import Scheme

BLOCK, ROWS = 128, 16


@triton.jit
def block_kernel(
    work_ptr, inverse_ptr, scale_ptr, error_ptr, m, n, first, most, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """Round the columns of a block one by one and compensate each one's error in those to its right.

    Grid: tiles of rows, layers.

    Args:
        work_ptr: [layers, m, n] float32 weights; rounded in place.
        inverse_ptr: [layers, n, n] float32, U with H⁻¹ = Uᵀ U.
        scale_ptr: [layers, m, n / BLOCK] float32.
        error_ptr: [layers, m, BLOCK] float32: errors over the diagonal of U.
        first: first column, a multiple of BLOCK.
        most: codes are −most … most − 1.
    """
    layer = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, column = row < m, tl.arange(0, BLOCK)
    work_ptr += layer * m * n + first
    inverse_ptr += layer * n * n + first * n + first
    scale = tl.load(scale_ptr + (layer * m + row) * (n // BLOCK) + first // BLOCK, mask=inside, other=1.0)
    at = row[:, None] * n + column[None, :]
    work = tl.load(work_ptr + at, mask=inside[:, None], other=0.0)
    errors = tl.zeros((ROWS, BLOCK), tl.float32)
    for j in range(BLOCK):
        mine = column[None, :] == j
        weight = tl.sum(tl.where(mine, work, 0.0), 1)
        code = tl.floor(tl.clamp(weight / scale, -1.0 * most, most - 1.0) + 0.5)
        error = (weight - code * scale) / tl.load(inverse_ptr + j * n + j)
        later = tl.load(inverse_ptr + j * n + column)
        work = tl.where(mine, (code * scale)[:, None], work)
        work -= tl.where(column[None, :] > j, error[:, None] * later[None, :], 0.0)
        errors = tl.where(mine, error[:, None], errors)
    tl.store(work_ptr + at, work, mask=inside[:, None])
    tl.store(error_ptr + (layer * m + row[:, None]) * BLOCK + column[None, :], errors, mask=inside[:, None])


def fused_sweep(weights: Tensor, hessians: Tensor) -> Tensor:
    """Rounded weights of layers of one shape: 4 bits, symmetric, groups of 128.

    Args:
        weights: [layers, m, n] float32, n a multiple of 128.
        hessians: [layers, n, n] float32, damped.

    Returns:
        [layers, m, n] float32.
    """
    layers, m, n = weights.shape
    lower = torch.linalg.cholesky(hessians)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).contiguous()
    scales, _ = all_group_scales(weights.reshape(layers * m, n), Scheme(), torch.float32)
    work, errors = weights.clone(), weights.new_empty(layers, m, BLOCK)
    for first in range(0, n, BLOCK):
        end = first + BLOCK
        block_kernel[(-(-m // ROWS), layers)](work, inverse, scales, errors, m, n, first, 8, BLOCK=BLOCK, ROWS=ROWS)
        work[:, :, end:] -= errors @ inverse[:, first:end, end:]
    return work
