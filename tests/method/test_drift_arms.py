"""GPTAQ, QEP, Qronos and CoreQ against their authors' loops, written down again in float64."""

import pytest
import torch
from tarq.kernels.scheme import Scheme

from tarq.method.coreq import CoreQ
from tarq.method.gptaq import GPTAQ
from tarq.method.qep import QEP
from tarq.method.qronos import Qronos
from tarq.method.residuals import FixedAlpha, LeastSquares
from tarq.method.solvers import Sweep

SCHEME = Scheme(4, 8)


def lattice(q, order):
    """Rounds a column of the order of visit to the scales of a result; and the codes' columns in that order."""
    group = torch.arange(q.codes.shape[1]) // q.group_size
    scale, zero = q.scales.double()[:, group][:, order], q.zeros.double()[:, group][:, order]

    def rounded(w, j):
        code = (torch.round(w / scale[:, j]) + zero[:, j]).clamp(0, 15)
        return (code - zero[:, j]) * scale[:, j]

    return rounded, (q.codes.double()[:, order] - zero) * scale


def order_of(problem):
    order = problem.statistics.factor.order
    return torch.arange(len(problem.hessian)) if order is None else order


def gptaq_loop(problem, strength, block, rounded):
    """Algorithm of arXiv 2504.02692 with the lazy blocks of its code, column by column."""
    order, dead = order_of(problem), problem.statistics.factor.dead
    h = problem.damped()[order][:, order]
    drift = problem.cross.masked_fill(dead, 0)[order][:, order]
    w = problem.weight.masked_fill(dead, 0)[:, order].clone()
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    p = strength * (drift @ u.T).triu(1) @ u
    done = torch.zeros_like(w)
    for first in range(0, w.shape[1], block):
        last = min(first + block, w.shape[1])
        scaled = torch.zeros_like(w[:, first:last])
        for j in range(first, last):
            met = w[:, j].clone()
            done[:, j] = rounded(met, j)
            scaled[:, j - first] = (met - done[:, j]) / u[j, j]
            w[:, j:last] += met[:, None] * p[j, j:last] - scaled[:, j - first, None] * u[j, j:last]
        w[:, last:] += done[:, first:last] @ p[first:last, last:] - scaled @ u[first:last, last:]
    return done


@pytest.mark.parametrize("order", ["none", "static"])
@pytest.mark.parametrize(("block", "strength", "dead"), [(128, 0.25, None), (16, 0.25, 7), (16, 1.0, None)])
def test_gptaq_is_its_authors_loop_given_the_scales(drifted, order, block, strength, dead):
    solver = GPTAQ(strength=strength, block=block, act_order=order, dtype=torch.float64)
    problem = drifted(solver, dead=dead)
    (q,) = solver.quantize([problem.weight], problem.statistics, SCHEME, torch.float32)
    rounded, ours = lattice(q, order_of(problem))
    torch.testing.assert_close(ours, gptaq_loop(problem, strength, block, rounded), rtol=0, atol=0)
    (plain,) = Sweep(act_order=order, dtype=torch.float64).quantize(
        [problem.weight], problem.statistics, SCHEME, torch.float32
    )
    assert not torch.equal(q.codes, plain.codes)
    error = problem.weight.masked_fill(problem.statistics.factor.dead, 0) - q.dequantize(torch.float64)
    torch.testing.assert_close(q.loss, ((error @ problem.damped()) * error).sum(1))


def test_gptaq_without_strength_is_the_sweep(drifted):
    solver = GPTAQ(strength=0.0, dtype=torch.float64)
    problem = drifted(solver)
    for one, other in zip(
        solver.quantize([problem.weight], problem.statistics, SCHEME, torch.float32),
        Sweep(dtype=torch.float64).quantize([problem.weight], problem.statistics, SCHEME, torch.float32),
        strict=True,
    ):
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.scales, other.scales)


def test_gptaq_leaves_a_drift_of_each_input_for_itself_alone(drifted):
    """Where the text says it is weaker than least squares: uncorrelated inputs that only shrink."""
    solver = GPTAQ(strength=1.0, damp=0.0, dtype=torch.float64)
    problem = drifted(solver)
    moments, factor = problem.statistics.moments, problem.statistics.factor
    shrunk = torch.diag(torch.linspace(1, 2, 40, dtype=torch.float64))
    diagonal = type(problem.statistics)(type(moments)(shrunk, 0.1 * shrunk), solver.factorize(shrunk))
    kept, feedback = solver.recursion(diagonal.moments.cross, diagonal.factor)
    assert torch.equal(kept, torch.eye(40, dtype=torch.float64))
    torch.testing.assert_close(feedback, torch.eye(40, dtype=torch.float64))
    v = FixedAlpha(1.0).target(problem.weight, diagonal, None).weight
    torch.testing.assert_close(v, 1.1 * problem.weight)
    # Uncut, P is the least-squares direction: the text's first claim.
    lower = factor.upper
    whole = torch.linalg.solve(lower @ lower.T, problem.cross.T).T
    torch.testing.assert_close(
        problem.weight + problem.weight @ whole, FixedAlpha(1.0).target(problem.weight, problem.statistics, None).weight
    )


def test_gptaq_and_the_residuals_need_paired_moments(drifted):
    problem = drifted(Sweep(dtype=torch.float64))
    alone = type(problem.statistics)(type(problem.statistics.moments)(problem.hessian, None), problem.statistics.factor)
    with pytest.raises(ValueError, match="paired moments"):
        GPTAQ().quantize([problem.weight], alone, SCHEME, torch.float32)
    for residual in (QEP(), Qronos(), CoreQ()):
        with pytest.raises(ValueError, match="paired moments"):
            residual.target(problem.weight, alone, None)


