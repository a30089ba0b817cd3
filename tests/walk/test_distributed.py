"""Several processes under torchrun: the same codes and scores as one, written once, and ending together."""

import json

import pytest
from typer.testing import CliRunner

from tarq.terminal.cli import app

# Two batches a process, the last of one utterance; then fewer batches than processes, and tags and transcripts that
# the model makes itself; then all that is summed over processes beside moments, and what one finds for all.
JOBS = (
    "--batch-size 2 --samples 7",
    "--batch-size 8 --transcripts self --frame-tags aligned --residual least-squares",
    "--batch-size 2 --samples 5 --metric gradient --residual coreq --solver kronecker --input-scales awq",
    "--batch-size 2 --samples 5 --method rsq",
    "--batch-size 8 --method tarq-smoothquant",
    "--batch-size 2 --samples 7 --method tarq-bands --tail-threshold 4",
)


@pytest.mark.slow
def test_two_processes_quantize_as_one(model_folder, manifest, quantizes_as_one):
    quantizes_as_one(model_folder, manifest, *JOBS)


@pytest.mark.slow
def test_two_processes_score_as_one(model_folder, manifest, tmp_path, alone, in_two):
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
    assert one.pop("command") != two.pop("command")  # by their files
    assert one == two
    (scores,) = one["sets"].values()
    assert len(scores["models"]["rtn"]["hypotheses"]) == 9


@pytest.mark.slow
def test_an_error_in_one_process_ends_both_with_its_message(model_folder, manifest, tmp_path, in_two):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from tarq import distributed\n"
        "from tarq.terminal.cli import main\n"
        "from tarq.method.moments import Moments\n"
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


#: What both processes do; one write a line, since a print's pieces would mix with the other process's.
PROGRAM = """
import sys
import torch
from tarq import distributed
from tarq.errors import DataError
from tarq.walk.gradients import OutputGradients

with distributed.process_group() as first:
    for error in DataError("no audio"), KeyError("broken"):
        try:
            with distributed.raise_everywhere():
                if not first:
                    raise error
                distributed.all_gather([1])
        except Exception as caught:
            if first:
                sys.stdout.write(f"{type(caught).__name__} {caught}\\n")
    items = distributed.all_gather([10 * i for i in distributed.shard(range(5))])
    rank = distributed.broadcast(lambda: distributed.rank())
    sys.stdout.write(f"{items} {rank}\\n")

    own = 1.0 + distributed.rank()
    sums = {"q": own, "k": 10 * own, "v": 100 * own, "o": own}
    gradients = OutputGradients(moments={name: torch.full((1, 1), total) for name, total in sums.items()})
    names = ["q", "k", "v"]
    taken = gradients.take_moments(names, [distributed.rank_of(i) for i in range(3)])
    assert list(taken) == list(distributed.shard(names))
    found = " ".join(f"{name}={float(total):g}" for name, total in taken.items())
    sys.stdout.write(f"{distributed.rank()}: {found}, left {list(gradients.moments)}\\n")
"""


def test_what_processes_tell_each_other(tmp_path, in_two):
    """Errors: what a user can mend keeps its class, the rest says where it happened, and work goes on after both.
    Output moments: summed, and only where a layer is solved."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = in_two(program)
    assert "DataError no audio\nProcessError process 1: KeyError: 'broken'\n" in done.stdout
    assert done.stdout.count("[0, 10, 20, 30, 40] 0\n") == 2
    assert sorted(done.stdout.splitlines())[:2] == ["0: q=3 v=300, left ['o']", "1: k=30, left ['o']"]


@pytest.mark.slow
def test_what_all_processes_find_wrong_is_said_once(model_folder, tmp_path, in_two):
    job = ("quantize", model_folder, tmp_path / "out", "--calibration", tmp_path / "none.jsonl")
    assert in_two("-m", "tarq", *job, code=1).stderr.count("none.jsonl: no such file") == 1


def test_other_commands_refuse_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 2
    assert "doctor runs in one process" in " ".join(result.output.replace("│", " ").split())


#: ``tarq quantize`` that both processes stop in the first block of the decoder, as a scheduler does.
STOPS = """
from tarq.terminal.cli import main
from tarq.terminal.stopping import Terminated
from tarq.walk.records import LayerRecords

def quantized(self, stage, *others):
    if stage == "decoder":
        raise Terminated
    original(self, stage, *others)

original, LayerRecords.quantized = LayerRecords.quantized, quantized
main()
"""


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on(model_folder, manifest, tmp_path, in_two):
    """The first process keeps the blocks and tells the other; another number of processes is another run."""
    job = ["--calibration", manifest, "--batch-size", 2, "--samples", 7, "--group-size", 32, "--solver", "kronecker"]
    (tmp_path / "stops.py").write_text(STOPS)
    in_two("-m", "tarq", "quantize", model_folder, tmp_path / "whole", *job)
    out, left = tmp_path / "out", tmp_path / "out.unfinished"
    stopped = in_two(tmp_path / "stops.py", "quantize", model_folder, out, *job, code=1)  # torchrun's own
    assert stopped.stderr.count(f"2 of 4 blocks are finished and kept in {left}") == 1
    assert stopped.stderr.count("go on with: torchrun … -m tarq quantize") == 1
    alone = CliRunner().invoke(app, ["quantize", str(model_folder), str(out), *map(str, job), "--resume"])
    assert "processes was 2, is 1" in " ".join(alone.output.split())
    done = in_two("-m", "tarq", "quantize", model_folder, out, *job, "--resume")
    assert "through 2 finished blocks" in done.stderr
    assert not left.exists()
    for file in ("model.safetensors", "config.json"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    one, other = (json.loads((folder / "tarq_report.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert one["layers"] == other["layers"]
