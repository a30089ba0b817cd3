"""Metrics that weigh positions: by utterance, by attention, by the loss's gradient."""

import pytest
import torch

from tarq.method.gradient import GradientBalanced, Guided
from tarq.method.maca import PerUtterance
from tarq.method.metrics import LayerRows
from tarq.method.moments import Moments
from tarq.method.registry import make_metric
from tarq.method.rsq import AttentionConcentration


def rows(weight, utterance, **signals):
    tail = torch.zeros(len(weight), dtype=torch.bool)
    return LayerRows(["a"], tail, weight, utterance, torch.zeros(len(weight), 2), **signals)


def test_every_utterance_is_one_sample():
    """The metric is the mean over utterances of each one's own second moment."""
    generator = torch.Generator().manual_seed(0)
    lengths, width = (5, 40, 11), 50
    moments, wanted = Moments(6, paired=False), torch.zeros(6, 6, dtype=torch.float64)
    for length in lengths:
        x = torch.randn(width, 6, generator=generator)
        exists = torch.arange(width) < length
        tail, weight = PerUtterance().assign(exists & False, exists, "decoder/u")
        moments.update(x, None, tail, weight * exists)
        kept = x[:length].double()
        wanted += kept.T @ kept / length
    torch.testing.assert_close(moments.hessian["common"], wanted, rtol=1e-5, atol=1e-6)
    assert (
        PerUtterance()
        .assign(torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool), "x")[1]
        .isfinite()
        .all()
    )


def test_attention_is_stretched_within_an_utterance_and_weighs_one_on_average():
    attention = torch.tensor([1.0, 3.0, 2.0, 50.0, 10.0, 10.0, 99.0])
    utterance = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    weight = torch.tensor([1.0, 1, 1, 1, 1, 1, 0])  # the last one is no position: it stretches nothing
    tail, got = AttentionConcentration(floor=0.1).reassign(rows(weight, utterance, attention=attention))
    assert not tail.any()
    first = torch.tensor([0.1, 1.0, 0.55])
    second = torch.tensor([1.0, 0.1, 0.1])
    torch.testing.assert_close(got, torch.cat([first / first.mean(), second / second.mean(), torch.zeros(1)]))


def test_attention_that_does_not_differ_leaves_weights_as_they_are():
    weight = torch.tensor([1.0, 1.0, 0.1])
    for metric, given in ((AttentionConcentration(), torch.full((3,), 2.0)), (AttentionConcentration(1.0), weight + 1)):
        torch.testing.assert_close(metric.reassign(rows(weight, torch.zeros(3), attention=given))[1], weight)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_gradients_the_stated_share_of_positions_is_kept(share, seed):
    generator = torch.Generator().manual_seed(seed)
    heavy = torch.randn(500, generator=generator).mul(4).exp()  # of norms that span many orders
    metric = GradientBalanced(min_ess=share)
    weight = torch.ones(500)
    _, d = metric.reassign(rows(weight, weight, gradients=heavy, gradient_scale=float(heavy.mean())))
    kept = float(d.double().sum() ** 2 / d.double().square().sum() / 500)
    assert kept >= share - 1e-6
    # The bound is met by weights of two values whose shares make it an equality.
    low, high = float(d.min()), float(d.max())
    worst = torch.tensor([low] * round(500 * high / (low + high)) + [high] * round(500 * low / (low + high)))
    bound = float(worst.sum() ** 2 / worst.square().sum() / len(worst))
    assert bound >= share - 1e-2
    if share < 1:
        assert high / low > 1.1


def test_gradient_weights_follow_the_norms_between_the_caps():
    squared = torch.tensor([0.5, 1.0, 2.0]) * 7
    seen = rows(torch.tensor([1.0, 0.1, 1.0]), torch.zeros(3), gradients=squared, gradient_scale=7.0)
    torch.testing.assert_close(GradientBalanced().reassign(seen)[1], torch.tensor([0.5**0.5, 0.1, 2**0.5]))
    torch.testing.assert_close(Guided().reassign(seen)[1], torch.tensor([0.5, 0.1, 2.0]))
    unreached = rows(torch.tensor([1.0, 0.1, 1.0]), torch.zeros(3))
    assert torch.equal(GradientBalanced().reassign(unreached)[1], unreached.weight)


def test_rare_and_common_targets_weigh_alike_in_the_loss():
    rare = torch.zeros(4, 25, dtype=torch.bool)
    rare.view(-1)[:7] = True
    weight = GradientBalanced().target_weight(rare, 0.07)
    assert float(weight[rare].sum()) == pytest.approx(50)
    assert float(weight[~rare].sum()) == pytest.approx(50)
    for share in (0.0, 1.0):
        assert torch.equal(GradientBalanced().target_weight(rare, share), torch.ones(4, 25))


def test_the_control_of_the_gradient_metric_leaves_out_the_balance_alone():
    rare = torch.rand(4, 25) < 0.1
    plain = make_metric("gradient-plain")
    assert torch.equal(plain.target_weight(rare, 0.07), torch.ones(4, 25))
    squared = torch.rand(50) * 10
    assert torch.equal(plain.of(squared), GradientBalanced().of(squared))
    assert torch.equal(Guided().target_weight(rare, 0.07), torch.ones(4, 25))


@pytest.mark.parametrize("share", [0.0, 1.5, -1])
def test_a_share_that_cannot_be_kept_is_refused(share):
    with pytest.raises(ValueError, match="min_ess"):
        GradientBalanced(min_ess=share)
