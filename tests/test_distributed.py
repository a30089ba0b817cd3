"""Several processes under torchrun: the same codes and scores as one, written once, and ending together."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tarq.cli import app
from tarq.report import FILE_NAME


@pytest.fixture(autouse=True)
def one_thread():
    """As torchrun has it: sums of float32 products depend on how they are split over threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alone(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def in_two(*command: object, code: int = 0) -> subprocess.CompletedProcess:
    """A program, or ``-m`` and a module, in two processes; a hang is a failure."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, command)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


# Two batches a process, the last of one utterance; then fewer batches than processes, and tags and transcripts that
# the model makes itself.
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--batch-size", 2, "--samples", 7),
        ("--batch-size", 8, "--transcripts", "self", "--frame-tags", "aligned", "--residual", "least-squares"),
    ],
)
def test_two_processes_quantize_as_one(model_folder, manifest, tmp_path, options):
    job = ("--calibration", manifest, "--group-size", 32, *options)
    alone("quantize", model_folder, tmp_path / "one", *job)
    done = in_two("-m", "tarq", "quantize", model_folder, tmp_path / "two", *job)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    reports = [json.loads((tmp_path / name / FILE_NAME).read_text()) for name in ("one", "two")]
    assert [r["processes"] for r in reports] == [1, 2]
    assert reports[0]["calibration"] == reports[1]["calibration"]
    for a, b in zip(reports[0]["layers"], reports[1]["layers"], strict=True):
        assert (a["name"], a["positions"], a["tail_positions"]) == (b["name"], b["positions"], b["tail_positions"])
        assert a["alpha"] == pytest.approx(b["alpha"], rel=1e-6)
    assert done.stdout.count("layers quantized") == 1
    assert "in 2 processes" in done.stdout


@pytest.mark.slow
def test_two_processes_score_as_one(model_folder, manifest, tmp_path):
    alone("quantize", model_folder, tmp_path / "rtn", "--method", "rtn", "--group-size", 32)
    lines = manifest.read_text().splitlines()
    silent = json.loads(lines[0]) | {"id": "silent", "text": ""}  # not teacher-forced, but transcribed
    (manifest.parent / "more.jsonl").write_text("\n".join([*lines, json.dumps(silent)]))
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    job = (
        "evaluate", model_folder, tmp_path / "rtn", "--data", manifest.parent / "more.jsonl", "--batch-size", 3,
        "--resamples", 100, "--json",
    )  # fmt: skip
    alone(*job, files[0])
    in_two("-m", "tarq", *job, files[1])
    one, two = (json.loads(file.read_text()) for file in files)
    assert one == two
    (scores,) = one["sets"].values()
    assert len(scores["models"]["rtn"]["hypotheses"]) == 9


@pytest.mark.slow
def test_an_error_in_one_process_ends_both_with_its_message(model_folder, manifest, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from tarq import distributed\n"
        "from tarq.cli import main\n"
        "from tarq.method.statistics import Moments\n"
        "def update(self, x, *others):\n"
        "    original(self, x * float('nan') if distributed.rank() == 1 else x, *others)\n"
        "original, Moments.update = Moments.update, update\n"
        "main()\n"
    )
    out = tmp_path / "out"
    done = in_two(program, "quantize", model_folder, out, "--calibration", manifest, "--group-size", 32, code=1)
    assert done.stderr.count("NaN or infinite activations on utterances") == 1
    assert "Traceback (most recent call last):\n" not in done.stderr.split("error CalibrationError")[0]
    assert not out.exists()


def test_errors_of_another_process(tmp_path):
    """What a user can mend keeps its class; the rest says where it happened. Work goes on after both."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from tarq import distributed\n"
        "from tarq.errors import DataError\n"
        "with distributed.joined() as first:\n"
        "    for error in DataError('no audio'), KeyError('broken'):\n"
        "        try:\n"
        "            with distributed.together():\n"
        "                if not first:\n"
        "                    raise error\n"
        "                distributed.gathered([1])\n"
        "        except Exception as caught:\n"
        "            if first:\n"
        "                sys.stdout.write(f'{type(caught).__name__} {caught}\\n')\n"
        "    items = distributed.gathered([10 * i for i in distributed.dealt(range(5))])\n"
        "    rank = distributed.from_first(lambda: distributed.rank())\n"
        "    sys.stdout.write(f'{items} {rank}\\n')\n"  # one write: a print's pieces would mix with the other process's
    )
    done = in_two(program)
    assert "DataError no audio\nProcessError process 1: KeyError: 'broken'\n" in done.stdout
    assert done.stdout.count("[0, 10, 20, 30, 40] 0\n") == 2


@pytest.mark.slow
def test_what_all_processes_find_wrong_is_said_once(model_folder, tmp_path):
    job = ("quantize", model_folder, tmp_path / "out", "--calibration", tmp_path / "none.jsonl")
    assert in_two("-m", "tarq", *job, code=1).stderr.count("none.jsonl: no such file") == 1


def test_other_commands_refuse_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 2
    assert "doctor runs in one process" in " ".join(result.output.replace("│", " ").split())
