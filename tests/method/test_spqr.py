"""Outliers in 16 bits: which weights they are, the sweep around them, and rare positions they serve already."""

import pytest
import torch
from tarq.kernels.group_quantize.reference import encode, group_scales
from tarq.kernels.scheme import Scheme

from tarq.method.metrics import LayerRows
from tarq.method.solvers import Sweep
from tarq.method.spqr import GatedRareBAL, SpQR, outlier_gain, sweep_with_outliers, without_outliers

F64 = torch.float64


def with_outliers(weight, count=6, seed=0):
    """A few weights that stretch their groups."""
    g = torch.Generator().manual_seed(seed)
    places = torch.randperm(weight.numel(), generator=g)[:count]
    weight = weight.clone()
    weight.view(-1)[places] *= 8
    return weight, places


def fit(values, scheme):
    s, z = group_scales(values[None], scheme, torch.float32)
    return float(s), float(z)


@pytest.mark.parametrize("order", ["none", "static"])
@pytest.mark.parametrize(
    ("symmetric", "rule"),
    [(True, "absmax"), (True, "minmax"), (False, "minmax")],
    ids=["absmax", "span", "zero points"],
)
def test_what_leaving_a_weight_out_is_worth(drifted, symmetric, rule, order):
    """Every weight of every group left out in turn, with a fit of the others."""
    solver, scheme = SpQR(act_order=order, dtype=F64), Scheme(4, 8, symmetric, rule)
    problem = drifted(solver, dead=5)
    factor = problem.statistics.factor
    v = with_outliers(problem.weight)[0].masked_fill(factor.dead, 0)
    v[1, 8:16] = 0.25  # a group whose weights are all alike
    # L_jj = 1 / U_jj with (H + δI)⁻¹ = Uᵀ U, as the authors' code has it, in the order of visit.
    visited = torch.arange(40) if factor.order is None else factor.order
    u = torch.linalg.cholesky(torch.linalg.inv(problem.damped()[visited][:, visited]), upper=True).diagonal()
    u = u[torch.argsort(visited)]
    wanted = torch.zeros_like(v)
    for row in range(len(v)):
        for group in range(0, 40, 8):
            w, d = v[row, group : group + 8], u[group : group + 8]

            def lost(keep, w=w, d=d):
                s, z = fit(w[keep], scheme)
                error = w[keep] - (encode(w[keep], torch.tensor(s), torch.tensor(z), scheme) - z) * s
                return float((error / d[keep]).square().sum())

            every = torch.ones(8, dtype=torch.bool)
            for k in range(8):
                others = every.clone()
                others[k] = False
                wanted[row, group + k] = lost(every) - lost(others)
    torch.testing.assert_close(outlier_gain(v, factor, scheme, torch.float32), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ["none", "static"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_is_the_authors_loop_for_the_same_outliers(drifted, symmetric, order, scale_dtype):
    """SpQR's algorithm as its code has it: weights changed in place by the inverse's Cholesky factor."""
    solver, scheme = SpQR(act_order=order, dtype=F64), Scheme(4, 16, symmetric)
    problem = drifted(solver, dead=3)
    factor = problem.statistics.factor
    v = with_outliers(problem.weight)[0].masked_fill(factor.dead, 0)
    outlier = torch.rand(v.shape, generator=torch.Generator().manual_seed(1)) < 0.1
    q = sweep_with_outliers(v, outlier, factor, scheme, scale_dtype)
    half = torch.bfloat16 if scale_dtype == torch.bfloat16 else torch.float16
    assert q.values.dtype == half

    visited = list(range(40)) if factor.order is None else factor.order.tolist()
    w = v[:, visited].clone()
    u = torch.linalg.cholesky(torch.linalg.inv(problem.damped()[visited][:, visited]), upper=True)
    scales = [
        group_scales(without_outliers(v[:, g : g + 16], outlier[:, g : g + 16]), scheme, scale_dtype)
        for g in (0, 16, 32)
    ]
    for j, column in enumerate(visited):
        if order == "none" and j % 16 == 0:
            scales[j // 16] = group_scales(
                without_outliers(w[:, j : j + 16], outlier[:, j : j + 16]), scheme, scale_dtype
            )
        s, z = scales[column // 16]
        rounded = torch.where(outlier[:, column], w[:, j].to(half).to(F64), (encode(w[:, j], s, z, scheme) - z) * s)
        error = (w[:, j] - rounded) / u[j, j]
        w[:, j] = rounded
        w[:, j + 1 :] -= error[:, None] * u[j, j + 1 :]
    wanted = w[:, torch.argsort(torch.tensor(visited))]
    levels = q.codes.double() - q.zeros.double().repeat_interleave(16, 1)[:, :40]
    ours = levels * q.scales.double().repeat_interleave(16, 1)[:, :40]
    ours.view(-1)[q.places] = q.values.double()
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)
    assert q.places.tolist() == outlier.flatten().nonzero().flatten().tolist()
    assert torch.equal(q.dequantize().view(-1)[q.places], q.values.to(scale_dtype))
    error = v - ours
    torch.testing.assert_close(q.loss, (error @ problem.damped() * error).sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", ["none", "static"])
def test_without_outliers_it_is_the_sweep(drifted, order):
    solver, scheme = SpQR(share=0.0, act_order=order, dtype=F64), Scheme(3, 16, False, "mse")
    problem = drifted(solver, dead=7)
    (ours,) = solver.quantize([problem.weight], problem.statistics, scheme, torch.float32)
    (plain,) = Sweep(act_order=order, dtype=F64).quantize([problem.weight], problem.statistics, scheme, torch.float32)
    assert ours.places.numel() == 0
    for name in ("codes", "scales", "zeros"):
        assert torch.equal(getattr(ours, name), getattr(plain, name))
    torch.testing.assert_close(ours.loss, plain.loss)


def test_weights_that_stretch_their_groups_are_found_and_the_others_gain(drifted):
    solver, scheme = SpQR(share=0.03, dtype=F64), Scheme(4, 8)
    problem = drifted(solver)
    weight, planted = with_outliers(problem.weight)
    assert round(0.03 * weight.numel()) == len(planted) == 6
    (ours,) = solver.quantize([weight], problem.statistics, scheme, torch.float32)
    (plain,) = Sweep(dtype=F64).quantize([weight], problem.statistics, scheme, torch.float32)
    assert len(set(ours.places.tolist()) & set(planted.tolist())) >= 4
    assert float(ours.loss.sum()) < 0.5 * float(plain.loss.sum())


def test_a_weight_without_error_is_no_outlier_and_one_beyond_16_bits_is_refused(drifted):
    solver = SpQR(share=0.5, dtype=F64)
    problem = drifted(solver)
    (q,) = solver.quantize([torch.zeros(5, 40)], problem.statistics, Scheme(4, 8), torch.float32)
    assert q.places.numel() == 0
    weight = problem.weight.clone()
    weight[2, 3] = 1e6
    with pytest.raises(ValueError, match="an outlier is beyond the range of float16"):
        solver.quantize([weight], problem.statistics, Scheme(4, 8), torch.float32)
    with pytest.raises(ValueError, match="SpQR needs the metric"):
        solver.quantize([weight], None, Scheme(4, 8), torch.float32)


def test_a_rare_position_that_excites_an_outlier_column_counts_as_common():
    """Two columns of 150 are outliers in the first utterance, others in the second: by hand, position by position."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(12, 150, generator=g) + 0.5
    utterance = torch.tensor([0] * 6 + [1] * 6)
    x[:6, [4, 9]] += 10
    x[6:, [70, 71]] += 10
    x[1, 4] = 90.0  # excites an outlier column
    x[2, 70] = 20.0  # … which is none here
    x[7, 71] = -90.0
    x[8, 4] = 3.0
    tail = torch.ones(12, dtype=torch.bool)
    tail[[3, 9]] = False
    weight = torch.ones(12)
    weight[5] = 0  # no position: its rows are in no mean
    x[5] = 1e4
    side, d = GatedRareBAL().reassign(LayerRows(["a"], tail, weight, utterance, x))
    wanted = tail.clone()
    wanted[[1, 7]] = False
    assert side.tolist() == wanted.tolist()
    assert torch.equal(d, weight)
    # An utterance by itself is gated as it is in a batch.
    alone, _ = GatedRareBAL().reassign(LayerRows(["a"], tail[6:], weight[6:], utterance[6:], x[6:]))
    assert torch.equal(alone, side[6:])
