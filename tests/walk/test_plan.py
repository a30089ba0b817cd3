"""What is known before any audio is read: group sizes, what stays and why, bytes, weights that are no numbers."""

import dataclasses
import json

import pytest
import torch

import tarq
from tarq.errors import CalibrationError, ModelError
from tarq.linear import QuantLinear
from tarq.report import Reporter
from tarq.walk.plan import check_fits, check_weights, choose_group_size, plan
from tarq.walk.run import quantize_model

CONFIG = tarq.TarqConfig(group_size=32)


@pytest.mark.parametrize("options", [{}, {"bits": 3, "symmetric": False}, {"group_size": 96}])
def test_the_plan_is_what_the_run_does(recognizer, manifest, options):
    config = dataclasses.replace(CONFIG, ignore=("model.decoder.layers.1.fc2",), **options)
    planned = plan(recognizer, config)
    report = tarq.quantize(recognizer, manifest, config)
    ours = {p.name: (p.stage, p.shape, p.group_size or 0, p.reason, [p.note] if p.note else []) for p in planned}
    theirs = {
        r.name: (r.stage, r.shape, r.group_size, r.skipped, [n for n in r.notes if n.startswith("group size")])
        for r in report.layers
    } | {n: ("", tuple(recognizer.model.get_submodule(n).weight.shape), 0, r, []) for n, r in report.left_out.items()}
    assert ours == theirs
    assert sum(p.bytes_before for p in planned if p.stage) == report.sizes["linear_bytes_before"]
    assert sum(p.bytes_after for p in planned if p.stage) == report.sizes["linear_bytes_after"]


@pytest.mark.parametrize(
    ("inputs", "asked", "got"),
    [(384, 128, 128), (288, 128, 32), (320, 128, 64), (416, 128, 32), (96, 32, 32)],
)
def test_group_size_divides_the_layer(inputs, asked, got):
    size, note = choose_group_size(inputs, asked)
    assert size == got
    assert bool(note) == (size != asked)


def replaced(recognizer, name, width):
    linear = recognizer.model.get_submodule(name)
    recognizer.model.set_submodule(name, torch.nn.Linear(width, linear.out_features))


def test_widths_that_no_group_size_divides_are_all_named_before_any_audio_is_read(recognizer, tmp_path):
    for layer in (0, 1):
        replaced(recognizer, f"model.encoder.layers.{layer}.fc2", 12)
    line = {"id": "a", "audio": "missing.wav", "text": "the house", "duration": 1.0}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line))
    why = r"fc2 \(no group size of 32, 16, 8 divides its 12 inputs\)"
    named = rf"encoder\.layers\.0\.{why}, model\.encoder\.layers\.1\.{why}: set group_size to a divisor.*with ignore"
    assert [p.name.split(".", 3)[-1] for p in plan(recognizer, CONFIG) if not p.fits] == ["0.fc2", "1.fc2"]
    with pytest.raises(CalibrationError, match=named):
        tarq.quantize(recognizer, tmp_path / "manifest.jsonl", CONFIG)
    ignore = ("model.encoder.layers.0.fc2", "model.encoder.layers.1")
    check_fits(plan(recognizer, dataclasses.replace(CONFIG, ignore=ignore)))
    with pytest.raises(CalibrationError, match=named):  # also of who calls the walk alone
        quantize_model(recognizer, [], CONFIG, Reporter())


@pytest.mark.parametrize("method", ["rtn", "tarq"])
def test_weights_that_are_no_numbers_are_named_before_any_audio_is_read(recognizer, tmp_path, method):
    recognizer.decoder.layers[1].fc1.weight.data[3, 5] = float("nan")
    recognizer.encoder.layers[0].fc2.weight.data[0, 0] = float("inf")
    config = tarq.TarqConfig.preset(method, group_size=32)
    with pytest.raises(CalibrationError, match=r"encoder\.layers\.0\.fc2, model\.decoder\.layers\.1\.fc1: its weights"):
        tarq.quantize(recognizer, tmp_path / "there is no such file.jsonl", config)
    ignore = ("model.decoder.layers.1.fc1", "model.encoder.layers.0.fc2")
    check_weights(recognizer, dataclasses.replace(config, ignore=ignore))


def test_a_name_to_ignore_that_matches_nothing_is_refused(recognizer):
    with pytest.raises(ModelError, match=r"'encoder\.layers\.0' matches no layer; names look like model\.encoder"):
        plan(recognizer, dataclasses.replace(CONFIG, ignore=("encoder.layers.0",)))


def test_nothing_left_to_quantize_is_told_before_any_audio_is_read(recognizer, tmp_path):
    ignore = ("model.encoder", "model.decoder")
    names = tuple(p.name for p in plan(recognizer, CONFIG) if p.stage)
    for left_out in (names, tuple(f"{stage}.layers.{i}" for stage in ignore for i in (0, 1))):
        config = dataclasses.replace(CONFIG, ignore=left_out)
        with pytest.raises(CalibrationError, match="no layer is left to quantize: ignore names them all"):
            tarq.quantize(recognizer, tmp_path / "there is no such file.jsonl", config)
        assert tarq.plan(recognizer, config).problems == ["no layer is left to quantize"]
    for stage in (recognizer.model.model.encoder, recognizer.model.model.decoder):
        stage.layers = torch.nn.ModuleList()
    with pytest.raises(CalibrationError, match="the model has no Linear layers in its blocks"):
        tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn"))


def test_planning_changes_nothing(recognizer):
    plan(recognizer, CONFIG)
    assert not any(isinstance(module, QuantLinear) for module in recognizer.model.modules())
