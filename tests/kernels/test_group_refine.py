"""``group_refine``: every step against brute force, the kernels against the reference, and the loss never rises."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tarq.kernels import dispatch
from tarq.kernels.group_quantize import Factor, Quantized, factorize, group_quantize, group_refine, reference
from tarq.kernels.scheme import Scheme

from tarq.bench.measure import threads

native = pytest.mark.skipif(dispatch.EXTENSION_ERROR is not None, reason="the extension is not built")
BACKENDS = ["reference", pytest.param("native", marks=native)]

SCHEMES = [
    Scheme(scale_rule="mse"),
    Scheme(group_size=32, symmetric=False),
    Scheme(group_size=64),
    Scheme(bits=2, group_size=32),
    Scheme(bits=3, group_size=50),  # no multiple of a panel
    Scheme(bits=8, group_size=200, symmetric=False),
    Scheme(group_size=5, symmetric=False),
    Scheme(group_size=1000),  # one group a row
]


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small gain nothing from threads, and lose much on a busy machine."""
    with threads(1):
        yield


@cache
def gram_of_inputs(m: int, n: int, seed: int, mean: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + m + n)
    x = torch.randn(3 * n + 20, n, generator=generator, dtype=torch.float64)
    x = x @ (torch.eye(n, dtype=x.dtype) + torch.randn(n, n, generator=generator, dtype=x.dtype) / n**0.5) + mean
    x[:, 1::17] *= 10
    return torch.randn(m, n, generator=generator, dtype=torch.float64) * 0.02, x.mT @ x


