"""How much memory a quantization takes, in a process of its own, at the widths of a large model."""

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


@pytest.mark.slow
@pytest.mark.parametrize(("width", "ffn", "limit"), [(1280, 5120, 4.3e9)], ids=["1B"])
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
    assert beside + 8 * 8 * ffn**2 > limit
