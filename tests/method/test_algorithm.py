"""Algorithm 1 on one layer: the residual's optimality, its degenerate cases, what the record says."""

import pytest
import torch
from tarq.kernels.scheme import Scheme

from tarq.method.absorb import CrossFittedBias
from tarq.method.algorithm import tail_aware_quantize
from tarq.method.arms import Arms
from tarq.method.metrics import Plain, RareBAL, rebalance
from tarq.method.moments import Moments
from tarq.method.registry import make_residual
from tarq.method.residuals import (
    CrossFitted,
    FixedAlpha,
    Fold,
    Layer,
    LeastSquares,
    PaperResidual,
    Residual,
    Statistics,
    Target,
    absorbed_mean,
    cross_fitted_alpha,
)
from tarq.method.solvers import RoundToNearest, Sweep


def problem(rows: int = 400, n: int = 64, m: int = 24, drift: float = 0.3, seed: int = 0):
    """Correlated inputs with outlier channels, drifted copies of them, tags, weights, a weight matrix."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=g) / n**0.5 + torch.eye(n)
    mix[:, :3] *= 8
    xf = torch.randn(rows, n, generator=g) @ mix
    x = xf + drift * torch.randn(rows, n, generator=g) @ mix * torch.rand(n, generator=g)
    tail = torch.rand(rows, generator=g) < 0.1
    weight = torch.randn(m, n, generator=g) / n**0.5
    moments = Moments(n, paired=True)
    moments.update(x, xf, tail, torch.ones(rows))
    return x.double(), xf.double(), tail, weight.double(), moments


def weighted_error(x, xf, w, v, d) -> float:
    """``‖D^½ (Xf Wᵀ − X Vᵀ)‖²`` from the raw activations."""
    return float((d[:, None] * (xf @ w.T - x @ v.T) ** 2).sum())


def exact(metric, parts, damp: float):
    """λ, and the statistics of the rebalanced moments, all in float64."""
    lam, _ = metric.balance(parts)
    combined = rebalance(parts, lam)
    return lam, Statistics(combined, Sweep(damp=damp, dtype=torch.float64).factorize(combined.hessian))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("drift", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("metric", [Plain(), RareBAL(), RareBAL(cost_ratio=0.25)])
def test_least_squares_never_increases_the_weighted_output_error(seed, drift, metric):
    x, xf, tail, w, moments = problem(drift=drift, seed=seed)
    lam, statistics = exact(metric, [moments], 0.01)
    target = LeastSquares().target(w, statistics, None)
    d = torch.where(tail, lam, 1.0).double()
    before, after = weighted_error(x, xf, w, w, d), weighted_error(x, xf, w, target.weight, d)
    assert after <= before * (1 + 1e-6) + 1e-9
    if drift:
        assert after < 0.999 * before
    for factor_of_alpha in (0.9, 1.1):  # α is the minimum along its direction
        other = w + factor_of_alpha * (target.weight - w)
        assert weighted_error(x, xf, w, other, d) >= after * (1 - 1e-6) - 1e-9


def test_plain_undamped_least_squares_is_the_exact_minimiser():
    x, xf, _, w, moments = problem()
    _, statistics = exact(Plain(), [moments], 0.0)
    target = LeastSquares().target(w, statistics, None)
    best = torch.linalg.lstsq(x, xf @ w.T).solution.T
    assert target.alpha == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(target.weight, best, rtol=1e-3, atol=1e-4)


def test_the_weighted_minimiser_needs_the_weighted_cross_moment():
    """With weights, the paper's unweighted cross-moment does not lead to the minimiser."""
    x, xf, tail, w, moments = problem()
    lam, statistics = exact(RareBAL(), [moments], 0.0)
    d = torch.where(tail, lam, 1.0).double()
    ours = FixedAlpha(1.0).target(w, statistics, None).weight
    paper = w + statistics.factor.solve(w @ rebalance([moments], lam, 1.0).cross)
    root = d.sqrt()[:, None]
    best = torch.linalg.lstsq(root * x, root * (xf @ w.T)).solution.T
    least = weighted_error(x, xf, w, best, d)
    assert weighted_error(x, xf, w, ours, d) == pytest.approx(least, rel=1e-4)
    assert weighted_error(x, xf, w, paper, d) > 1.001 * least


