"""Solvers that charge for more than the metric does: both sides of the loss, or the weight itself."""

import pytest
import torch
from tarq.kernels.scheme import Scheme

from tarq.method.kronecker import Kronecker
from tarq.method.metrics import Rebalanced
from tarq.method.residuals import FixedAlpha, Statistics
from tarq.method.sarqc import Regularized
from tarq.method.solvers import Sweep

SCHEME = Scheme(4, 8)


def output_side(m, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * m, m, generator=g, dtype=torch.float64)
    x = x @ (torch.randn(m, m, generator=g, dtype=torch.float64) + 2 * torch.eye(m, dtype=torch.float64))
    return x.T @ x


def felt(error, g, h):
    """``tr(G E H Eᵀ)``."""
    return float((g @ error @ h * error).sum())


def yaqa_loop(v, g, h, rounded):
    """Both sides' feedback and their product, entry by entry (arXiv 2505.22988)."""
    rows = g.diagonal().argsort(descending=True, stable=True)
    u = torch.linalg.cholesky(torch.linalg.inv(g[rows][:, rows]), upper=True)
    m = torch.linalg.inv(u)  # G = M Mᵀ
    left = (m / m.diagonal()).triu(1)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    lower = torch.linalg.inv(u)
    right = (lower / lower.diagonal()).triu(1)
    w, done = v[rows], torch.zeros_like(v)
    error = torch.zeros_like(v)
    for i in range(len(w)):
        for j in range(w.shape[1]):
            aim = w[i, j] + left[:, i] @ error[:, j] + error[i] @ right[:, j] + left[:, i] @ error @ right[:, j]
            done[i, j] = rounded(aim, rows[i], j)
            error[i, j] = w[i, j] - done[i, j]
    return done[torch.argsort(rows)]


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_kronecker_sweep_is_yaqas_rounding_given_the_scales(drifted, symmetric):
    solver = Kronecker(dtype=torch.float64)
    problem, g, scheme = drifted(solver, m=6, n=24), output_side(6), Scheme(4, 8, symmetric)
    (q,) = solver.quantize([problem.weight], problem.statistics, scheme, torch.float32, [g])

    def rounded(value, i, j):
        scale, zero = q.scales[i, j // 8].double(), q.zeros[i, j // 8].double()
        return ((torch.round(value / scale) + zero).clamp(0, 15) - zero) * scale

    damped = g + 0.01 * g.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    wanted = yaqa_loop(problem.weight, damped, problem.damped(), rounded)
    torch.testing.assert_close(q.dequantize().double(), wanted, rtol=1e-6, atol=1e-7)
    error = problem.weight - q.dequantize().double()
    torch.testing.assert_close(q.loss, ((error @ problem.damped()) * error).sum(1), rtol=1e-6, atol=1e-9)


def test_the_kronecker_sweep_lowers_what_the_loss_feels_and_not_the_layers_own_error(drifted):
    solver = Kronecker(dtype=torch.float64)
    gains = []
    for seed in range(4):
        problem, g = drifted(solver, m=16, n=32, seed=seed), output_side(16, seed)
        (ours,) = solver.quantize([problem.weight], problem.statistics, SCHEME, torch.float32, [g])
        (plain,) = Sweep(dtype=torch.float64).quantize([problem.weight], problem.statistics, SCHEME, torch.float32)
        losses = [felt(problem.weight - q.dequantize().double(), g, problem.hessian) for q in (ours, plain)]
        gains.append(losses[0] / losses[1])
        assert float(ours.loss.sum()) > float(plain.loss.sum())
    assert max(gains) < 0.95


@pytest.mark.parametrize("unfelt", [False, True])
def test_a_diagonal_output_side_is_the_sweep(drifted, unfelt):
    solver = Kronecker(dtype=torch.float64)
    problem = drifted(solver, dead=4)
    g = torch.zeros(5, 5, dtype=torch.float64) if unfelt else torch.arange(5, dtype=torch.float64).diag()
    (ours,) = solver.quantize([problem.weight], problem.statistics, SCHEME, torch.float32, [g])
    (plain,) = Sweep(dtype=torch.float64).quantize([problem.weight], problem.statistics, SCHEME, torch.float32)
    assert torch.equal(ours.codes, plain.codes)
    assert torch.equal(ours.scales, plain.scales)
    with pytest.raises(ValueError, match="output's gradients"):
        solver.quantize([problem.weight], problem.statistics, SCHEME, torch.float32)


def test_the_regularized_target_and_metric_are_those_of_the_regularized_objective(drifted):
    """``‖W xf − Ŵ x‖² + κ Σ s_j ‖w_j − ŵ_j‖²``: its minimiser from stacked rows, and its excess over that."""
    solver = Regularized(pull=0.3, damp=0.0, dtype=torch.float64)
    problem = drifted(solver)
    root = (0.3 * problem.hessian.diagonal()).sqrt().diag()
    rows, wanted = torch.cat([problem.x, root]), torch.cat([problem.xf @ problem.weight.T, root @ problem.weight.T])
    target = FixedAlpha(1.0).target(problem.weight, problem.statistics, None).weight
    torch.testing.assert_close(target, torch.linalg.lstsq(rows, wanted).solution.T)

    def objective(w):
        return (wanted - rows @ w.T).square().sum(0)

    upper = problem.statistics.factor.upper
    (q,) = solver.quantize([target], problem.statistics, SCHEME, torch.float32)
    w_hat = q.dequantize().double()
    torch.testing.assert_close(objective(w_hat) - objective(target), ((target - w_hat) @ upper).square().sum(1))
    # What is told is the error without the charge.
    error = target - w_hat
    torch.testing.assert_close(q.loss, (error @ problem.hessian * error).sum(1), rtol=1e-5, atol=1e-8)


def test_the_pull_shrinks_correlations(drifted):
    solver = Regularized(pull=0.25, damp=0.0, dtype=torch.float64)
    problem = drifted(solver)
    upper = problem.statistics.factor.upper
    seen = upper @ upper.T

    def correlation(h):
        scale = h.diagonal().sqrt()
        return h / scale / scale[:, None]

    off = 1 - torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(off * correlation(seen), off * correlation(problem.hessian) / 1.25)
    plain = Statistics(
        Rebalanced(problem.hessian, problem.cross), Sweep(damp=0.0, dtype=torch.float64).factorize(problem.hessian)
    )
    away = [
        float((FixedAlpha(1.0).target(problem.weight, s, None).weight - problem.weight).norm())
        for s in (plain, problem.statistics)
    ]
    assert away[1] < away[0]
