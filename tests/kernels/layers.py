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


#: A product in float64, and the sum of its terms' magnitudes, Σ|x||w| + |b|.
Exact = tuple[Tensor, Tensor]


def exact_product(x: Tensor, layer: Layer, bias: Tensor | None, columns: int, group: int) -> Exact:
    """``x · Wᵀ + bias``."""
    packed, scales, zeros = layer
    weight = dequantize(packed, scales.double(), zeros, columns, group)
    offset = torch.zeros(weight.shape[0], dtype=torch.float64, device=x.device) if bias is None else bias.double()
    return x.double() @ weight.T + offset, x.double().abs() @ weight.abs().T + offset.abs()


def assert_close_to(y: Tensor, exact: Exact, tolerance: float) -> None:
    """``y`` against a product; ``tolerance`` is what an error may be of its terms' magnitudes."""
    product, magnitude = exact
    assert y.shape == product.shape
    assert y.is_contiguous()
    if y.numel():
        error = ((y.double() - product).abs() / magnitude.clamp_min(torch.finfo(y.dtype).smallest_normal)).max().item()
        assert error < tolerance, error


def assert_product(
    y: Tensor, x: Tensor, layer: Layer, bias: Tensor | None, columns: int, group: int, tolerance: float
) -> None:
    """``y`` against ``x · Wᵀ + bias`` in float64."""
    assert_close_to(y, exact_product(x, layer, bias, columns, group), tolerance)
