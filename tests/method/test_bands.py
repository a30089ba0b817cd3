"""K frequency buckets: bands of the tail come out with one trace each, whatever moments are asked for."""

import pytest
import torch

from tarq.method.bands import BandedRareBAL, merge_bands
from tarq.method.metrics import RareBAL, rebalance
from tarq.method.moments import Moments


def problem(shares, seed=0, rows=240, n=7):
    """Rows on both paths, their weight, their bucket (0 is common, then band after band), and their fold of two."""
    g = torch.Generator().manual_seed(seed)
    bucket = torch.multinomial(torch.tensor(shares), rows, replacement=True, generator=g)
    x = torch.randn(rows, n, generator=g) * (1 + 0.3 * bucket[:, None])  # rarer words are louder
    full = x + 0.3 * torch.randn(rows, n, generator=g)
    return x, full, 0.5 + torch.rand(rows, generator=g), bucket, torch.arange(rows) % 2


def accumulated(x, full, weight, bucket, fold, bands, folds=2):
    """As the walk has them: fold by fold of the first band, of the second, …"""
    part = fold % folds + folds * (bucket - 1).clamp_min(0) if bands > 1 else fold % folds
    parts = [Moments(x.shape[1], paired=True, first=True, drift=True) for _ in range(folds * bands)]
    for i, moments in enumerate(parts):
        moments.update(x, full, bucket > 0, weight * (part == i))
    return parts


def by_hand(x, full, weight, bucket, c=1.0):
    """``α_f = c · tr(H_C) / (F · tr(H_f))`` over the bands there are, and each row's weight."""
    energy = weight.double() * x.double().square().sum(1)
    there = [b for b in bucket.unique().tolist() if b > 0]
    common = float(energy[bucket == 0].sum())
    d = weight.double()
    for b in there:
        d = torch.where(bucket == b, d * c * common / len(there) / float(energy[bucket == b].sum()), d)
    return d


@pytest.mark.parametrize("shares", [[0.6, 0.25, 0.1, 0.05], [0.6, 0.3, 0.0, 0.1], [0.5, 0.0, 0.0, 0.5]])
@pytest.mark.parametrize("c", [0.25, 1.0, 4.0])
def test_every_band_has_the_same_say(shares, c):
    """Against sums over rows with weights computed row by row: H, H_Δ, means and the drift's own, for each fold."""
    x, full, weight, bucket, fold = problem(shares)
    parts = merge_bands(accumulated(x, full, weight, bucket, fold, bands=3), 2)
    assert len(parts) == 2
    assert sum(part.positions["tail"] for part in parts) == int((bucket > 0).sum())
    lam, note = BandedRareBAL(cost_ratio=c).balance(parts)
    assert note == ""
    d = by_hand(x, full, weight, bucket, c)
    x, off = x.double(), (full - x).double()
    for some, rows in ((parts, fold >= 0), (parts[:1], fold == 0), (parts[1:], fold == 1)):
        made, w, xs, offs = rebalance(some, lam), d[rows], x[rows], off[rows]
        torch.testing.assert_close(made.hessian, (xs * w[:, None]).T @ xs, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(made.cross, (offs * w[:, None]).T @ xs, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(made.drift, (offs * w[:, None]).T @ offs, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(made.mean, (w @ xs) / w.sum(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(made.mean_full, (w @ (xs + offs)) / w.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shares", "bands"), [([0.7, 0.3], 1), ([0.7, 0.0, 0.3], 2)])
def test_one_band_is_rarebal(shares, bands):
    x, full, weight, bucket, fold = problem(shares)
    ours = merge_bands(accumulated(x, full, weight, bucket, fold, bands), 2)
    plain = accumulated(x, full, weight, bucket.clamp_max(1), fold, 1)
    lam, _ = RareBAL().balance(plain)
    assert BandedRareBAL().balance(ours)[0] == pytest.approx(lam)
    torch.testing.assert_close(rebalance(ours, lam).hessian, rebalance(plain, lam).hessian)


def test_bands_leave_the_tails_trace_and_lambda_as_they_are():
    x, full, weight, bucket, fold = problem([0.6, 0.25, 0.1, 0.05])
    plain = accumulated(x, full, weight, bucket.clamp_max(1), fold, 1)
    ours = merge_bands(accumulated(x, full, weight, bucket, fold, 3), 2)
    assert BandedRareBAL().balance(ours)[0] == pytest.approx(RareBAL().balance(plain)[0])
    # … and an unweighted cross-moment is none of its business, as in the paper's residual.
    cross = merge_bands(accumulated(x, full, weight, bucket, fold, 3), 2, weighs_cross=False)
    unweighted = (rebalance(each, 5.0, 1.0).cross for each in (cross, plain))
    torch.testing.assert_close(*unweighted, rtol=1e-4, atol=1e-4)  # products are float32
