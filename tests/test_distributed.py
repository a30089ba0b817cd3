"""Several processes under torchrun: the same codes and scores as one, written once, and ending together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tarq.report import FILE_NAME

#: One thread each, as torchrun has it: sums of float32 products depend on how they are split over threads.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run(*arguments: object, processes: int = 1, timeout: float = 120, code: int = 0) -> subprocess.CompletedProcess:
    """The command line in so many processes; a hang is a failure."""
    several = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    command = [sys.executable, "-P", *(several if processes > 1 else ()), "-m", "tarq", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=timeout, check=False)
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done


def quantize(model: Path, manifest: Path, out: Path, processes: int, *options: object, code: int = 0):
    return run(
        "quantize", model, out, "--calibration", manifest, "--group-size", 32, *options, processes=processes, code=code
    )


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# Two batches a process; batches of one utterance, odd in number; fewer batches than processes; tags and
# transcripts that the model makes itself.
@pytest.mark.parametrize(
    "options",
    [
        ("--batch-size", 2),
        ("--batch-size", 1, "--samples", 7, "--method", "gptq"),
        ("--batch-size", 8),
        ("--batch-size", 3, "--transcripts", "self", "--frame-tags", "aligned", "--residual", "least-squares"),
    ],
)
def test_two_processes_quantize_as_one(model_folder, manifest, tmp_path, options):
    quantize(model_folder, manifest, tmp_path / "one", 1, *options)
    done = quantize(model_folder, manifest, tmp_path / "two", 2, *options)
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
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


def test_two_processes_score_as_one(model_folder, manifest, tmp_path):
    run("quantize", model_folder, tmp_path / "rtn", "--method", "rtn", "--group-size", 32)
    lines = manifest.read_text().splitlines()
    silent = json.loads(lines[0]) | {"id": "silent", "text": ""}  # not teacher-forced, but transcribed
    (manifest.parent / "more.jsonl").write_text("\n".join([*lines, json.dumps(silent)]))
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for processes, file in enumerate(files, start=1):
        run(
            "evaluate", model_folder, tmp_path / "rtn", "--data", manifest.parent / "more.jsonl", "--batch-size", 3,
            "--resamples", 100, "--json", file, processes=processes,
        )  # fmt: skip
    one, two = (json.loads(file.read_text()) for file in files)
    assert one == two
    (scores,) = one["sets"].values()
    assert len(scores["models"]["rtn"]["hypotheses"]) == 9


def test_an_error_in_one_process_ends_all_with_its_message(model_folder, manifest, tmp_path):
    """The model's own file is fine for the first process; the second one's audio is NaN."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from tarq import distributed\n"
        "from tarq.cli import main\n"
        "from tarq.method.statistics import Moments\n"
        "def fail(*_):\n"
        "    raise KeyError('broken') if 'KeyError' in sys.argv[-1] else ValueError('NaN or infinite activations')\n"
        "original = Moments.update\n"
        "Moments.update = lambda *a: fail() if distributed.rank() == 1 else original(*a)\n"
        "out = sys.argv.pop()\n"
        "sys.argv.append(out)\n"
        "main()\n"
    )
    for out, message in (("ValueError", "NaN or infinite activations on utterances"), ("KeyError", "process 1: KeyError")):
        done = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program, "quantize",
                model_folder, "--calibration", manifest, "--group-size", "32", "--batch-size", "2", tmp_path / out,
            ],
            capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert message in done.stderr
        assert done.stderr.count("NaN or infinite activations on") == (out == "ValueError")
        assert not (tmp_path / out).exists()


def test_what_several_processes_all_find_wrong_is_said_once(model_folder, tmp_path):
    done = quantize(model_folder, tmp_path / "none.jsonl", tmp_path / "out", 2, code=1)
    assert done.stderr.count("none.jsonl does not exist") == 1


def test_other_commands_refuse_several_processes(model_folder, tmp_path):
    done = run("transcribe", model_folder, tmp_path / "a.wav", processes=2, code=1)
    assert "transcribe runs in one process" in " ".join(done.stderr.replace("│", " ").split())
