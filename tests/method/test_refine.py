"""Refined codes: every step against brute force in float64, and the loss never rises."""

from dataclasses import replace

import pytest
import torch
from tarq.kernels.group_quantize import Quantized, factorize, group_quantize_layers
from tarq.kernels.scheme import Scheme

from tarq.method.metrics import Rebalanced
from tarq.method.refine import RefinedSweep, damped, descend_codes, refined, refit_scales
from tarq.method.residuals import Statistics
from tarq.method.solvers import Sweep


def problem(m, n, bits, group_size, symmetric, order=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * n, n, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(n, n, generator=generator, dtype=torch.float64) + 0.5
    v = torch.randn(m, n, generator=generator, dtype=torch.float64)
    hessian = x.T @ x
    visit = hessian.diagonal().argsort(descending=True) if order else None
    factor = factorize(hessian, 0.01, order=visit)
    scheme = Scheme(bits, group_size, symmetric)
    (q,) = group_quantize_layers([v], [factor], scheme, scale_dtype=torch.float32)
    return v, hessian, factor, scheme, q


def loss(v, w, hessian):
    return torch.einsum("mi,ij,mj->m", v - w, hessian, v - w)


def product(q):
    """The weights as the kernels multiply them: not rounded to the scales' dtype."""
    group = torch.arange(q.codes.shape[1]) // q.group_size
    return (q.codes.double() - q.zeros.double()[:, group]) * q.scales.double()[:, group]


#: m, n, bits, group size, symmetric, act-order
SHAPES = [
    (3, 40, 4, 8, True, False),
    (5, 96, 3, 32, False, True),
    (1, 130, 2, 128, True, True),
    (4, 16, 4, 16, False, False),
]


@pytest.mark.parametrize(("m", "n", "bits", "group_size", "symmetric", "order"), SHAPES)
def test_the_damped_metric_is_in_natural_order(m, n, bits, group_size, symmetric, order):
    _, hessian, factor, *_ = problem(m, n, bits, group_size, symmetric, order)
    delta = factor.damp * hessian.diagonal().mean()
    torch.testing.assert_close(
        damped(factor), hessian + delta * torch.eye(n, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("m", "n", "bits", "group_size", "symmetric", "order"), SHAPES)
def test_refitted_scales_are_the_least_squares_solution(m, n, bits, group_size, symmetric, order):
    v, _, factor, _, q = problem(m, n, bits, group_size, symmetric, order)
    hessian = damped(factor)
    scales = refit_scales(v, q, hessian)
    group = torch.arange(n) // group_size
    levels = q.codes.double() - q.zeros.double()[:, group]
    root = torch.linalg.cholesky(hessian)
    for row in range(m):
        z = torch.stack([torch.where(group == g, levels[row], 0) for g in range(scales.shape[1])])
        best = torch.linalg.lstsq((z @ root).T, (v[row] @ root)[:, None]).solution[:, 0]
        assert bool((best > 0).all())
        torch.testing.assert_close(scales[row].double(), best, rtol=1e-4, atol=1e-6)


def test_a_scale_stays_where_the_best_is_none():
    """Of the first group the best scale is negative; the second has no level other than zero; the third is fitted."""
    v = torch.tensor([[-1.0, -2.0, 1.0, 1.0, 3.0, 3.0]], dtype=torch.float64)
    codes = torch.tensor([[10, 12, 8, 8, 9, 9]], dtype=torch.uint8)
    scales = torch.tensor([[0.5, 0.25, 1.0]])
    q = Quantized(codes, scales, torch.full((1, 3), 8, dtype=torch.uint8), torch.zeros(1), 2)
    refitted = refit_scales(v, q, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(refitted, torch.tensor([[0.5, 0.25, 3.0]]))


@pytest.mark.parametrize(("n", "bits", "group_size", "symmetric"), [(6, 2, 6, True), (150, 3, 32, False)])
def test_descent_takes_the_best_level_of_each_column(n, bits, group_size, symmetric):
    """From codes that are far from good, over more columns than one block: in turn, all levels tried."""
    v, _, factor, scheme, q = problem(2, n, bits, group_size, symmetric)
    generator = torch.Generator().manual_seed(1)
    q = replace(q, codes=torch.randint(2**bits, (2, n), generator=generator, dtype=torch.uint8))
    hessian = damped(factor)
    codes = descend_codes(v, q, hessian, scheme)
    now = replace(q, codes=q.codes.clone())
    for j in range(n):
        tried = []
        for code in range(2**bits):
            now.codes[:, j] = code
            tried.append(loss(v, product(now), hessian))
        now.codes[:, j] = torch.stack(tried).argmin(0).to(torch.uint8)
    assert torch.equal(codes, now.codes)
    assert int((codes != q.codes).sum()) > n


@pytest.mark.parametrize(("m", "n", "bits", "group_size", "symmetric", "order"), SHAPES)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_loss_never_rises_and_is_the_loss(m, n, bits, group_size, symmetric, order, scale_dtype):
    v, hessian, _, scheme, _ = problem(m, n, bits, group_size, symmetric, order)
    act_order = "static" if order else "none"
    results = []
    for kind in (Sweep, RefinedSweep):
        solver = kind(act_order=act_order, dtype=torch.float64)
        factor = solver.factorize(hessian)
        statistics = Statistics(Rebalanced(hessian, None), factor)
        (q,) = solver.quantize([v], statistics, scheme, scale_dtype)
        torch.testing.assert_close(q.loss, loss(v, product(q), damped(factor)), rtol=1e-6, atol=1e-9)
        results.append(q)
    swept, refined = results
    assert bool((refined.loss <= swept.loss * (1 + 1e-12)).all())
    assert float(refined.loss.sum()) < float(swept.loss.sum())
    assert int(refined.codes.max()) < 2**bits


def test_fitted_scales_that_rounding_spoils_are_not_taken():
    """Two inputs that go together: bfloat16 scales nearest to the fitted add their errors, those of the old cancel."""
    hessian = torch.tensor([[1.0, 0.9999], [0.9999, 1.0]], dtype=torch.float64)
    factor, scheme = factorize(hessian, 0.0), Scheme(4, 1, True)
    v = torch.tensor([[1.003, 1.0]], dtype=torch.float64)
    scales = torch.tensor([[1.0078125, 0.99609375]], dtype=torch.bfloat16)
    codes = torch.full((1, 2), 9, dtype=torch.uint8)
    old = Quantized(codes, scales, torch.full_like(codes, 8), torch.zeros(1), 1)
    old = replace(old, loss=loss(v, product(old), hessian))
    fitted = replace(old, scales=refit_scales(v, old, hessian))
    assert fitted.scales.tolist() == [[1.0, 1.0]]
    assert float(loss(v, product(fitted), hessian)) > float(old.loss)
    got = refined(v, old, hessian, factor, scheme, 1)
    assert torch.equal(got.scales, scales)
    torch.testing.assert_close(got.loss, loss(v, product(got), hessian))


def test_each_round_goes_further():
    v, hessian, factor, scheme, _ = problem(4, 96, 3, 32, False)
    statistics = Statistics(Rebalanced(hessian, None), factor)

    def error(rounds):
        (q,) = RefinedSweep(rounds=rounds, dtype=torch.float64).quantize([v], statistics, scheme, torch.float32)
        return float(loss(v, product(q), damped(factor)).sum())

    (swept,) = Sweep(dtype=torch.float64).quantize([v], statistics, scheme, torch.float32)
    assert error(0) == float(loss(v, product(swept), damped(factor)).sum())
    assert error(3) < error(2) < error(1) < error(0)


def test_an_input_that_is_always_zero_gets_no_weight():
    v, hessian, _, scheme, _ = problem(3, 40, 4, 8, True)
    hessian[:, 5] = hessian[5] = 0
    factor = factorize(hessian, 0.01)
    solver = RefinedSweep(dtype=torch.float64)
    (q,) = solver.quantize([v], Statistics(Rebalanced(hessian, None), factor), scheme, torch.float32)
    assert bool((product(q)[:, 5] == 0).all())
    assert not bool((v[:, 5] == 0).any())
    torch.testing.assert_close(q.loss, loss(v.masked_fill(factor.dead, 0), product(q), damped(factor)))
