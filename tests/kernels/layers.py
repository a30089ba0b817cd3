"""Random packed layers, and products with them compared with float64."""

from __future__ import annotations

import torch
from tarq.kernels.w4_linear import dequantize, pack, pack_zeros
from torch import Tensor

#: weight_packed, weight_scale, weight_zero_point.
Layer = tuple[Tensor, Tensor, Tensor | None]


def make_layer(
    rows: int,
    columns: int,
    group: int,
    *,
    symmetric: bool = True,
    scale: torch.dtype = torch.float16,
    device: str = "cpu",
) -> Layer:
    """Random 4-bit weights [rows, columns]."""
    groups = -(-columns // group)
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    scales = (torch.rand(rows, groups) * 0.02 + 0.005).to(scale)
    zeros = None if symmetric else pack_zeros(torch.randint(0, 16, (rows, groups), dtype=torch.uint8), 4).to(device)
    return pack(codes, 4).to(device), scales.to(device), zeros


def assert_product(
    y: Tensor, x: Tensor, layer: Layer, bias: Tensor | None, columns: int, group: int, tolerance: float
) -> None:
    """``y`` against ``x · Wᵀ + bias`` in float64.

    Args:
        tolerance: what an error may be of Σ|x||w| + |b|.
    """
    packed, scales, zeros = layer
    weight = dequantize(packed, scales.double(), zeros, columns, group)
    offset = torch.zeros(weight.shape[0], dtype=torch.float64, device=x.device) if bias is None else bias.double()
    exact = x.double() @ weight.T + offset
    magnitude = x.double().abs() @ weight.abs().T + offset.abs()
    assert y.shape == exact.shape
    assert y.is_contiguous()
    if y.numel():
        error = ((y.double() - exact).abs() / magnitude.clamp_min(torch.finfo(y.dtype).smallest_normal)).max().item()
        assert error < tolerance, error
