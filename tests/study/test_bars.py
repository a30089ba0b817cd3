"""benchmarks/study/bars.py: made-up studies whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.study import tables
from benchmarks.study.__main__ import main
from benchmarks.study.bars import PARTS, Names, bars
from benchmarks.study.reading import load_grid
from tarq.errors import ConfigError

GRIDS = Path(__file__).parents[2] / "benchmarks" / "study"
UTTERANCES = 20
RARE = [2, 0] * (UTTERANCES // 2)  # targets, and words, by utterance
COMMON = [5] * UTTERANCES
NAMES = Names("ours", ("gptq", "better base"), (("tail", "ours"), ("tail", "random")))


def words(rare_wrong: int, wrong: int) -> dict[str, Any]:
    """The first so many rare words and words of each utterance are wrong, one an utterance at most."""
    nothing = [0] * UTTERANCES
    places = [i for i, n in enumerate(RARE) if n][:rare_wrong]
    counts = {
        "rare": ([int(i in places) for i in range(UTTERANCES)], RARE),
        "all": ([int(i < wrong) for i in range(UTTERANCES)], COMMON),
    }
    return {
        kind: {"substitutions": errors, "deletions": nothing, "insertions": nothing, "words": whole}
        for kind, (errors, whole) in counts.items()
    }


def cell(rare: float, common: float = 0.1, counted: tuple[int, int] | None = None, noise: float = 0.0, seed: int = 0):
    """So much damage to every target by ΔNLL, and half by KL; ``noise`` sets its utterances apart."""
    apart = noise * np.random.default_rng(seed).normal(size=UTTERANCES)
    damage = {
        "rare": [(rare + e) * n for e, n in zip(apart, RARE, strict=True)],
        "common": [common * n for n in COMMON],
    }
    found: dict[str, Any] = {
        "delta_nll": damage,
        "kl": {kind: [0.5 * value for value in sums] for kind, sums in damage.items()},
        "calibration_seconds": 1.0,
    }
    return found | ({"words": words(*counted)} if counted else {})


def study(cells: dict[str, Any], models=("tiny", "base"), **more: Any) -> dict[str, Any]:
    """Cells by ``MODEL/ARM/DRAW``, of pool ``main`` at four bits, or by ``MODEL/ARM/DRAW/POOL/BITS``."""
    named = {}
    for key, value in cells.items():
        model, arm, draw, pool, bits = [*key.split("/"), "main", "4"][:5]
        named[f"{model}/{arm}/{draw}/{pool}/128/{bits}/speech"] = value
    model = {
        "ids": [f"u{i}" for i in range(UTTERANCES)],
        "positions": {"rare": RARE, "common": COMMON},
        "words": words(0, 0),
    }
    arms = {arm: {} for arm in ("gptq", "better base", "ours", "tail", "random")}
    return {
        "format": 1,
        "settings": {"samples": 128, "pools": {"main": {}, "top": {"pool": "r-top"}}},
        "models": {name: model | {"model": name} for name in models} | {f"{models[0]} (lj)": model | {"model": "tiny"}},
        "arms": arms,
        "pairs": [],
        "cells": named,
    } | more


def drawn(model: str, arm: str, draws: int, *values: Any, more: str = "", **options: Any) -> dict[str, Any]:
    return {f"{model}/{arm}/{d}{more}": cell(*values, **options) for d in range(draws)}


def bar(results: dict[str, Any], number: int):
    return bars(results, NAMES)[number - 1]


def claims(found, model: str) -> dict[str, Any]:
    return {claim.what: claim for claim in found.claims if claim.model == model}


# --- 1 ---


def recovery(draws: int = 3, common: float = 0.1, wrong: int = 5, rare: float = 0.12) -> dict[str, Any]:
    """Of .4 nats ours leaves ``rare``; 9 and 8 of 20 rare words are wrong under GPTQ, 3 under ours."""
    cells: dict[str, Any] = {}
    for model, lost in (("tiny", 9), ("base", 8)):
        cells |= drawn(model, "gptq", draws, 0.4, 0.1, (lost, 5))
        cells |= drawn(model, "better base", draws, 0.2, 0.1)
        cells |= drawn(model, "ours", draws, rare, common, (3, wrong))
    return study(cells)


def test_the_share_recovered_and_rare_errors_of_the_models_pooled():
    found = bar(recovery(), 1)
    for model in ("tiny", "base"):
        known = claims(found, model)
        share = known["ΔNLL rare: share of gptq’s damage recovered"]
        assert share.known.value == pytest.approx(0.7)
        assert (share.known.low, share.known.high) == pytest.approx((0.7, 0.7))
        assert (share.verdict, share.draws) == ("reached", 3)
        assert known["KL rare: share of gptq’s damage recovered"].verdict == "beside"
        other = known["ΔNLL rare: share of better base’s damage recovered"]
        assert other.known.value == pytest.approx(0.4)
        assert other.verdict == "beside"
        assert known["WER %, less gptq’s"].verdict == "reached"
    pooled = claims(found, "all")["rare WER, less gptq’s, models pooled"]
    assert pooled.known.value == pytest.approx(-(6 + 5) / 2 / 20)
    assert pooled.known.high < 0
    assert (pooled.verdict, pooled.draws, found.verdict) == ("reached", 3, "reached")
    assert (
        "; also 75" in claims(bar(recovery(rare=0.08), 1), "tiny")["ΔNLL rare: share of gptq’s damage recovered"].found
    )


@pytest.mark.parametrize(
    ("changes", "what", "verdict"),
    [
        ({"rare": 0.2}, "ΔNLL rare: share of gptq’s damage recovered", "missed"),
        ({"common": 0.11}, "ΔNLL common, less gptq’s", "missed"),
        ({"wrong": 20}, "WER %, less gptq’s", "missed"),
        ({"wrong": 6}, "WER %, less gptq’s", "undecided"),
        ({"draws": 2}, "ΔNLL rare: share of gptq’s damage recovered", "undecided"),
    ],
)
def test_each_part_of_the_first_bar_can_fail(changes, what, verdict):
    found = bar(recovery(**changes), 1)
    assert claims(found, "tiny")[what].verdict == verdict
    assert found.verdict == verdict


def test_damage_that_may_be_none_has_no_share():
    results = recovery()
    for draw in range(3):
        results["cells"][f"tiny/gptq/{draw}/main/128/4/speech"] = cell(0.0, 0.1, (7, 5), noise=0.4, seed=draw)
    claim = claims(bar(results, 1), "tiny")["ΔNLL rare: share of gptq’s damage recovered"]
    assert claim.verdict == "undecided"
    assert "not clear of 0" in claim.found


def test_what_was_not_measured_is_said_with_the_command():
    results = recovery()
    for key in list(results["cells"]):
        results["cells"][key].pop("words", None)
    found = bars(results, NAMES)
    assert [one.verdict for one in found] == ["not measured"] * 4
    assert claims(found[0], "tiny")["WER %, less gptq’s"].verdict == "not measured"
    printed = tables.bars(found)
    for one in found:
        assert one.command in printed
    assert "no cells at W3" in printed
    assert "0 of 2 models were transcribed by both" in printed
    # Of a bar that is answered no command is printed.
    assert tables.bars([bar(recovery(), 1)]).count("```") == 0


# --- 2 ---


def tail(draws: int = 8, plain: float = 0.05, random: float = 0.05) -> dict[str, Any]:
    """On tiny the tail's arm is better by so much than ours and than random positions; on base it is as good."""
    cells: dict[str, Any] = {}
    for model, factor in (("tiny", 1.0), ("base", 0.0)):
        for d in range(draws):
            for arm, more in (("tail", 0.0), ("ours", plain), ("random", random)):
                seed = 10 * d + len(arm)
                cells[f"{model}/{arm}/{d}"] = cell(0.2 + factor * more, noise=0.02, seed=seed)
    return study(cells)


