"""The beam: one path is the sweep, all paths are the best codes there are, and no width does harm."""

import itertools

import pytest
import torch
from tarq.kernels.scheme import Scheme

from tarq.method.beam import BeamSweep, RefinedBeam, beam
from tarq.method.refine import RefinedSweep
from tarq.method.solvers import Sweep


@pytest.mark.parametrize("order", ["none", "static"])
@pytest.mark.parametrize(("bits", "symmetric", "n"), [(4, True, 40), (3, False, 150), (2, True, 64)])
def test_one_path_is_the_sweep_and_more_do_no_harm(drifted, order, bits, symmetric, n):
    sweep = Sweep(act_order=order, dtype=torch.float64)
    problem, scheme = drifted(sweep, m=6, n=n, dead=3), Scheme(bits, 16, symmetric)
    (swept,) = sweep.quantize([problem.weight], problem.statistics, scheme, torch.float32)
    losses = [swept.loss]
    for width in (1, 4, 16):
        solver = BeamSweep(width=width, act_order=order, dtype=torch.float64)
        (q,) = solver.quantize([problem.weight], problem.statistics, scheme, torch.float32)
        error = problem.weight.clone()
        error[:, 3] = 0
        error -= q.dequantize(torch.float32).double()
        torch.testing.assert_close(q.loss, ((error @ problem.damped()) * error).sum(1), rtol=1e-4, atol=1e-6)
        assert torch.equal(q.scales, swept.scales)
        assert bool((q.loss <= swept.loss).all())
        assert int(q.codes.max()) < 2**bits
        if width == 1:
            assert torch.equal(q.codes, swept.codes)
        losses.append(q.loss)
    assert float(losses[-1].sum()) < 0.98 * float(losses[0].sum())


def test_a_beam_of_all_paths_finds_the_best_codes():
    g = torch.Generator().manual_seed(0)
    v, scale = torch.randn(3, 5, generator=g, dtype=torch.float64), torch.full((3, 5), 0.7, dtype=torch.float64)
    upper = torch.randn(5, 5, generator=g, dtype=torch.float64).triu() + 2 * torch.eye(5, dtype=torch.float64)
    zero = torch.full((3, 5), 2.0, dtype=torch.float64)
    codes, loss = beam(v, scale, zero, upper, 3, 4**5)
    every = torch.tensor(list(itertools.product(range(4), repeat=5)), dtype=torch.float64)
    losses = ((v[:, None] - (every - 2) * 0.7) @ upper).square().sum(-1)
    least, best = losses.min(1)
    torch.testing.assert_close(loss, least)
    assert torch.equal(codes.double(), every[best])


def test_the_beams_codes_are_refined_as_the_sweeps_are(drifted):
    sums = {}
    for kind in (Sweep, BeamSweep, RefinedSweep, RefinedBeam):
        solver = kind(dtype=torch.float64)
        problem = drifted(solver, m=24, n=64, seed=1)
        (q,) = solver.quantize([problem.weight], problem.statistics, Scheme(3, 16), torch.float32)
        sums[kind] = q.loss
    assert bool((sums[RefinedBeam] <= sums[BeamSweep] * (1 + 1e-9)).all())
    assert float(sums[RefinedBeam].sum()) < float(sums[RefinedSweep].sum()) < float(sums[Sweep].sum())
