"""``tarq quantize MODEL OUT`` and nothing else: what it does, what it says, and what it refuses."""

import json

import pytest
from typer.testing import CliRunner

from tarq import testbed
from tarq.errors import DataError
from tarq.terminal.cli import app
from tarq.terminal.first_run import NOTE

SMALL = ("--samples", "3", "--group-size", "32")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["quantize", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_a_model_alone_is_enough(model_folder, tmp_path):
    code, shown = run(model_folder, tmp_path / "out", *SMALL)
    assert code == 0, shown
    assert NOTE in shown
    assert "takes about" in shown.split("written to")[0]
    assert "next: tarq evaluate" in shown
    report = json.loads((tmp_path / "out" / "tarq_report.json").read_text())
    assert NOTE in report["notes"]
    assert report["calibration"]["source"] == "tarq.testbed"
    assert report["config"]["transcripts"] == "self"


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--language", "de"), "the language is de"), (("--ids", "ids.txt"), "the one that the ids of ids.txt are of")],
)
def test_what_the_testbed_cannot_stand_in_for_needs_speech(model_folder, tmp_path, options, said):
    code, shown = run(model_folder, tmp_path / "out", *SMALL, *options)
    assert code == 1
    assert "needs calibration speech: pass a manifest or another corpus (--calibration)" in shown
    assert said in shown
    assert not (tmp_path / "out").exists()


def test_without_the_testbed_it_says_how_to_get_it(model_folder, tmp_path, monkeypatch):
    def absent():
        raise DataError("the testbed is not installed: pip install 'tarq[testbed]'")

    monkeypatch.setattr(testbed, "calibration_pool", absent)
    code, shown = run(model_folder, tmp_path / "out", *SMALL)
    assert code == 1
    assert "(--calibration). For a first try tarq has some of its own" in shown
    assert "pip install 'tarq[testbed]'" in shown