def test_paper_residual_uses_the_pilot():
    _, _, _, w, moments = problem()
    solver = Sweep(dtype=torch.float64)
    lam, statistics = exact(RareBAL(), [moments], 0.01)
    combined, factor = rebalance([moments], lam, 1.0), statistics.factor
    statistics = Statistics(combined, factor)
    pilots = []

    def quantize(weights):
        pilots.extend(solver.quantize(weights, statistics, Scheme(group_size=32), torch.float32))
        return pilots

    assert not PaperResidual().weighs_cross
    target = PaperResidual().target(w, statistics, quantize)
    assert len(pilots) == 1
    direction = factor.solve(w @ combined.cross)
    error = pilots[0].dequantize().double() - w
    alpha = (error @ combined.hessian @ direction.T).trace() / (direction @ combined.hessian @ direction.T).trace()
    assert target.alpha == pytest.approx(float(alpha), rel=1e-6)


def test_no_residual_and_fixed_alpha():
    _, _, _, w, moments = problem()
    _, statistics = exact(Plain(), [moments], 0.01)
    for off in ("none", 0, 0.0):
        residual = make_residual(off)
        assert not residual.paired
        target = residual.target(w, statistics, None)
        assert target.weight is w
        assert (target.alpha, target.energy) == (0.0, 0.0)
    half = make_residual(0.5).target(w, statistics, None)
    moved = 0.5 * statistics.factor.solve(w @ statistics.moments.cross)
    torch.testing.assert_close(half.weight, w + moved)
    assert half.energy == pytest.approx(float(((moved @ statistics.moments.hessian) * moved).sum()))


def folds_of(x, xf, tail, metric=Plain(), damp=0.01):
    """The pooled problem and its two folds, as the algorithm makes them."""
    parts = []
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        parts.append(Moments(x.shape[1], paired=True))
        parts[-1].update(x[rows].float(), xf[rows].float(), tail[rows], torch.ones(len(x[rows])))
    lam, whole = exact(metric, parts, damp)
    solver = Sweep(damp=damp, dtype=torch.float64)
    each = [rebalance([part], lam) for part in parts]
    folds = [Fold(fold, solver.factorize(fold.hessian)) for fold in each]
    return lam, Statistics(whole.moments, whole.factor, folds)


