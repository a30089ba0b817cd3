"""Layers of 8 bits on the kernels of 4."""

import pytest
import torch
from tarq.kernels import dispatch
from tarq.kernels.w4_linear import Config, PackedWeight, get, multiply, pack, pack_zeros
from tarq.kernels.w4_linear.reference import w4_linear as reference

from .layers import assert_close_to

pytestmark = pytest.mark.skipif(dispatch.EXTENSION_ERROR is not None, reason="the compiled extension is not built")

#: As of layers of 4 bits: rounding of sums; the result's rounding.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}


def make(rows, columns, group, *, symmetric, scale=torch.float16, bias=True):
    groups = -(-columns // group)
    zeros = None if symmetric else pack_zeros(torch.randint(0, 256, (rows, groups), dtype=torch.uint8), 8)
    return PackedWeight(
        pack(torch.randint(0, 256, (rows, columns), dtype=torch.uint8), 8),
        (torch.rand(rows, groups) * 0.01 + 0.001).to(scale),
        zeros,
        torch.randn(rows) if bias else None,
        columns,
        group,
        bits=8,
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "group", "scale"),
    [
        (5, 128, 128, torch.float16),
        (37, 200, 64, torch.float32),
        (3, 7, 8, torch.bfloat16),
        (70, 384, 128, torch.float16),
    ],
)
def test_products_are_those_of_the_codes(rows, columns, group, scale, symmetric):
    torch.manual_seed(rows)
    weight = make(rows, columns, group, symmetric=symmetric, scale=scale, bias=rows != 37)
    packed = get("planes").prepack(weight)
    assert packed.out_features == rows
    for dtype, tolerance in TOLERANCE.items():
        for count in (0, 1, 5, 40):
            x = torch.randn(count, columns).to(dtype)
            exact = reference(x.double(), weight)
            whole = dequantized(weight)
            magnitude = x.double().abs() @ whole.abs().T + (0 if weight.bias is None else weight.bias.abs())
            assert_close_to(multiply(get("planes"), x, packed), (exact, magnitude), tolerance)


def dequantized(weight):
    return reference(torch.eye(weight.in_features, dtype=torch.float64), weight._replace(bias=None)).T


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_stored_layout_comes_back_to_the_bit(symmetric):
    weight = make(11, 77, 32, symmetric=symmetric)
    back = get("planes").unprepack(get("planes").prepack(weight))
    for was, now in zip(weight, back, strict=True):
        assert torch.equal(was, now) if isinstance(was, torch.Tensor) else was == now


def test_large_scales_stay_finite():
    weight = make(4, 32, 32, symmetric=True)._replace(scale=torch.full((4, 1), 60000.0, dtype=torch.float16))
    y = multiply(get("planes"), torch.ones(1, 32), get("planes").prepack(weight))
    assert y.isfinite().all()


def test_only_layers_of_eight_bits():
    config = Config("cpu", 4, 128, 128, 128)
    assert get("planes").can_run(config) == (False, "is for 8 bits, not for 4")
