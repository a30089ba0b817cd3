"""tarq/reports/statistics.py: numbers worked out by hand, and coverage on simulated studies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tarq.errors import DataError
from tarq.reports.statistics import (
    FULL,
    Cell,
    Condition,
    Study,
    adjusted_in_families,
    all_pairs,
    conditions,
    holm,
    merged,
    p_value,
    pooled,
    swing,
)
from tarq.reports.variance import Components, components
from tarq.scoring.bootstrap import Ratio, Resampled, resample_two_way


def a_cell(rare, constant=False, words=None):
    cell = {"delta_nll": {"rare": rare}, "calibration_seconds": None if constant else 9.0}
    return cell | ({"words": {"rare": words}} if words else {})


def counts(substitutions, insertions=(0, 0), words=(4, 6)):
    return {
        "substitutions": list(substitutions),
        "deletions": [0, 0],
        "insertions": list(insertions),
        "words": list(words),
    }


def a_study(**cells):
    """Two utterances with 4 and 6 rare targets, and words of which full precision gets one wrong."""
    model = {"ids": ["a", "b"], "positions": {"rare": [4, 6], "common": [0, 0]}, "words": {"rare": counts((1, 0))}}
    return {
        "settings": {"samples": 3},
        "models": {"m": model},
        "arms": {"gptq": {}, "ours": {}, "rtn": {}},
        "pairs": [["ours", "gptq", "f"]],
        "cells": {key.replace("__", "/"): cell for key, cell in cells.items()},
    }


def test_values_are_means_over_an_arms_own_draws_and_differences_over_those_of_both():
    results = a_study(
        m__gptq__0=a_cell([2.0, 3.0]),
        m__gptq__1=a_cell([1.0, 1.0]),
        m__gptq__2=a_cell([9.0, 9.0]),
        m__ours__0=a_cell([1.0, 1.0]),
        m__ours__1=a_cell([1.0, 0.0]),
        m__rtn__0=a_cell([4.0, 4.0], constant=True),
    )
    study = Study(results, Condition("m"))
    assert study.arms == ["gptq", "ours", "rtn"] or study.arms == [FULL, "gptq", "ours", "rtn"]
    figure = "delta_nll_rare"
    assert study.value("gptq", figure).value == pytest.approx((5 + 2 + 18) / 3 / 10)
    assert study.value("ours", figure).value == pytest.approx((2 + 1) / 2 / 10)
    assert study.draws("gptq", figure) == [0, 1, 2]
    found = study.compare("ours", "gptq", figure)
    assert found.draws == (0, 1)
    assert found.by_draw == pytest.approx((-0.3, -0.1))
    assert found.difference.value == pytest.approx(-0.2)
    assert found.recovered.value == pytest.approx(1 - 0.15 / 0.35)
    assert found.detectable == pytest.approx(2.8 * found.standard_error)
    # What looks at no speech has one cell, which stands in each of the other's draws.
    assert study.compare("rtn", "gptq", figure).draws == (0, 1, 2)
    assert study.compare("rtn", "gptq", figure).by_draw == pytest.approx((0.3, 0.6, -1.0))
    assert study.compare("ours", "gptq", "kl_rare") is None
    # The interval is that of the two-way bootstrap of the differences.
    alone = resample_two_way({0: Ratio([[-1.0, -2.0], [0.0, -1.0]], [4, 6])})[0].interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((alone.low, alone.high))


def test_word_figures_are_errors_over_words():
    words = counts((2, 1), insertions=(0, 2))
    results = a_study(m__gptq__0=a_cell([0.0, 0.0], words=words), m__ours__0=a_cell([0.0, 0.0]))
    study = Study(results, Condition("m"))
    assert study.value("gptq", "rare_wer").value == pytest.approx(5 / 10)
    assert study.value("gptq", "rare_miss_rate").value == pytest.approx(3 / 10)
    assert study.value(FULL, "rare_wer").value == pytest.approx(1 / 10)
    assert study.value("ours", "rare_wer") is None
    assert study.value(FULL, "delta_nll_rare") is None


def test_cells_say_what_they_are_and_a_wrong_key_is_named():
    long = Cell.parse("m (lj)/bias, refined/7/r-top/128/3/lj")
    assert long == (Condition("m (lj)", "r-top", 128, 3), "bias, refined", 7)
    assert Cell.parse("m/gptq/2") == (Condition("m"), "gptq", 2)
    for wrong in ("m/gptq", "m/gptq/x", "m/gptq/0/r-top"):
        with pytest.raises(DataError, match=wrong):
            Cell.parse(wrong)
    results = a_study(**{"m/gptq/0/p/1/4/s": {}, "m/gptq/1/p/1/4/s": {}, "m/gptq/0/q/1/4/s": {}})
    assert conditions(results) == [Condition("m", "p", 1, 4), Condition("m", "q", 1, 4)]


def test_every_arm_is_compared_with_gptq_once():
    results = a_study(m__gptq__0={}, m__ours__0={}, m__rtn__0={})
    assert all_pairs(results) == [("rtn", "gptq", "against gptq"), ("ours", "gptq", "f")]


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04: times 4, 3, 2, 1, and never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([math.nan, 0.01, 0.02])[1:] == pytest.approx([0.02, 0.02])


def test_p_is_twice_the_share_on_the_other_side_and_never_zero():
    base = Resampled(0.0, np.zeros(999))
    values = np.r_[np.full(9, 1.0), np.full(990, -1.0)]
    assert p_value(Resampled(-0.9, values), base) == pytest.approx(2 * 10 / 1000)
    assert p_value(Resampled(-1.0, np.full(999, -1.0)), base) == pytest.approx(2 / 1000)


def test_families_are_adjusted_over_models_but_each_figure_alone():
    rng = np.random.default_rng(0)
    results = a_study()
    results["models"] = dict.fromkeys(("m", "n"), results["models"]["m"])
    for name, arm, draw in itertools.product("mn", ("gptq", "ours"), range(4)):
        shift = 0.3 if arm == "gptq" else 0.0
        cell = {"delta_nll": {"rare": (shift + rng.normal(size=2)).tolist()}, "kl": {"rare": [shift, shift]}}
        results["cells"][f"{name}/{arm}/{draw}"] = cell
    compared = [c for condition in conditions(results) for c in Study(results, condition).comparisons()]
    adjusted = adjusted_in_families(compared)
    for figure in ("delta_nll_rare", "kl_rare"):
        own = [(c.p, a.adjusted) for c, a in zip(compared, adjusted, strict=True) if c.figure == figure]
        assert len(own) == 2
        assert [a for _, a in own] == pytest.approx(holm([p for p, _ in own]))
    both = pooled([c for c in compared if c.figure == "delta_nll_rare"])
    assert both.value == pytest.approx(np.mean([c.difference.value for c in compared if c.figure == "delta_nll_rare"]))


def test_swing_is_largest_less_smallest():
    pools = [Resampled(value, np.array([value, value + step])) for value, step in ((0.1, 0.0), (0.3, 0.2), (0.2, 0.0))]
    found = swing(pools)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 + 0.025 * 0.2, 0.2 + 0.975 * 0.2))


def test_components_by_hand():
    # Draws 0 and 2 about the mean, utterances −1 and 1: additive, so that nothing is left over.
    made = components([[0.0, 2.0], [2.0, 4.0]], [1, 1])
    assert (made.draw, made.utterance, made.rest) == pytest.approx((2.0, 2.0, 0.0))
    assert made.standard_error == pytest.approx(math.sqrt(2 / 2 + 2 / 2))
    assert components([[1.0, 2.0]], [1, 1]).standard_error is None
    assert math.isnan(components([[1.0, 2.0]], [1, 1]).draws_needed(1.0))


def test_draws_needed_by_hand():
    known = Components(draw=0.0003, utterance=0.02, rest=0.02, draws=4, utterances=200)
    # (0.056 / 2.8)² = .0004 less .02 / 200 leaves .0003 for (.0003 + .0001) / draws.
    assert known.draws_needed(0.056) == 2
    assert known.draws_needed(0.01) == math.inf
    assert known.draws_needed(1.0) == 1


@pytest.mark.parametrize(("draw", "utterance", "rest"), [(0.05, 0.5, 0.5), (0.0, 1.0, 0.5), (0.3, 0.0, 1.0)])
def test_intervals_cover_and_components_are_found(draw, utterance, rest):
    """Studies of eight draws and 60 utterances, whose true difference is known."""
    rng = np.random.default_rng(3)
    draws, utterances, studies = 8, 60, 200
    covered, found, errors, values = 0, [], [], []
    for _ in range(studies):
        table = 0.2 + (
            draw * rng.normal(size=(draws, 1))
            + utterance * rng.normal(size=utterances)
            + rest * rng.normal(size=(draws, utterances))
        )
        made = resample_two_way({0: Ratio(table, np.ones(utterances))}, resamples=400)[0]
        interval = made.interval()
        covered += interval.low <= 0.2 <= interval.high
        found.append(components(table, np.ones(utterances)))
        errors.append(found[-1].standard_error)
        values.append(made.value)
    assert covered / studies > 0.9
    assert np.mean([c.rest for c in found]) == pytest.approx(rest**2, rel=0.05)
    assert np.mean([c.utterance for c in found]) == pytest.approx(utterance**2, rel=0.1, abs=0.01)
    assert np.mean([c.draw for c in found]) == pytest.approx(draw**2, rel=0.25, abs=0.002)
    # The standard error is what the values of the studies really scatter by.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.15)


def test_files_of_one_study_are_put_together():
    one = a_study(m__gptq__0=a_cell([1.0, 1.0]))
    two = a_study(m__gptq__1=a_cell([2.0, 2.0]))
    two["models"]["m"] = {name: value for name, value in two["models"]["m"].items() if name != "words"}
    together = merged([one, two])
    assert set(together["cells"]) == {"m/gptq/0", "m/gptq/1"}
    assert "words" in together["models"]["m"]
    assert together["pairs"] == [["ours", "gptq", "f"]]
    # What only one of the files counts is kept, whichever comes last; and a setting that is stated later is the same.
    newer = a_study(m__ours__0=a_cell([1.0, 1.0], words=counts((1, 1))))
    newer["settings"] = newer["settings"] | {"dtype": "float32"}
    newer["models"]["m"]["positions"]["Zipf 2–3"] = [4, 5]
    newer["models"]["m"]["words"]["signs"] = {"looping": [0, 0], "utterances": [1, 1]}
    for files in ([newer, one, two], [two, one, newer]):
        model = merged(files)["models"]["m"]
        assert model["positions"] == {"rare": [4, 6], "common": [0, 0], "Zipf 2–3": [4, 5]}
        assert set(model["words"]) == {"rare", "signs"}
    with pytest.raises(DataError, match="different settings"):
        merged([one, two | {"settings": {}}])
    with pytest.raises(DataError, match="m was scored on different utterances"):
        merged([one, two | {"models": {"m": two["models"]["m"] | {"ids": ["x", "b"]}}}])