def problem(m: int, n: int, seed: int = 0, mean: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Gram of correlated inputs that have a mean and a few loud channels; float64."""
    v, h = gram_of_inputs(m, n, seed, mean)
    return v.clone(), h.clone()


def swept(v, h, scheme, ordered=False, scale_dtype=torch.float32) -> tuple[Quantized, Factor]:
    factor = factorize(h, order=h.diagonal().argsort(descending=True) if ordered else None)
    return group_quantize(v, factor, scheme, scale_dtype=scale_dtype), factor


def error_of(v: torch.Tensor, q: Quantized) -> torch.Tensor:
    """In float64, of the lattice points themselves: products not rounded to the scales' dtype."""
    group = torch.arange(q.codes.shape[1]) // q.group_size
    return v.double() - (q.codes.double() - q.zeros.double()[:, group]) * q.scales.double()[:, group]


def true_loss(v: torch.Tensor, q: Quantized, damped: torch.Tensor) -> torch.Tensor:
    error = error_of(v, q)
    return ((error @ damped.double()) * error).sum(1)


@cache
def refined_by_reference(m: int, n: int, scheme: Scheme, ordered: bool, scale_dtype: torch.dtype) -> Quantized:
    """Found once for all instruction sets."""
    v, h = problem(m, n)
    q, factor = swept(v, h, scheme, ordered, scale_dtype)
    return group_refine(v, q, h, factor, scheme, backend="reference")


@native
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_native_is_the_reference(scheme, isa):
    same = total = 0
    for m, n in (1, 3), (5, 129), (1, 300), (33, 300):
        for ordered, scale_dtype in (False, torch.float32), (True, torch.float16):
            v, h = problem(m, n)
            q, factor = swept(v, h, scheme, ordered, scale_dtype)
            ours = group_refine(v, q, h, factor, scheme, backend="native")
            expected = refined_by_reference(m, n, scheme, ordered, scale_dtype)
            same += int((ours.codes == expected.codes).sum())
            total += ours.codes.numel()
            assert ours.scales.dtype == scale_dtype
            assert torch.equal(ours.zeros, q.zeros)
            if torch.equal(ours.codes, expected.codes):  # else a tie went the other way, and all behind it
                torch.testing.assert_close(ours.scales, expected.scales)
                torch.testing.assert_close(ours.loss, expected.loss, rtol=1e-6, atol=1e-14)
    assert same >= 0.999 * total


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("scale_dtype", "dtype"),  # the other pairs are drawn by test_native_on_any_shape
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float64), (torch.float32, torch.float32)],
)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_loss_of_no_row_rises_and_is_the_loss(scheme, scale_dtype, dtype, backend):
    v, h = problem(20, 260)
    v, h = v.to(dtype), h.to(dtype)
    q, factor = swept(v, h, scheme, scale_dtype=scale_dtype)
    refined = group_refine(v, q, h, factor, scheme, backend=backend)
    damped = factor.damped(h).double()
    before, after = true_loss(v, q, damped), true_loss(v, refined, damped)
    assert bool((after <= before).all())
    assert float(after.sum()) < 0.99 * float(before.sum())
    torch.testing.assert_close(refined.loss, after, rtol=1e-9 if dtype == torch.float64 else 1e-3, atol=1e-12)
    assert int(refined.codes.max()) <= scheme.max_code
    again = group_refine(v, refined, h, factor, scheme, passes=20, backend=backend)
    assert bool((true_loss(v, again, damped) <= after).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mean", [0.0, 10.0, 100.0])
def test_a_loud_mean_does_not_make_the_loss_rise(mean, backend):
    """It is the worst of cases for float32: large products of which little is left."""
    v, h = problem(40, 384, mean=mean)
    v, h = v.float(), h.float()
    scheme = Scheme(scale_rule="mse")
    q, factor = swept(v, h, scheme, scale_dtype=torch.float16)
    refined = group_refine(v, q, h, factor, scheme, backend=backend)
    damped = factor.damped(h).double()
    before, after = true_loss(v, q, damped), true_loss(v, refined, damped)
    assert bool((after <= before).all())
    torch.testing.assert_close(refined.loss, after, rtol=1e-3, atol=0)


@pytest.mark.parametrize("ordered", [False, True])
def test_the_damped_hessian_is_what_was_factored(ordered):
    _, h = problem(1, 70)
    h[[3, 40]] = 0
    h[:, [3, 40]] = 0
    before = h.clone()
    factor = factorize(h, order=h.diagonal().argsort(descending=True) if ordered else None)
    damped = factor.damped(h)
    visited = damped if factor.order is None else damped[factor.order][:, factor.order]
    torch.testing.assert_close(visited, factor.upper @ factor.upper.mT)
    assert torch.equal(h, before)
    assert factorize(h.float()).damped(h).dtype == torch.float32


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_refitted_scale_has_the_least_loss(symmetric):
    scheme = Scheme(3, 16, symmetric)
    v, h = problem(6, 40)
    q, factor = swept(v, h, scheme)
    damped = factor.damped(h)
    columns = slice(16, 32)
    level = q.codes[:, columns].double() - q.zeros[:, 1:2].double()
    scale = q.scales[:, 1].double()
    error = error_of(v, q)
    gradient = error @ damped[:, columns]
    delta, change = reference.refit_scale(level, scale, gradient, damped[columns, columns], scheme, torch.float32)
    before = true_loss(v, q, damped)
    root = torch.linalg.cholesky(damped)
    for row in range(6):
        z = torch.zeros(40, dtype=torch.float64)
        z[columns] = level[row]
        wanted = (error[row] + scale[row] * z) @ root
        best = torch.linalg.lstsq((z @ root)[:, None], wanted[:, None]).solution.item()
        assert float(scale[row] + delta[row]) == pytest.approx(best, rel=1e-6)
    scales = q.scales.double()
    scales[:, 1] += delta
    torch.testing.assert_close(true_loss(v, replace(q, scales=scales), damped), before + change, rtol=1e-9, atol=1e-15)
    assert bool((change < 0).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_descent_takes_the_best_code_of_each_column(symmetric):
    scheme = Scheme(2, 6, symmetric)
    v, h = problem(5, 6)
    q, factor = swept(v, h, scheme)
    damped = factor.damped(h)
    zero = q.zeros[:, 0].double()
    level = q.codes.double() - zero[:, None]
    gradient = error_of(v, q) @ damped
    got, change = reference.descend(level, zero, q.scales[:, 0].double(), gradient, damped, scheme)
    now = q
    for j in range(6):  # column by column, all four codes tried
        tried = []
        for code in range(4):
            codes = now.codes.clone()
            codes[:, j] = code
            tried.append(true_loss(v, replace(now, codes=codes), damped))
        codes = now.codes.clone()
        codes[:, j] = torch.stack(tried).argmin(0).to(torch.uint8)
        now = replace(now, codes=codes)
    assert torch.equal((got + zero[:, None]).to(torch.uint8), now.codes)
    expected = true_loss(v, now, damped) - true_loss(v, q, damped)
    torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-15)


def lone(codes: list[int], scale: float, target: torch.Tensor, zero: int) -> tuple[Quantized, Factor, torch.Tensor]:
    """One row of one group, in float16 scales, under the identity."""
    n = len(codes)
    level = torch.tensor(codes).double() - zero
    loss = (target - level * scale).square().sum()[None] * 1.01
    q = Quantized(
        torch.tensor([codes], dtype=torch.uint8),
        torch.tensor([[scale]], dtype=torch.float16),
        torch.tensor([[zero]], dtype=torch.uint8),
        loss,
        n,
    )
    h = torch.eye(n)
    return q, factorize(h), h


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("codes", "symmetric", "before", "wanted", "usable"),
    [
        ([0, 15, 1, 14], True, 8000.0, 8160.0, True),
        ([0, 15, 1, 14], True, 8000.0, 8400.0, False),  # 8 · 8400 > 65504, though float16 holds 8400
        ([0, 15, 1, 14], True, 8000.0, 1e6, False),
        ([0, 15, 3, 14], False, 4000.0, 4300.0, True),
        ([0, 15, 3, 14], False, 4000.0, 4500.0, False),  # 15 · 4500 > 65504
        ([7, 9, 6, 10], True, 1e-4, 7e-5, True),
        ([7, 9, 6, 10], True, 1e-4, 3e-5, False),  # subnormal
        ([7, 9, 6, 10], True, 1e-4, -1e-4, False),
        ([8, 8, 8, 8], True, 1.0, 2.0, False),  # no level to fit
    ],
)
def test_a_scale_that_cannot_be_stored_stays(codes, symmetric, before, wanted, usable, backend):
    zero = 8
    target = (torch.tensor([codes]).double() - zero) * wanted
    q, factor, h = lone(codes, before, target, zero)
    refined = group_refine(target.float(), q, h, factor, Scheme(4, 4, symmetric), passes=1, backend=backend)
    stored = torch.tensor(wanted if usable else before, dtype=torch.float16)
    assert refined.scales.item() == stored.item()
    reference.check_scales(refined.scales, Scheme(4, 4, symmetric))
    assert refined.dequantize().isfinite().all()


