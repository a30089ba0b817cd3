"""tarq bench: every operation against its peers, records that add up, a plot."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from tarq.bench import gram, group_quantize, measure, run, w4_linear
from tarq.cli import app

FIELDS = {
    "op",
    "shape",
    "dtype",
    "threads",
    "device",
    "backend",
    "peer",
    "seconds",
    "peer_seconds",
    "ratio",
    "roofline",
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert {r["op"] for r in records} == {"gram", "gram, four sums", "group_quantize", "w4_linear"}
    assert {r["threads"] for r in records} == {1, 2}
    for r in records:
        assert r.keys() >= FIELDS
        assert r["ratio"] == pytest.approx(r["seconds"] / r["peer_seconds"])
        assert 0 < r["roofline"] < 10
    assert picture.read_bytes().startswith(b"\x89PNG")


def contestants(module) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """What every contestant of every small case computes."""
    torch.manual_seed(0)
    with torch.inference_mode():
        return [
            (case.op, {name: call(0) for name, call in (case.ours | case.peers).items()})
            for case in module.cases(torch.device("cpu"), quick=True)
        ]


def test_contestants_of_gram_compute_the_same(small):
    for op, results in contestants(gram):
        ours, *peers = results.values()
        if op == "gram, four sums":
            ours = [sides[0] + sides[1] for sides in ours]
        for peer in peers:
            low = isinstance(peer, torch.Tensor) and peer.dtype == torch.bfloat16
            for a, b in zip(ours, peer, strict=True):
                torch.testing.assert_close(a, b.float(), rtol=2e-2 if low else 1e-4, atol=0.2 if low else 1e-3)


def test_contestants_of_w4_linear_compute_the_same(small):
    for _, results in contestants(w4_linear):
        exact = results["float32"]
        for name, y in results.items():
            y = torch.from_numpy(y) if not isinstance(y, torch.Tensor) else y
            error = (y.float() - exact).norm() / exact.norm()
            assert error < (0.02 if name != "float32 linear" else 1e-3), (name, float(error))


def test_a_call_may_bring_its_own_clock():
    took = measure.medians({"own": lambda _: 7.0, "ours": lambda _: None}, 1, 0.0, torch.device("cpu"))
    assert took["own"] == 7.0
    assert 0 <= took["ours"] < 1


def test_a_peer_that_is_not_there_is_said():
    with pytest.raises(RuntimeError, match="import gptqmodel"):
        list(run.run(["group_quantize"], quick=True, seconds=0.001, peer_python="/bin/false"))
