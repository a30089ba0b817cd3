"""gram: every CPU kernel against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tarq.kernels import dispatch
from tarq.kernels.gram import gram, gram_sides
from tarq.kernels.gram.reference import gram_reference, gram_sides_reference
from torch import Tensor

from tarq.bench.measure import threads

native = pytest.mark.skipif(dispatch.EXTENSION_ERROR is not None, reason="the compiled extension is not built")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def double(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


def assert_accurate(result: Tensor, x: Tensor, y: Tensor | None, weight: Tensor | None) -> None:
    """Against float64, relative to the sum of magnitudes: products and sums in float32 and no less."""
    exact = gram_reference(x.double(), double(y), double(weight))
    magnitude = gram_reference(
        x.double().abs(), None if y is None else y.double().abs(), None if weight is None else weight.double().abs()
    )
    assert result.dtype == torch.float32
    assert result.shape == exact.shape
    if result.numel():
        error = ((result.double() - exact).abs() / magnitude.clamp_min(1e-30)).max().item()
        assert error < 2e-6, error


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 3, 193, 400])
def test_kernels_against_float64(isa: str, rows: int, dtype: torch.dtype):
    torch.manual_seed(rows)
    for n in (1, 3, 15, 47, 48, 49, 127, 128, 129, 384):
        x = torch.randn(rows, n).to(dtype)
        for y in (None, torch.randn(rows, 1 + n // 2).to(dtype), torch.randn(rows, n + 7).to(dtype)):
            for weight in (None, torch.randn(rows)):
                assert_accurate(gram(x, y, weight, backend="native"), x, y, weight)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_columns_than_one_task_takes(isa: str, dtype: torch.dtype):
    x = torch.randn(70, 1100).to(dtype)
    with threads(2):
        result = gram(x, backend="native")
    assert_accurate(result, x, None, None)
    assert torch.equal(result, result.T)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.07, 1.0])
def test_sides_against_float64(isa: str, share: float, dtype: torch.dtype):
    torch.manual_seed(1)
    rows, n = 300, 129
    x, y, tail = torch.randn(rows, n).to(dtype), torch.randn(rows, 40).to(dtype), torch.rand(rows) < share
    mostly_ones = torch.where(torch.arange(rows) < 20, 0.5, 1.0)  # ones alone are left out of the products
    for weight in (None, torch.ones(rows), mostly_ones, torch.rand(rows) * (torch.rand(rows) < 0.5)):
        for other in (None, y):
            sides = gram_sides(x, tail, other, weight, backend="native")
            for side, chosen in zip(sides, (~tail, tail), strict=True):
                rest = (x[chosen], None if other is None else other[chosen], None if weight is None else weight[chosen])
                assert_accurate(side, *rest)


@native
def test_rows_of_weight_zero_may_hold_anything(isa: str):
    x, weight, tail = torch.randn(6, 20), torch.tensor([1.0, 0, 1, 0.5, 0, 1]), torch.tensor([0, 0, 1, 1, 1, 0]).bool()
    spoiled = x.clone()
    spoiled[1], spoiled[4] = torch.nan, torch.inf
    for clean, result, reference in zip(
        gram_sides(x, tail, weight=weight),
        gram_sides(spoiled, tail, weight=weight),
        gram_sides(spoiled, tail, weight=weight, backend="reference"),
        strict=True,
    ):
        assert torch.equal(clean, result)
        torch.testing.assert_close(result, reference)


@native
def test_views_are_read_as_they_lie(isa: str):
    base = torch.randn(90, 200)
    for x in (base[:, ::2], base.T, base[5:, 3:80], base[::3], base[:1].expand(30, -1), base[:, :1].expand(-1, 40)):
        for dtype in DTYPES:
            view = base.to(dtype).as_strided(x.shape, x.stride(), x.storage_offset())
            assert_accurate(gram(view, backend="native"), view, None, None)


@native
def test_values_near_the_limit_of_float16(isa: str):
    x = torch.full((200, 33), 6e4, dtype=torch.float16)
    x[::2] *= -1
    x[:, 5] = 6e-8
    assert_accurate(gram(x, backend="native"), x, None, None)


@native
@pytest.mark.parametrize("count_threads", [1, 2, 3])
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 500),
    n=st.integers(1, 150),
    k=st.integers(0, 150),
    dtype=st.sampled_from(DTYPES),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
@pytest.mark.slow
def test_any_shape(count_threads: int, rows: int, n: int, k: int, dtype: torch.dtype, weighted: bool, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=generator).to(dtype)
    y = torch.randn(rows, k, generator=generator).to(dtype) if k else None
    weight = torch.randn(rows, generator=generator) if weighted else None
    with threads(count_threads):
        assert_accurate(gram(x, y, weight), x, y, weight)


def test_float64_stays_float64():
    x, tail = torch.randn(20, 7, dtype=torch.float64), torch.rand(20) < 0.3
    torch.testing.assert_close(gram(x), x.T @ x)
    common, rare = gram_sides(x, tail)
    assert common.dtype == torch.float64
    torch.testing.assert_close(common + rare, x.T @ x)


def test_operators_are_well_formed():
    x, weight, tail = torch.randn(7, 5), torch.rand(7), torch.rand(7) < 0.5
    torch.library.opcheck(torch.ops.tarq.gram.default, (x, None, weight))
    torch.library.opcheck(torch.ops.tarq.gram.default, (x, torch.randn(7, 3), None))
    torch.library.opcheck(torch.ops.tarq.gram_sides.default, (x, torch.randn(7, 3), weight, tail))


def test_wrong_shapes_are_named():
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match="one row per position"):
        gram(x, torch.ones(4, 2))
    with pytest.raises(ValueError, match="one dtype"):
        gram(x, torch.ones(3, 2, dtype=torch.float16))
    with pytest.raises(ValueError, match="one weight per row"):
        gram(x, weight=torch.ones(4))
    with pytest.raises(ValueError, match=r"tail must be bool \[3\]"):
        gram_sides(x, torch.ones(3))


def test_references_split_what_is_whole():
    x, y, weight, tail = torch.randn(30, 4), torch.randn(30, 3), torch.rand(30), torch.rand(30) < 0.4
    common, rare = gram_sides_reference(x, y, weight, tail)
    torch.testing.assert_close(common + rare, gram_reference(x, y, weight))
