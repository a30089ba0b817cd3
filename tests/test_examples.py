"""The examples run as they stand, on the packaged testbed, and print what their arm did beside the default."""

import re
import runpy
from pathlib import Path

import pytest

import tarq

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CONFIG = tarq.TarqConfig.preset("tarq", samples=4, group_size=32)
ARMS = pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("own_metric", ("rarebal", "Loudness")),
        ("own_residual", ("cross-fitted", "MeanInBias")),
        ("own_solver", ("sweep", "Descent")),
    ],
)


@pytest.fixture(scope="module")
def losses(model_folder, manifest):
    """The loss of each layer of the tiny Whisper with the arms given."""

    def of(**arms):
        return [
            layer.loss for layer in tarq.quantize(tarq.load_recognizer(model_folder), manifest, CONFIG, **arms).layers
        ]

    default = of()
    return lambda **arms: (of(**arms), default)


@ARMS
def test_the_arm_of_an_example_does_something(name, arms, losses):
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 40
    made = runpy.run_path(str(path))[arms[1]]()
    own, default = losses(**{name.removeprefix("own_"): made})
    assert own != default
    if name == "own_solver":
        assert sum(own) < sum(default)  # descent never raises the loss


@pytest.mark.slow
@ARMS
def test_an_example_runs(name, arms, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    figures = dict(re.fullmatch(r"([\w-]+): .*?(\d+\.\d+).*", line).groups() for line in lines)
    default, own = (float(figures[arm]) for arm in arms)
    assert default != own
    if name == "own_solver":
        assert own < default
