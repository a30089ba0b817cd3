"""Moments: both sides subset by subset, in float64 sums, against the formula."""

import pytest
import torch
from tarq.kernels.gram import gram

from tarq.method.moments import Moments


def test_moments_equal_the_formula():
    generator = torch.Generator().manual_seed(0)
    x, xf = torch.randn(50, 12, generator=generator), torch.randn(50, 12, generator=generator)
    tail = torch.rand(50, generator=generator) < 0.3
    weight = torch.rand(50, generator=generator)
    weight[::7] = 0
    moments = Moments(12, paired=True)
    for rows in (slice(0, 20), slice(20, 50)):
        moments.update(x[rows], xf[rows], tail[rows], weight[rows])
    x, xf, weight = x.double(), xf.double(), weight.double()
    for subset, mask in (("tail", tail), ("common", ~tail)):
        d = torch.diag(weight * mask)
        torch.testing.assert_close(moments.hessian[subset], x.T @ d @ x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments.cross[subset], (xf - x).T @ d @ x, rtol=1e-5, atol=1e-6)
    assert moments.positions == {
        "common": int((~tail & (weight > 0)).sum()),
        "tail": int((tail & (weight > 0)).sum()),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_16_bit_inputs_keep_the_drift_in_float32(dtype):
    """The difference of two 16-bit inputs is often none: rounded, it would lose most of a small drift."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(60, 12, generator=generator) + 3).to(dtype)
    xf = (x.float() * (1 + 0.01 * torch.randn(60, 12, generator=generator))).to(dtype)
    xf[:, 3] *= 0.25
    tail = torch.rand(60, generator=generator) < 0.3
    moments = Moments(12, paired=True, first=True, drift=True)
    moments.update(x, xf, tail, torch.ones(60))
    for subset, rows in (("tail", tail), ("common", ~tail)):
        own, drift = x[rows].double(), (xf[rows].double() - x[rows].double())
        torch.testing.assert_close(moments.hessian[subset], own.T @ own, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(moments.cross[subset], drift.T @ own, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(moments.drift[subset], drift.T @ drift, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments.mean[subset], own.sum(0), rtol=1e-6, atol=1e-6)


def test_sums_over_no_position_stay():
    """Of a subset, and of all; the rows left out may hold anything."""
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    x[5:] = torch.nan
    moments = Moments(4, paired=True, first=True, drift=True)
    weight, none = (torch.arange(9) < 5).float(), torch.zeros(9, dtype=torch.bool)
    moments.update(x, 1.1 * x, none, weight)
    moments.update(x, x, none, torch.zeros(9))
    moments.update(x[:5], 1.1 * x[:5], ~none[:5], weight[:5])
    assert moments.positions == {"common": 5, "tail": 5}
    assert not moments.bad_updates()
    for sums in (moments.mass, moments.hessian, moments.cross, moments.drift, moments.mean, moments.mean_full):
        assert torch.equal(sums["common"], sums["tail"])
        assert sums["tail"].any()


def test_unpaired_moments_hold_no_cross_moment():
    moments = Moments(4, paired=False)
    moments.update(torch.ones(3, 4), None, torch.zeros(3, dtype=torch.bool), torch.ones(3))
    assert moments.cross is None
    assert moments.hessian["common"].trace() == 12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("full", [False, True])
def test_updates_with_non_finite_activations_are_told(bad, full):
    x, xf = torch.ones(3, 4), torch.ones(3, 4)
    (xf if full else x)[1, 2] = bad
    moments, sound = Moments(4, paired=True), torch.ones(3, 4)
    nothing, every = torch.zeros(3, dtype=torch.bool), torch.ones(3)
    for rows, rows_full in ((sound, sound), (x, xf), (sound, sound)):
        moments.update(rows, rows_full, nothing, every)
    assert moments.bad_updates() == [1]


def test_long_sums_do_not_drift():
    moments = Moments(2, paired=False)
    x = torch.full((1000, 2), 0.1)
    for _ in range(2000):
        moments.update(x, None, torch.zeros(1000, dtype=torch.bool), torch.ones(1000))
    exact = 2000 * gram(x).double()
    torch.testing.assert_close(moments.hessian["common"], exact, rtol=1e-12, atol=0)
