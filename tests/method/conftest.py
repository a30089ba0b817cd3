"""Layers with drifted inputs, for arms that say where codes aim and how they are chosen."""

from dataclasses import dataclass

import pytest
import torch

from tarq.method.metrics import Rebalanced
from tarq.method.residuals import Statistics


@dataclass(frozen=True)
class Drifted:
    """Inputs on both paths, a weight, and what a solver and a residual are given of them; all float64."""

    x: torch.Tensor
    xf: torch.Tensor
    weight: torch.Tensor
    statistics: Statistics

    @property
    def hessian(self):
        return self.statistics.moments.hessian

    @property
    def cross(self):
        return self.statistics.moments.cross

    def damped(self):
        """``H + δI`` in natural order; a dead input's diagonal is the mean of the others'."""
        h, factor = self.hessian.clone(), self.statistics.factor
        mean = h.diagonal()[~factor.dead].mean()
        h.diagonal()[factor.dead] = mean
        return h + factor.damp * mean * torch.eye(len(h), dtype=h.dtype)


@pytest.fixture
def drifted():
    """Makes a problem for a solver: its factor, with outlier channels, a drift that is half signal, a dead input."""

    def make(solver, m=5, n=40, rows=300, seed=0, dead=None, drift=0.3) -> Drifted:
        g = torch.Generator().manual_seed(seed)
        mix = torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5 + torch.eye(n, dtype=torch.float64)
        mix[:, :3] *= 5
        xf = torch.randn(rows, n, generator=g, dtype=torch.float64) @ mix
        signal = xf @ torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5
        x = xf + drift * (signal + torch.randn(rows, n, generator=g, dtype=torch.float64))
        if dead is not None:
            x[:, dead] = 0
        off = xf - x
        moments = Rebalanced(x.T @ x, off.T @ x, drift=off.T @ off)
        weight = torch.randn(m, n, generator=g, dtype=torch.float64)
        return Drifted(x, xf, weight, Statistics(moments, solver.factorize(moments.hessian)))

    return make
