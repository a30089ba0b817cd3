"""The paired bootstrap against a plain loop, by hand, and for its coverage."""

import math

import numpy as np
import pytest

from tarq.scoring import bootstrap as intervals
from tarq.scoring.bootstrap import (
    Ratio,
    resample,
    resample_two_way,
    resampled_sums,
)


def ratio_interval(numerators, denominators, level=0.95, **options):
    return resample({"": Ratio(numerators, denominators)}, **options)[""].interval(level)


def difference_interval(numerators, denominators, base_numerators, base_denominators, level=0.95, **options):
    ratios = {"it": Ratio(numerators, denominators), "base": Ratio(base_numerators, base_denominators)}
    resampled = resample(ratios, **options)
    return resampled["it"].minus(resampled["base"], level)


def some_counts(utterances=37, seed=1):
    generator = np.random.default_rng(seed)
    words = generator.integers(0, 30, utterances)
    return generator.binomial(words, 0.2), generator.binomial(words, 0.18), words


def drawn(utterances, resamples, seed):
    return np.random.default_rng(seed).integers(utterances, size=(resamples, utterances))


def test_ratio_against_a_loop():
    errors, _, words = some_counts()
    rates = [sum(errors[u] for u in row) / sum(words[u] for u in row) for row in drawn(37, 500, 11)]
    result = ratio_interval(errors, words, resamples=500, seed=11, level=0.9)
    assert result.value == errors.sum() / words.sum()
    assert result.low == pytest.approx(np.quantile(rates, 0.05), rel=1e-12)
    assert result.high == pytest.approx(np.quantile(rates, 0.95), rel=1e-12)
    assert result.low < result.value < result.high


def test_difference_against_a_loop():
    errors, base, words = some_counts()
    other_words = words + 1
    differences = [
        errors[row].sum() / words[row].sum() - base[row].sum() / other_words[row].sum() for row in drawn(37, 500, 11)
    ]
    result = difference_interval(errors, words, base, other_words, resamples=500, seed=11)
    assert result.value == pytest.approx(errors.sum() / words.sum() - base.sum() / other_words.sum())
    assert result.value > 0
    assert result.low == pytest.approx(np.quantile(differences, 0.025), rel=1e-12)
    assert result.high == pytest.approx(np.quantile(differences, 0.975), rel=1e-12)
    assert result.sign_flips == np.mean(np.array(differences) <= 0)
    assert 0 < result.sign_flips < 0.5

    mirrored = difference_interval(base, other_words, errors, words, resamples=500, seed=11)
    assert mirrored.value == pytest.approx(-result.value)
    assert (mirrored.low, mirrored.high) == pytest.approx((-result.high, -result.low))
    assert mirrored.sign_flips == result.sign_flips


def test_figures_resampled_together_are_those_resampled_alone(monkeypatch):
    errors, base, words = some_counts()
    divergence = np.random.default_rng(2).gamma(1.0, 0.05, 37)
    some = {"a": Ratio(errors, words), "b": Ratio(base, words + 1), "kl": Ratio(divergence, words)}
    fewer = Ratio(errors[:20], words[:20])
    draws = []
    monkeypatch.setattr(intervals, "resampled_sums", lambda t, *rest: draws.append(t.shape) or resampled_sums(t, *rest))
    together = resample(some | {"fewer": fewer}, 400, seed=3)
    assert sorted(draws) == [(20, 2), (37, 6)]  # drawn once for each number of utterances
    for name, ratio in (some | {"fewer": fewer}).items():
        alone = ratio_interval(ratio.numerator, ratio.denominator, resamples=400, seed=3)
        assert vars(together[name].interval()) == pytest.approx(vars(alone), rel=1e-12)
    pair = difference_interval(errors, words, base, words + 1, resamples=400, seed=3)
    assert vars(together["a"].minus(together["b"])) == pytest.approx(vars(pair), rel=1e-12)


@pytest.mark.parametrize("chunk", [10, 37, 37 * 7 + 5, 3700])  # below one row: still one row at a time
def test_chunks_do_not_change_the_resamples_and_bound_what_is_held(monkeypatch, chunk):
    counts = np.stack(some_counts(), axis=1)
    whole = resampled_sums(counts, 100, seed=5)
    np.testing.assert_array_equal(whole, counts[drawn(37, 100, 5)].sum(axis=1))
    held, bincount = [], np.bincount
    monkeypatch.setattr(intervals, "_CHUNK", chunk)
    monkeypatch.setattr(intervals.np, "bincount", lambda drawn, **_: held.append(len(drawn)) or bincount(drawn, **_))
    np.testing.assert_array_equal(resampled_sums(counts, 100, seed=5), whole)
    assert max(held) <= max(chunk, 37)
    assert sum(held) == 3700


def test_seed():
    errors, _, words = some_counts()
    assert ratio_interval(errors, words, seed=1, resamples=200) == ratio_interval(errors, words, seed=1, resamples=200)
    assert ratio_interval(errors, words, seed=1, resamples=200) != ratio_interval(errors, words, seed=2, resamples=200)


def test_one_utterance_has_no_spread():
    result = ratio_interval([3], [4])
    assert (result.value, result.low, result.high) == (0.75, 0.75, 0.75)


def test_a_constant_shift_is_certain():
    _, base, words = some_counts()
    result = difference_interval(base + words, words, base, words, resamples=200)
    assert (result.value, result.low, result.high) == pytest.approx((1.0, 1.0, 1.0))
    assert result.sign_flips == 0.0


