"""A dry run: shapes alone say what quantizing will do; and what can be told early is told before a model is loaded."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tarq
from tarq.config import TarqConfig
from tarq.errors import ModelError
from tarq.terminal.cli import app

runner = CliRunner()


def tarq_says(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def shapes(model_folder, tmp_path):
    """The model's folder without its weights."""
    folder = tmp_path / "shapes"
    shutil.copytree(model_folder, folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    return folder


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("settings", [{}, {"symmetric": False, "bits": 3}, {"ignore": ("model.decoder.layers.1",)}])
def test_the_plan_is_what_happens(model_folder, shapes, settings):
    """Layer by layer, and to the byte, although the plan has seen no weights."""
    config = TarqConfig.preset("rtn", group_size=96, **settings)
    planned = tarq.plan(shapes, config)
    report = tarq.quantize(tarq.load_recognizer(model_folder), None, config)
    done = {layer.name: layer.group_size or None for layer in report.layers}
    packed = {layer.name: layer.group_size for layer in planned.layers if layer.group_size}
    assert packed == {name: size for name, size in done.items() if size}
    assert {layer.name for layer in planned.layers if not layer.stage} == set(report.left_out)
    assert planned.bytes_before == report.sizes["linear_bytes_before"]
    assert planned.bytes_after == report.sizes["linear_bytes_after"]
    assert planned.problems == []


def test_an_estimate_grows_with_the_work(shapes):
    few, many = (tarq.plan(shapes, TarqConfig(samples=n)).estimate for n in (8, 800))
    assert few.seconds < many.seconds
    assert few.ram_bytes < many.ram_bytes
    assert tarq.plan(shapes, TarqConfig.preset("rtn")).estimate.utterances == 0


def test_an_estimate_is_for_the_speech_there_is(shapes, manifest, tmp_path):
    planned = tarq.plan(shapes, TarqConfig(samples=800), calibration=manifest).estimate
    assert (planned.utterances, planned.asked) == (8, 800)
    assert planned.ram_bytes == tarq.plan(shapes, TarqConfig(samples=8)).estimate.ram_bytes
    assert tarq.plan(shapes, TarqConfig(samples=5), calibration={"a": manifest, "b": manifest}).estimate.utterances == 5
    (tmp_path / "ids").write_text("u1\nu2\n")
    chosen = TarqConfig(ids=str(tmp_path / "ids"))
    assert tarq.plan(shapes, chosen, calibration=manifest).estimate.utterances == 2
    said = tarq_says("quantize", shapes, tmp_path / "out", "--dry-run", "--calibration", manifest)
    assert "on 8 utterances (all there are of the 128 asked for) of 12 s" in said
    with pytest.raises(tarq.DataError, match="gone"):
        tarq.plan(shapes, calibration=tmp_path / "gone")


def test_too_few_utterances_for_a_residual_are_told_before_audio_is_read(shapes, model_folder, manifest, monkeypatch):
    """By the plan, and by a run; one fold needs no more than one."""
    config = TarqConfig(samples=1, group_size=32)
    planned = tarq.plan(shapes, config, calibration=manifest)
    assert any("at least 2 calibration utterances, not 1: add some" in problem for problem in planned.problems)
    monkeypatch.setattr("tarq.quantization.calibration_set", lambda *_: pytest.fail("audio is read"))
    recognizer = tarq.load_recognizer(model_folder)
    with pytest.raises(tarq.CalibrationError, match="at least 2 calibration utterances, not 1"):
        tarq.quantize(recognizer, manifest, config)
    gptq = TarqConfig.preset("gptq", samples=1, group_size=32)
    assert tarq.plan(shapes, gptq, calibration=manifest).problems == []
    with pytest.raises(pytest.fail.Exception, match="audio is read"):
        tarq.quantize(recognizer, manifest, gptq)


def test_what_more_bits_take_is_said_as_far_as_it_can_be_told(shapes):
    """In kB where it is little; nothing where nothing is added."""

    def said(target: float) -> list[str]:
        return [part for part in tarq.plan(shapes, TarqConfig(target_bits=target)).parts if "target_bits" in part]

    weights = sum(math.prod(layer.shape) for layer in tarq.plan(shapes).layers if layer.bits)
    assert said(4.25) == [f"target_bits 4.25: up to {weights / 32 / 1e3:.1f} kB more, by measured damage"]
    assert said(4) == []


def test_a_dry_run_reads_no_weights_and_writes_nothing(shapes, tmp_path):
    said = tarq_says("quantize", shapes, tmp_path / "out", "--dry-run", "--json", tmp_path / "plan.json")
    assert "32 layers packed" in said
    assert "takes about" in said
    assert "mel bins: the feature extractor makes 80, the model reads 80" in said
    assert not (tmp_path / "out").exists()
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert len(plan["layers"]) == 33
    assert plan["problems"] == []


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("preprocessor_config.json", {"feature_size": 128}, "mel"),
        ("config.json", {"vocab_size": 90}, "token"),
        ("config.json", {"encoder_ffn_dim": 252}, "model.encoder.layers.0.fc2"),
    ],
)
def test_what_does_not_fit_is_told_with_exit_code_1(shapes, tmp_path, file, fields, said):
    edit(shapes / file, **fields)
    assert said in tarq_says("quantize", shapes, tmp_path / "out", "--dry-run", code=1)