@native
def test_result_does_not_depend_on_threads():
    v, h = (t.float() for t in problem(301, 260))
    scheme = Scheme(scale_rule="mse")
    q, factor = swept(v, h, scheme)
    results = []
    for count in (1, 2, 3, 7):
        with threads(count):
            results.append(group_refine(v, q, h, factor, scheme))
    for result in results[1:]:
        for name in ("codes", "scales", "loss"):
            assert torch.equal(getattr(result, name), getattr(results[0], name)), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_dead_columns_stay_zero(backend):
    v, h = problem(5, 70)
    dead = torch.tensor([0, 31, *range(16, 32), 69])
    h[dead] = 0
    h[:, dead] = 0
    scheme = Scheme(group_size=16, symmetric=False)
    q, factor = swept(v, h, scheme)
    refined = group_refine(v, q, h, factor, scheme, backend=backend)
    assert not refined.dequantize()[:, dead].any()
    assert torch.equal(refined.scales[:, 1], q.scales[:, 1])  # a group without a level


@native
@settings(deadline=None, max_examples=40)
@given(
    m=st.integers(1, 60),
    n=st.integers(1, 280),
    group=st.integers(1, 300),
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    count=st.integers(1, 3),
    seed=st.integers(0, 5),
)
@pytest.mark.slow
def test_native_on_any_shape(m, n, group, bits, symmetric, scale_dtype, dtype, count, seed):
    v, h = (t.to(dtype) for t in problem(m, n, seed))
    scheme = Scheme(bits, group, symmetric)
    q, factor = swept(v, h, scheme, scale_dtype=scale_dtype)
    with threads(count):
        ours = group_refine(v, q, h, factor, scheme, backend="native")
    damped = factor.damped(h).double()
    before, after = true_loss(v, q, damped), true_loss(v, ours, damped)
    assert bool((after <= before * (1 + 1e-7)).all())
    slack = 1e-9 if dtype == torch.float64 else 1e-4  # it is the loss before, less what was gained
    assert bool(((ours.loss - after).abs() <= slack * before + 1e-12).all())
    assert bool((ours.loss >= 0).all())
    if dtype == torch.float64:
        expected = group_refine(v, q, h, factor, scheme, backend="reference")
        # Half-way cases may fall either way, and then change the rest of their row: bound rows, not codes.
        assert (ours.codes != expected.codes).any(1).sum() <= max(1, m // 20)


@native
def test_operator_is_registered_soundly():
    assert dispatch.has_native("group_refine", "cpu")
    v, h = problem(3, 40)
    q, factor = swept(v, h, Scheme(group_size=16), scale_dtype=torch.float16)
    arguments = (v, factor.damped(h), q.codes, q.scales, q.zeros, q.loss, 4, 16, True, 2)
    torch.library.opcheck(torch.ops.tarq.group_refine, arguments, test_utils=("test_schema", "test_faketensor"))
    before = [t.clone() for t in arguments[:6]]
    torch.ops.tarq.group_refine(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(before, arguments[:6], strict=True))
    for place, bad in (2, q.codes[:, 1:]), (3, q.scales[:1]), (4, q.zeros.int()), (5, q.loss.float()):
        wrong = [*arguments[:place], bad, *arguments[place + 1 :]]
        with pytest.raises(RuntimeError, match="must be"):
            torch.ops.tarq.group_refine(*wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused(backend):
    v, h = problem(3, 40)
    scheme = Scheme(group_size=16)
    q, factor = swept(v, h, scheme)
    for target, hessian in (v[:, :39], h), (v[:2], h), (v, h[:39, :39]):
        with pytest.raises(ValueError, match="do not fit"):
            group_refine(target, q, hessian, factor, scheme, backend=backend)
    with pytest.raises(ValueError, match="groups of 16"):
        group_refine(v, q, h, factor, Scheme(group_size=32), backend=backend)
    with pytest.raises(ValueError, match="passes"):
        group_refine(v, q, h, factor, scheme, passes=0, backend=backend)
    with pytest.raises(ValueError, match="not finite"):
        group_refine(v.index_fill(0, torch.tensor(1), float("nan")), q, h, factor, scheme, backend=backend)