def qronos_loop(problem, rounded):
    """Theorem of arXiv 2505.11695: the best first code, the best others for it, then the sweep of these."""
    order, dead = order_of(problem), problem.statistics.factor.dead
    h = problem.hessian[order][:, order]
    damped = problem.damped()[order][:, order]
    ridge = damped - h
    g = (problem.hessian + problem.cross)[order][:, order]
    w = problem.weight.masked_fill(dead, 0)[:, order]
    done = torch.zeros_like(w)
    aim = (w @ g[:, 0] - w[:, 1:] @ h[0, 1:]) / h[0, 0]
    done[:, 0] = rounded(aim, 0)
    inverse = torch.linalg.inv(damped[1:, 1:])
    v = (w @ (g + ridge)[:, 1:] - done[:, :1] * h[:1, 1:]) @ inverse
    u = torch.linalg.cholesky(inverse, upper=True)
    for j in range(v.shape[1]):
        done[:, j + 1] = rounded(v[:, j], j + 1)
        v = v - ((v[:, j] - done[:, j + 1]) / u[j, j])[:, None] * torch.where(torch.arange(v.shape[1]) >= j, u[j], 0)
    return done


@pytest.mark.parametrize("order", ["none", "static"])
@pytest.mark.parametrize("dead", [None, 7])
def test_qronos_is_its_authors_loop_given_the_scales(drifted, order, dead):
    solver = Sweep(act_order=order, dtype=torch.float64)
    problem = drifted(solver, dead=dead)
    target = Qronos().target(problem.weight, problem.statistics, None)
    (q,) = solver.quantize([target.weight], problem.statistics, SCHEME, torch.float32)
    rounded, ours = lattice(q, order_of(problem))
    torch.testing.assert_close(ours, qronos_loop(problem, rounded), rtol=0, atol=0)


def test_qronos_first_column_aside_is_least_squares(drifted):
    """Both targets are as good as each other for whatever the first column is rounded to."""
    problem = drifted(Sweep(damp=0.0, dtype=torch.float64))
    ours = Qronos().target(problem.weight, problem.statistics, None)
    best = FixedAlpha(1.0).target(problem.weight, problem.statistics, None)
    assert not torch.allclose(ours.weight[:, 0], best.weight[:, 0])
    slid = torch.linalg.lstsq(
        problem.x[:, 1:], problem.xf @ problem.weight.T - problem.x[:, :1] @ ours.weight[:, :1].T
    ).solution.T
    torch.testing.assert_close(ours.weight[:, 1:], slid)
    step = ours.weight - problem.weight
    assert ours.energy == pytest.approx(float((step @ problem.hessian * step).sum()))


@pytest.mark.parametrize(("strength", "ridge"), [(0.5, 1.0), (1.0, 0.1)])
def test_qep_is_a_ridge_regression_gone_along_by_its_strength(drifted, strength, ridge):
    """``V = W + α B`` with B the minimiser of ``‖W (xf − x) − B x‖² + η‖B‖²``, from the raw activations."""
    problem = drifted(Sweep(damp=0.01, dtype=torch.float64))
    eta = ridge * problem.hessian.diagonal().mean()
    stacked = torch.cat([problem.x, eta.sqrt() * torch.eye(40, dtype=torch.float64)])
    wanted = torch.cat([(problem.xf - problem.x) @ problem.weight.T, torch.zeros(40, 5, dtype=torch.float64)])
    best = torch.linalg.lstsq(stacked, wanted).solution.T
    target = QEP(strength, ridge).target(problem.weight, problem.statistics, None)
    torch.testing.assert_close(target.weight, problem.weight + strength * best)
    assert target.alpha == strength


def test_coreq_goes_by_the_share_of_the_drift_that_follows_the_inputs(drifted):
    """α is R² of regressing the outputs' drift on the inputs, from the raw activations."""
    problem = drifted(Sweep(damp=0.0, dtype=torch.float64))
    target = CoreQ().target(problem.weight, problem.statistics, None)
    drift = (problem.xf - problem.x) @ problem.weight.T
    fitted = problem.x @ torch.linalg.lstsq(problem.x, drift).solution
    share = float(fitted.square().sum() / drift.square().sum())
    assert 0.1 < share < 0.9
    assert target.alpha == pytest.approx(share, rel=1e-6)
    along = LeastSquares().target(problem.weight, problem.statistics, None).weight - problem.weight
    torch.testing.assert_close(target.weight, problem.weight + share * along)


def test_coreq_trusts_a_drift_that_is_all_linear_and_hardly_one_that_is_noise(drifted):
    solver = Sweep(damp=0.0, dtype=torch.float64)
    sure = drifted(solver)
    follows = sure.x @ torch.randn(40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.randn(300, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alphas = []
    for off in (follows, noise):
        moments = type(sure.statistics.moments)(sure.hessian, off.T @ sure.x, drift=off.T @ off)
        statistics = type(sure.statistics)(moments, sure.statistics.factor)
        alphas.append(CoreQ().target(sure.weight, statistics, None).alpha)
    assert alphas[0] == pytest.approx(1)
    assert alphas[1] == pytest.approx(40 / 300, abs=0.06)  # n of T directions fit by chance
