"""tarq bench: every operation against its peers, records that add up, a plot."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
import time
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest
import torch
from tarq.kernels import dispatch
from tarq.kernels.group_quantize.reference import textbook_sweep
from tarq.kernels.scheme import Scheme
from typer.testing import CliRunner

from tarq.bench import gram, group_quantize, measure, run, w4_linear
from tarq.report import Reporter
from tarq.terminal.cli import app

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

FIELDS = {
    "op",
    "shape",
    "dtype",
    "threads",
    "clock",
    "device",
    "backend",
    "peer",
    "seconds",
    "peer_seconds",
    "ratio",
    "roofline",
    "ceiling",
}


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls without the rests and bursts that make their times true."""
    monkeypatch.setattr(measure, "SHORT", 0.0)
    monkeypatch.setattr(measure, "REST", 0.0)


@pytest.fixture
def small(brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems that take no time."""
    monkeypatch.setattr(gram, "QUICK_SHAPES", ((40, 24),))
    monkeypatch.setattr(group_quantize, "QUICK_SHAPES", ((16, 256),))
    monkeypatch.setattr(w4_linear, "QUICK_SHAPES", ((64, 256),))
    monkeypatch.setattr(w4_linear, "QUICK_ROWS", (1, 3))


def test_records_add_up(small, tmp_path):
    json_file, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    result = CliRunner().invoke(
        app,
        ["bench", "--quick", "--seconds", "0.001", "--threads", "1", "--threads", "2", "--device", "cpu",
         "--json", str(json_file), "--plot", str(picture)],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "ceilings, 2 threads: reads" in result.output
    records = json.loads(json_file.read_text())
    assert {r["op"] for r in records} == {
        "gram",
        "gram, four sums",
        "gram, weighted",
        "group_quantize",
        "group_quantize, refined",
        "w4_linear",
    }
    assert {r["threads"] for r in records} == {1, 2}
    for r in records:
        assert r.keys() >= FIELDS
        assert 1e-9 < r["seconds"] < 1
        assert 0 < r["roofline"] < 10
    assert picture.read_bytes().startswith(b"\x89PNG")


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def contestants(module, device: str) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """What every contestant of every small case computes."""
    torch.manual_seed(0)
    with torch.inference_mode():
        return [
            (case.op, {name: call(0) for name, call in (case.ours | case.peers).items()})
            for case in module.cases(torch.device(device), quick=True)
        ]


@pytest.mark.parametrize("device", DEVICES)
def test_contestants_of_gram_compute_the_same(small, device):
    for op, results in contestants(gram, device):
        ours, *peers = results.values()
        if op == "gram, four sums":
            ours = [sides[0] + sides[1] for sides in ours]
        for peer in peers:
            low = isinstance(peer, torch.Tensor) and peer.dtype != torch.float32
            for a, b in zip(ours, peer, strict=True):
                torch.testing.assert_close(a, b.float(), rtol=2e-2 if low else 1e-4, atol=0.2 if low else 1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_contestants_of_w4_linear_compute_the_same(small, device):
    for _, results in contestants(w4_linear, device):
        exact = results["float32" if device == "cpu" else "float16"].float()
        for name, y in results.items():
            y = torch.from_numpy(y.copy_outputs_to_cpu()[0]) if "onnxruntime" in name else y
            error = (y.float() - exact).norm() / exact.norm()
            assert error < (0.02 if name != "float32 linear" else 1e-3), (name, float(error))


@pytest.mark.parametrize("device", DEVICES)
def test_the_refined_layer_is_better_than_its_peer(small, device):
    results = next(found for op, found in contestants(group_quantize, device) if op == "group_quantize, refined")
    assert results["factor, sweep and refinement"].loss.sum() < 0.99 * results["not refined"].loss.sum()


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.slow
def test_the_fused_sweep_is_the_textbook_sweep_with_scales_fixed_beforehand(device):
    from tarq.bench.fused_sweep import fused_sweep

    problems = [group_quantize.problem(m, 256, torch.device(device)) for m in (18, 18)]
    problems[1] = (problems[1][0].flip(0), problems[1][1])
    damped = [h + 0.01 * h.diagonal().mean() * torch.eye(256, device=device) for _, h in problems]
    swept = fused_sweep(torch.stack([w for w, _ in problems]), torch.stack(damped))
    order = torch.arange(256, device=device)  # an order of visit has scales fixed beforehand
    for got, (weight, _), hessian in zip(swept, problems, damped, strict=True):
        codes, scales, _ = textbook_sweep(weight.double(), hessian.double(), Scheme(), torch.float32, order)
        expected = (codes.double() - 8) * scales.double().repeat_interleave(128, 1)
        assert ((got - expected).abs() < 1e-5).double().mean() > 0.99  # a half-way case may fall either way


@pytest.mark.gpu
def test_a_gpu_is_timed_through_graphs(small):
    records, known = run.run(["gram", "group_quantize", "w4_linear"], device="cuda", quick=True, seconds=0.01)
    (most,) = known.values()
    assert most.read > 1e11
    ours = {r["op"] for r in records}
    solved = {f"group_quantize{variant}" for variant in ("", ", refined", ", layers together")}
    assert ours == {"gram", "gram, weighted", "gram, four sums", "w4_linear"} | solved
    for r in records:
        assert r["device"] == torch.cuda.get_device_name()
        assert r["backend"] == "native"
        assert r.keys() >= {*FIELDS, "triton", "cuda", "capability"}
        assert 1e-6 < r["seconds"] < 1
    assert all(r["copies"] > 1 for r in records if r["op"] == "w4_linear")
    assert "torch int4pack (bfloat16)" in {r["peer"] for r in records}


def record(op: str, shape: list[int], variant: str, peer: str, ratio: float, **more: float) -> dict:
    return {"op": op, "shape": shape, "variant": variant, "dtype": "bfloat16", "peer": peer, "ratio": ratio, **more}


def test_bars_of_a_cpu(benchmark_script):
    def of(*args: object, threads: int = 1, copies: int = 1, **more: float) -> dict:
        return record(*args, threads=threads, copies=copies, **more)

    records = [
        of("w4_linear", [1, 1280, 1280], "float32", "torch int4pack (bfloat16)", 0.9),
        of("w4_linear", [1, 1280, 1280], "float32", "onnxruntime level 4", 9.0),  # not a like for like
        of("w4_linear", [1, 4096, 4096], "int8 activations", "onnxruntime level 4", 1.1),
        of("w4_linear", [1, 4096, 4096], "float32", "float32 linear", 0.1, copies=12, roofline=0.79),
        of("w4_linear", [4, 4096, 4096], "float32", "float32 linear", 9.0),  # no bar
        of("w4_linear", [16, 1280, 1280], "float32", "float32 linear", 1.0),
        of("w4_linear", [16, 1280, 1280], "float32", "bfloat16 linear", 1.2),  # the best of both counts
        of("w4_linear", [16, 1280, 1280], "float32", "bfloat16 linear", 9.0, threads=2),
        of("w4_linear", [16, 1280, 1280], "bfloat16", "float32 linear", 1.05),
        of("gram", [3000, 1280], "symmetric", "torch XᵀX", 0.7),
        of("gram", [3000, 1280], "symmetric", "torch XᵀX in bfloat16 (rounded)", 9.0),
        of("gram", [3000, 1280], "cross", "torch YᵀX", 9.0),
        of("gram, four sums", [3000, 1280], "both sides, both products", "torch XᵀX and YᵀX", 0.89),
        of("group_quantize", [1280, 1280], "factor and sweep", "torch Cholesky and products", 1.4),
    ]  # fmt: skip
    verdicts = benchmark_script("bars").verdicts(records)
    assert [v.reached for v in verdicts] == [True, False, False, False, True, False, True, True]


def test_bars_of_a_gpu(tmp_path, benchmark_script, monkeypatch, capsys):
    records = [
        record("w4_linear", [1, 4096, 4096], "float16", "float16 linear", 1 / 2.4),
        record("w4_linear", [8, 1280, 5120], "float16", "float16 linear", 1 / 1.6),
        record("w4_linear", [1, 4096, 4096], "bfloat16", "float16 linear", 9.0),  # not a like for like
        record("w4_linear", [1, 4096, 4096], "float16", "gemlite 0.6 (float16)", 0.9),
        record("w4_linear", [256, 4096, 4096], "float16", "float16 linear", 9.0),  # no bar
        record("w4_linear", [1, 16384, 16384], "float16", "float16 linear", 0.3, roofline=0.79),
        record("gram", [24000, 5120], "symmetric", "torch XᵀX of float32 copies", 0.1, error=2.0,
               error_of_float32_copies=3.0),
        record("gram", [24000, 1280], "symmetric", "torch XᵀX of float32 copies", 0.9),
        record("group_quantize", [1280, 1280], "factor and sweep", "textbook sweep in Python", 0.04),
        record("group_quantize", [1280, 1280], "factor and sweep", "fused sweep in Triton", 1.01),
        record("group_quantize", [1280, 1280], "factor and sweep", "torch Cholesky and products", 2.0),
    ]  # fmt: skip
    records = [r | {"capability": [9, 0]} for r in records]
    reached = [verdict.reached for verdict in benchmark_script("bars").verdicts(records)]
    assert reached == [True, False, True, False, True, True, True, False]
    file = tmp_path / "records.json"
    file.write_text(json.dumps(records))
    monkeypatch.setattr(sys, "argv", ["bars.py", str(file)])
    runpy.run_path(str(BENCHMARKS / "bars.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "NOT reached  w4_linear 8×1280×5120, speed-up over float16: 1.60 of 1.66"


def test_a_peer_that_fails_is_said_and_left_out():
    class Listener(Reporter):
        notes: list[str] = []  # noqa: RUF012 (one test's)

        def note(self, text: str) -> None:
            self.notes.append(text)

    def fail(_: int) -> None:
        raise RuntimeError("out of luck")

    device, listener = torch.device("cpu"), Listener()
    peers = {"broken": fail, "sound": lambda _: 2.0}
    case = measure.Case("gram", (1, 1), {"a": lambda _: 1.0}, {"a": "float32"}, peers, 8, {"a": ("float32", 1.0)})
    (only,) = measure.records_of(case, measure.Ceilings(1.0, {}), 0.0, device, listener)
    assert (only["peer"], only["ratio"]) == ("sound", 0.5)
    assert (only["roofline"], only["bound"], only["ceiling"]) == (8.0, "memory", 1.0)
    (only,) = measure.records_of(case, measure.Ceilings(8.0, {"float32": 0.25}), 0.0, device, listener)
    assert (only["roofline"], only["bound"], only["ceiling"]) == (4.0, "arithmetic", 0.25)
    assert listener.notes == ["broken left out of gram (1, 1): out of luck"] * 2
    case = measure.Case("gram", (1, 1), {"a": fail}, {"a": "float32"}, {}, 8, {"a": ("float32", 1.0)})
    with pytest.raises(RuntimeError, match="out of luck"):
        measure.records_of(case, measure.Ceilings(1.0, {}), 0.0, device)


def test_a_call_may_bring_its_own_clock():
    took = measure.medians({"own": lambda _: 7.0, "ours": lambda _: None}, 1, 0.0, torch.device("cpu"))
    assert took["own"] == 7.0
    assert 0 <= took["ours"] < 1


def test_a_short_call_is_timed_in_bursts_and_meets_every_copy_in_turn():
    """One of a thousandth of a second: after the first, as many untimed calls as timed ones."""
    made = []
    took = measure.medians({"own": lambda copy: made.append(copy) or 1e-3}, 7, 0.0, torch.device("cpu"))
    burst = round(measure.SHORT / 1e-3)
    assert made == [0, *(i % 7 for i in range(2 + 2 * 2 * burst))]
    assert took["own"] == pytest.approx(1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_said():
    result = CliRunner().invoke(app, ["bench", "--device", "cuda"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "--device: 'cuda' cannot be used" in result.output


def test_a_peer_that_is_not_there_is_said():
    with pytest.raises(RuntimeError, match="import gptqmodel"):
        list(run.run(["group_quantize"], quick=True, seconds=0.001, peer_python="/bin/false"))


def test_one_thread_can_be_timed_by_the_processors_clock(monkeypatch):
    assert {"wall": time.perf_counter, "processor": time.process_time} == measure.CLOCKS
    monkeypatch.setitem(measure.CLOCKS, "processor", count(0.0, 5.0).__next__)  # five seconds pass at every look
    cpu = torch.device("cpu")
    assert measure.medians({"a": lambda _: None}, 1, 0.0, cpu, "processor")["a"] == 5.0
    assert measure.medians({"a": lambda _: None}, 1, 0.0, cpu)["a"] < 1


def test_shapes_of_ones_own(brief, tmp_path):
    """Other sizes than the usual ones, so that every table in benchmarks/README.md has its command."""
    file = tmp_path / "bench.json"
    words = ["bench", "gram", "group_quantize", "w4_linear", "--shape", "48x128", "--shape", "32×256", "--quick"]
    result = CliRunner().invoke(
        app, [*words, "--device", "cpu", "--processor-time", "--seconds", "0.001", "--json", str(file)]
    )
    assert result.exit_code == 0, result.output
    records = json.loads(file.read_text())
    assert {tuple(r["shape"]) for r in records if r["op"].startswith("gram")} == {(48, 128), (32, 256)}
    assert {tuple(r["shape"]) for r in records if r["op"].startswith("group")} == {(48, 128), (32, 256)}
    assert {tuple(r["shape"][1:]) for r in records if r["op"] == "w4_linear"} == {(48, 128), (32, 256)}
    assert {(r["clock"], r["threads"]) for r in records} == {("processor", 1)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shape", "1280"], "must be two whole numbers such as 1280x1280, not '1280'"),
        (["--shape", "0x4"], "--shape"),
        (["gram", "w4_linear", "--shape", "8x64"], "--shape: 8x64: w4_linear has groups of 128 inputs"),
        (["--processor-time", "--threads", "2"], "--processor-time: is for one thread of a CPU"),
        (["--processor-time", "--peer-python", "python"], "--processor-time: cannot time --peer-python"),
    ],
)
def test_what_cannot_be_timed_is_refused(words, said):
    result = CliRunner().invoke(app, ["bench", *words, "--device", "cpu"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())  # however wide the terminal is


@pytest.mark.skipif(
    dispatch.EXTENSION_ERROR is not None or gram.TILES not in torch.ops.tarq.cpu_isas(), reason="this CPU has no AMX"
)
def test_tiles_are_held_against_vectors(small, monkeypatch):
    """By kernels that the environment names for that call alone."""
    seen = []
    assert gram.on_vectors(lambda: seen.append(os.environ["TARQ_CPU_ISA"])) is None
    assert seen == [gram.VECTORS]
    assert "TARQ_CPU_ISA" not in os.environ
    monkeypatch.setenv("TARQ_CPU_ISA", gram.TILES)
    gram.on_vectors(lambda: None)
    assert os.environ["TARQ_CPU_ISA"] == gram.TILES
    cases = list(gram.cases(torch.device("cpu"), quick=True))
    held = {variant for case in cases for variant in case.ours if "ours on vectors" in case.peers}
    assert held == {"symmetric", "weighted"}


def test_there_is_one_door():
    """No script is a second command line of what ``tarq bench`` times, and every page names what is there."""
    assert not list(BENCHMARKS.glob("bench_*"))
    for page in [
        *BENCHMARKS.rglob("*.md"),
        *(BENCHMARKS.parent / "docs").glob("*.md"),
        BENCHMARKS.parent / "README.md",
    ]:
        for named in re.findall(r"\bbenchmarks/[\w./-]+\.(?:py|yaml|md)\b", page.read_text()):
            if (
                named != "benchmarks/study/GRID.yaml" and named != "benchmarks/studies/headline.py"
            ):  # replaced, says the page
                assert (BENCHMARKS.parent / named).is_file(), f"{page.name} names {named}"
