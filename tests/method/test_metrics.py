"""Metrics: RareBAL's identity, its edge cases, the controls and arbitrary weights."""

import pytest
import torch

from tarq.method.metrics import CommonControl, PositionWeights, RandomControl, RareBAL, rebalance
from tarq.method.moments import Moments


def moments_of(common: int, tail: int, n: int = 6, paired: bool = True) -> Moments:
    generator = torch.Generator().manual_seed(1)
    rows = common + tail
    x, xf = torch.randn(rows, n, generator=generator), torch.randn(rows, n, generator=generator)
    x[common:] *= 2
    mask = torch.arange(rows) >= common
    moments = Moments(n, paired=paired)
    moments.update(x, xf, mask, torch.ones(rows))
    return moments


@pytest.mark.parametrize("c", [0.25, 1.0, 4.0])
def test_rarebal_balances_the_traces(c):
    moments = moments_of(common=90, tail=7)
    lam, note = RareBAL(cost_ratio=c).balance([moments])
    combined = rebalance([moments], lam)
    assert note == ""
    common, tail = moments.hessian["common"].trace(), moments.hessian["tail"].trace()
    assert abs(float(lam * tail / (c * common)) - 1) < 1e-6
    torch.testing.assert_close(combined.hessian, moments.hessian["common"] + lam * moments.hessian["tail"])
    torch.testing.assert_close(combined.cross, moments.cross["common"] + lam * moments.cross["tail"])
    unweighted = rebalance([moments], lam, 1.0).cross
    torch.testing.assert_close(unweighted, moments.cross["common"] + moments.cross["tail"])


@pytest.mark.parametrize(("common", "tail", "which"), [(9, 0, "no tail"), (0, 9, "no common")])
def test_an_empty_subset_means_the_plain_metric(common, tail, which):
    moments = moments_of(common, tail)
    lam, note = RareBAL().balance([moments])
    assert lam == 1.0
    assert which in note


def test_lambda_cap_is_reported():
    lam, note = RareBAL(max_lambda=2.0).balance([moments_of(90, 3)])
    assert lam == 2.0
    assert "capped" in note


def test_unusual_lambda_is_reported():
    moments = moments_of(90, 9)
    moments.hessian["tail"] *= 0.01
    assert "position counts suggest" in RareBAL().balance([moments])[1]


def test_parts_of_a_set_are_balanced_as_one():
    """λ and the sums of two parts are those of the whole, and the parts keep their own."""
    generator = torch.Generator().manual_seed(2)
    x, xf = torch.randn(40, 5, generator=generator), torch.randn(40, 5, generator=generator)
    tail, weight = torch.rand(40, generator=generator) < 0.4, torch.ones(40)
    whole, parts = Moments(5, paired=True), [Moments(5, paired=True) for _ in range(2)]
    whole.update(x, xf, tail, weight)
    for part, rows in zip(parts, (slice(0, 15), slice(15, 40)), strict=True):
        part.update(x[rows], xf[rows], tail[rows], weight[rows])
    before = [part.hessian["common"].clone() for part in parts]
    lam, _ = RareBAL().balance(parts)
    assert lam == pytest.approx(RareBAL().balance([whole])[0], rel=1e-5)
    together, expected = rebalance(parts, lam), rebalance([whole], lam)
    torch.testing.assert_close(together.hessian, expected.hessian, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.cross, expected.cross, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, part.hessian["common"]) for a, part in zip(before, parts, strict=True))


def test_shrinking_the_tail_towards_common_is_a_smaller_cost_ratio():
    """The identity RareBAL's docstring states: no separate shrinkage option is needed."""
    moments, rho = moments_of(90, 7), 0.4
    h_c, h_t = moments.hessian["common"], moments.hessian["tail"]
    shrunk = (1 - rho) * h_t + rho * h_t.trace() / h_c.trace() * h_c
    wanted = h_c + h_c.trace() / shrunk.trace() * shrunk
    c = (1 - rho) / (1 + rho)
    got = rebalance([moments], RareBAL(cost_ratio=c).balance([moments])[0]).hessian
    torch.testing.assert_close(got * wanted.trace() / got.trace(), wanted)


