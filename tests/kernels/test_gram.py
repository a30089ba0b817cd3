"""gram: every CPU kernel against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tarq.kernels import dispatch
from tarq.kernels.gram import gram, gram_split
from tarq.kernels.gram.reference import gram_reference, gram_split_reference
from torch import Tensor

from tarq.bench.measure import threads

native = pytest.mark.skipif(dispatch.EXTENSION_ERROR is not None, reason="the compiled extension is not built")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ISAS = torch.ops.tarq.cpu_isas() if dispatch.EXTENSION_ERROR is None else []
tiles = pytest.mark.skipif("avx512_amx" not in ISAS, reason="this CPU has no AMX, or the system refuses it")


def double(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


def exact_gram(x: Tensor, y: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """In float64, and the sums of its terms' magnitudes."""
    exact = gram_reference(x.double(), double(y), double(weight))
    magnitude = gram_reference(
        x.double().abs(), None if y is None else y.double().abs(), None if weight is None else weight.double().abs()
    )
    return exact, magnitude


def assert_close_to(result: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    """Relative to the sum of magnitudes: products and sums in float32 and no less."""
    assert result.dtype == torch.float32
    assert result.shape == exact.shape
    if result.numel():
        error = ((result.double() - exact).abs() / magnitude.clamp_min(1e-30)).max().item()
        assert error < 2e-6, error


def assert_accurate(result: Tensor, x: Tensor, y: Tensor | None, weight: Tensor | None) -> None:
    assert_close_to(result, *exact_gram(x, y, weight))


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 3, 193, 400])
def test_kernels_against_float64(isas, rows: int, dtype: torch.dtype):
    torch.manual_seed(rows)
    for n in (1, 3, 15, 47, 48, 49, 127, 128, 129, 384):
        x = torch.randn(rows, n).to(dtype)
        for y in (None, torch.randn(rows, 1 + n // 2).to(dtype), torch.randn(rows, n + 7).to(dtype)):
            for weight in (None, torch.randn(rows)):
                exact = exact_gram(x, y, weight)
                for _ in isas():
                    assert_close_to(gram(x, y, weight, backend="native"), *exact)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_columns_than_one_task_takes(isas, dtype: torch.dtype):
    x = torch.randn(70, 1100).to(dtype)
    exact = exact_gram(x, None, None)
    for _ in isas():
        with threads(2):
            result = gram(x, backend="native")
        assert_close_to(result, *exact)
        assert torch.equal(result, result.T)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_more_positions_than_are_packed_at_once(isa: str, weighted: bool, dtype: torch.dtype):
    """Several blocks of them, on one thread and on two, to the bit the same."""
    torch.manual_seed(2)
    rows = 1234
    x, y, tail = torch.randn(rows, 83).to(dtype), torch.randn(rows, 35).to(dtype), torch.rand(rows) < 0.3
    weight = torch.randn(rows) if weighted else None
    results = []
    for count in (1, 2):
        with threads(count):
            results.append([gram(x, None, weight), gram(x, y, weight), *gram_split(x, tail, y, weight)])
    assert all(map(torch.equal, *results))
    assert_accurate(results[0][0], x, None, weight)
    assert_accurate(results[0][1], x, y, weight)
    assert_accurate(results[0][3], x[tail], y[tail], None if weight is None else weight[tail])


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.07, 1.0])
def test_split_against_float64(isa: str, share: float, dtype: torch.dtype):
    torch.manual_seed(1)
    rows, n = 300, 129
    x, y, tail = torch.randn(rows, n).to(dtype), torch.randn(rows, 40).to(dtype), torch.rand(rows) < share
    mostly_ones = torch.where(torch.arange(rows) < 20, 0.5, 1.0)  # ones alone are left out of the products
    for weight in (None, torch.ones(rows), mostly_ones, torch.rand(rows) * (torch.rand(rows) < 0.5)):
        for other in (None, y):
            split = gram_split(x, tail, other, weight, backend="native")
            for subset, chosen in zip(split, (~tail, tail), strict=True):
                rest = (x[chosen], None if other is None else other[chosen], None if weight is None else weight[chosen])
                assert_accurate(subset, *rest)


