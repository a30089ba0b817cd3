"""The folder of an unfinished run: parts come back as they were, or are made again; nothing else is touched."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tarq.checkpoint import unfinished
from tarq.checkpoint.folder import CHECKSUMS
from tarq.checkpoint.unfinished import Part, UnfinishedRun, check_unfinished, discard, progress
from tarq.errors import OutputError, ResumeError
from tarq.report import Reporter

IDENTITY = {"setting": {"bits": 4, "seed": 0}, "weights": "0" * 64}
NAMES = ("scales", "0000-a.b", "0001-a.c", "0002-a.d")


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Stop(Exception):
    """Ends a run."""


def part_of(i):
    torch.manual_seed(i)
    tensors = {
        "codes": torch.randint(-(2**31), 2**31, (3, 5), dtype=torch.int32),
        "scales": torch.randn(3, 2).to(torch.bfloat16),
        "columns": torch.randn(4, 6).T,  # not contiguous
        "bias": torch.tensor([float("nan"), -0.0, 1e-40]),
    }
    return Part(tensors, {"losses": [0.1 * i, 1 / 3, float("nan")], "name": "λ"})


def work(folder, count=len(NAMES), reporter=None, stop=True, **identity):
    """A run that makes the parts it does not find, up to a number of them; which ones it made."""
    run, made = UnfinishedRun(reporter), []
    with run.kept_in(folder, IDENTITY | identity, 3):
        for i, name in enumerate(NAMES[:count]):

            def make(i=i):
                made.append(i)
                return part_of(i)

            same(run.once(name, make), part_of(i))
        if stop and count < len(NAMES):
            raise Stop
    return made


def same(one, other):
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.dtype == other.tensors[name].dtype
        assert torch.equal(tensor.contiguous().view(torch.uint8), other.tensors[name].contiguous().view(torch.uint8))
    assert repr({**one.record, "seconds": 0}) == repr({**other.record, "seconds": 0})


def stopped(folder, count):
    with pytest.raises(Stop) as error:
        work(folder, count)
    return error.value


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_come_back_as_they_were(tmp_path, count):
    folder = tmp_path / "new" / "run"
    error = stopped(folder, count)
    assert error.__notes__ == [
        f"{count - 1} of 3 blocks are finished and kept in {folder}: the same call goes on from there"
    ]
    assert progress(folder) == (count - 1, 3, True)
    assert work(folder) == list(range(count, len(NAMES)))
    assert work(folder) == []
    discard(folder)
    assert not folder.exists()


def test_a_run_with_nothing_finished_leaves_nothing(tmp_path):
    assert not hasattr(stopped(tmp_path / "a" / "b", 0), "__notes__")
    assert list(tmp_path.iterdir()) == []
    assert progress(tmp_path / "a") is None
    check_unfinished(tmp_path / "a", "tarq --resume")


def test_without_a_folder_nothing_is_kept():
    run = UnfinishedRun()
    assert run.take("a") is None
    same(run.once("a", lambda: part_of(0)), part_of(0))
    assert not run.keeps


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ({"setting": {"bits": 3, "seed": 0}}, "setting bits was 4, is 3"),
        ({"setting": {"bits": 4}}, "setting seed is gone"),
        ({"setting": {"bits": 4, "seed": 0, "c": 1}}, "setting c is new"),
        ({"weights": "1" * 64}, "weights differs"),
        ({"setting": {"a": 1, "b": 2, "c": 3}}, "and 1 more"),
    ],
)
def test_another_run_is_refused_and_left_alone(tmp_path, identity, said):
    stopped(tmp_path / "run", 2)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(ResumeError, match=f"{said}.*Run it as it was to go on, or start over: delete"):
        work(tmp_path / "run", **identity)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    assert work(tmp_path / "run") == [2, 3]


def flip(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


DAMAGES = {
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "emptied": lambda data, rng: b"",
    "lengthened": lambda data, rng: data + b"\0",
    "flipped": flip,
    "of another part": lambda data, rng: None,
    "gone": lambda data, rng: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", range(4))
def test_a_damaged_part_and_all_after_it_are_made_again(tmp_path, damage, which):
    folder, rng = tmp_path / "run", random.Random(which)
    for _ in range(5):
        work(folder, stop=False)
        file = folder / f"{NAMES[which]}.safetensors"
        if damage == "gone":
            file.unlink()
        elif damage == "of another part":
            shutil.copy(folder / f"{NAMES[which - 1]}.safetensors", file)
        else:
            file.write_bytes(DAMAGES[damage](file.read_bytes(), rng))
        notes = Notes()
        assert work(folder, reporter=notes) == list(range(which, 4))
        (note,) = notes.notes
        assert str(file) in note
        assert ("is missing" if damage == "gone" else "is damaged") in note
        assert work(folder) == []


@pytest.mark.parametrize("seed", range(40))
def test_flips_in_the_list_of_checksums_are_noticed(tmp_path, seed):
    """It says that the list is damaged, or makes again what the list no longer vouches for, and says so."""
    folder, notes = tmp_path / "run", Notes()
    work(folder)
    (folder / CHECKSUMS).write_bytes(flip((folder / CHECKSUMS).read_bytes(), random.Random(seed)))
    try:
        made = work(folder, reporter=notes)
    except ResumeError as error:
        assert "delete" in str(error)  # noqa: PT017
        return
    assert made
    assert len(notes.notes) == 1
    assert work(folder) == []


def test_a_damaged_run_is_no_other_run(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 2)
    whole = (folder / "run.json").read_bytes()
    for damaged in (whole[:-9], b"", whole.replace(b"4", b"5")):
        (folder / "run.json").write_bytes(damaged)
        with pytest.raises(ResumeError, match=r"run\.json is damaged .*delete"):
            work(folder)
    (folder / "run.json").unlink()
    with pytest.raises(ResumeError, match=r"run\.json is damaged .*delete"):
        work(folder)
    (folder / CHECKSUMS).unlink()
    notes = Notes()
    assert work(folder, reporter=notes) == [0, 1, 2, 3]
    (note,) = notes.notes
    assert "SHA256SUMS is missing" in note


def test_what_is_there_is_not_thrown_away(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 3)
    with pytest.raises(
        ResumeError, match=r"run holds 2 of 3 blocks .*: tarq x --resume goes on .*start over, delete it"
    ):
        check_unfinished(folder, "tarq x --resume")
    check_unfinished(folder, None)
    (folder / "run.json").write_text("{")
    with pytest.raises(ResumeError, match="run holds blocks of a run"):
        check_unfinished(folder, "tarq x --resume")


def test_folders_that_hold_something_else_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"mine holds notes.txt"):
        work(tmp_path / "mine")
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match="cannot be made: it is a file"):
            work(place)
    discard(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named_at_once(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(unfinished.Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="run, which keeps finished blocks, cannot be made: Permission denied"):
        work(tmp_path / "run")


@pytest.mark.parametrize("name", ["run.json", CHECKSUMS])
def test_a_disk_that_is_full_already_ends_it_at_once(tmp_path, monkeypatch, name):
    write = unfinished.write_whole

    def write_or_not(path, content):
        if path.name == name:
            raise OutputError(f"could not write {path}: No space left on device; name another place")
        write(path, content)

    monkeypatch.setattr(unfinished, "write_whole", write_or_not)
    with pytest.raises(OutputError, match=f"{name}: No space left on device"):
        work(tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_does_not_end_the_run(tmp_path, monkeypatch):
    """It says once that it is not kept from here; what was kept before can be gone on from."""
    write = unfinished.write_whole
    full = [False]

    def write_or_not(path, content):
        if full[0] and path.name != "run.json":
            raise OutputError(f"could not write {path}: No space left on device")
        write(path, content)

    monkeypatch.setattr(unfinished, "write_whole", write_or_not)
    notes, run, made = Notes(), None, []
    run = UnfinishedRun(notes)
    with run.kept_in(tmp_path / "run", IDENTITY, 3):
        for i, name in enumerate(NAMES):
            full[0] = i >= 2
            run.once(name, lambda i=i: made.append(i) or part_of(i))
    assert made == [0, 1, 2, 3]
    (note,) = notes.notes
    assert "No space left on device: the run goes on, but is not kept from here" in note
    assert "1 of 3 blocks" in note
    full[0] = False
    assert work(tmp_path / "run") == [2, 3]


def test_two_processes_do_not_share_a_folder(tmp_path):
    folder = tmp_path / "run"
    stopped(folder, 2)
    with UnfinishedRun().kept_in(folder, IDENTITY, 3):
        program = f"""
            from pathlib import Path
            from tarq.checkpoint.unfinished import check_unfinished
            check_unfinished(Path({str(folder)!r}), None)
        """
        command = [sys.executable, "-P", "-c", textwrap.dedent(program)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert "another process is at work there" in done.stderr
        with pytest.raises(ResumeError, match="another process is at work there"):
            work(folder)
    assert work(folder) == [2, 3]


#: A process that writes a first part, and is killed at a step of the others; once for each step.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_unfinished as tests

def stopping(then):
    def step(*arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return then(*arguments)
    return step

for number in range(1, tests.STEPS + 1):
    if os.fork() == 0:
        folder, left = Path(sys.argv[1], str(number)), number
        tests.work(folder, 1, stop=False)
        os.replace, os.fsync = stopping(os.replace), stopping(os.fsync)
        tests.work(folder)
        os._exit(0)
    assert os.wait()[1] == signal.SIGKILL
"""
#: Two parts, of a file and the list each, of which each is synced, renamed, and synced with its folder.
STEPS = 12


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    command = [sys.executable, "-P", "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    subprocess.run(command, check=True)
    found = []
    for number in range(1, STEPS + 1):
        folder = tmp_path / str(number)
        found.append(work(folder))
        names = ["run.json", *(f"{name}.safetensors" for name in NAMES)]
        assert sorted(file.name for file in folder.iterdir()) == sorted([CHECKSUMS, *names])
        assert [line.split("  ")[1] for line in (folder / CHECKSUMS).read_text().splitlines()] == names
    assert found == [[1, 2, 3]] * 5 + [[2, 3]] * 6 + [[3]]
