"""Refined codes: every step against brute force in float64, and the loss never rises."""

import pytest
import torch
from tarq.kernels.group_quantize import factorize, group_quantize_layers
from tarq.kernels.scheme import Scheme

from tarq.method.metrics import Rebalanced
from tarq.method.refine import RefinedSweep, damped, descend_codes, refit_scales
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
        if bool((best > 0).all()):
            torch.testing.assert_close(scales[row].double(), best, rtol=1e-4, atol=1e-6)


def test_descent_takes_the_best_level_of_each_column():
    v, _, factor, scheme, q = problem(2, 6, 2, 6, True)
    hessian = damped(factor)
    codes = descend_codes(v, q, hessian, scheme).double()
    now = q.codes.double()
    scale = q.scales.double()
    for j in range(6):  # column by column, all four levels tried
        tried = []
        for level in range(4):
            now[:, j] = level
            tried.append(loss(v, (now - 2) * scale, hessian))
        now[:, j] = torch.stack(tried).argmin(0).double()
    assert torch.equal(codes, now)


@pytest.mark.parametrize(("m", "n", "bits", "group_size", "symmetric", "order"), SHAPES)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16])
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
