"""Cases of ``gram``: one Gram matrix, one cross product, and the four sums RareBAL and the residual want.

Peers: torch's matmul of the same rows (what llm-compressor and GPTQModel do, in float32), in bfloat16 too where the
rows are bfloat16; against the four sums, the two products that a plain metric wants.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..kernels.gram import gram, gram_sides
from .measure import Case

SHAPES = ((3000, 1280), (1500, 5120))  # rows, inputs
QUICK_SHAPES = ((1500, 1280),)
TAIL = 0.07  # share of the rows


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
            ours={"symmetric": lambda _, x=x: gram(x)},
            peers={"torch XᵀX": lambda _, x=x: x.T @ x},
            bytes=x.nbytes + size,
            flops={"symmetric": ("float32", triangle)},
        )
        yield Case(
            op="gram",
            shape=(rows, n),
            dtype="bfloat16",
            ours={"symmetric": lambda _, x=half: gram(x)},
            peers={
                "torch XᵀX of float32 copies": lambda _, x=half: x.float().T @ x.float(),
                "torch XᵀX in bfloat16 (rounded)": lambda _, x=half: x.T @ x,
            },
            bytes=half.nbytes + size,
            flops={"symmetric": ("bfloat16", triangle)},
        )
        yield Case(
            op="gram",
            shape=(rows, n),
            dtype="float32",
            ours={"cross": lambda _, x=x, y=difference: gram(x, y)},
            peers={"torch YᵀX": lambda _, x=x, y=difference: y.T @ x},
            bytes=2 * x.nbytes + size,
            flops={"cross": ("float32", square)},
        )
        yield Case(
            op="gram, four sums",
            shape=(rows, n),
            dtype="float32",
            ours={
                "both sides, both products": lambda _, x=x, y=difference, tail=tail: (
                    gram_sides(x, tail),
                    gram_sides(x, tail, y),
                )
            },
            peers={"torch XᵀX and YᵀX": lambda _, x=x, y=difference: (x.T @ x, y.T @ x)},
            bytes=2 * x.nbytes + 4 * size,
            flops={"both sides, both products": ("float32", triangle + square)},
        )
