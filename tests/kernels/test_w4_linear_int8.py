"""w4_linear_int8: every CPU kernel against the float64 product of the same rounded activations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tarq.kernels import dispatch
from tarq.kernels.w4_linear import PackedWeight, w4_linear, w4_linear_int8
from tarq.kernels.w4_linear.reference import round_activations
from torch import Tensor

from tarq.bench.measure import threads

from . import layers
from .layers import Layer, assert_close_to, make_layer

native = pytest.mark.skipif(dispatch.EXTENSION_ERROR is not None, reason="the compiled extension is not built")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}  # of Σ|x||w| + |b|; the result's rounding


def exact_product(x: Tensor, layer: Layer, bias: Tensor | None, columns: int, group: int) -> layers.Exact:
    """The product of the rounded activations."""
    codes, scale = round_activations(x, group)
    rounded = codes.double() * scale.double().repeat_interleave(group, dim=1)[:, :columns]
    return layers.exact_product(rounded, layer, bias, columns, group)


def assert_accurate(y: Tensor, x: Tensor, layer: Layer, bias: Tensor | None, columns: int, group: int) -> None:
    assert y.dtype == x.dtype
    assert_close_to(y, exact_product(x, layer, bias, columns, group), TOLERANCE[x.dtype])


@native
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [8, 24, 104, 127, 128, 129, 288, 328, 384])
def test_kernels_against_float64(isas, columns: int, symmetric: bool):
    torch.manual_seed(columns)
    for rows in (1, 3, 17):
        for group in (32, 64, 128, 256):
            layer = make_layer(rows, columns, group, symmetric=symmetric)
            for count, dtype in ((0, torch.float32), (1, torch.float32), (3, torch.bfloat16), (9, torch.float16)):
                x, bias = torch.randn(count, columns).to(dtype), torch.randn(rows) if count % 3 else None
                exact = exact_product(x, layer, bias, columns, group)
                for _ in isas():
                    y = w4_linear_int8(x, PackedWeight(*layer, bias, columns, group), backend="native")
                    assert y.dtype == dtype
                    assert_close_to(y, exact, TOLERANCE[dtype])


@native
@pytest.mark.parametrize("count_threads", [1, 2, 3])
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 600),
    count=st.integers(0, 40),
    group=st.sampled_from([32, 64, 128, 256, 1024]),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**31),
)
@pytest.mark.slow
def test_any_shape(count_threads: int, rows: int, columns: int, count: int, group: int, symmetric: bool, seed: int):
    torch.manual_seed(seed)
    layer, x = make_layer(rows, columns, group, symmetric=symmetric), torch.randn(count, columns)
    with threads(count_threads):
        assert_accurate(w4_linear_int8(x, PackedWeight(*layer, None, columns, group)), x, layer, None, columns, group)


@native
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("count", "rows", "columns"), [(22, 700, 2048), (33, 100, 520), (300, 50, 392)])
def test_many_rows(isas, count: int, rows: int, columns: int, symmetric: bool):
    """Whole tiles of 16 rows and what is left of one, more blocks of rows than one, layers that end inside a block."""
    for group in (128, 256, columns):  # of whole blocks, of two, one for all
        layer, x = make_layer(rows, columns, group, symmetric=symmetric), torch.randn(count, columns)
        bias = None if symmetric else torch.randn(rows)
        exact = exact_product(x, layer, bias, columns, group)
        for _ in isas():
            with threads(2):
                y = w4_linear_int8(x[None], PackedWeight(*layer, bias, columns, group), backend="native")
            assert y.shape == (1, count, rows)
            assert_close_to(y[0], exact, TOLERANCE[torch.float32])


@native
@pytest.mark.parametrize("count", [16, 17, 31, 32, 48])
def test_every_fill_of_a_tile_of_rows(isa: str, count: int):
    x = torch.randn(count, 256).bfloat16()
    for group in (128, 64):  # 64 is below a block of AMX, which leaves it to the kernel before
        layer = make_layer(49, 256, group, symmetric=False)
        y = w4_linear_int8(x, PackedWeight(*layer, None, 256, group), backend="native")
        assert_accurate(y, x, layer, None, 256, group)


@native
def test_zeros_tiny_and_unfinished_numbers(isa: str):
    layer, x = make_layer(5, 256, 128, symmetric=False), torch.randn(6, 256)
    x[0] = 0
    x[1] = 1e-40
    x[2, 3] = torch.nan
    x[3, 200] = torch.inf
    x[4] *= 1e35
    y = w4_linear_int8(x, PackedWeight(*layer, None, 256, 128), backend="native")
    expected = w4_linear_int8(x, PackedWeight(*layer, None, 256, 128), backend="reference")
    assert torch.equal(y[:2], torch.zeros(2, 5))
    assert bool(y[2:4].isnan().all())
    assert bool(expected[2:4].isnan().all())
    torch.testing.assert_close(y[4:], expected[4:], rtol=1e-4, atol=1e-4 * float(expected[4:].abs().max()))


def test_the_error_is_what_the_docstring_says():
    torch.manual_seed(0)
    layer, x = make_layer(256, 1280, 128, symmetric=True), torch.randn(64, 1280)
    exact, rounded = (
        w4_linear(x, PackedWeight(*layer, None, 1280, 128)),
        w4_linear_int8(x, PackedWeight(*layer, None, 1280, 128)),
    )
    assert 0.005 < ((rounded - exact).norm() / exact.norm()).item() < 0.009


@native
def test_other_groups_are_refused():
    layer = make_layer(4, 96, 40, symmetric=True)
    with pytest.raises(RuntimeError, match="group_size must be 32, 64, a multiple of 128"):
        w4_linear_int8(torch.randn(1, 96), PackedWeight(*layer, None, 96, 40))


def test_the_operator_is_well_formed():
    packed, scale, zeros = make_layer(5, 64, 32, symmetric=False)
    arguments = (torch.randn(2, 64), packed, scale, zeros, torch.randn(5), 64, 32)
    torch.library.opcheck(torch.ops.tarq.w4_linear_int8.default, arguments)
