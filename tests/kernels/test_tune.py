"""benchmarks/tune_w4_linear.py: regimes that lose little against what was measured, and a table that can be read."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", exc_type=ImportError)
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tune_w4_linear.py"
SMS = 132


@pytest.fixture(scope="module")
def tune():
    spec = importlib.util.spec_from_file_location("tune_w4_linear", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seconds(tune, problem, plan) -> float:
    """A chip that likes tiles of 32 rows, 8 warps, as many programs as it has SMs, and dense from 100 tokens on."""
    m, n, k = problem
    reading = 1e-6 + n * k / 2 / 3e12
    if plan == tune.DENSE:
        return 4 * reading * (0.2 if m > 100 else 1)
    programs = -(-n // plan.block_n) * -(-m // plan.block_m) * plan.split_k
    misfit = abs(math.log(programs / SMS)) + abs(math.log(plan.block_n / 32)) / 4 + (plan.warps != 8)
    return reading * (1 + misfit) * (0.9 if plan.overlap and plan.block_n == 16 else 1.0) + 1e-9 * plan.stages


@pytest.fixture(scope="module")
def times(tune):
    problems = [(m, n, k) for m in tune.TOKENS for n, k in tune.LAYERS]
    return {p: {plan: seconds(tune, p, plan) for plan in tune.candidates(p[0], p[2])} for p in problems}


def test_regimes_lose_little_and_end_where_dense_is_faster(tune, times):
    regimes = tune.fit(times, SMS)
    assert [r["max_m"] for r in regimes] == [1, 2, 4, 8, 16, 32, 64]
    for regime in regimes:
        problems = {p: found for p, found in times.items() if p[0] == regime["max_m"]}
        dense = sum(math.log(found[tune.DENSE] / min(found.values())) for found in problems.values()) / len(problems)
        assert tune.loss(regime, problems, SMS) < min(0.6, dense)
        widths = [tile["block_n"] for tile in regime["tiles"]]
        assert widths == sorted(set(widths), reverse=True)
    one_tile = {**regimes[0], "tiles": [{"kernel": "gemv", "block_m": 1, "block_n": 64, "warps": 4, "stages": 2}]}
    problems = {p: found for p, found in times.items() if p[0] == 1}
    assert tune.loss(regimes[0], problems, SMS) < tune.loss(one_tile, problems, SMS)
    never = {**one_tile, "tiles": [{**one_tile["tiles"][0], "warps": 2}]}
    assert tune.loss(never, problems, SMS) == math.inf


def test_overlap_is_marked_where_it_is_faster(tune, times):
    tiles = [{"kernel": "gemv", "block_m": 1, "block_n": rows, "warps": 8, "stages": 3} for rows in (64, 16)]
    regime = {"max_m": 1, "max_groups": 4, "programs_per_sm": 0.9, "max_split_k": 1, "tiles": tiles}
    asked = []

    def clock(problem, plans):
        asked.append(problem)
        return {plan: seconds(tune, problem, plan) for plan in plans}

    tune.overlap([regime], times, clock, SMS)
    assert {problem[0] for problem in asked} == {1}
    assert [tile.get("overlap") for tile in tiles] == [None, True]


def test_candidates_can_be_launched(tune):
    for m in tune.TOKENS:
        plans = list(tune.candidates(m, 1280))
        assert len(set(plans)) == len(plans)
        assert tune.DENSE in plans
        for plan in plans:
            assert plan == tune.DENSE or ((plan.block_m >= min(m, 128) and 2 * plan.split_k <= 10) or plan.split_k == 1)


def test_the_table_is_written_as_it_was_read(tune, tmp_path):
    tune.write(tune.TABLE, tmp_path / "regimes.json")
    assert (tmp_path / "regimes.json").read_text() == tune.TABLE_FILE.read_text()
    assert json.loads((tmp_path / "regimes.json").read_text()) == tune.TABLE


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", str(SCRIPT)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert "there is no NVIDIA GPU" in result.stderr
