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


#: Examples of use, and what each prints with a figure in it.
USES = {
    "quantize_own_data": (r"plan: 64 of \d+ layers will be packed; problems: none", r"saved: 64 layers packed, 16 utt"),
    "evaluate_checkpoint": (
        r"24 utterances, [1-9]\d* rare words of \d+",
        r"kl_rare: \+0\.\d+ \[",
        r"rare words lost: ",
    ),
    "transcribe_files": (r"backends: \{'\w+': 64\}", r"test-00000.ogg: \w+ \w+"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
def test_an_example_of_use_runs(name, capsys, monkeypatch):
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 40
    monkeypatch.setattr("sys.argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    for pattern in USES[name]:
        assert re.search(pattern, printed), printed


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "first_model.ipynb", as_version=4)
    assert not any(
        cell.get("outputs") for cell in notebook.cells
    )  # what is kept is the program, not one machine's output
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert re.search(r"default \{.*'kl_rare': 0\.\d+", printed), printed
    assert printed.count("heard: ") == 3
