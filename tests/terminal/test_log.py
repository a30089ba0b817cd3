"""``--log-file`` and ``-v``."""

import re
import sys

from typer.testing import CliRunner

from tarq.terminal.cli import app
from tarq.terminal.logfile import RunLog

runner = CliRunner()
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (start|phase|layer|note|end|error) \S.*")


def run(*arguments, code=0):
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def lines(path):
    found = path.read_text(encoding="utf-8").splitlines()
    assert all(LINE.fullmatch(line) for line in found)
    return [line.split(" ", 1)[1] for line in found]


def test_a_run_is_in_the_log_layer_by_layer(model_folder, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tarq", "quantize", "a model"])
    log = tmp_path / "run.log"
    quantize = ("quantize", model_folder, tmp_path / "out", "--method", "rtn", "--group-size", 32, "--log-file", log)
    out = run(*quantize)
    found = lines(log)
    assert found[0] == "start tarq quantize 'a model'"
    assert found[-1] == "end done"
    assert sum(line.startswith("layer model.") for line in found) == 32
    assert "phase quantizing (32)" in found
    assert "model.decoder.layers.0.fc1" not in out
    run("evaluate", model_folder, tmp_path / "out", "--data", manifest, "--resamples", 10, "--log-file", log)
    again = lines(log)
    assert again[: len(found)] == found  # appended to
    assert again[-1] == "end done"
    assert any(line.startswith("phase scoring ") for line in again)


def test_the_error_that_ends_a_run_is_its_last_line(model_folder, tmp_path):
    log = tmp_path / "run.log"
    run("quantize", model_folder, tmp_path / "out", "--calibration", tmp_path / "gone", "--log-file", log, code=1)
    assert lines(log)[-1].startswith("error DataError: ")
    assert "gone" in lines(log)[-1]


def test_a_log_that_cannot_be_written_is_refused_before_the_work(model_folder, tmp_path):
    out = run("quantize", model_folder, tmp_path / "o", "--log-file", tmp_path / "no" / "x.log", code=2)
    assert "--log-file" in out


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    RunLog(tmp_path / "x.log").line("note", "a")
    assert not (tmp_path / "x.log").exists()


def test_a_full_disk_does_not_end_the_run(tmp_path):
    log = RunLog(tmp_path / "x.log")

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            raise AssertionError

    log.file = Full()
    log.line("note", "a")
    log.end(None)
    assert log.file is None


def test_verbose_shows_every_layer(model_folder, tmp_path):
    out = run("quantize", model_folder, tmp_path / "out", "--method", "rtn", "--group-size", 32, "-v")
    assert len(re.findall(r"\bfc1\b", out)) == 4
