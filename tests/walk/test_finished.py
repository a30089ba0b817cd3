"""A run that is stopped goes on where it was, and ends as one that was not stopped, to the bit."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import count

import pytest
import torch

import tarq
from tarq.checkpoint.folder import CHECKSUMS
from tarq.report import Reporter

CONFIG = tarq.TarqConfig(group_size=32, samples=5, batch_size=2, tail_threshold=4)

#: Methods and settings, each with something that a run has to find again.
CASES = {
    "refined": {},  # reparametrized; biases; moments of the encoder's output, shared by the decoder's blocks
    "tarq": {},
    "rtn": {},
    "gptq": {"symmetric": False, "group_size": 128},
    "rsq": {},  # attention of the full-precision model
    "guided": {"metric": "guided"},  # gradients
    "kronecker": {"solver": "kronecker"},  # gradients of outputs
    "tarq-awq": {},  # input scales
    "target-bits": {"target_bits": 5.0},
    "recomputed": {"activation_memory": 0.0},
    "ignore": {"ignore": ("model.decoder.layers.0",)},
}


class Stops(Reporter):
    """Ends the run as Ctrl-C does, after so many layers."""

    def __init__(self, layers):
        self.left, self.notes, self.starts, self.phases = layers, [], [], []

    def start(self, layers):
        self.starts.append(layers)

    def phase(self, text, total=None):
        self.phases.append((text, total))

    def layer(self, record):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


def never():
    return Stops(-1)


def config_of(case):
    preset = case if case in tarq.config.PRESETS else "refined"
    chosen = {"group_size": 32, "samples": 5, "batch_size": 2, "tail_threshold": 4} | CASES.get(case, {})
    return tarq.TarqConfig.preset(preset, **chosen)


def quantized(model_folder, manifest, config, reporter=None, **given):
    """The tensors of a quantized model, and all of its report that does not depend on the clock."""
    recognizer = tarq.load_recognizer(model_folder)
    report = tarq.quantize(recognizer, manifest, config, reporter=reporter, **given)
    state = recognizer.model.state_dict()
    return state, asdict(report) | {"seconds": None, "memory": None}


def same(one, other):
    (state, report), (states, reports) = one, other
    assert state.keys() == states.keys()
    for name, tensor in state.items():
        assert tensor.dtype == states[name].dtype
        assert torch.equal(tensor, states[name]), name
    assert report == reports


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_to_the_same_result(case, model_folder, manifest, tmp_path):
    """Stopped in every other block: first within the first one, where nothing is kept yet."""
    config = config_of(case)
    expected = quantized(model_folder, manifest, config)
    folder = tmp_path / "run"
    total = sum(not layer["skipped"] for layer in expected[1]["layers"])
    stops = 0
    for layers in count(3, 4):
        reporter = Stops(layers if stops < 4 else -1)
        try:
            got = quantized(model_folder, manifest, config, reporter, resume=folder)
            break
        except KeyboardInterrupt as stopped:
            stops += 1
            kept = sorted(file.name for file in folder.glob("[0-9]*")) if folder.exists() else []
            assert bool(kept) == (stops > 1) or case in ("tarq-awq", "target-bits"), kept
            if kept:
                assert f"{len(kept)} of 4 blocks are finished and kept in {folder}" in stopped.__notes__[0]
    assert stops > 1
    same(got, expected)
    assert 0 < reporter.starts[-1] < total
