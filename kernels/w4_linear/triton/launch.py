"""``w4_linear`` on a GPU: from a call to the launches of its kernels.

Nothing waits for the device and every shape follows from the arguments' shapes: CUDA graphs can capture it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ... import triton_runtime as runtime
from ..weight import PackedWeight, check_input
from .kernels import dequantize_kernel, gemm_kernel, gemv_kernel, reduce_kernel
from .layout import K_BLOCKS, groups_of
from .plan import DENSE, Plan, choose

#: What a size (of elements) must be a multiple of for vector loads and stores. Were it left to Triton to specialize on
#: each, a kernel would have dozens of forms, each compiled when a call asks for it.
UNIT = 16

#: Elements written by a program of `reduce_kernel`; rows and columns by one of `dequantize_kernel`, and its warps (with
#: four the assembler spills).
REDUCE_BLOCK, DEQUANTIZE_BLOCK, DEQUANTIZE_WARPS = 512, (16, 128), 8


def w4_linear_triton(x: Tensor, weight: PackedWeight, plan: Plan | None = None) -> Tensor:
    """``y = x · Wᵀ + bias`` on a GPU; see :func:`~tarq.kernels.w4_linear.w4_linear`.

    The weight is taken for sound: it was checked when it was packed or laid out.

    Args:
        x: float32, bfloat16 or float16 [..., K], any strides; copied where its rows are not vectors: columns side by
            side, K and the stride between rows multiples of 16, the first at a multiple of 16 bytes.
        weight: from :func:`~.layout.prepack`; as stored it is dense whatever M is. 4 bits.
        plan: in place of what :func:`~.plan.choose` says, where layout, group size and dtype allow another than dense.

    Returns:
        [..., N], contiguous, in the dtype of ``x``. float32 is always dense, and so are groups other than 32, 64 and
        multiples of 128, unless one group is all of K.

    Raises:
        RuntimeError: the dtype, last dimension or device of ``x`` does not fit.
    """
    check_input(x, weight)
    n, k = weight.out_features, weight.in_features
    y = x.new_empty((*x.shape[:-1], n))
    if y.numel() == 0:
        return y
    fits = weight.layout == K_BLOCKS and x.dtype != torch.float32
    groups = groups_of(k, weight.group_size) if fits else None
    with runtime.on_device_of(x):
        if groups is None:
            plan = DENSE
        elif plan is None:
            plan = choose(y.numel() // n, n, k, *runtime.chip(x.device), groups[0])
        if groups is None or plan.kernel == "dense":
            dense, bias = dequantize(weight, x.dtype), weight.bias
            with torch.autocast(x.device.type, enabled=False):
                return torch.nn.functional.linear(x, dense, None if bias is None else bias.to(x.dtype))
        launch(runtime.aligned_rows(x.reshape(-1, k), UNIT), weight, y, groups, plan)
    return y


def launch(x: Tensor, weight: PackedWeight, y: Tensor, groups: tuple[int, int], plan: Plan) -> None:
    """Write ``x`` times W to ``y`` with the kernel that ``plan`` names.

    Args:
        x: [M, K], its rows vectors of :data:`UNIT` elements.
        weight: of the layout :data:`~.layout.K_BLOCKS`.
        y: [..., N], contiguous.
        groups: from :func:`~.layout.groups_of`.
    """
    (m, k), n, split = x.shape, weight.out_features, plan.split_k
    out = y if split == 1 else y.new_empty((split, m, n), dtype=torch.float32)
    n_unit = unit_of(n)
    kernel, own = (gemv_kernel, {"LANES": plan.warps}) if plan.kernel == "gemv" else (gemm_kernel, {})
    kernel[(-(-n // plan.block_n), -(-m // plan.block_m), split)](
        x,
        weight.packed,
        weight.scale,
        weight.zeros,
        weight.bias if split == 1 else None,
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
        **plan.options,
        **own,
    )
    if split > 1:
        reduce_kernel[(-(-m * n // REDUCE_BLOCK),)](
            out, weight.bias, y, m, n // n_unit, SPLITS=split, BLOCK=REDUCE_BLOCK, N_UNIT=n_unit
        )


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """W [N, K] in ``dtype``, from either layout."""
    n, k = weight.out_features, weight.in_features
    packed, scale = runtime.aligned(weight.packed), runtime.aligned(weight.scale)
    zeros = None if weight.zeros is None else runtime.aligned(weight.zeros)
    dense = scale.new_empty((n, k), dtype=dtype)
    block_n, block_columns = DEQUANTIZE_BLOCK
    n_unit, k_unit = unit_of(n), unit_of(k)
    dequantize_kernel[(-(-n // block_n), -(-k // block_columns))](
        packed,
        scale,
        zeros,
        dense,
        n // n_unit,
        k // k_unit,
        weight.group_size,
        BLOCK_N=block_n,
        BLOCK_COLUMNS=block_columns,
        N_UNIT=n_unit,
        K_UNIT=k_unit,
        PREPACKED=weight.layout == K_BLOCKS,
        num_warps=DEQUANTIZE_WARPS,
    )
    return dense


def unit_of(size: int) -> int:
    """What a kernel counts a size in."""
    return 1 if size % UNIT else UNIT