def test_cross_fitting_does_not_trust_noise():
    """A drift that has nothing to do with the input: least squares fits it by chance, cross-fitting does not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 64, generator=generator).double()
    xf = x + 0.3 * torch.randn(300, 64, generator=generator).double()
    w = torch.randn(24, 64, generator=generator).double()
    unseen = torch.randn(5000, 64, generator=generator).double()
    _, statistics = folds_of(x, xf, torch.zeros(300, dtype=torch.bool))
    fitted = LeastSquares().target(w, statistics, None)
    trusted = CrossFitted().target(w, statistics, None)
    assert fitted.alpha >= 1
    assert trusted.alpha < 0.25
    d = torch.ones(5000).double()
    least, cross = (weighted_error(unseen, unseen, w, t.weight, d) for t in (fitted, trusted))
    assert cross < 0.1 * least  # with nothing to correct, whatever a correction does is damage


def test_cross_fitting_trusts_a_drift_that_follows_the_input():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 64, generator=generator).double()
    drift = 0.1 * torch.randn(64, 64, generator=generator).double()
    _, statistics = folds_of(x, x + x @ drift, torch.zeros(300, dtype=torch.bool))
    w = torch.randn(24, 64, generator=generator).double()
    assert CrossFitted().target(w, statistics, None).alpha == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("drift", [0.05, 0.5])
@pytest.mark.parametrize("metric", [Plain(), RareBAL()])
def test_cross_fitting_never_increases_the_weighted_output_error(seed, drift, metric):
    x, xf, tail, w, _ = problem(drift=drift, seed=seed)
    lam, statistics = folds_of(x, xf, tail, metric)
    target = CrossFitted().target(w, statistics, None)
    d = torch.where(tail, lam, 1.0).double()
    assert 0 <= target.alpha < 1.5
    before, after = weighted_error(x, xf, w, w, d), weighted_error(x, xf, w, target.weight, d)
    assert after < before if target.alpha else after == before


@pytest.mark.parametrize("centred", [False, True])
def test_cross_fitted_alpha_is_the_formula_on_raw_activations(centred):
    """``α = 2a / (1 + a)``: each fold's direction judged on the other's rows, with the λ of both; about each fold's own
    mean where the layer has a bias to take it up."""
    x, xf, tail, w, _ = problem(drift=1.0)
    x, xf = x + 3, xf + 3.5
    folds = slice(0, 150), slice(150, None)
    parts = [Moments(64, paired=True, first=True) for _ in folds]
    for part, rows in zip(parts, folds, strict=True):
        part.update(x[rows].float(), xf[rows].float(), tail[rows], torch.ones(len(x[rows])))
    arms = Arms(RareBAL(), CrossFittedBias(), Sweep(dtype=torch.float64))
    layer = Layer("w", w, torch.zeros(24).double() if centred else None)
    figures = tail_aware_quantize([layer], parts, arms, Scheme(group_size=32), torch.float32)["w"].figures

    def rows_of(rows):
        d = torch.where(tail[rows], figures.lam, 1.0).double()[:, None]
        if not centred:
            return d, x[rows], xf[rows] - x[rows]
        mean, mean_full = ((d * y[rows]).sum(0) / d.sum() for y in (x, xf))
        return d, x[rows] - mean, xf[rows] - mean_full - (x[rows] - mean)

    gain = scale = 0.0
    for fitted, held_out in (folds, folds[::-1]):
        d, own, drift = rows_of(fitted)
        hessian = own.T @ (d * own)
        damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(64)
        direction = torch.linalg.solve(damped, (w @ drift.T @ (d * own)).T).T
        d, other, drift = rows_of(held_out)
        gain += float((d * (drift @ w.T) * (other @ direction.T)).sum())
        scale += float((d * (other @ direction.T) ** 2).sum())
    a = gain / scale
    assert 0.1 < a < 0.9  # where 2a / (1 + a) is far from a, and from 1
    assert figures.alpha == pytest.approx(2 * a / (1 + a), rel=1e-3)


def test_cross_fitting_needs_two_folds():
    with pytest.raises(ValueError, match="two folds"):
        cross_fitted_alpha(torch.ones(1, 1), [])


def test_residual_needs_paired_moments():
    moments = Moments(4, paired=False)
    moments.update(torch.randn(9, 4), None, torch.zeros(9, dtype=torch.bool), torch.ones(9))
    _, statistics = exact(Plain(), [moments], 0.01)
    with pytest.raises(ValueError, match="paired moments"):
        LeastSquares().target(torch.ones(2, 4).double(), statistics, None)


def test_a_half_that_says_nothing_means_no_residual_and_a_note():
    x, xf, tail, w, _ = problem()
    x[1::2] = xf[1::2] = 0
    parts = []
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        parts.append(Moments(64, paired=True))
        parts[-1].update(x[rows].float(), xf[rows].float(), tail[rows], torch.ones(200))
    arms = Arms(Plain(), CrossFitted(), Sweep())
    layers = [Layer("w", w.float())]
    solution = tail_aware_quantize(layers, parts, arms, Scheme(group_size=32), torch.float16)["w"]
    assert solution.figures.alpha == 0
    assert any("never excites" in note for note in solution.notes)


def solve(weights, moments, metric=None, residual="least-squares", solver=None, scale_dtype=torch.float16):
    arms = Arms(metric or RareBAL(), make_residual(residual), solver or Sweep())
    layers = [Layer(name, weight) for name, weight in weights.items()]
    return tail_aware_quantize(layers, [moments], arms, Scheme(group_size=32), scale_dtype)


def test_layers_that_share_an_input_share_its_metric_and_match_their_own_runs():
    _, _, _, w, moments = problem()
    both = solve({"q": w.float(), "k": -w.float()}, moments)
    alone = solve({"q": w.float()}, moments)
    assert torch.equal(both["q"].quantized.codes, alone["q"].quantized.codes)
    assert both["q"].figures.lam == both["k"].figures.lam > 1
    assert both["q"].figures.alpha == pytest.approx(both["k"].figures.alpha)


def test_pilots_are_rounded_with_their_own_layers_output_moments():
    class Watches(Sweep):
        output_moments = True

        def quantize(self, targets, statistics, scheme, scale_dtype, outputs=None):
            asked.append([float(g[0, 0]) for g in outputs])
            return super().quantize(targets, statistics, scheme, scale_dtype)

    _, _, _, w, moments = problem()
    asked, outputs = [], {"q": torch.eye(24), "k": 2 * torch.eye(24)}
    arms = Arms(RareBAL(), PaperResidual(), Watches())
    layers = [Layer("q", w.float()), Layer("k", -w.float())]
    tail_aware_quantize(layers, [moments], arms, Scheme(group_size=32), torch.float16, outputs)
    assert asked == [[1.0], [2.0], [1.0, 2.0]]  # a pilot each, then both


@pytest.mark.parametrize("solver", [Sweep, RoundToNearest])
@pytest.mark.parametrize("residual", ["none", "least-squares"])
def test_loss_is_the_relative_error_of_rounding_the_target(solver, residual):
    """The solver's own loss without its damping; scales are float32, in which codes times scales are rounded again."""
    x, xf, tail, w, _ = problem()
    x[:, 5] = 0  # a dead input, which xf is not
    moments = Moments(64, paired=True)
    moments.update(x.float(), xf.float(), tail, torch.ones(len(x)))
    for dtype, close in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        made = solve({"w": w}, moments, residual=residual, solver=solver(dtype=dtype), scale_dtype=torch.float32)
        solution = made["w"]
        lam, statistics = exact(RareBAL(), [moments], 0.01)
        h = statistics.moments.hessian
        error = solution.quantized.dequantize().double() - make_residual(residual).target(w, statistics, None).weight
        expected = ((error @ h) * error).sum() / ((w @ h) * w).sum()
        assert solution.figures.lam == lam
        assert solution.figures.loss == pytest.approx(float(expected), rel=close)
        assert (solution.figures.shift == 0) == (residual == "none")


