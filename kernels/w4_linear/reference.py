"""``w4_linear`` as a formula: the specification of the operation and the oracle of its tests."""

from __future__ import annotations

import torch
from torch import Tensor

from .packing import unpack, unpack_zeros
from .weight import PackedWeight


def dequantize(
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    in_features: int,
    group_size: int,
    bits: int = 4,
) -> Tensor:
    """``W = (code − zero) · scale``, bitwise what compressed-tensors decompresses the tensors to.

    Args:
        weight_packed: int32 [N, ceil(K · bits / 32)].
        weight_scale: float16, bfloat16 or float32 [N, G] with G = ceil(K / group_size).
        weight_zero_point: int32 [ceil(N · bits / 32), G], or None: zero point ``2**(bits−1)``.
        in_features: K.
        group_size: consecutive inputs that share a scale; the last group may be shorter.
        bits: 2, 3, 4 or 8.

    Returns:
        [N, K] in the dtype of ``weight_scale``, in which both steps are computed.

    Raises:
        ValueError: a tensor's shape or dtype is wrong.
    """
    codes = unpack(weight_packed, bits, in_features)
    rows, groups = codes.shape[0], -(-in_features // group_size)
    if tuple(weight_scale.shape) != (rows, groups):
        raise ValueError(f"weight_scale must have shape [{rows}, {groups}], not {list(weight_scale.shape)}")
    if weight_zero_point is None:
        zeros = torch.full_like(weight_scale, 2 ** (bits - 1))
    else:
        zeros = unpack_zeros(weight_zero_point, bits, rows).to(weight_scale.dtype)

    def spread(per_group: Tensor) -> Tensor:
        return per_group.repeat_interleave(group_size, dim=1, output_size=groups * group_size)[:, :in_features]

    # Differences of codes are small integers, exact in all three dtypes: only the product is rounded.
    return (codes.to(weight_scale.dtype) - spread(zeros)) * spread(weight_scale)


def w4_linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """``y = x · Wᵀ + bias``, the product in float32 (float64 for float64 x), rounded once to x's dtype.

    W is ``(code − zero) · scale`` without rounding; :func:`dequantize` rounds each weight to the scales' dtype, as
    dense weights require.

    Args:
        x: float [..., K].
        weight: in the layout ``stored``, any bit width.

    Returns:
        [..., N] in the dtype of ``x``.

    Raises:
        ValueError: a tensor's shape or dtype is not what :func:`dequantize` asks for.
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    w = dequantize(
        weight.packed, weight.scale.to(compute), weight.zeros, weight.in_features, weight.group_size, weight.bits
    )
    # Products of float32 tensors must not become bf16 products inside an autocast region.
    with torch.autocast(x.device.type, enabled=False):
        y = x.to(compute) @ w.T
        if weight.bias is not None:
            y = y + weight.bias.to(compute)
    return y.to(x.dtype)


def round_activations(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Activations rounded to 8 bits: ``x ≈ q · t`` with ``t = max|x| / 127`` over a group, ties to even.

    Args:
        x: float [M, K].
        group_size: consecutive inputs that share t; the last group may be shorter.

    Returns:
        q, int8 [M, K], and t, float32 [M, ceil(K / group_size)]: NaN where a group holds NaN or infinity (the
        codes are then 0), 0 where it is zero.
    """
    rows, columns = x.shape
    groups = -(-columns // group_size)
    grouped = torch.nn.functional.pad(x.float(), (0, groups * group_size - columns)).view(rows, groups, group_size)
    largest = grouped.abs().amax(-1)
    usable = largest.isfinite() & (largest >= 2.0**-124)  # below it 127 / max overflows
    most = torch.full_like(largest, 127)  # dividing a number by a tensor would multiply by the reciprocal
    inverse = torch.where(usable, most / largest, 0.0)
    codes = torch.where(usable[..., None], (grouped * inverse[..., None]).round(), 0.0).to(torch.int8)
    scale = torch.where(usable, largest / most, torch.where(largest.isfinite(), 0.0, torch.nan))
    return codes.view(rows, groups * group_size)[:, :columns], scale


def w4_linear_int8(x: Tensor, weight: PackedWeight) -> Tensor:
    """:func:`w4_linear` of activations rounded to 8 bits, one scale per group; the weights are not rounded."""
    columns = weight.in_features
    codes, scale = round_activations(x.reshape(-1, columns), weight.group_size)
    spread = scale.repeat_interleave(weight.group_size, dim=1)[:, :columns]
    rounded = (codes.float() * spread).view(x.shape)
    return w4_linear(rounded, weight).to(x.dtype)