def test_a_quantized_model_has_no_plan(model_folder, tmp_path):
    tarq_says("quantize", model_folder, tmp_path / "q", "--method", "rtn", "--group-size", 32)
    with pytest.raises(tarq.ModelError, match="quantized already"):
        tarq.plan(tmp_path / "q")


def test_what_is_cheap_is_told_before_a_model_is_loaded(manifest, tmp_path):
    """There is no such model, and yet it is the other thing that is told."""
    model, out, gone = tmp_path / "no-model", tmp_path / "out", tmp_path / "gone"
    for arguments, said in (
        (("quantize", model, out, "--calibration", gone), "gone"),
        (("quantize", model, out, "--language", "de"), "calibration speech"),
        (("quantize", model, out, "--calibration", manifest, "--language", "sw"), "language 'sw'"),
        (("quantize", model, out, "--calibration", manifest, "--ids", gone), "gone"),
        (("quantize", model, manifest, "--calibration", manifest), "manifest.jsonl"),
        (("quantize", model, manifest / "out", "--calibration", manifest), "manifest.jsonl"),
        (("evaluate", model, "--data", gone), "gone"),
        (("evaluate", Path.cwd(), gone, "--data", manifest), "gone: no such folder"),
        (("evaluate", model, "--data", "hub:"), "names no data set: write hub:OWNER/NAME"),
        (("evaluate", model, "--data", manifest, "--word-frequencies", gone), "gone"),
        (("evaluate", model, "--data", manifest, "--where", "speaker=x"), "speaker"),
        (
            ("quantize", model, out, "--calibration", manifest, "--samples", 1),
            "at least 2 calibration utterances, not 1",
        ),
        (("transcribe", model, tmp_path), "no audio"),
    ):
        said_now = tarq_says(*arguments, code=1)
        assert said in said_now
        assert "no-model" not in said_now.split("error")[-1]
    assert not out.exists()


def test_pools_from_python(manifest, tmp_path):
    drawn = tarq.pool(manifest, TarqConfig(pool="r-top", samples=3))
    assert len(drawn.utterances) == 3
    assert drawn.to_dict()["sources_given"] == {"speech": str(manifest)}
    drawn.write_manifest(tmp_path / "pool.jsonl")
    again = tarq.pool(tmp_path / "pool.jsonl", TarqConfig(samples=3))
    assert {u.id for u in again.utterances} == {u.id for u in drawn.utterances}
    assert tarq.pool(manifest, TarqConfig(samples=99)).notes == ["only 8 of the 99 utterances asked for qualify"]
    several = tarq.pool({"a": manifest, "b": manifest}, TarqConfig(pool="r-cross", samples=4))
    assert set(several.pool.sources) <= {"a", "b"}


def test_a_folder_that_is_not_there_is_said_without_asking_the_hub(tmp_path):
    for source in (tmp_path / "nothing", str(tmp_path / "nothing")):
        with pytest.raises(ModelError, match="no such folder"):
            tarq.plan(source)
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="is a file"):
        tarq.plan(str(tmp_path / "file"))