def test_layers_that_centre_share_their_inputs_with_those_that_do_not():
    """The bias takes up what the mean is off; with weights, codes fixed, no other bias does better."""

    class Centred(Residual):
        first_moments = True

        def centres(self, layer):
            return layer.bias is not None

        def target(self, weight, statistics, quantize):
            return Target(weight)

        def bias(self, layer, w_hat, statistics):
            return absorbed_mean(layer, w_hat, statistics)

    x, xf, tail, w, _ = problem()
    x, xf = x + 3, xf + 3.5
    moments = Moments(64, paired=True, first=True)
    moments.update(x.float(), xf.float(), tail, torch.ones(len(x)))
    b = torch.linspace(-1, 1, 24).double()
    arms = Arms(RareBAL(), Centred(), Sweep(dtype=torch.float64))
    layers = [Layer("k", w), Layer("q", w, b)]
    solved = tail_aware_quantize(layers, [moments], arms, Scheme(group_size=32), torch.float32)
    assert list(solved) == ["k", "q"]
    assert solved["k"].bias is None
    plain = solve({"k": w}, moments, residual="none", solver=Sweep(dtype=torch.float64), scale_dtype=torch.float32)
    assert torch.equal(solved["k"].quantized.codes, plain["k"].quantized.codes)
    assert not torch.equal(solved["q"].quantized.codes, plain["k"].quantized.codes)

    d = torch.where(tail, solved["q"].figures.lam, 1.0).double()
    w_hat = solved["q"].quantized.dequantize().double()
    best = (d[:, None] * (xf @ w.T + b - x @ w_hat.T)).sum(0) / d.sum()
    torch.testing.assert_close(solved["q"].bias, best, rtol=1e-4, atol=1e-4)

    def error(solution, bias):
        v = solution.quantized.dequantize().double()
        return float((d[:, None] * (xf @ w.T + b - x @ v.T - bias) ** 2).sum())

    plain_best = (d[:, None] * (xf @ w.T + b - x @ plain["k"].quantized.dequantize().double().T)).sum(0) / d.sum()
    assert error(solved["q"], best) < error(plain["k"], plain_best) < error(plain["k"], b)


