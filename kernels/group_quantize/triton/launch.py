"""``group_refine`` on CUDA: E H of a span of columns by the library, then one launch of ``refine_kernel`` for the span.

Groups of up to ``WIDEST`` columns are a span each. A wider one has its scale refitted in PyTorch, and its codes descend
span by span. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ... import triton_runtime as runtime
from ...scheme import Scheme
from .. import reference
from .kernels import refine_kernel

#: Columns of a launch, at most and in registers at least.
WIDEST, NARROWEST = 128, 16

#: Rows of a program, and its warps: few, for its steps are many and follow one another.
ROWS, WARPS = 4, 1


def constants(columns: int, refit: bool) -> dict[str, int]:
    """Constants and compiler options of ``refine_kernel`` for a span of so many columns."""
    width = max(NARROWEST, 1 << (columns - 1).bit_length())
    return {"REFIT": refit, "WIDTH": width, "ROWS": ROWS, "num_warps": WARPS}


def group_refine_triton(
    target: Tensor,
    hessian: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    loss: Tensor,
    scheme: Scheme,
    passes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`~tarq.kernels.group_quantize.reference.refine` in float32 on a GPU; same arguments and results."""
    m, n = target.shape
    size, limits = min(scheme.group_size, n), torch.finfo(scales.dtype)
    group = torch.arange(n, device=target.device) // scheme.group_size
    hessian = runtime.aligned(hessian)
    scale, zero = scales.clone(memory_format=torch.contiguous_format), zeros.float()
    level = codes.float() - zero[:, group]
    error = target - level * scale.float()[:, group]
    # Fresh, so that they start where vector loads may, and contiguous.
    zero, level, error = (runtime.aligned(tensor) for tensor in (zero, level, error))
    change = torch.zeros_like(loss, memory_format=torch.contiguous_format)

    def launch(g: int, first: int, last: int, gradient: Tensor, refit: bool) -> None:
        refine_kernel[(-(-m // ROWS),)](
            runtime.aligned(gradient),
            hessian,
            error,
            level,
            scale,
            zero,
            change,
            m,
            n,
            scales.shape[1],
            g,
            first,
            last - first,
            float(scheme.max_code),
            limits.tiny,
            limits.max / reference.max_level(scheme),
            **constants(min(size, WIDEST), refit),
        )

    with runtime.on_device_of(target), _exact(target.device.type):
        for _ in range(passes if m else 0):
            for g in range(scales.shape[1]):
                begin, end = g * size, min((g + 1) * size, n)
                if size <= WIDEST:
                    launch(g, begin, end, error @ hessian[:, begin:end], True)
                    continue
                columns = slice(begin, end)
                within, gradient = hessian[columns, columns], error @ hessian[:, columns]
                old = scale[:, g].float()
                delta, gained = reference.refit_scale(level[:, columns], old, gradient, within, scheme, scale.dtype)
                scale[:, g] = (old + delta).to(scale.dtype)
                error[:, columns] -= delta[:, None] * level[:, columns]
                change += gained
                for first in range(begin, end, WIDEST):
                    last = min(first + WIDEST, end)
                    launch(g, first, last, error @ hessian[:, first:last], False)
    return reference.keep_improved(codes, scales, loss, level + zero[:, group], scale, change, target.dtype)


@contextmanager
def _exact(device: str) -> Iterator[None]:
    """Products in float32 whatever the caller allows elsewhere: errors feed back into codes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
