"""Layers that keep outliers in 16 bits: they compute what they stand for, are measured, and are never saved."""

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import tarq
from tarq.errors import CheckpointError
from tarq.outliers import OutlierLinear
from tarq.terminal.cli import app

FC2 = "model.decoder.layers.1.fc2"


@pytest.fixture(scope="module")
def quantized(model_folder, manifest):
    recognizer = tarq.load_recognizer(model_folder)
    config = tarq.TarqConfig.preset("tarq-spqr", group_size=32, scale_dtype="float32", batch_size=3, samples=4)
    report = tarq.quantize(recognizer, manifest, config)
    return recognizer, report


def test_a_layer_computes_with_its_outliers(quantized):
    recognizer, report = quantized
    layers = [m for m in recognizer.model.modules() if isinstance(m, OutlierLinear)]
    assert len(layers) == len(report.layers) == 32
    for layer in layers:
        size = layer.in_features * layer.out_features
        assert layer.outlier_places.numel() == round(0.01 * size)
        assert layer.packed_bytes() > size // 2 + 4 * layer.outlier_places.numel()
    layer = recognizer.model.get_submodule(FC2)
    x = torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    weight = layer.dequantize(torch.float32)
    assert torch.equal(weight.view(-1)[layer.outlier_places], layer.outlier_values.float())
    packed = tarq.QuantLinear.dequantize(layer, torch.float32)
    assert int((weight != packed).sum()) > 0.9 * layer.outlier_places.numel()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias), rtol=1e-4, atol=1e-4)


def test_a_cast_leaves_the_outliers_as_they_are(quantized):
    layer = quantized[0].model.get_submodule(FC2)
    before, dtype = layer.outlier_values.clone(), layer.bias.dtype
    assert before.dtype == torch.float16
    layer.bfloat16()
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.outlier_values, before)
    layer.to(dtype)
    assert torch.equal(layer.outlier_values, before)


def test_no_checkpoint_is_made_of_them(quantized, tmp_path):
    recognizer, report = quantized
    with pytest.raises(
        CheckpointError, match=r"not saved: model\.\S+_proj keeps \d+ weights in 16 bits.*measured only"
    ):
        tarq.save(recognizer, tmp_path / "out", report)
    with pytest.raises(CheckpointError, match="not saved"):
        recognizer.model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("options", [["--method", "spqr"], ["--method", "gptq", "--solver", "spqr"]])
def test_the_command_line_refuses_before_anything_is_read(tmp_path, options):
    asked = ["quantize", "no-such-model", str(tmp_path / "out"), "--calibration", "no-such-speech", *options]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code != 0
    assert "the solver spqr makes more than codes and scales, which no checkpoint can hold" in " ".join(
        result.output.replace("│", " ").split()
    )
