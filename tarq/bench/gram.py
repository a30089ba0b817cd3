"""Cases of ``gram``: one Gram matrix, plain and with weighted rows, one cross product, and the four sums that RareBAL
and the residual need.

Peers: torch's matmul of the same rows, in float32 (what llm-compressor and GPTQModel do: they upcast 16-bit rows), and
in the rows' own dtype; against the four sums, the two products that a plain metric needs; on a CPU with AMX, our own
kernels on float32 vectors. Rows are float32 and bfloat16 on a CPU, and both 16-bit dtypes on a GPU, like activations
there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tarq.bench.measure import Call, Case, Record, Shape, calling
from tarq.kernels import dispatch
from tarq.kernels.gram import gram, gram_split

SHAPES = ((3000, 1280), (1500, 5120))  # rows, inputs
GPU_SHAPES = ((24_000, 1280), (24_000, 5120))  # sixteen windows of Whisper's encoder
QUICK_SHAPES = ((1500, 1280),)
TAIL = 0.07  # share of the rows
VECTORS, TILES, _ISA = "avx512", "avx512_amx", "TARQ_CPU_ISA"


def product(y: Tensor, x: Tensor) -> Tensor:
    """Plain ``Yᵀ X`` by torch."""
    return y.T @ x


def upcast(y: Tensor, x: Tensor) -> Tensor:
    """``Yᵀ X`` of float32 copies, the usual way to get float32 sums of 16-bit rows."""
    return y.float().T @ x.float()


def weighted(weight: Tensor, x: Tensor) -> Tensor:
    """``Xᵀ D X`` of float32 copies."""
    return (x.float() * weight[:, None]).T @ x.float()


def two_products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The products that a plain metric and residual need."""
    return upcast(x, x), upcast(y, x)


def four_sums(x: Tensor, y: Tensor, tail: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Metric and residual, common and tail."""
    return gram_split(x, tail), gram_split(x, tail, y)


def on_vectors(function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """A call with the kernels for float32 vectors of a CPU that also has tiles."""
    before = os.environ.get(_ISA)
    os.environ[_ISA] = VECTORS
    try:
        return function(*args, **options)
    finally:
        del os.environ[_ISA]
        if before is not None:
            os.environ[_ISA] = before


def errors(x: Tensor) -> Record:
    """Largest error of ``Xᵀ X`` against float64, relative to the norms of the columns: ours, and of float32 copies."""
    norm = x.double().norm(dim=0)
    exact = x.double().T @ x.double()

    def largest(result: Tensor) -> float:
        return float(((result.double() - exact) / norm / norm[:, None]).abs().max())

    return {"error": largest(gram(x)), "error_of_float32_copies": largest(upcast(x, x))}


def cases(device: torch.device, *, quick: bool, shapes: Sequence[Shape] = ()) -> Iterator[Case]:
    """Cases on a device; a quick run takes only the narrow layer, unless shapes are given."""
    gpu = device.type == "cuda"
    copies = " of float32 copies" if gpu else ""
    tiles = not gpu and dispatch.EXTENSION_ERROR is None and TILES in torch.ops.tarq.cpu_isas()
    for rows, n in shapes or (QUICK_SHAPES if quick else GPU_SHAPES if gpu else SHAPES):
        weight = torch.rand(rows, device=device)
        x, difference = (torch.randn(rows, n, device=device) for _ in range(2))
        triangle, square = rows * n * (n + 1.0), 2.0 * rows * n * n
        for dtype in (torch.bfloat16, torch.float16) if gpu else (torch.float32, torch.bfloat16):
            own = x.to(dtype)
            peers = {"torch XᵀX": calling(product, own, own)}
            if dtype != torch.float32:
                peers = {
                    "torch XᵀX of float32 copies": calling(upcast, own, own),
                    f"torch XᵀX in {_name(dtype)} (rounded)": calling(product, own, own),
                }
            peers_weighted = {
                f"torch XᵀDX{' of float32 copies' * (dtype != torch.float32)}": calling(weighted, weight, own)
            }
            if tiles:
                peers["ours on vectors"] = calling(on_vectors, gram, own)
                peers_weighted["ours on vectors"] = calling(partial(on_vectors, gram, own, weight=weight))
            yield _case("gram", "symmetric", calling(gram, own), peers, (own,), 1, triangle, partial(errors, own))
            ours = calling(partial(gram, own, weight=weight))
            yield _case("gram, weighted", "weighted", ours, peers_weighted, (own,), 1, triangle)

        if gpu:
            x, difference = x.bfloat16(), difference.bfloat16()
        tail = torch.rand(rows, device=device) < TAIL
        peers = {f"torch YᵀX{copies}": calling(upcast, difference, x)}
        yield _case("gram", "cross", calling(gram, x, difference), peers, (x, difference), 1, square)
        peers = {f"torch XᵀX and YᵀX{copies}": calling(two_products, x, difference)}
        sums = calling(four_sums, x, difference, tail)
        variant = "both sides, both products"
        yield _case("gram, four sums", variant, sums, peers, (x, difference), 4, triangle + square)


def _case(
    op: str,
    variant: str,
    ours: Call,
    peers: dict[str, Call],
    inputs: tuple[Tensor, ...],
    sums: int,
    flops: float,
    extra: Callable[[], Record] = dict,
) -> Case:
    (rows, n), dtype = inputs[0].shape, inputs[0].dtype
    unit = "float32" if dtype == torch.float32 else "bfloat16"  # float16 goes through the same units
    return Case(
        op=op,
        shape=(rows, n),
        ours={variant: ours},
        dtypes={variant: _name(dtype)},
        peers=peers,
        bytes=sum(t.nbytes for t in inputs) + sums * 4 * n * n,
        flops={variant: (unit, flops)},
        graph=True,
        extra=extra,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
