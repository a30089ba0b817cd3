"""Clipping by the output's error: its first step against brute force, and the error never rises."""

import itertools

import pytest
import torch
from tarq.kernels.group_quantize.reference import round_to_nearest
from tarq.kernels.scheme import Scheme

from tarq.method.clip import SHARES, Clipped, clipped
from tarq.method.solvers import RoundToNearest


def product(codes, scales, zeros, size):
    group = torch.arange(codes.shape[1]) // size
    return (codes.double() - zeros.double()[:, group]) * scales.double()[:, group]


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_never_rises_from_round_to_nearest(drifted, symmetric):
    solver, scheme = Clipped(dtype=torch.float64), Scheme(3, 8, symmetric)
    problem = drifted(solver, m=12, dead=5)
    before = RoundToNearest(dtype=torch.float64).quantize([problem.weight], problem.statistics, scheme, torch.float32)[
        0
    ]
    losses = [before.loss]
    for rounds in (1, 2, 4):
        (q,) = Clipped(rounds=rounds, dtype=torch.float64).quantize(
            [problem.weight], problem.statistics, scheme, torch.float32
        )
        live = problem.weight.masked_fill(problem.statistics.factor.dead, 0)
        error = live - product(q.codes, q.scales, q.zeros, 8)
        torch.testing.assert_close(q.loss, ((error @ problem.damped()) * error).sum(1), rtol=1e-5, atol=1e-8)
        assert bool((q.loss <= losses[-1] * (1 + 1e-6)).all())
        losses.append(q.loss)
    assert float(losses[1].sum()) < 0.8 * float(losses[0].sum())


def test_one_group_takes_the_best_share():
    """All shares of a symmetric group's span, by hand."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(6, 16, generator=g, dtype=torch.float64)
    x = torch.randn(50, 16, generator=g, dtype=torch.float64)
    h, scheme = x.T @ x, Scheme(2, 16)
    codes, scales, zeros = clipped(v, h, scheme, torch.float32, 1)
    losses = []
    for share in SHARES:
        scale = (v.abs().amax(1) * share / 1.5).float().double()[:, None]
        error = v - (torch.round(v / scale)).clamp(-2, 1) * scale
        losses.append((error @ h * error).sum(1))
    error = v - product(codes, scales, zeros, 16)
    torch.testing.assert_close((error @ h * error).sum(1), torch.stack(losses).amin(0))
    assert len({int(i) for i in torch.stack(losses).argmin(0)}) > 1


def test_groups_that_make_up_for_each_other_are_found(drifted):
    """Two groups whose best shares differ once the correlation between them counts: brute force over both."""
    g = torch.Generator().manual_seed(3)
    v = torch.randn(8, 8, generator=g, dtype=torch.float64)
    common = torch.randn(60, 1, generator=g, dtype=torch.float64)
    x = common + 0.3 * torch.randn(60, 8, generator=g, dtype=torch.float64)
    h, scheme = x.T @ x, Scheme(2, 4)
    codes, scales, zeros = clipped(v, h, scheme, torch.float32, 20)
    error = v - product(codes, scales, zeros, 4)
    ours = (error @ h * error).sum(1)

    def rounded(half, share):
        scale = (half.abs().amax(1) * share / 1.5).float().double()[:, None]
        return half - torch.round(half / scale).clamp(-2, 1) * scale

    every = []
    for a, b in itertools.product(SHARES, SHARES):
        e = torch.cat([rounded(v[:, :4], a), rounded(v[:, 4:], b)], 1)
        every.append((e @ h * e).sum(1))
    best = torch.stack(every).amin(0)
    assert bool((ours >= best * (1 - 1e-9)).all())
    assert float(ours.sum()) < 1.5 * float(best.sum())
    codes, scales, zeros = round_to_nearest(v, scheme, torch.float32)
    error = v - product(codes, scales, zeros, 4)
    assert float(ours.sum()) < 0.5 * float((error @ h * error).sum())
