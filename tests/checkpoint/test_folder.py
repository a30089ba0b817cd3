"""A checkpoint's folder: what may be replaced, and that it is at every moment the old one or the new one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from tarq.checkpoint import folder
from tarq.checkpoint.folder import check_place, check_writable, replacing
from tarq.errors import CheckpointError, OutputError

PACKED = {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}


def checkpoint(path, mark="old"):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(PACKED))
    (path / "model.safetensors").write_text(mark)
    return path


def test_a_checkpoint_is_replaced_only_when_asked(tmp_path):
    out = checkpoint(tmp_path / "out")
    with pytest.raises(CheckpointError, match="--overwrite"):
        check_writable(out, False)
    check_writable(out, True)
    (tmp_path / "empty").mkdir()
    check_writable(tmp_path / "empty", True)
    check_writable(tmp_path / "new" / "deep", False)


@pytest.mark.parametrize("name", ["precious.txt", "model.bin", "audio/", "notes.md", "train.py", "manifest.jsonl"])
def test_a_folder_that_holds_anything_else_is_never_replaced(tmp_path, name):
    out = checkpoint(tmp_path / "out")
    (out / name).mkdir() if name.endswith("/") else (out / name).touch()
    with pytest.raises(CheckpointError, match=name.rstrip("/")):
        check_writable(out, True)


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tmp_path):
    plain = tmp_path / "full-precision"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    (plain / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="not a tarq checkpoint"):
        check_writable(plain, True)
    (plain / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match="not a tarq checkpoint"):
        check_writable(plain, True)


def test_the_current_folder_and_those_around_it_are_never_replaced(tmp_path, monkeypatch):
    out = checkpoint(tmp_path / "out")
    monkeypatch.chdir(out)
    for path in (".", out, out / ".." / "out"):
        with pytest.raises(CheckpointError, match="current"):
            check_writable(folder.Path(path), True)


def test_the_model_is_never_written_into(tmp_path):
    model = checkpoint(tmp_path / "models" / "model")
    (tmp_path / "link").symlink_to(model)
    for out, how in ((model, "is"), (tmp_path / "link", "is"), (model.parent, "contains"), (model / "out", "lies in")):
        for given in (model, str(model), tmp_path / "link"):
            with pytest.raises(CheckpointError, match=f"{how} the model's own folder"):
                check_writable(out, True, given)
    check_writable(tmp_path / "models" / "model-w4", False, model)


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        check_writable(tmp_path / "file", True)
    with pytest.raises(CheckpointError, match="is a file"):
        check_writable(tmp_path / "file" / "out", False)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="does not exist: remove the link"):
        check_writable(tmp_path / "dangling", True)
    monkeypatch.setattr(folder.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(CheckpointError, match="no permission"):
        check_writable(tmp_path / "out", False)


def test_a_name_that_safetensors_cannot_take_is_told_before_the_work(tmp_path):
    with pytest.raises(OutputError, match="LC_ALL"):
        check_place(tmp_path / "\udcc3\udcb65")
    check_place(tmp_path / "ö5")


@pytest.mark.parametrize("in_one_step", [True, False])
def test_old_and_new_change_places(tmp_path, monkeypatch, in_one_step):
    if not in_one_step:
        monkeypatch.setattr(folder, "_exchanged", lambda *_: False)
    out = checkpoint(tmp_path / "out")
    with replacing(out) as new:
        (new / "model.safetensors").write_text("new")
        assert (out / "model.safetensors").read_text() == "old"
    assert (out / "model.safetensors").read_text() == "new"
    assert not (out / "config.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_linux_exchanges_in_one_step(tmp_path):
    one, two = checkpoint(tmp_path / "one", "1"), checkpoint(tmp_path / "two", "2")
    assert folder._exchanged(one, two)
    assert [(p / "model.safetensors").read_text() for p in (one, two)] == ["2", "1"]
    assert not folder._exchanged(one, tmp_path / "nowhere")


PROGRAM = """
import os, signal, sys
from pathlib import Path
from tarq.checkpoint import folder
out = Path(sys.argv[1])
if sys.argv[2] == "between":
    folder._exchanged = lambda *_: False
    rename = Path.rename
    def stop(self, target):
        if self.name == "new":
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)
    Path.rename = stop
with folder.replacing(out) as new:
    (new / "model.safetensors").write_text("new")
    if sys.argv[2] != "between":
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


def killed(out, how):
    command = [sys.executable, "-P", "-c", textwrap.dedent(PROGRAM), str(out), how]
    return subprocess.run(command, check=False, capture_output=True, text=True).returncode


def test_a_sigterm_leaves_nothing(tmp_path):
    out = checkpoint(tmp_path / "out[1]")
    assert killed(out, "SIGTERM") == 128 + signal.SIGTERM
    assert [p.name for p in tmp_path.iterdir()] == ["out[1]"]
    assert (out / "model.safetensors").read_text() == "old"


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    out = checkpoint(tmp_path / "out")
    assert killed(out, "SIGKILL") == -signal.SIGKILL
    (left,) = (p for p in tmp_path.iterdir() if p.name != "out")
    other = left.with_name(left.name.replace(left.name.split(".")[-3], str(os.getpid())))
    shutil.copytree(left, other)  # of a process that lives
    with replacing(out) as new:
        (new / "model.safetensors").write_text("newer")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([other.name, "out"])
    assert (out / "model.safetensors").read_text() == "newer"


def test_a_checkpoint_lost_between_two_renames_is_named_and_put_back(tmp_path):
    from tarq.checkpoint.source import locate
    from tarq.errors import ModelError

    out = checkpoint(tmp_path / "out")
    assert killed(out, "between") == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(ModelError, match=r"killed.*\.partial/old: rename that to"):
        locate(out)
    with pytest.raises(ZeroDivisionError), replacing(out):
        raise ZeroDivisionError
    assert (out / "model.safetensors").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_files_are_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def record(handle):
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), (tmp_path / "out").exists()))
        fsync(handle)

    monkeypatch.setattr("tarq.checkpoint.folder.os.fsync", record)
    with replacing(tmp_path / "out") as new:
        (new / "model.safetensors").write_text("new")
    early = [place for place, there in synced if not there]
    assert any(place.endswith("new/model.safetensors") for place in early)
    assert any(place.endswith("/new") for place in early)
    assert synced[-1] == (str(tmp_path), True)