def test_controls_draw_as_many_positions_as_the_tail_has():
    tail = torch.zeros(100, dtype=torch.bool)
    tail[::10] = True
    exists = torch.arange(100) < 80
    random, common = RandomControl(), CommonControl()
    for control in (random, common):
        in_tail, weight = control.assign(tail, exists, "decoder/a")
        assert weight is None
        assert int(in_tail.sum()) == int((tail & exists).sum())
        assert not (in_tail & ~exists).any()
        assert torch.equal(in_tail, control.assign(tail, exists, "decoder/a")[0])
        assert not torch.equal(in_tail, control.assign(tail, exists, "decoder/b")[0])
    assert not (common.assign(tail, exists, "decoder/a")[0] & tail).any()
    other_seed = RandomControl(seed=1)
    assert not torch.equal(other_seed.assign(tail, exists, "x")[0], random.assign(tail, exists, "x")[0])


def test_any_weight_per_position():
    metric = PositionWeights({"decoder/a": torch.tensor([0.0, 2.0, 1.5])})
    tail, exists = torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    in_tail, weight = metric.assign(tail, exists, "decoder/a")
    assert not in_tail.any()
    assert weight.tolist() == [0.0, 2.0, 1.5]
    assert metric.assign(tail, exists, "encoder/a")[1] is None
    with pytest.raises(ValueError, match="decoder/a"):
        metric.assign(torch.ones(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool), "decoder/a")
    with pytest.raises(ValueError, match="non-negative"):
        PositionWeights(lambda key: torch.tensor([-1.0, 0, 0])).assign(tail, exists, "decoder/a")


@pytest.mark.parametrize("paired", [True, False])
def test_centred_moments_are_those_about_the_weighted_mean(paired):
    generator = torch.Generator().manual_seed(3)
    x, xf = (torch.randn(60, 5, generator=generator) + offset for offset in (2.0, 2.5))
    tail, weight = torch.rand(60, generator=generator) < 0.3, torch.rand(60, generator=generator)
    weight[::9] = 0
    x[::9] = float("nan")  # rows that do not count, whatever they hold
    parts = [Moments(5, paired=paired, first=True, drift=True) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 25), slice(25, 60)), strict=True):
        part.update(x[rows], xf[rows] if paired else None, tail[rows], weight[rows])
    lam = 3.0
    got = rebalance(parts, lam, centred=True)
    kept = weight > 0
    d = (weight * torch.where(tail, lam, 1.0))[kept].double()[:, None]
    x, xf = x[kept].double(), (xf if paired else x)[kept].double()
    mean, mean_full = (d * x).sum(0) / d.sum(), (d * xf).sum(0) / d.sum()
    torch.testing.assert_close(got.mean, mean)
    torch.testing.assert_close(got.mean_full, mean_full)
    centred = x - mean
    torch.testing.assert_close(got.hessian, centred.T @ (d * centred), rtol=1e-4, atol=1e-5)
    if paired:
        drift = xf - x - (mean_full - mean)
        torch.testing.assert_close(got.cross, drift.T @ (d * centred), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.drift, drift.T @ (d * drift), rtol=1e-4, atol=1e-5)
        # A cross-moment that λ does not weigh is about the mean that λ does not weigh.
        d = weight[kept].double()[:, None]
        mean, mean_full = (d * x).sum(0) / d.sum(), (d * xf).sum(0) / d.sum()
        drift = xf - x - (mean_full - mean)
        unweighted = rebalance(parts, lam, 1.0, centred=True)
        torch.testing.assert_close(unweighted.cross, drift.T @ (d * (x - mean)), rtol=1e-4, atol=1e-5)
        assert torch.equal(unweighted.hessian, got.hessian)
    assert (got.drift is not None) == paired


def test_centred_moments_need_first_ones():
    with pytest.raises(ValueError, match="first"):
        rebalance([moments_of(9, 3)], 1.0, centred=True)