def test_the_same_system_twice_has_no_sign():
    errors, _, words = some_counts()
    result = difference_interval(errors, words, errors, words, resamples=200)
    assert (result.value, result.low, result.high, result.sign_flips) == (0.0, 0.0, 0.0, 1.0)


def test_pairing_matters():
    # Two systems whose errors rise and fall together: paired, their difference is narrow.
    generator = np.random.default_rng(0)
    words = np.full(200, 20)
    base = generator.binomial(20, np.where(generator.random(200) < 0.5, 0.05, 0.6))
    better = np.maximum(base - (generator.random(200) < 0.3), 0)
    paired = difference_interval(better, words, base, words, resamples=1000)
    apart = difference_interval(better, words, np.roll(base, 7), words, resamples=1000)
    assert paired.value == pytest.approx(apart.value)
    assert paired.high - paired.low < 0.2 * (apart.high - apart.low)
    assert paired.sign_flips == 0.0 < apart.sign_flips


def some_draws(draws=5, utterances=37, spread=0.0, seed=4):
    """Sums of a damage by draw and utterance, which share the utterances' hardness; and their positions."""
    generator = np.random.default_rng(seed)
    positions = generator.integers(1, 30, utterances)
    hardness = generator.gamma(1.0, 0.1, utterances)
    level = 1 + spread * generator.standard_normal((draws, 1))
    return (level * hardness + 0.02 * generator.standard_normal((draws, utterances))) * positions, positions


def test_two_ways_against_a_loop():
    sums, positions = some_draws()
    other, _ = some_draws(seed=5)
    result = resample_two_way({"a": Ratio(sums, positions), "b": Ratio(other, positions)}, 300, seed=11)
    expected, differences = [], []
    for us, ds in zip(drawn(37, 300, 11), drawn(5, 300, 12), strict=True):
        means = [np.mean([table[d][us].sum() / positions[us].sum() for d in ds]) for table in (sums, other)]
        expected.append(means[0])
        differences.append(means[0] - means[1])
    assert result["a"].value == pytest.approx(np.mean(sums.sum(axis=1)) / positions.sum())
    np.testing.assert_allclose(result["a"].values, expected, rtol=1e-12)
    known = result["a"].minus(result["b"])
    assert (known.low, known.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))


def test_two_ways_hold_what_draws_differ_by():
    calm, positions = some_draws(draws=8, utterances=200)
    wild, _ = some_draws(draws=8, utterances=200, spread=0.8)
    result = resample_two_way({"calm": Ratio(calm, positions), "wild": Ratio(wild, positions)}, 2000)

    def wider(name, sums):
        """Than an interval over utterances alone."""
        two, one = result[name].interval(), ratio_interval(sums.mean(axis=0), positions, resamples=2000)
        return (two.high - two.low) / (one.high - one.low)

    assert wider("calm", calm) < 1.1
    assert wider("wild", wild) > 1.4


def test_one_draw_is_the_plain_bootstrap():
    sums, positions = some_draws(draws=1)
    two = resample_two_way({"": Ratio(sums, positions)}, 200, seed=3)[""]
    assert vars(two.interval()) == pytest.approx(vars(ratio_interval(sums[0], positions, resamples=200, seed=3)))


def test_two_ways_refuse_what_does_not_fit():
    sums, positions = some_draws()
    for wrong in (Ratio(sums[0], positions), Ratio(sums, positions[1:]), Ratio(sums[:0], positions)):
        with pytest.raises(ValueError, match=r"\[draws, utterances\]"):
            resample_two_way({"": wrong}, 10)


def test_no_denominator():
    nothing = ratio_interval([0, 0], [0, 0], resamples=50)
    assert all(map(math.isnan, (nothing.value, nothing.low, nothing.high)))
    difference = difference_interval([0, 0], [0, 0], [1, 1], [2, 2], resamples=50)
    assert all(map(math.isnan, vars(difference).values()))
    # One rare word in four utterances: resamples without it say nothing, the others all say 1.
    one = ratio_interval([1, 0, 0, 0], [1, 0, 0, 0], resamples=200)
    assert (one.value, one.low, one.high) == (1.0, 1.0, 1.0)
    flips = difference_interval([1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], resamples=200)
    assert flips.sign_flips == 0.0


def test_a_mean_over_positions_is_a_ratio_of_sums():
    generator = np.random.default_rng(3)
    per_utterance = [generator.gamma(1.0, 0.05, size=n) for n in (3, 40, 17, 5, 60)]
    result = ratio_interval([kl.sum() for kl in per_utterance], [len(kl) for kl in per_utterance])
    assert result.value == pytest.approx(np.concatenate(per_utterance).mean())


def test_coverage():
    """Of many sets drawn from one population, about 95 % of the intervals hold its true rate."""
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        words = generator.integers(5, 30, 80)
        hardness = generator.beta(2, 8, 80)  # utterances differ: mean rate 0.2
        result = ratio_interval(generator.binomial(words, hardness), words, resamples=400)
        held += result.low <= 0.2 <= result.high
    # 285 expected with a standard deviation of 4; a percentile interval falls a little short of its level.
    assert 268 <= held <= 297


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], []), {}, "at least one utterance"),
        (([1, 2], [1]), {}, r"\[utterances\] alike"),
        (([[1]], [[1]]), {}, r"\[utterances\] alike"),
        (([1], [1]), {"resamples": 0}, "resamples must be at least 1"),
        (([1], [1]), {"level": 1.0}, "level must lie between 0 and 1"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ratio_interval(*arguments, **options)
    with pytest.raises(ValueError, match=message):
        difference_interval(*arguments, *arguments, **options)
