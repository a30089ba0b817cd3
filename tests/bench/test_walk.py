"""tarq bench walk: parts of a run that add up to the whole, and nothing timed unasked."""

from __future__ import annotations

import json
import time

import pytest
import torch
from typer.testing import CliRunner

import tarq
from tarq import timing
from tarq.bench import walk
from tarq.errors import ConfigError
from tarq.terminal.cli import app

#: What the default method does on a model whose Linears all fit.
PARTS = {
    "audio and features",
    "block inputs",
    "reparametrization",
    "forward, full precision",
    "forward, quantized",
    "gram",
    "factorization",
    "residual",
    "sweep and refinement",
    "swap",
    "other",
}


# ---- the timer ---------------------------------------------------------------------------------------------


def test_nested_parts_add_up_to_the_whole():
    """By a clock of which each look is one second: the inner part has its time alone, wherever it begins."""

    @timing.timed("inner")
    def inner() -> str:
        return "done"

    @timing.timed("outer")
    def outer() -> str:
        return inner() + inner()

    assert outer() == "donedone"  # nobody asks
    looks = iter(range(100))
    timer = timing.Timer(clock=lambda: float(next(looks)))
    with timer.running():  # 0: other
        outer()  # 1: outer, 2: inner, 3: outer, 4: inner, 5: outer, 6: other
        inner()  # 7: inner, 8: other
    assert timer.seconds() == {"other": 1 + 1 + 1, "outer": 1 + 1 + 1, "inner": 1 + 1 + 1}
    assert sum(timer.seconds().values()) == next(looks) - 1
    outer()
    assert sum(timer.seconds().values()) == 9  # nothing more once it is closed


def test_an_error_closes_its_part():
    @timing.timed("broken")
    def broken() -> None:
        raise ValueError("broken")

    looks = iter(range(100))
    timer = timing.Timer(clock=lambda: float(next(looks)))
    with timer.running(), pytest.raises(ValueError, match="broken"):
        broken()
    assert timer.seconds() == {"other": 2, "broken": 1}
    timer = timing.Timer()
    with pytest.raises(ValueError, match="broken"), timer.running():
        broken()
    assert timing._timer is None


@pytest.mark.gpu
def test_a_gpu_is_timed_by_its_own_clock_without_waiting():
    """A part's time is the device's, also where the host was done with it long before."""
    x = torch.randn(8192, 8192, device="cuda")
    x @ x
    torch.cuda.synchronize()

    @timing.timed("product")
    def product() -> None:
        for _ in range(20):
            x @ x

    timer = timing.Timer("cuda")
    with timer.running():
        product()
    host = timer.host_seconds()["product"]
    assert timer.seconds()["product"] > 5 * host


# ---- a walk ------------------------------------------------------------------------------------------------


def test_a_walk_by_part(model_folder, manifest, tmp_path):
    """Parts add up to the whole, nearly all of which lies in named ones; the model is quantized as without a timer."""
    config = tarq.TarqConfig(samples=4, group_size=32, batch_size=2)
    recognizer = walk.load(str(model_folder), "cpu", None)
    began = time.perf_counter()
    record = walk.run(recognizer, str(manifest), config, "tiny")
    took = time.perf_counter() - began
    assert record["parts"].keys() == PARTS
    assert all(seconds > 0 for seconds in record["parts"].values())
    assert sum(record["parts"].values()) == pytest.approx(record["seconds"], rel=0.01)
    assert 0.8 * took < record["seconds"] < took
    assert record["parts"]["other"] < 0.5 * record["seconds"]
    assert record["rows"].keys() == {"encoder", "decoder"}
    assert record["rows"]["encoder"] == 4 * 100  # windows of 2 s, all of whose frames exist
    heard = sum(record["rows"].values()) / (record["seconds"] - record["parts"]["audio and features"])
    assert record["rows_per_second"] == pytest.approx(heard)
    assert record["layers"] == 2 * 6 + 2 * 10
    assert record["memory"]["ram_peak_bytes"] > 1e8
    assert record["versions"].keys() >= {"tarq", "torch", "transformers"}
    plain = tarq.load_recognizer(model_folder)
    tarq.quantize(plain, str(manifest), config)
    ours, theirs = recognizer.model.state_dict(), plain.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_command_writes_what_it_shows(model_folder, manifest, tmp_path):
    file = tmp_path / "walk.json"
    words = ["bench", "walk", "--model", str(model_folder), "--calibration", str(manifest), "--samples", "2"]
    words += ["--method", "gptq", "--processor-time", "--device", "cpu", "--json", str(file)]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    (record,) = json.loads(file.read_text())
    assert record["parts"].keys() == PARTS - {"reparametrization"}
    assert (record["method"], record["clock"], record["threads"], record["utterances"]) == ("gptq", "processor", 1, 2)
    for name in record["parts"]:
        assert name in result.stdout
    assert f"{record['rows_per_second']:,.0f} rows per second" in result.stdout
    assert f"{record['memory']['ram_peak_bytes'] / 1e9:.2f} GB of RAM" in result.stdout
    assert record["device"] in result.stdout


def test_a_named_size_has_whispers_shapes_and_random_weights():
    recognizer = walk.load("whisper-tiny", "cpu", torch.bfloat16, blocks=1)
    config = recognizer.model.config
    assert (config.d_model, config.encoder_layers, config.decoder_layers, config.encoder_ffn_dim) == (384, 1, 1, 1536)
    assert (config.max_source_positions, recognizer.window, recognizer.dtype) == (1500, 30.0, torch.bfloat16)
    large = walk.SIZES["whisper-large-v3"]
    assert (large.width, large.heads, large.layers, large.mel_bins) == (1280, 20, (32, 32), 128)


def test_blocks_are_for_a_named_size(model_folder):
    with pytest.raises(ConfigError, match="blocks is for random weights"):
        walk.load(str(model_folder), "cpu", None, blocks=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["walk", "gram"], "OPERATION: walk runs alone"),
        (["walk", "--shape", "8x128"], "--shape: is not for walk"),
        (["walk", "--seconds", "1"], "--seconds: is not for walk"),
        (["gram", "--model", "whisper-tiny"], "--model: is for walk alone"),
        (["--samples", "2"], "--samples: is for walk alone"),
        (["--dtype", "bfloat16"], "--dtype: is for walk alone"),
        (["walk", "--method", "best"], "must be refined, tarq,"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, said):
    result = CliRunner().invoke(app, ["bench", *words, "--device", "cpu"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())  # however wide the terminal is