@native
def test_rows_of_weight_zero_may_hold_anything(isa: str):
    x, weight, tail = torch.randn(6, 20), torch.tensor([1.0, 0, 1, 0.5, 0, 1]), torch.tensor([0, 0, 1, 1, 1, 0]).bool()
    spoiled = x.clone()
    spoiled[1], spoiled[4] = torch.nan, torch.inf
    for clean, result, reference in zip(
        gram_split(x, tail, weight=weight),
        gram_split(spoiled, tail, weight=weight),
        gram_split(spoiled, tail, weight=weight, backend="reference"),
        strict=True,
    ):
        assert torch.equal(clean, result)
        torch.testing.assert_close(result, reference)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_reaches_the_diagonal(isa: str, bad: float, dtype: torch.dtype):
    x, tail = torch.randn(70, 40), torch.arange(70) % 3 == 0
    x[33, 17], x[34, 2] = bad, bad  # one in the tail, one outside
    x = x.to(dtype)
    for weight in (None, torch.rand(70) + 0.5):
        for other in (None, torch.randn(70, 21).to(dtype)):
            split = gram_split(x, tail, other, weight, backend="native")
            expected = gram_split(x, tail, other, weight, backend="reference")
            for subset, reference, column in zip(split, expected, (2, 17), strict=True):
                assert torch.equal(subset.isfinite(), reference.isfinite())
                assert not subset[:, column].isfinite().any()


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_of_very_different_size(isa: str, dtype: torch.dtype):
    torch.manual_seed(3)
    reach = 7 if dtype == torch.float16 else 36
    x = (torch.randn(150, 60) * 2.0 ** torch.randint(-reach, reach, (60,))).to(dtype)
    for weight in (None, 10.0 ** (torch.rand(150) * 8 - 4)):
        assert_accurate(gram(x, None, weight, backend="native"), x, None, weight)


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_float32_operand_beside_16_bit_rows(isa: str, dtype: torch.dtype):
    """To the bit what float32 copies of the rows give: nothing of a 16-bit number is lost."""
    torch.manual_seed(5)
    x, y, tail = torch.randn(600, 70).to(dtype), torch.randn(600, 43), torch.rand(600) < 0.2
    for weight in (None, torch.rand(600)):
        result = gram(x, y, weight, backend="native")
        assert_accurate(result, x, y, weight)
        copies = gram_split(x.float(), tail, y, weight, backend="native")
        assert all(map(torch.equal, gram_split(x, tail, y, weight, backend="native"), copies))


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_drift_is_the_difference_in_float32(isa: str, dtype: torch.dtype):
    """To the bit what the difference gives, had it been computed first."""
    torch.manual_seed(6)
    wide, tail = torch.randn(600, 150), torch.rand(600) < 0.2
    x = wide.to(dtype)[:, :70]  # a view
    y = (x.float() * (1 + 0.01 * torch.randn(600, 70))).to(dtype)
    for weight in (None, torch.rand(600) * (torch.rand(600) < 0.5)):
        result = gram_split(x, tail, y, weight, drift=True, backend="native")
        first = gram_split(x, tail, y.float() - x.float(), weight, backend="native")
        assert all(map(torch.equal, result, first))
        reference = gram_split(x, tail, y, weight, drift=True, backend="reference")
        torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-4)


def activations(kind: str, rows: int, n: int) -> Tensor:
    """Inputs as Whisper's layers have them: columns a hundred times the others, means far from zero, constants."""
    x = torch.randn(rows, n)
    if kind != "outliers":
        x = 0.3 * x + 5 * torch.randn(n)
        x[:, 5] = torch.pi
        x[:, 6] = 100.123 + 0.01 * x[:, 6]
    if kind != "means":
        x[:, ::37] *= 100
    return x