def test_the_tails_share_has_to_beat_both_controls():
    found = bar(tail(), 2)
    assert found.verdict == "reached"
    for base in ("ours", "random"):
        claim = claims(found, "tiny")[f"tail − {base}: ΔNLL rare"]
        assert claim.known.value == pytest.approx(-0.05, abs=0.01)
        assert (claim.verdict, claim.draws) == ("reached", 8)
        assert claims(found, "base")[f"tail − {base}: ΔNLL rare"].verdict == "bounded"
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith("base, tail: a true difference of 0.0")
    assert bar(tail(random=0.0), 2).verdict == "bounded"  # random positions do as well
    assert bar(tail(draws=7), 2).verdict == "undecided"


def test_the_tails_p_are_adjusted_over_pairs_and_models():
    results = tail(plain=0.01, random=0.01)
    found = bar(results, 2)
    shown = claims(found, "tiny")["tail − ours: ΔNLL rare"].found
    alone = bars(study({k.split("/main")[0]: v for k, v in results["cells"].items() if k.startswith("tiny")}), NAMES)[1]
    adjusted = [float(text.split("Holm’s p ")[1].lstrip("<").split(";")[0]) for text in (
        shown, claims(alone, "tiny")["tail − ours: ΔNLL rare"].found)]  # fmt: skip
    assert adjusted[0] >= adjusted[1]


def test_an_arm_of_the_tail_that_was_not_measured_leaves_the_others_alone():
    named = Names("ours", ("gptq",), (*NAMES.tail, ("gradient", "ours")))
    found = bars(tail(), named)[1]
    assert found.verdict == "reached"
    assert "Not measured: gradient." in found.remarks


# --- 3 ---


@pytest.mark.parametrize(("at_three", "verdict"), [(0.2, "reached"), (0.6, "missed")])
def test_three_bits_against_four(at_three, verdict):
    cells: dict[str, Any] = {}
    for model in ("tiny", "base"):
        cells |= drawn(model, "gptq", 3, 0.4) | drawn(model, "ours", 3, 0.1)
        cells |= drawn(model, "ours", 3, at_three, more="/main/3") | drawn(model, "gptq", 3, 0.9, more="/main/3")
    found = bar(study(cells), 3)
    assert found.verdict == verdict
    kl, nll = (claims(found, "tiny")[f"{f} rare: ours at W3 − gptq at W4"] for f in ("KL", "ΔNLL"))
    assert kl.known.value == pytest.approx(0.5 * (at_three - 0.4))
    assert nll.known.value == pytest.approx(at_three - 0.4)
    assert (kl.draws, nll.verdict) == (3, "beside")


