"""The examples run as they stand, on the packaged testbed, and print what their arm did beside the default."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        pytest.param("own_metric", ("rarebal", "Loudness"), marks=pytest.mark.slow),
        pytest.param("own_residual", ("cross-fitted", "MeanInBias"), marks=pytest.mark.slow),
        ("own_solver", ("sweep", "Descent")),
    ],
)
def test_an_example_runs(name, arms, capsys):
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 40
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    figures = dict(re.fullmatch(r"([\w-]+): .*?(\d+\.\d+).*", line).groups() for line in lines)
    default, own = (float(figures[arm]) for arm in arms)
    assert default != own
    if name == "own_solver":
        assert own < default  # descent never raises the loss