def test_the_sweep_beats_rounding_in_its_metric_and_the_residual_cuts_the_output_error():
    x, xf, tail, w, moments = problem(drift=0.3)
    lam, _ = RareBAL().balance([moments])
    d = torch.where(tail, lam, 1.0).double()

    def error(**options):
        quantized = solve({"w": w.float()}, moments, **options)["w"].quantized
        return weighted_error(x, xf, w, quantized.dequantize().double(), d)

    rtn = error(residual="none", solver=RoundToNearest())
    sweep = error(residual="none")
    corrected = error(residual="least-squares")
    assert corrected < sweep < rtn


def test_a_dead_input_column_is_zeroed_and_counted():
    x, xf, tail, w, _ = problem()
    x[:, 5] = xf[:, 5] = 0
    moments = Moments(64, paired=True)
    moments.update(x.float(), xf.float(), tail, torch.ones(len(x)))
    solution = solve({"w": w.float()}, moments)["w"]
    assert solution.figures.dead_columns == 1
    assert (solution.quantized.dequantize()[:, 5] == 0).all()


def test_a_singular_metric_is_damped():
    x, xf, tail, w, _ = problem(rows=10)  # fewer positions than inputs
    moments = Moments(64, paired=True)
    moments.update(x.float(), xf.float(), tail, torch.ones(len(x)))
    solution = solve({"w": w.float()}, moments)["w"]
    assert solution.figures.damp >= 0.01
    assert torch.isfinite(solution.quantized.dequantize()).all()


def test_a_failed_factorisation_raises_the_damping_and_says_so():
    _, _, _, w, moments = problem()
    moments.hessian["common"] -= 0.05 * moments.hessian["common"].diagonal().mean() * torch.eye(64)
    moments.hessian["tail"].zero_()
    moments.counts["tail"].zero_()
    moments.hessian["common"][:, 7] = moments.hessian["common"][7, :] = 0  # dead, and barely negative elsewhere
    solution = solve({"w": w.float()}, moments, residual="none", solver=Sweep(damp=1e-6))["w"]
    assert solution.figures.damp_retries > 0
    assert any(note.startswith("damping raised to") for note in solution.notes)
    assert solution.figures.damp > 1e-6


def test_static_act_order_keeps_natural_groups():
    _, _, _, w, moments = problem()
    solution = solve({"w": w.float()}, moments, solver=Sweep(act_order="static"))["w"]
    assert solution.quantized.scales.shape == (24, 2)
    plain = solve({"w": w.float()}, moments)["w"]
    assert not torch.equal(solution.quantized.codes, plain.quantized.codes)
    assert solution.figures.loss < 1.5 * plain.figures.loss


def test_inputs_that_hardly_vary_are_quantized_about_zero():
    """About their mean nothing is left but rounding, which is no metric; the bias takes up the mean all the same."""
    generator = torch.Generator().manual_seed(0)
    x = 100 * torch.randn(64, generator=generator) + 1e-5 * torch.randn(400, 64, generator=generator)
    weight, bias = torch.randn(24, 64, generator=generator), torch.randn(24, generator=generator)
    moments = [Moments(64, paired=True, first=True) for _ in range(2)]
    for half, part in enumerate(moments):
        part.update(x[half::2], x[half::2], torch.zeros(200, dtype=torch.bool), torch.ones(200))
    arms = Arms(Plain(), CrossFittedBias(), Sweep())
    layer = Layer("layer", weight, bias)
    found = tail_aware_quantize([layer], moments, arms, Scheme(4, 32, False), torch.float16)["layer"]
    assert any("hardly varies" in note for note in found.notes)
    product = x.double() @ found.quantized.dequantize().double().T + found.bias.double()
    wanted = x.double() @ weight.double().T + bias.double()
    assert float((product - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())
