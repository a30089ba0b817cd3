"""The Triton kernels of ``gram`` against float64: interpreted on CPU tensors, or on the GPU where there is one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tarq.kernels import triton_runtime
from tarq.kernels.gram.triton import plan as plans
from torch import Tensor

launch = pytest.importorskip("tarq.kernels.gram.triton.launch", reason="Triton is not installed", exc_type=ImportError)
gram_triton, gram_split_triton = launch.gram_triton, launch.gram_split_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The interpreter gets products of bfloat16 wrong without a word.
DTYPES = (torch.float16, torch.float32) if DEVICE == "cpu" else (torch.float16, torch.bfloat16, torch.float32)

SIZES = (1, 3, 127, 128, 129, 384)

# Of Σ |d_t y_t x_t|: float32 sums of a few hundred rows, float32 products where a weight or the operands are float32.
TOLERANCE = 2e-6


@pytest.fixture(scope="module", autouse=True)
def fill_uninitialized_memory():
    """Have ``torch.empty`` hold NaN on a CPU, so that an entry left unwritten shows."""
    torch.use_deterministic_algorithms(DEVICE == "cpu")
    yield
    torch.use_deterministic_algorithms(False)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def assert_accurate(
    result: Tensor, x: Tensor, y: Tensor | None = None, weight: Tensor | None = None, slack: float = 0.0
) -> None:
    """Compare with the sum in float64, entry by entry, relative to the sum of magnitudes."""
    x = x.double()
    y = x if y is None else y.double()
    left = y if weight is None else y * weight.double()[:, None]
    exact, magnitude = left.T @ x, left.abs().T @ x.abs()
    assert result.dtype == torch.float32
    assert result.shape == exact.shape
    assert ((result.double() - exact).abs() <= TOLERANCE * magnitude + slack).all()


def force(monkeypatch: pytest.MonkeyPatch, block: int, splits: int) -> None:
    """Have every launch use tiles of this size and this many splits."""

    def choose(n, k, rows, dtype, capability, sm_count):
        options = plans.candidates(dtype, capability)
        return plans.Plan(next((c for c in options if c.block == block), options[0]), splits)

    monkeypatch.setattr(launch, "choose", choose)


@pytest.mark.parametrize("kind", [None, "levels", "real"])
def test_every_form_of_the_kernels_once(kind):
    """One product and two, whole and split, unweighted, by levels and row by row, into a running sum."""
    x, y = normal(70, 40, dtype=torch.float16), normal(70, 24, dtype=torch.float16, seed=1)
    weight, tail = None if kind is None else weights(kind, 70), torch.arange(70, device=DEVICE) % 5 == 0
    running = torch.ones(40, 40, device=DEVICE)
    assert_accurate(gram_triton(x, None, weight, out=running) - 1, x, None, weight, slack=2e-6)
    for subset, mask in zip(gram_split_triton(x, y, tail, weight), (~tail, tail), strict=True):
        assert_accurate(subset, x[mask], y[mask], None if weight is None else weight[mask])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.slow
def test_symmetric_product(n, dtype):
    x = normal(150, n, dtype=dtype)
    result = gram_triton(x)
    assert_accurate(result, x)
    assert torch.equal(result, result.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 129), (129, 1), (3, 3), (127, 200), (200, 127), (384, 128)])
@pytest.mark.slow
def test_product_of_two(n, k, dtype):
    x, y = normal(70, n, dtype=dtype), normal(70, k, dtype=dtype, seed=1)
    assert_accurate(gram_triton(x, y), x, y)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.slow
def test_every_tile_and_split(pair, block, splits, monkeypatch):
    # More tiles along a side than a band is high, a ragged last tile, the last split shorter than the others.
    force(monkeypatch, block, splits)
    monkeypatch.setattr(plans, "SUPERTILE", 2)
    x, y = normal(600, 5 * block - 24, dtype=torch.float16), normal(600, 3 * block + 8, dtype=torch.float16, seed=1)
    assert_accurate(gram_triton(x, y if pair else None), x, y if pair else None)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 255, 256, 257, 600])
@pytest.mark.slow
def test_any_number_of_rows(rows):
    x, y = normal(rows, 40, dtype=torch.float16), normal(rows, 24, dtype=torch.float16, seed=1)
    assert_accurate(gram_triton(x), x)
    assert_accurate(gram_triton(x, y), x, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_rows_give_zeros(dtype):
    x, y = normal(0, 20, dtype=dtype), normal(0, 30, dtype=dtype)
    empty = torch.zeros(0, device=DEVICE)
    assert torch.equal(gram_triton(x, y, empty), torch.zeros(30, 20, device=DEVICE))
    assert torch.equal(gram_split_triton(x, None, empty.bool()), torch.zeros(2, 20, 20, device=DEVICE))
    running = torch.ones(20, 20, device=DEVICE)
    assert torch.equal(gram_triton(x, out=running), torch.ones(20, 20, device=DEVICE))
    assert gram_triton(normal(5, 0, dtype=dtype), normal(5, 3, dtype=dtype)).shape == (3, 0)


VIEWS = {
    "columns": lambda x: x[:, 16:56],
    "first columns": lambda x: x[:, :41],
    "odd columns": lambda x: x[:, 3:44],
    "every second row": lambda x: x[1::2],
    "every second column": lambda x: x[:, ::2],
    "transposed": lambda x: x.T.contiguous().T,
    "one row repeated": lambda x: x[:1].expand(90, -1),
    "offset": lambda x: x.flatten()[5:-3].view(-1, 8),
    "odd stride": lambda x: x.flatten()[:6300].view(-1, 63)[:, :40],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.slow
def test_views(view, dtype):
    x = VIEWS[view](normal(100, 64, dtype=dtype))
    y = VIEWS[view](normal(100, 64, dtype=dtype, seed=1))
    tail = torch.arange(len(x), device=DEVICE) % 5 == 0
    assert_accurate(gram_triton(x), x)
    assert_accurate(gram_triton(x, y), x, y)
    assert_accurate(gram_split_triton(x, None, tail)[1], x[tail])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vector_loads_are_aligned(dtype):
    x, vector = normal(100, 64, dtype=dtype), 16 // dtype.itemsize
    for name, view in VIEWS.items():
        aligned = triton_runtime.aligned_rows(view(x), vector)
        assert torch.equal(aligned[:, : view(x).shape[1]], view(x))
        assert aligned.stride(1) == 1
        assert all(
            size % vector == 0 for size in (aligned.shape[1], aligned.stride(0), aligned.data_ptr() // dtype.itemsize)
        )
        # No copy where none is needed.
        in_place = name in ("columns", "every second row", "one row repeated")
        assert (aligned.data_ptr() == view(x).data_ptr()) == in_place


@pytest.mark.slow
def test_neighbouring_memory_is_not_read():
    x = torch.full((80, 96), math.nan, dtype=torch.float16, device=DEVICE)
    inner = x[10:70, 8:88]
    inner.copy_(normal(60, 80))
    assert_accurate(gram_triton(inner), inner)
    tail = torch.arange(60, device=DEVICE) < 7
    common, rare = gram_split_triton(inner, None, tail)
    assert_accurate(common, inner[~tail])
    assert_accurate(rare, inner[tail])


@pytest.mark.skipif(DEVICE == "cuda", reason="loads are watched in the interpreter")
@pytest.mark.parametrize("rows", [1, 90])
@pytest.mark.slow
def test_no_load_leaves_the_inputs(rows, monkeypatch):
    from triton.runtime.interpreter import interpreter_builder

    inputs = [normal(rows, 136, dtype=torch.float16), normal(rows, 72, dtype=torch.float16, seed=1)]
    spans = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in inputs]
    load, loads = interpreter_builder.create_masked_load, []

    def watched(pointers, mask, *rest):
        value = load(pointers, mask, *rest)
        if value.data.dtype == np.float16:
            loads.append(pointers.data[mask.data].astype(np.int64))
        return value

    monkeypatch.setattr(interpreter_builder, "create_masked_load", watched)
    gram_triton(*inputs)
    gram_split_triton(inputs[0], None, torch.arange(rows) < 9)
    addresses = np.concatenate([block.ravel() for block in loads])
    assert len(addresses) >= rows * (2 * 136 + 72)
    assert np.any([(first <= addresses) & (addresses < end) for first, end in spans], axis=0).all()


@pytest.mark.slow
def test_values_near_the_limit_of_float16():
    x = 6e4 * normal(300, 70).sign().to(torch.float16)
    x[:, ::3] = 6e-8  # the smallest subnormal
    assert_accurate(gram_triton(x), x)


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("share", ["some", "none", "all", "one"])
@pytest.mark.slow
def test_split(share, dtype, pair):
    rows = 200
    x, y = normal(rows, 72, dtype=dtype), normal(rows, 40, dtype=dtype, seed=1) if pair else None
    draw = torch.rand(rows, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    tail = {"some": draw < 0.07, "none": draw < 0, "all": draw < 2, "one": draw == draw.min()}[share]
    result = gram_split_triton(x, y, tail)
    assert result.shape == (2, 40 if pair else 72, 72)
    for subset, mask in zip(result, (~tail, tail), strict=True):
        assert_accurate(subset, x[mask], None if y is None else y[mask])
        if not mask.any():
            assert not subset.any()


def weights(kind: str, rows: int) -> Tensor:
    draw = torch.rand(rows, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    levels = torch.tensor([0, 0.1, 1, -2.5], device=DEVICE)
    return {
        "levels": levels[(draw * 4).long()],
        "real": torch.where(draw < 0.2, 0.0, draw - 0.5),
        "ones": torch.ones_like(draw),
        "zeros": torch.zeros_like(draw),
        "integer": (draw * 3).long(),
        "half": levels[(draw * 4).long()].half(),
    }[kind]


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["levels", "real", "ones", "zeros", "integer", "half"])
@pytest.mark.slow
def test_weights(kind, dtype, pair):
    x, y = normal(90, 72, dtype=dtype), normal(90, 24, dtype=dtype, seed=1) if pair else None
    weight, tail = weights(kind, 90), torch.arange(90, device=DEVICE) % 7 == 0
    result = gram_triton(x, y, weight)
    assert_accurate(result, x, y, weight)
    assert pair or torch.equal(result, result.T)
    for subset, mask in zip(gram_split_triton(x, y, tail, weight), (~tail, tail), strict=True):
        assert_accurate(subset, x[mask], None if y is None else y[mask], weight[mask])


@pytest.mark.parametrize("kind", ["levels", "real"])
@pytest.mark.slow
def test_rows_of_weight_zero_are_on_neither_side(kind):
    x, weight = normal(90, 16, dtype=torch.float16), weights(kind, 90)
    x[weight == 0] = math.nan
    tail, kept = torch.arange(90, device=DEVICE) % 2 == 0, weight != 0
    for subset, mask in zip(gram_split_triton(x, None, tail, weight), (~tail & kept, tail & kept), strict=True):
        assert_accurate(subset, x[mask], None, weight[mask])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.slow
def test_what_is_not_finite_stays_visible(dtype, bad):
    x = normal(90, 72, dtype=dtype)
    x[40, 9] = bad
    for result in (gram_triton(x), gram_triton(x, None, weights("real", 90) + 2)):
        assert not result[9, 9].isfinite()
        assert result[:9, :9].isfinite().all()


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("n", [24, 33])
@pytest.mark.slow
def test_running_sum(n, splits, monkeypatch):
    force(monkeypatch, 64, splits)
    x, y = normal(600, n, dtype=torch.float16), normal(600, 16, dtype=torch.float16, seed=1)
    tail, weight = torch.arange(600, device=DEVICE) % 9 == 0, weights("levels", 600)
    for call, shape in (
        (lambda out: gram_triton(x, out=out), (n, n)),
        (lambda out: gram_triton(x, y, weight, out=out), (16, n)),
        (lambda out: gram_triton(x, y, weights("real", 600), out=out), (16, n)),
        (lambda out: gram_split_triton(x, None, tail, out=out), (2, n, n)),
        (lambda out: gram_split_triton(x, y, tail, weight, out=out), (2, 16, n)),
    ):
        # An odd offset: the running sums of several layers may lie in one buffer.
        running = normal(1 + math.prod(shape), seed=4)[1:].view(shape)
        expected = running + call(None)
        assert call(running) is running
        torch.testing.assert_close(running, expected, rtol=1e-6, atol=1e-5)


def test_running_sum_must_be_contiguous_float32():
    x = normal(5, 8)
    whole = torch.zeros(8, 16, device=DEVICE)
    for out in (whole[:, :9].contiguous(), whole[:, :8].double().contiguous(), whole[:, ::2]):
        with pytest.raises(ValueError, match="contiguous float32"):
            gram_triton(x, out=out)


def test_float64_runs_as_the_reference():
    x, weight = normal(50, 6).double(), weights("real", 50).double()
    tail = torch.arange(50, device=DEVICE) < 9
    exact = x.T @ (x * weight[:, None])
    torch.testing.assert_close(gram_triton(x, None, weight), exact)
    torch.testing.assert_close(gram_split_triton(x, None, tail, weight).sum(0), exact)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 300),
    n=st.integers(1, 150),
    k=st.none() | st.integers(1, 150),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from([None, "levels", "real"]),
    share=st.none() | st.floats(0, 1),
    seed=st.integers(0, 99),
)
@pytest.mark.slow
def test_any_shape(rows, n, k, dtype, kind, share, seed):
    x, y = normal(rows, n, dtype=dtype, seed=seed), None if k is None else normal(rows, k, dtype=dtype, seed=seed + 1)
    weight = None if kind is None else weights(kind, rows)
    if share is None:
        assert_accurate(gram_triton(x, y, weight), x, y, weight)
        return
    tail = (torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < share).to(DEVICE)
    for subset, mask in zip(gram_split_triton(x, y, tail, weight), (~tail, tail), strict=True):
        assert_accurate(subset, *(None if t is None else t[mask] for t in (x, y, weight)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("kind", [None, "levels", "real"])
def test_every_launch_is_one_that_was_compiled(kind, pair, dtype, monkeypatch, record_launches, benchmark_script):
    launched = []

    def note(kernel, given, constants):
        absent = {name for name, value in given.items() if value is None}
        launched.append((kernel, given.get("x_ptr", torch.empty(0)).dtype, absent, constants))

    x, y = normal(600, 192, dtype=dtype), normal(600, 40, dtype=dtype) if pair else None
    weight, tail = None if kind is None else weights(kind, 600), torch.arange(600, device=DEVICE) % 2 == 0
    record_launches(launch, ("gram_kernel", "finish_kernel"), note)
    for out in (None, torch.zeros(2, 40 if pair else 192, 192, device=DEVICE)):
        gram_triton(x, y, weight, out=None if out is None else out[0])
        gram_split_triton(x, y, tail, weight, out=out)
    monkeypatch.undo()

    compiled = []
    for one in benchmark_script("triton_variants").of_gram(triton_runtime.chip(x.device)[0]):
        element = {"*bf16": torch.bfloat16, "*fp16": torch.float16}.get(one.signature.get("x_ptr"), torch.float32)
        given = {one.kernel.arg_names[i]: value for (i,), value in one.constexprs.items()}
        absent = {name for name, value in given.items() if value is None}
        compiled.append((one.kernel, element, absent, {n: v for n, v in given.items() if v is not None} | one.options))
    assert launched
    assert all(launch in compiled for launch in launched)


def test_plans():
    def plan(n, k, rows, dtype=torch.bfloat16, capability=(9, 0)):
        return plans.choose(n, k, rows, dtype, capability, 132)

    assert plan(5120, None, 100_000).configuration.block == 128
    assert plan(40, None, 100_000).configuration.block == 64
    assert plan(5120, None, 1).splits == plan(64, None, 200).splits == 1
    # Enough programs for the chip, as long as they have rows to sum.
    for n, k in ((128, None), (384, None), (1280, None), (1280, 64)):
        chosen = plan(n, k, 24_000)
        assert plans.tiles(n, k, chosen.configuration.block) * chosen.splits >= 0.4 * 132
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)):
        for dtype in plans.DTYPES:
            for rows in (1, 300, 5_000_000):
                chosen = plan(5120, 20_480, rows, dtype, capability)
                assert chosen.configuration in plans.candidates(dtype, capability)
                assert chosen.splits == 1 or 4 * chosen.splits * 5120 * 20_480 <= plans.PARTIAL_BYTES


def error_bound(rows: int, dtype: torch.dtype, splits: int) -> float:
    """The most that an entry may be off, as a share of the norms of its columns: units of 2⁻²⁴ in how it is summed.

    Tensor cores truncate (2 units) at each step of a chunk: 16 rows of 16-bit operands, 8 of float32 ones, three times
    over. Chunks and splits are added rounding to nearest (1 unit each). Σ|y x| is at most the product of the norms.
    Adding up float32 products row by row has ``rows`` units instead.
    """
    steps = plans.CHUNK / 16 if dtype.itemsize == 2 else 3 * plans.CHUNK / 8
    products = 0 if dtype.itemsize == 2 else 4  # low × low, and the rounding of the parts
    return 2.0**-24 * (2 * steps + products + rows / plans.CHUNK / splits + splits + 2)


def errors(result: Tensor, exact: Tensor, norm: Tensor) -> tuple[float, float]:
    """Largest and root-mean-square error, relative to the norms of the columns."""
    error = (result.double() - exact) / norm
    return error.abs().max().item(), error.square().mean().sqrt().item()


def activations(rows: int, n: int, dtype: torch.dtype) -> Tensor:
    """Normal rows with a mean in some channels and outliers in a few, as after a LayerNorm."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(rows, n, generator=generator, device=DEVICE)
    x += torch.randn(n, generator=generator, device=DEVICE)
    return x.mul_(torch.randn(n, generator=generator, device=DEVICE).exp()).to(dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("rows", "n"), [(1_500, 1280), (24_000, 1280), (24_000, 1287), (100_000, 5120), (1 << 20, 256)]
)
def test_errors_are_within_what_the_sums_allow(rows, n, dtype):
    """And the mean error within twice that of float32 copies, which win or lose by how cuBLAS splits the rows."""
    x = activations(rows, n, dtype)
    exact = sum(part.double().T @ part.double() for part in x.split(16_384))
    norm = exact.diagonal().sqrt()[:, None] * exact.diagonal().sqrt()
    upcast = errors(x.float().T @ x.float(), exact, norm)
    ours = errors(gram_triton(x), exact, norm)
    print(f"\n{rows} × {n} {dtype}: largest {ours[0]:.1e} / {upcast[0]:.1e}, mean {ours[1]:.1e} / {upcast[1]:.1e}")
    splits = plans.choose(n, None, rows, dtype, *triton_runtime.chip(x.device)).splits
    assert ours[0] <= error_bound(rows, dtype, splits)
    # Tensor cores round their sums toward zero: up to 5.5 times on an H200 (1,500 rows of float16).
    assert ours[1] <= 8 * upcast[1]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [None, "levels", "real"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_split_at_full_size(dtype, kind):
    rows, n, k = 24_000, 1280, 5120
    x, y = activations(rows, n, dtype), activations(rows, k, dtype).roll(1, 0)
    tail = torch.arange(rows, device=DEVICE) % 14 == 0
    weight = None if kind is None else weights(kind, rows)
    for subset, mask in zip(gram_split_triton(x, y, tail, weight), (~tail, tail), strict=True):
        left = y[mask].double() * (1 if weight is None else weight[mask].double()[:, None])
        exact, norm = left.T @ x[mask].double(), left.norm(dim=0)[:, None] * x[mask].double().norm(dim=0)
        upcast = errors(left.float().T @ x[mask].float(), exact, norm)
        ours = errors(subset, exact, norm)
        print(f"\nsides {dtype} {kind}: largest {ours[0]:.1e} / {upcast[0]:.1e}, mean {ours[1]:.1e} / {upcast[1]:.1e}")
        # One split is the worst case; weighted rows are float32 operands, one level after another four sums.
        operands = torch.float32 if kind == "real" else dtype
        assert ours[0] <= error_bound(int(mask.sum()), operands, 1) + 8 * 2.0**-24
        assert ours[1] <= 8 * upcast[1]


@pytest.mark.gpu
def test_split_does_not_synchronise():
    x, tail = activations(4_000, 512, torch.bfloat16), torch.arange(4_000, device=DEVICE) % 14 == 0
    gram_split_triton(x, None, tail)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        gram_split_triton(x, None, tail)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements():
    x = torch.zeros(1_100_000, 2048, dtype=torch.bfloat16, device=DEVICE)
    x[-300:] = activations(300, 2048, torch.bfloat16)
    assert_accurate(gram_triton(x), x[-300:])
    tail = torch.arange(len(x), device=DEVICE) >= len(x) - 200
    assert_accurate(gram_split_triton(x, None, tail)[1], x[-200:])
