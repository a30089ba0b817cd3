"""Every preset runs by its name, on the tiny Whisper, through what a user calls; and each is a method of its own.

So it is with integer zero points, the default's lattice, where the study compares them.
"""

import pytest
import torch

import tarq
from tarq.linear import QuantLinear
from tarq.presets import PRESETS

SETTINGS = {"group_size": 32, "scale_dtype": "float32", "batch_size": 3, "samples": 4}


@pytest.fixture(scope="module")
def made():
    """Name of a preset to the weights it made; filled as the presets run."""
    return {}


#: Presets on their own lattice, and those whose zero point is the middle code with integer ones.
CASES = [(name, False) for name in PRESETS] + [
    pytest.param(name, True, marks=pytest.mark.slow) for name, fields in PRESETS.items() if fields["symmetric"]
]


@pytest.mark.parametrize(("name", "zero_points"), CASES)
def test_a_preset_runs_by_its_name(model_folder, manifest, made, name, zero_points):
    recognizer = tarq.load_recognizer(model_folder)
    config = tarq.TarqConfig.preset(name, **SETTINGS, **({"symmetric": False} if zero_points else {}))
    report = tarq.quantize(recognizer, manifest if config.needs_statistics else None, config)
    assert tarq.TarqConfig.from_dict(report.config).method == ("custom" if zero_points else name)
    assert len(report.layers) == 32
    assert not any(layer.skipped for layer in report.layers)
    layers = [m for m in recognizer.model.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == 32
    assert all((layer.weight_zero_point is None) == config.symmetric for layer in layers)
    weights = torch.cat([layer.dequantize().float().flatten() for layer in layers])
    assert bool(weights.isfinite().all())
    for other, theirs in made.items():
        assert not torch.equal(weights, theirs), f"{name} makes the same model as {other}"
    made[name, zero_points] = weights
