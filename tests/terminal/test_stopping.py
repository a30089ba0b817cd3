"""``tarq quantize`` killed, interrupted and terminated at any instant, and gone on with."""

from __future__ import annotations

import itertools
import json
import os
import random
import shlex
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tarq import api
from tarq.errors import CheckpointError
from tarq.terminal.cli import app
from tarq.terminal.stopping import unfinished_beside

OPTIONS = ("--group-size", "32", "--samples", "5", "--batch-size", "2")
runner = CliRunner()


#: Starts ``tarq`` in processes forked from this one, which has imported everything and computed nothing.
PROGRAM = """
import os
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
import tarq.api, tarq.terminal.tables
from transformers.models.whisper import feature_extraction_whisper, modeling_whisper
from tarq.terminal.cli import main

def answer(arguments=None, said=None, process=0):
    if process:
        ended, status = os.waitpid(process, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None
    process = os.fork()
    if process:
        return process
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["tarq", *arguments]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code or 0)
"""


@pytest.fixture(scope="module")
def server(answering):
    with answering(PROGRAM, OMP_NUM_THREADS="1") as ask:
        yield ask


class Process:
    """A ``tarq`` that runs beside the test."""

    def __init__(self, ask, arguments, said):
        self.ask, self.said, self.code = ask, said, None
        self.id = ask(arguments=[str(each) for each in arguments], said=str(said))

    def running(self):
        if self.code is None:
            self.code = self.ask(process=self.id)
        return self.code is None

    def wait(self, seconds=300.0):
        """Whether it has ended by then."""
        end = time.monotonic() + seconds
        while self.running() and time.monotonic() < end:
            time.sleep(0.002)
        return self.code is not None

    def signal(self, number):
        if self.running():
            os.kill(self.id, number)


@pytest.fixture(scope="module")
def whole(server, model_folder, manifest, tmp_path_factory):
    """What a run that is not stopped writes, and how long it takes once all is imported."""
    folder, seconds = tmp_path_factory.mktemp("whole"), []
    for out in ("first", "second", "out"):
        began = time.monotonic()
        job = ["quantize", model_folder, folder / out, "--calibration", manifest, *OPTIONS]
        assert Process(server, job, folder / "said").wait()
        seconds.append(time.monotonic() - began)
    return written(folder / "out"), min(seconds)


@pytest.fixture
def start(server, model_folder, manifest, tmp_path):
    """Start ``tarq quantize`` to a folder, with further arguments; its output goes to a file."""
    numbers = itertools.count()

    def started(out, *arguments):
        job = ["quantize", model_folder, out, "--calibration", manifest, *OPTIONS, *arguments]
        (tmp_path / "said").mkdir(exist_ok=True)
        return Process(server, job, tmp_path / "said" / str(next(numbers)))

    return started


@pytest.fixture
def finish(start):
    """Run it to its end; what it said."""

    def finished(out, *arguments, code=0):
        process = start(out, *arguments)
        assert process.wait()
        assert process.code == code, process.said.read_text()
        return " ".join(process.said.read_text().split())

    return finished


def written(out):
    """Name to contents of a checkpoint's files; of the report all that does not depend on the clock."""
    files = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    report = json.loads(files.pop("tarq_report.json"))
    assert report.pop("seconds") >= 0
    del report["memory"]
    return files, report


def blocks(folder):
    try:
        return sum(line.split("  ")[1][0].isdigit() for line in (folder / "SHA256SUMS").read_text().splitlines()[1:])
    except FileNotFoundError:
        return 0


def wait_for(folder, process, count):
    while process.running() and blocks(folder) < count:
        time.sleep(0.002)
    assert process.running()


