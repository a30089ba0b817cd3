"""The refined sweep as a solver: what it adds to the sweep. Its steps are tested with ``group_refine``."""

import pytest
import torch
from tarq.kernels.scheme import Scheme

from tarq.method.metrics import Rebalanced
from tarq.method.refine import RefinedSweep
from tarq.method.residuals import Statistics
from tarq.method.solvers import Sweep, damped_loss

#: m, n, bits, group size, symmetric, act-order
SHAPES = [
    (3, 40, 4, 8, True, False),
    (5, 96, 3, 32, False, True),
    (1, 130, 2, 128, True, True),
    (4, 16, 4, 16, False, False),
]


def moments(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(4 * n, n, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(n, n, generator=generator, dtype=torch.float64) + 0.5
    return x.T @ x


@pytest.mark.parametrize(("m", "n", "bits", "group_size", "symmetric", "order"), SHAPES)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16])
def test_every_row_of_every_target_gains_by_it(m, n, bits, group_size, symmetric, order, scale_dtype):
    hessian, scheme = moments(n), Scheme(bits, group_size, symmetric)
    generator = torch.Generator().manual_seed(1)
    targets = [torch.randn(rows, n, generator=generator, dtype=torch.float64) for rows in (m, m + 1)]
    results = []
    for kind in (Sweep, RefinedSweep):
        solver = kind(act_order="static" if order else "none", dtype=torch.float64)
        factor = solver.factorize(hessian)
        layers = solver.quantize(targets, Statistics(Rebalanced(hessian, None), factor), scheme, scale_dtype)
        for v, q in zip(targets, layers, strict=True):
            group = torch.arange(n) // group_size
            product = (q.codes.double() - q.zeros.double()[:, group]) * q.scales.double()[:, group]
            torch.testing.assert_close(q.loss, damped_loss(v - product, factor), rtol=1e-6, atol=1e-9)
        results.append(layers)
    for swept, refined in zip(*results, strict=True):
        assert bool((refined.loss <= swept.loss).all())
        assert float(refined.loss.sum()) < float(swept.loss.sum())
        assert int(refined.codes.max()) < 2**bits


def test_more_rounds_gain_more():
    hessian, scheme = moments(96), Scheme(group_size=32)
    v = torch.randn(9, 96, generator=torch.Generator().manual_seed(2))
    losses = []
    for rounds in (1, 2, 3, 6):
        solver = RefinedSweep(rounds=rounds)
        statistics = Statistics(Rebalanced(hessian, None), solver.factorize(hessian))
        (q,) = solver.quantize([v], statistics, scheme, torch.float16)
        losses.append(float(q.loss.sum()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