@native
@tiles
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["outliers", "means", "both"])
def test_parts_of_bfloat16_are_as_exact_as_float32(
    kind: str, dtype: torch.dtype, weighted: bool, monkeypatch: pytest.MonkeyPatch
):
    """On tiles a float32 value is three bfloat16 numbers: the errors against float64 are no larger than without."""
    torch.manual_seed(4)
    x = activations(kind, 4000, 120).to(dtype)
    weight = 3 * torch.rand(len(x)) if weighted else None
    exact = gram_reference(x.double(), None, double(weight))
    magnitude = gram_reference(x.double().abs(), None, double(weight))
    error = {}
    for isa in ("avx512_amx", "avx512"):
        monkeypatch.setenv("TARQ_CPU_ISA", isa)
        assert torch.ops.tarq.gram_isa(dtype, weighted) == isa
        error[isa] = (gram(x, None, weight, backend="native").double() - exact) / magnitude
    assert error["avx512_amx"].square().mean() <= error["avx512"].square().mean()
    assert error["avx512_amx"].abs().max() < 5e-7


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_named_instruction_set_is_the_one_that_runs(isa: str, dtype: torch.dtype):
    vectors = "avx512" if isa.startswith("avx512") else isa
    products = {"avx512_amx": "avx512_amx"} | ({"avx512_bf16": isa} if dtype == torch.bfloat16 else {})
    assert torch.ops.tarq.gram_isa(dtype, False) == products.get(isa, vectors)
    assert torch.ops.tarq.gram_isa(dtype, True) == (isa if isa == "avx512_amx" else vectors)


@native
@tiles
def test_without_permission_the_vectors_multiply():
    """Linux refuses tiles to a process with a signal stack too small for their state."""
    code = """
        import ctypes, torch
        from tarq.kernels.gram import gram
        class Stack(ctypes.Structure):
            _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
        space = ctypes.create_string_buffer(4096)
        stack = Stack(ctypes.addressof(space), 0, len(space))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
        assert "avx512_amx" not in torch.ops.tarq.cpu_isas()
        assert torch.ops.tarq.gram_isa(torch.bfloat16, False).startswith("avx512")
        x = torch.randn(100, 30).bfloat16()
        torch.testing.assert_close(gram(x), x.float().T @ x.float())
        print(torch.ops.tarq.cpu_isa_refusal())
        """
    free = {name: value for name, value in os.environ.items() if name not in ("TARQ_CPU_ISA", "PYTHONFAULTHANDLER")}
    result = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], env=free, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("avx512_amx is refused by the system: ")


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
    common, rare = gram_split(x, tail)
    assert common.dtype == torch.float64
    torch.testing.assert_close(common + rare, x.T @ x)


def test_operators_are_well_formed():
    x, weight, tail = torch.randn(7, 5), torch.rand(7), torch.rand(7) < 0.5
    torch.library.opcheck(torch.ops.tarq.gram.default, (x, None, weight))
    torch.library.opcheck(torch.ops.tarq.gram.default, (x, torch.randn(7, 3), None))
    torch.library.opcheck(torch.ops.tarq.gram_split.default, (x, torch.randn(7, 3), weight, tail))


def test_wrong_shapes_are_named():
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match="one row per position"):
        gram(x, torch.ones(4, 2))
    with pytest.raises(ValueError, match="one dtype"):
        gram(x, torch.ones(3, 2, dtype=torch.float16))
    with pytest.raises(ValueError, match="one weight per row"):
        gram(x, weight=torch.ones(4))
    with pytest.raises(ValueError, match=r"tail must be bool \[3\]"):
        gram_split(x, torch.ones(3))
    for rows, other in ((x, None), (x, torch.ones(3, 1)), (x.half(), x)):
        with pytest.raises(ValueError, match="a drift takes a second matrix"):
            gram_split(rows, torch.ones(3).bool(), other, drift=True)


def test_references_split_what_is_whole():
    x, y, weight, tail = torch.randn(30, 4), torch.randn(30, 3), torch.rand(30), torch.rand(30) < 0.4
    common, rare = gram_split_reference(x, y, weight, tail)
    torch.testing.assert_close(common + rare, gram_reference(x, y, weight))