def test_a_run_killed_at_random_instants_ends_the_same(start, finish, tmp_path, whole):
    """At any, and soon after a block was finished, by turns."""
    expected, seconds = whole
    out, left, instants, kept = tmp_path / "out", tmp_path / "out.unfinished", random.Random(0), []
    for i in range(6):
        process = start(out, "--resume")
        if i % 2:
            while process.running() and blocks(left) <= kept[-1]:
                time.sleep(0.001)
        process.wait(seconds * instants.uniform(0, 0.1 if i % 2 else 0.4))
        process.signal(signal.SIGKILL)
        assert process.wait()
        if out.exists():  # it may have been killed after that
            break
        assert process.code == -signal.SIGKILL, process.said.read_text()
        kept.append(blocks(left))
    if not out.exists():
        finish(out, "--resume")
        assert not left.exists()
    assert len(kept) > 1
    assert kept == sorted(kept)
    assert kept[-1] > kept[0]
    assert written(out) == expected


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_a_run_to_go_on_with_and_says_how(by, start, finish, model_folder, tmp_path, whole):
    out, left = tmp_path / "a run's out", tmp_path / "a run's out.unfinished"
    process = start(out)
    wait_for(left, process, 1)
    process.signal(getattr(signal, by))
    assert process.wait()
    said = process.said.read_text()
    assert process.code == {"SIGINT": 130, "SIGTERM": 143}[by], said
    assert f"error stopped: by {'Ctrl-C' if by == 'SIGINT' else by}" in said
    assert f"{blocks(left)} of 4 blocks are finished and kept in {left}" in said
    (line,) = (line for line in said.splitlines() if line.startswith("note go on with: "))
    words = shlex.split(line.removeprefix("note go on with: "))
    assert words[:4] == ["tarq", "quantize", str(model_folder), str(out)]
    assert words[-1] == "--resume"
    assert not out.exists()
    # It is not thrown away by a run that does not say what is to become of it, nor taken for another one.
    refused = finish(out, code=1)
    assert f"ResumeError: {left} holds {blocks(left)} of 4 blocks of a run that was stopped: tarq quantize" in refused
    assert "another run: setting seed was 0, is 1" in finish(out, "--seed", 1, "--resume", code=1)
    assert f"through {blocks(left)} finished block" in finish(out, "--resume")
    assert written(out) == whole[0]
    assert not left.exists()


def test_two_runs_to_one_folder(start, finish, tmp_path):
    """The second is told that the first is at work, whatever it asks for, and the first goes on."""
    out = tmp_path / "out"
    process = start(out)
    wait_for(tmp_path / "out.unfinished", process, 1)
    process.signal(signal.SIGSTOP)
    try:
        for option in ((), ("--resume",)):
            said = finish(out, *option, code=1)
            assert "another process is at work there" in said
            assert "go on with" not in said
    finally:
        process.signal(signal.SIGCONT)
    assert process.wait()
    assert process.code == 0
    assert (out / "config.json").is_file()
    assert not (tmp_path / "out.unfinished").exists()


def test_a_run_that_could_not_be_written_goes_on(model_folder, manifest, tmp_path, monkeypatch):
    """All blocks are there: only the checkpoint is written again."""
    out = tmp_path / "out"
    job = ["quantize", str(model_folder), str(out), "--calibration", str(manifest), *OPTIONS]

    def full(*arguments, **named):
        raise CheckpointError(f"could not write {out}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(api, "save_checkpoint", full)
        result = runner.invoke(app, job)
    assert result.exit_code == 1
    assert "No space left on device" in result.output
    assert "go on with: tarq quantize" in result.output
    assert blocks(tmp_path / "out.unfinished") == 4
    result = runner.invoke(app, [*job, "--resume"])
    assert result.exit_code == 0
    assert "through 4 finished blocks" in result.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]


def test_resume_with_nothing_there_starts_and_says_so(model_folder, manifest, tmp_path):
    """So that a job that is started again and again may always ask for it."""
    job = ["quantize", str(model_folder), str(tmp_path / "out"), "--method", "rtn", "--group-size", "32", "--resume"]
    result = runner.invoke(app, job)
    assert result.exit_code == 0
    assert "out.unfinished is not there: the run starts from the beginning" in " ".join(result.output.split())
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_the_help_says_how_a_stopped_run_ends():
    said = " ".join(runner.invoke(app, ["--help"]).output.replace("│", " ").split())
    assert "130 stopped with Ctrl-C, 143 by SIGTERM (tarq quantize --resume then goes on)" in said


def test_a_wrong_run_leaves_nothing(model_folder, manifest, tmp_path):
    job = ["quantize", str(model_folder), str(tmp_path / "new" / "out"), "--calibration", str(manifest)]
    result = runner.invoke(app, [*job, "--group-size", "32", "--ignore", "nothing.of.this.name"])
    assert result.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_the_place_of_a_link_is_beside_what_it_points_to(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "out")
    assert unfinished_beside(tmp_path / "link") == tmp_path / "there" / "out.unfinished"
    assert unfinished_beside(Path("out")) == Path("out.unfinished")
