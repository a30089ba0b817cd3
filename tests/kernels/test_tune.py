"""benchmarks/tune_w4_linear.py: the table against what was measured, a fit, a worker that dies, a file to be read."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tarq.kernels.w4_linear.triton.plan import DENSE, TABLE, Plan, choose

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "tune_w4_linear.py"
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "tune-h200.json").read_text())
SMS = 132


@pytest.fixture(scope="module")
def tune(benchmark_script):
    return benchmark_script("tune_w4_linear")


# ---- the table ---------------------------------------------------------------------------------------------


def test_what_is_chosen_on_an_h200_is_within_3_percent_of_the_best_candidate():
    """For every one of the 45 problems that were measured there."""
    assert len(MEASURED["done"]) == 45
    for key, found in MEASURED["done"].items():
        times = {Plan(*plan): seconds for plan, seconds in found}
        chosen = choose(*map(int, key.split(",")), (9, 0), SMS)._replace(registers=None)
        assert times[chosen] <= 1.03 * min(times.values()), key


def test_the_entry_of_an_h200_is_what_its_figures_give(tune):
    assert TABLE["90"]["measured"] == {name: MEASURED["device"][name] for name in ("device", "torch", "triton")}
    assert TABLE["90"]["regimes"] == tune.fit(tune.times_of(MEASURED), "90")
    assert [chip for chip, entry in TABLE.items() if entry["measured"]] == ["90"]
    assert all("estimate" in entry["basis"] for entry in TABLE.values() if not entry["measured"])


def test_the_table_is_written_as_it_was_read(tune, tmp_path):
    tune.write(TABLE, tmp_path / "regimes.json")
    assert (tmp_path / "regimes.json").read_text() == tune.TABLE_FILE.read_text()
    assert json.loads((tmp_path / "regimes.json").read_text()) == TABLE


# ---- the fit -----------------------------------------------------------------------------------------------


def seconds(problem, plan) -> float:
    """A chip that likes tiles of 32 rows, 8 warps, as many programs as it has SMs, and dense from 100 tokens on."""
    m, n, k = problem
    reading = 1e-6 + n * k / 2 / 3e12
    if plan == DENSE:
        return 4 * reading * (0.2 if m > 100 else 1)
    programs = plan.programs(m, n)
    misfit = abs(math.log(programs / SMS)) + abs(math.log(plan.block_n / 32)) / 4 + (plan.warps != 8)
    return reading * (1 + misfit) + 1e-12 * plan.stages


def test_a_fit_loses_little_and_ends_where_dense_is_faster(tune):
    times = {p: {plan: seconds(p, plan) for plan in tune.candidates(p[0], p[2])} for p in tune.PROBLEMS}
    regimes = tune.fit(times, "none")
    assert [r["max_m"] for r in regimes] == [1, 2, 4, 8, 16, 32, 64]
    assert [r["max_groups"] for r in regimes] == [4] * 7
    lost = tune.losses(regimes, times, SMS)
    assert lost.keys() == times.keys()
    assert max(lost.values()) <= tune.TOLERANCE + 1e-9


def test_layers_share_a_tile_where_that_costs_next_to_nothing(tune):
    a, b, c = (Plan("gemv", 1, rows, 4, 3) for rows in (16, 32, 64))
    times = {
        (1, 1280, 1280): {a: 1.0, b: 1.005, c: 2.0},
        (1, 5120, 1280): {a: 1.5, b: 1.0, c: 2.0},
        (1, 4096, 4096): {a: 1.5, b: 1.5, c: 1.0},
    }
    layers = tune.fit_regime(1, times, "none")["layers"]
    assert [layer["block_n"] for layer in layers] == [32, 32, 64]


def test_candidates_can_be_launched(tune):
    for m in tune.TOKENS:
        plans = list(tune.candidates(m, 1280))
        assert len(set(plans)) == len(plans)
        assert DENSE in plans
        for plan in plans:
            assert plan == DENSE or ((plan.block_m >= min(m, 128) and 2 * plan.split_k <= 10) or plan.split_k == 1)


# ---- measuring ---------------------------------------------------------------------------------------------

#: Speaks as the worker does; dies at the plan of 32 rows, and at once where the problem has 9 tokens.
WORKER = """
import json, os, sys
for line in sys.stdin:
    job = json.loads(line)
    if job["problem"][0] == 9:
        os._exit(7)
    done = []
    for plan in (["gemv", 1, 16, 4, 3, 1, None], ["gemv", 1, 32, 4, 3, 1, None], ["dense", 0, 0, 0, 0, 1, None]):
        if plan in job["skip"]:
            continue
        print(json.dumps({"at": plan}), flush=True)
        if plan[2] == 32:
            os._exit(3)
        done.append([plan, plan[2] + 1.0])
    print(json.dumps({"done": done, "wrong": [[["gemm"], 0.5]]}), flush=True)
"""


def test_a_plan_that_ends_the_worker_is_named_and_left_out(tune, tmp_path, capsys):
    keep = tmp_path / "measured.json"
    problems = [(1, 1280, 1280), (1, 5120, 1280)]
    record = tune.measure_all(problems, [sys.executable, "-c", WORKER], {"sm_count": SMS}, keep)
    assert record == json.loads(keep.read_text())
    assert record["bad"] == [["1,1280,1280", ["gemv", 1, 32, 4, 3, 1, None]]]
    assert [key for key, *_ in record["wrong"]] == ["1,1280,1280", "1,5120,1280"]
    times = tune.times_of(record)
    assert list(times) == problems
    assert all(set(found) == {Plan("gemv", 1, 16, 4, 3), DENSE} for found in times.values())
    said = capsys.readouterr().out
    assert said.count("Plan(kernel='gemv', block_m=1, block_n=32") == 1
    assert "ended the process (3) at 1,1280,1280; going on without it" in said


def test_a_worker_that_dies_at_nothing_ends_the_program(tune):
    with pytest.raises(SystemExit, match="ended with 7 before 9,1280,1280"):
        tune.measure_all([(9, 1280, 1280)], [sys.executable, "-c", WORKER], {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", str(SCRIPT)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert "there is no NVIDIA GPU" in result.stderr
