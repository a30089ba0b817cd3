"""Result files appear whole or not at all, and say where and why when they cannot."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from tarq.errors import OutputError
from tarq.files import check_file, to_json, write_json, write_whole


def test_a_file_is_written_with_ordinary_permissions(tmp_path):
    write_whole(tmp_path / "a.txt", "grüß\n")
    assert (tmp_path / "a.txt").read_bytes() == "grüß\n".encode()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_was_there_stays_until_the_new_text_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")
    path.chmod(0o640)

    def full(*_):
        assert path.read_text() == "old"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tarq.files.os.fsync", full)
    with pytest.raises(OutputError, match=r"a\.json: No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    monkeypatch.undo()
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tarq.files.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_and_a_pipe_written_to(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    check_file(tmp_path / "pipe")
    write_whole(tmp_path / "pipe", "through")
    reader.join()
    assert read == ["through"]


def test_numbers_that_json_lacks_become_null(tmp_path):
    value = {"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": (float("inf"), None, True, "NaN")}}
    write_json(tmp_path / "a.json", value)
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": None, "b": [1.5, None], "c": {"d": [None, None, True, "NaN"]}}
    assert to_json({"a": 1}, indent=None) == '{"a": 1}'


@pytest.mark.parametrize(
    ("place", "mend"),
    [("nowhere/a.json", "does not exist; create it"), ("file/a.json", "is a file"), ("folder", "name a file")],
)
def test_a_place_that_cannot_be_written_is_told_with_the_mend(tmp_path, place, mend):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for attempt in (check_file, lambda path: write_whole(path, "text")):
        with pytest.raises(OutputError, match=mend) as caught:
            attempt(tmp_path / place)
        assert str(tmp_path / place) in str(caught.value)


def test_a_place_that_can_be_written_passes_and_is_left_alone(tmp_path):
    check_file(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("old")
    check_file(tmp_path / "b.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.json"]
    assert (tmp_path / "b.json").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_device_is_told():
    with pytest.raises(OutputError, match="/dev/full: No space left"):
        write_whole(Path("/dev/full"), "text" * 10_000)
