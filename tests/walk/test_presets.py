"""Every preset runs by its name, on the tiny Whisper, through what a user calls; and each is a method of its own."""

import pytest
import torch

import tarq
from tarq.linear import QuantLinear
from tarq.presets import PRESETS

SETTINGS = {"group_size": 32, "scale_dtype": "float32", "batch_size": 3, "samples": 6}
FC2 = "model.decoder.layers.1.fc2"


@pytest.fixture(scope="module")
def made():
    """Name of a preset to the weights it made; filled as the presets run."""
    return {}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_by_its_name(model_folder, manifest, made, name):
    recognizer = tarq.load_recognizer(model_folder)
    config = tarq.TarqConfig.preset(name, **SETTINGS)
    report = tarq.quantize(recognizer, manifest if config.needs_statistics else None, config)
    assert tarq.TarqConfig.from_dict(report.config).method == name
    assert len(report.layers) == 32
    assert not any(layer.skipped for layer in report.layers)
    layers = [m for m in recognizer.model.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == 32
    weights = torch.cat([layer.dequantize().float().flatten() for layer in layers])
    assert bool(weights.isfinite().all())
    for other, theirs in made.items():
        assert not torch.equal(weights, theirs), f"{name} makes the same model as {other}"
    made[name] = weights
