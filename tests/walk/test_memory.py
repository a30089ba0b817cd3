"""How much memory a quantization takes, in a process of its own, at the widths of a large model."""

import os
import subprocess
import sys

import pytest

from tarq.report import Report

#: What a process that only loads a model is told to do.
LOAD = """
import sys, torch, tarq
from tarq.report import peak_memory
recognizer = tarq.load_recognizer(sys.argv[1])
print(peak_memory(torch.device("cpu"))["ram_peak_bytes"])
"""

#: What one that solves a layer of so many inputs is told to do; prints its peak in bytes an entry of an n × n matrix.
SOLVE = """
import sys, torch
from tarq.kernels.scheme import Scheme
from tarq.method.algorithm import tail_aware_quantize
from tarq.method.arms import Arms
from tarq.method.moments import Moments
from tarq.method.registry import make_metric, make_residual, make_solver
from tarq.method.residuals import Layer
from tarq.report import peak_memory

torch.set_num_threads(1)


def solve(n, rows=64):
    folds = [Moments(n, paired=True) for _ in range(2)]
    for fold in folds:
        x = torch.randn(rows, n)
        fold.update(x, x + 0.1 * torch.randn(rows, n), torch.arange(rows) % 8 == 0, torch.ones(rows))
    arms = Arms(make_metric("rarebal"), make_residual("cross-fitted"), make_solver("sweep"))
    layers = [Layer("layer", torch.randn(rows, n))]
    tail_aware_quantize(layers, folds, arms, Scheme(4, 128, True, "absmax"), torch.float16)


n = int(sys.argv[1])
solve(256)  # what libraries set aside when they are first called
before = peak_memory(torch.device("cpu"))["ram_peak_bytes"]
solve(n)
print((peak_memory(torch.device("cpu"))["ram_peak_bytes"] - before) / n**2)
"""


def test_solving_a_layer_takes_little_beside_its_moments():
    """The moments of both folds are 64 bytes an entry; of the 8,192 inputs of a 3B model 115 come to 7.7 GB."""
    done = subprocess.run([sys.executable, "-P", "-c", SOLVE, "2048"], check=True, capture_output=True, text=True)
    assert 64 < float(done.stdout) < 115


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("width", "ffn", "limit"),
    [
        pytest.param(1280, 5120, 2.7e9, id="1B"),
        pytest.param(
            3072,
            8192,
            6.4e9,
            id="3B",
            marks=pytest.mark.skipif(
                "TARQ_HEAVY" not in os.environ, reason="TARQ_HEAVY=1 runs it: five quiet minutes, 10 GB"
            ),
        ),
    ],
)
def test_quantizing_takes_one_layers_memory_beside_the_model(write_model, tmp_path, manifest, width, ffn, limit):
    """A block of each stage, as wide as Whisper large: what one held beside its statistics would break the limit."""
    write_model(tmp_path / "model", width=width, ffn=ffn, layers=1)
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, tmp_path / "model"], check=True, capture_output=True, text=True
    )
    command = [sys.executable, "-P", "-m", "tarq", "quantize", tmp_path / "model", tmp_path / "out"]
    subprocess.run([*command, "--calibration", manifest, "--samples", "4"], check=True, capture_output=True)
    report = Report.read(tmp_path / "out")
    assert sum(not layer.skipped for layer in report.layers) == 16
    beside = report.memory["ram_peak_bytes"] - int(loaded.stdout)
    print(f"{beside / 1e9:.2f} GB beside {int(loaded.stdout) / 1e9:.2f} GB")
    assert beside < limit
    # It would take the moments of a second layer to break the limit.
    assert beside + 4 * 8 * ffn**2 > limit
