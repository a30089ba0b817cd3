"""Cases of ``gram``: one Gram matrix, one cross product, and the four sums RareBAL and the residual want.

Peers: torch's matmul of the same rows (what llm-compressor and GPTQModel do, in float32), in bfloat16 too where the
rows are bfloat16; against the four sums, the two products that a plain metric wants.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..kernels.gram import gram, gram_sides
from .measure import Case, calling

SHAPES = ((3000, 1280), (1500, 5120))  # rows, inputs
QUICK_SHAPES = ((1500, 1280),)
TAIL = 0.07  # share of the rows


def product(y: Tensor, x: Tensor) -> Tensor:
    """Plain ``Yᵀ X`` by torch."""
    return y.T @ x


def upcast(x: Tensor) -> Tensor:
    """``Xᵀ X`` of float32 copies: what keeps float32 sums of 16-bit rows."""
    return x.float().T @ x.float()


def two_products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What a plain metric and residual want."""
    return product(x, x), product(y, x)


def four_sums(x: Tensor, y: Tensor, tail: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Metric and residual of both sides."""
    return gram_sides(x, tail), gram_sides(x, tail, y)


def cases(device: torch.device, *, quick: bool) -> Iterator[Case]:
    """Cases on a device; a quick run keeps to the narrow layer."""
    for rows, n in QUICK_SHAPES if quick else SHAPES:
        x, difference = (torch.randn(rows, n, device=device) for _ in range(2))
        half, tail = x.bfloat16(), torch.rand(rows, device=device) < TAIL
        triangle, square, size = rows * n * (n + 1.0), 2.0 * rows * n * n, 4 * n * n

        yield Case(
            op="gram",
            shape=(rows, n),
            dtype="float32",
            ours={"symmetric": calling(gram, x)},
            peers={"torch XᵀX": calling(product, x, x)},
            bytes=x.nbytes + size,
            flops={"symmetric": ("float32", triangle)},
        )
        yield Case(
            op="gram",
            shape=(rows, n),
            dtype="bfloat16",
            ours={"symmetric": calling(gram, half)},
            peers={
                "torch XᵀX of float32 copies": calling(upcast, half),
                "torch XᵀX in bfloat16 (rounded)": calling(product, half, half),
            },
            bytes=half.nbytes + size,
            flops={"symmetric": ("bfloat16", triangle)},
        )
        yield Case(
            op="gram",
            shape=(rows, n),
            dtype="float32",
            ours={"cross": calling(gram, x, difference)},
            peers={"torch YᵀX": calling(product, difference, x)},
            bytes=2 * x.nbytes + size,
            flops={"cross": ("float32", square)},
        )
        yield Case(
            op="gram, four sums",
            shape=(rows, n),
            dtype="float32",
            ours={"both sides, both products": calling(four_sums, x, difference, tail)},
            peers={"torch XᵀX and YᵀX": calling(two_products, x, difference)},
            bytes=2 * x.nbytes + 4 * size,
            flops={"both sides, both products": ("float32", triangle + square)},
        )