# --- 4 ---


def pools(ours: tuple[int, ...], others: tuple[int, ...], draws: int = 3) -> dict[str, Any]:
    """Rare words wrong of 20 in each pool."""
    cells: dict[str, Any] = {}
    for arm, wrong in (("ours", ours), ("gptq", others)):
        for pool, count in zip(("main", "top", "other"), wrong, strict=True):
            # Two draws of r-top are enough: it takes the same utterances in each.
            own = min(draws, 2) if pool == "top" else draws
            cells |= drawn("tiny", arm, own, 0.1, 0.1, (count, 0), more=f"/{pool}/4")
    return study(cells, models=("tiny",))


@pytest.mark.parametrize(
    ("ours", "others", "verdict"),
    [((4, 4, 4), (4, 4, 4), "reached"), ((4, 5, 4), (4, 7, 4), "reached"), ((4, 7, 4), (4, 5, 4), "missed")],
)
def test_the_swing_is_small_or_the_least(ours, others, verdict):
    found = bar(pools(ours, others), 4)
    known = claims(found, "tiny")
    own, other = (known[f"swing of rare WER over pools: {arm}"] for arm in ("ours", "gptq"))
    assert own.known.value == pytest.approx((max(ours) - min(ours)) / 20)
    assert other.known.value == pytest.approx((max(others) - min(others)) / 20)
    assert (own.verdict, own.draws, other.verdict) == (verdict, 3, "beside")
    assert found.verdict == verdict
    assert bar(pools(ours, others, draws=2), 4).verdict == "undecided"


# --- names and command ---


def test_arms_are_named_by_options_or_by_the_grid():
    told = {"default": "ours", "baselines": ["gptq"], "tail": ["f"]}
    results = study({}, pairs=[["tail", "ours", "f"], ["ours", "gptq", "g"]], bars=told)
    assert Names.of(results) == Names("ours", ("gptq",), (("tail", "ours"),))
    assert Names.of(results, "tail", ["random", "gptq"], ["tail|random", "f"]) == Names(
        "tail", ("random", "gptq"), (("tail", "random"), ("tail", "ours"))
    )
    with pytest.raises(ConfigError, match="there is no arm 'x'; there are 'gptq'"):
        Names.of(results, "x")
    with pytest.raises(ConfigError, match="there is no family 'x' of comparisons: there are f, g"):
        Names.of(results, tail=["x"])
    with pytest.raises(ConfigError, match="give --default ARM and --base ARM; there are 'gptq'"):
        Names.of(results | {"bars": {}}, "ours")


@pytest.mark.parametrize("number", PARTS)
def test_the_commands_measure_what_the_bars_ask_for(number):
    grid = load_grid(GRIDS / "main.yaml")
    only = {axis: values.split("|") for axis, _, values in (part.partition("=") for part in PARTS[number])}
    jobs = [j for j in grid.jobs() if all(str(getattr(j, axis)) in values for axis, values in only.items())]
    # Every value that is named is measured, on both models.
    for axis, values in only.items():
        for model in ("whisper-tiny.en", "whisper-base"):
            assert {str(getattr(j, axis)) for j in jobs if j.model == model} >= set(values)
    draws = {(j.model, j.arm, j.bits, j.pool): set() for j in jobs if j.pool != "r-top"}
    for job in jobs:
        draws.get((job.model, job.arm, job.bits, job.pool), set()).add(job.draw)
    assert min(map(len, draws.values())) >= (8 if number == 2 else 3)
    assert number in (2, 3) or all(job.decode for job in jobs if job.draw < 3)
    if number == 4:
        assert len({job.pool for job in jobs}) > 3
    assert grid.bars["default"] == "refined"


def test_the_command_prints_the_bars_of_a_file(tmp_path, capsys):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(recovery() | {"bars": {"default": "ours", "baselines": ["gptq"]}}))
    main(["bars", str(file)])
    printed = capsys.readouterr().out
    assert printed.startswith("- Bar 1: ")
    assert "| tiny | ΔNLL rare: share of gptq’s damage recovered | 3 | 70 % [70, 70] | reached |" in printed
    with pytest.raises(SystemExit, match="study: there is no arm 'nobody'"):
        main(["bars", str(file), "--default", "nobody"])
    file.write_text(
        json.dumps({"sets": {"s": {"utterances": 1, "words": 1, "rare_words": 0, "models": {"m": {"figures": {}}}}}})
    )
    with pytest.raises(SystemExit, match=r"results\.json holds the scores of tarq evaluate"):
        main(["bars", str(file)])
    file.write_text(json.dumps(recovery() | {"bars": {"baselines": "gptq"}}))
    with pytest.raises(SystemExit, match=r"results\.json: bars/baselines is \"gptq\", not a list"):
        main(["bars", str(file)])
