"""What a terminal shows: printing that never fails, progress at 80 columns, lines where there is none, tables."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import requires
from types import SimpleNamespace

import pytest
import typer
from packaging.requirements import Requirement
from rich.console import Console
from typer.testing import CliRunner

from tarq.data.audio import Encoded
from tarq.errors import DataError
from tarq.report import LayerReport, Report, counted
from tarq.scoring.run import ModelScores, SetScores
from tarq.terminal import cli, console, doctor, progress, tables
from tarq.terminal import scores as scores_screen
from tarq.terminal.cli import app

runner = CliRunner()


def screen(width: int = 80, terminal: bool = True, encoding: str = "utf-8") -> tuple[Console, io.StringIO]:
    shown = io.StringIO()
    return Console(file=shown, force_terminal=terminal, width=width, color_system=None, _environ={}), shown


def report() -> Report:
    layers = [
        LayerReport(
            f"model.encoder.layers.{i}.encoder_attn.{name}", "encoder", (5120, 20480), 4, 128, lam=12.34, alpha=0.87,
            loss=0.00123, notes=["group size 64: 128 does not divide 1024 inputs"] * (i == 31),
        )
        for i in (30, 31)
        for name in ("k_proj", "out_proj")
    ]  # fmt: skip
    layers.append(LayerReport("model.decoder.layers.0.fc1", "decoder", (64, 32), skipped="ignored by configuration"))
    return Report(layers=layers, sizes={"linear_bytes_before": 100, "linear_bytes_after": 25})


def test_layers_keep_their_names_at_80_columns():
    to, shown = screen()
    tables.show_report(to, report(), layers=True)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = shown.getvalue()
    assert "encoder: model.encoder.layers.…" in text  # what all share is said once …
    for name in ("30.encoder_attn.k_proj", "31.encoder_attn.out_proj"):
        assert name in text  # … and nothing else is cut
    assert "1: group size 64" in text
    assert "25.0% of before" in text


def test_sizes_and_counts_read_as_one_says_them():
    sizes = {450: "0.5 kB", 99_900: "99.9 kB", 100_000: "0.10 MB", 22_880_000: "22.88 MB"}
    assert {size: tables.size_text(size) for size in sizes} == sizes
    assert [counted(n, "word") for n in (0, 1, 2)] == ["0 words", "1 word", "2 words"]
    to, shown = screen(width=200)
    one = Report(layers=report().layers[:1], sizes={"linear_bytes_before": 1000, "linear_bytes_after": 250})
    one.calibration = {
        "utterances": 1, "seconds": 6.0, "rare_word_share": 0.0, "positions": {}, "transcript_style": "cased",
        "self_transcribed": 0,
    }  # fmt: skip
    tables.show_report(to, one, layers=False)
    assert shown.getvalue().startswith("1 layer quantized, ")
    assert "Linear weights 1.0 kB → 0.2 kB (25.0% of before)" in shown.getvalue()
    assert "calibrated on 1 utterance, " in shown.getvalue()
    to, shown = screen(width=200)
    scores = SetScores(1, "en", "basic", {}, words=1, rare_words=1, models={"m": ModelScores()})
    scores_screen.show_set(to, "s", scores, {})
    assert "s: 1 utterance, 1 word, 1 rare" in " ".join(shown.getvalue().split())


def test_names_share_whole_parts_only():
    assert tables.shared_prefix(["a.b.c", "a.b.d"]) == "a.b."
    assert tables.shared_prefix(["a.bc.x", "a.bd.x"]) == "a."
    assert tables.shared_prefix(["fc1"]) == ""


def test_progress_keeps_bar_count_and_time_at_80_columns(monkeypatch):
    """However long a layer's or a model's name is, it is what gives way."""
    monkeypatch.setattr(progress, "remaining", lambda *_: 185.0)
    to, shown = screen()
    with progress.TerminalReporter(to) as reporter:
        reporter.phase("loading /a/very/long/path/to/some/folder/of/models/whisper-large-v3-turbo")
        reporter.start(64)
        for i in range(40):
            reporter.layer(LayerReport(f"model.decoder.layers.{i}.encoder_attn.out_proj", "decoder", (1, 1), loss=1e-3))
        reporter.progress.refresh()
        frames = to.render_lines(reporter.progress.get_renderable())
    lines = ["".join(segment.text for segment in line) for line in frames]
    assert len(lines) == 1  # nothing wraps
    assert "quantizing" in lines[0]
    assert "40/64" in lines[0]
    assert "3:05 left" in lines[0]
    assert len(lines[0]) <= 80
    assert "whisper-large-v3-turbo" in shown.getvalue()


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    to, shown = screen(terminal=False)
    with progress.TerminalReporter(to) as reporter:
        reporter.start(64)
        assert shown.getvalue() == "quantizing\n"  # at once
        for _ in range(8):
            now[0] += 5.0
            reporter.layer(LayerReport("a", "decoder", (1, 1)))
    said = shown.getvalue().splitlines()
    assert said == [
        "quantizing",
        "quantizing: 4 of 64, 20 s, about 5:00 left",
        "quantizing: 8 of 64, 40 s, about 4:40 left",
    ]


def test_the_last_step_leaves_no_time(monkeypatch):
    """Nor does what takes less than can be told."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    to, shown = screen(terminal=False)
    with progress.TerminalReporter(to) as reporter:
        reporter.phase("reading", 100)
        for steps in (99, 1):
            now[0] += 25.0
            reporter.advance(steps)
    assert shown.getvalue().splitlines()[1:] == ["reading: 99 of 100, 25 s", "reading: 100 of 100, 50 s"]
    assert progress.remaining(9, 10, 9.0) == 1.0
    assert progress.remaining(0, 10, 9.0) is progress.remaining(5, None, 9.0) is None


def test_durations_and_names_are_short():
    assert [progress.duration(s) for s in (3, 185, 7385)] == ["3 s", "3:05", "2:03:05"]
    assert progress.shortened("loading /a/b/c/d/e/f/whisper-tiny", 26) == "loading …/f/whisper-tiny"[:8] + (
        "…" + "/a/b/c/d/e/f/whisper-tiny"[-17:]
    )
    assert progress.shortened("short", 26) == "short"


def test_a_command_can_be_pasted():
    words = ["tarq", "evaluate", "my model", "--data", "a'b; c"]
    assert shlex.split(console.command(*words[:3], None, *words[3:])) == words


class Full(io.TextIOWrapper):
    """A stream on a full disk, or a pipe nobody reads."""

    def __init__(self, error: OSError) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", errors="tarq-plain")
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "lost"), [(BrokenPipeError(32, "Broken pipe"), ""), (OSError(28, "No space left on device"), "No space")]
)
def test_printing_never_fails(error, lost, monkeypatch):
    monkeypatch.setattr(console.os, "dup2", lambda *_: None)
    stream = Full(error)
    monkeypatch.setattr(stream, "fileno", lambda: 1, raising=False)
    safe = console.SafeStream(stream)
    Console(file=safe).print("λ → 4")
    safe.flush()
    assert safe.lost.startswith(lost)
    assert bool(safe.lost) == bool(lost)


def test_a_terminal_that_is_not_utf8_gets_words():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="tarq-plain")
    stream.write("λ → 0.25 × Δ 日")
    stream.flush()
    assert raw.getvalue() == b"lambda -> 0.25 x delta  ?"


def test_output_survives_ascii_and_a_closed_pipe(tmp_path):
    """As a shell does it: ``tarq inspect X --json FILE | head -1``, in the C locale."""
    from dataclasses import asdict

    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "tarq_report.json").write_text(json.dumps(asdict(report())))
    own = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-P", "-m", "tarq", "inspect", str(folder), "--json", str(tmp_path / "x.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=own)
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert process.stderr.read() == b""
    assert len(json.loads((tmp_path / "x.json").read_text())["layers"]) == 5
    done = subprocess.run(command, capture_output=True, env=own, check=True, timeout=120)
    assert b"lambda" in done.stdout
    done.stdout.decode("ascii")


def failing(error: BaseException) -> typer.Typer:
    program = typer.Typer(cls=cli.ErrorReportingGroup)

    @program.callback()
    def root() -> None:
        """Nothing."""

    @program.command()
    def work() -> None:
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("a.wav: broken"), 1, "DataError: a.wav: broken"),
        (ValueError("odd\nlines"), 1, "ValueError: odd lines (unexpected; tarq --debug COMMAND shows where)"),
        (MemoryError(), 1, "--batch-size"),
        (KeyboardInterrupt(), 130, "stopped: by Ctrl-C"),
    ],
)
def test_an_error_is_one_line_and_a_code(error, code, said, monkeypatch):
    monkeypatch.delenv("TARQ_DEBUG", raising=False)
    result = runner.invoke(failing(error), ["work"])
    assert result.exit_code == code
    assert said in result.output
    assert len(result.output.splitlines()) == 1


def test_debug_shows_where_an_error_is_from(monkeypatch):
    monkeypatch.setenv("TARQ_DEBUG", "1")
    result = runner.invoke(failing(ValueError("odd")), ["work"])
    assert "Traceback" in result.output
    assert "raise error" in result.output
    monkeypatch.setenv("TARQ_DEBUG", "0")
    assert "Traceback" not in runner.invoke(failing(ValueError("odd")), ["work"]).output


def transcribed(monkeypatch, arguments: list[str], results: list, **settings):
    """``tarq transcribe`` with a model that gives these results."""
    from tarq import api

    seen = []
    monkeypatch.setattr(api, "load_recognizer", lambda *_, **__: None)

    def transcripts(recognizer, files, **_):
        seen.extend(files)
        yield from ((file, result) for file, result in zip(files, results, strict=True))

    monkeypatch.setattr(api, "iter_transcripts", transcripts)
    return runner.invoke(app, ["transcribe", "model", *arguments], **settings), seen


def test_one_bad_file_does_not_void_the_others(monkeypatch, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.wav", "sub/c.m4a", "a.flac", "notes.txt"):
        (tmp_path / name).touch()
    results = ["one", DataError("b.wav: broken"), "three", "four"]
    out = tmp_path / "x.json"
    result, seen = transcribed(monkeypatch, [str(tmp_path), "-", "--json", str(out)], results, input=b"RIFF")
    assert result.exit_code == 1
    *files, piped = seen
    assert [str(file.relative_to(tmp_path)) for file in files] == ["a.flac", "b.wav", "sub/c.m4a"]
    assert piped == Encoded("standard input", b"RIFF")
    assert result.stdout == f"{tmp_path}/a.flac\tone\n{tmp_path}/sub/c.m4a\tthree\n-\tfour\n"
    assert "b.wav: broken" in result.stderr
    assert "1 of 4 files could not be read" in result.stderr
    saved = json.loads(out.read_text())
    assert saved[1] == {"audio": f"{tmp_path}/b.wav", "error": "b.wav: broken"}
    assert saved[2]["text"] == "three"


def test_a_transcript_is_all_that_is_on_standard_output(monkeypatch, tmp_path):
    result, _ = transcribed(monkeypatch, [str(tmp_path / "a.wav")], ["hello"])
    assert (result.exit_code, result.stdout) == (0, "hello\n")


def test_an_empty_folder_is_reported(monkeypatch, tmp_path):
    result, _ = transcribed(monkeypatch, [str(tmp_path)], [])
    assert result.exit_code == 1
    assert "no audio in this folder" in result.stderr


def test_doctor_works_where_something_is_missing(monkeypatch, tmp_path):
    """A dependency that is not there is a line and exit code 1, not a traceback."""
    whole = doctor.importlib.import_module

    def without(name: str):
        if name in ("wordfreq", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == "jiwer":
            raise OSError("libfoo.so: cannot open shared object file")
        return whole(name)

    monkeypatch.setattr(doctor, "importlib", SimpleNamespace(import_module=without))
    result = runner.invoke(app, ["doctor", "--json", str(tmp_path / "x.json")])
    assert result.exit_code == 1
    found = {row["check"]: row for row in json.loads((tmp_path / "x.json").read_text())}
    assert found["wordfreq"]["state"] == found["torch"]["state"] == "missing"
    assert "pip install wordfreq" in found["wordfreq"]["detail"]
    assert "libfoo.so" in found["jiwer"]["detail"]
    assert found["transformers"]["ok"]


def test_names_are_shown_as_they_are(capsys):
    """``:x:`` is no emoji."""
    console.say_error("DataError", "hub:x: cannot be read [red]")
    assert "error DataError: hub:x: cannot be read [red]" in capsys.readouterr().err
    for known in (console.console, console.progress_console):
        with known.capture() as shown:
            known.print("a:smile:b")
        assert shown.get() == "a:smile:b\n"


@pytest.mark.parametrize(
    ("words", "names"),
    [(("evaluate", "m", "--data", "d"), ("--json", "--html")), (("pool", "d"), ("--json", "--out"))],
)
def test_two_results_are_not_written_to_one_file(tmp_path, words, names):
    file = tmp_path / "file"
    for second in (file, tmp_path / "." / "sub" / ".." / "file"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        result = runner.invoke(app, [*words, names[0], str(file), names[1], str(second)])
        assert result.exit_code == 2
        assert f"is what {names[0]} writes to" in " ".join(result.output.replace("│", " ").split())
    result = runner.invoke(app, [*words, names[0], "/dev/null", names[1], "/dev/null"])
    assert "is what" not in result.output


@pytest.mark.parametrize("there", [(), ("ffmpeg",), ("torchcodec",), ("ffmpeg", "torchcodec")])
def test_doctor_wants_one_reader_of_other_audio_formats(monkeypatch, there):
    def package(name, *_):
        return doctor.Check(name, "ok" if name in there else "absent", "of either kind")

    monkeypatch.setattr(doctor, "_package", package)
    monkeypatch.setattr(doctor, "_ffmpeg", lambda: package("ffmpeg"))
    found = {check.name: check for check in doctor._other_audio_formats()}
    assert found.keys() == {"ffmpeg", "torchcodec"}
    assert {check.ok for check in found.values()} == {bool(there)}
    for name in found.keys() - set(there):
        assert not there or found[name].detail == f"optional, and not needed: {there[0]} reads m4a, mp4 and webm audio"


def test_doctor_calls_a_reference_slow(monkeypatch):
    from tarq.kernels import dispatch

    monkeypatch.setattr(dispatch, "has_native", lambda name, device: False)
    found = {check.name: check for check in doctor.checks()}
    for name in ("gram", "group_quantize", "group_refine", "w4_linear"):
        assert found[f"{name} on the CPU"].state == "slow"
        assert not found[f"{name} on the CPU"].ok
    assert "reference" in found["gram on the CPU"].detail
    assert "reference" in found["w4_linear on the CPU"].detail
    to, shown = screen()
    tables.show_checks(to, list(found.values()))
    assert shown.getvalue().count("slow") >= 3


def test_doctor_calls_an_old_version_what_it_is(monkeypatch):
    """What is installed but too old does not run: it is no "ok"."""
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: {"torch": "2.3.1", "datasets": "3.9"}.get(name) or real(name))
    found = {check.name: check for check in doctor.checks()}
    assert found["torch"].state == "missing"
    # A build with the extension asks for the torch it was built with.
    (needed,) = (str(r.specifier) for r in map(Requirement, requires("tarq")) if r.name == "torch")
    assert found["torch"].detail == f"2.3.1 is installed, tarq needs {needed}: pip install 'torch{needed}'"
    assert found["datasets"].state == "absent"
    assert found["numpy"].ok
    assert {"typer", "rich"} <= set(found)


def test_doctor_calls_a_forced_reference_slow(monkeypatch):
    monkeypatch.setenv("TARQ_BACKEND", "reference")
    found = {check.name: check for check in doctor.checks()}
    assert found["environment"].detail.startswith("TARQ_BACKEND=reference")
    for name in ("gram", "group_quantize", "group_refine", "w4_linear"):
        assert found[f"{name} on the CPU"].state == "slow", name
    monkeypatch.setenv("TARQ_BACKEND", "fast")
    found = {check.name: check for check in doctor.checks()}
    assert found["operators"].state == "missing"
    assert "TARQ_BACKEND=fast" in found["operators"].detail


def test_doctor_looks_at_the_operator_that_a_walk_calls(monkeypatch):
    from tarq.kernels import dispatch

    whole = dispatch.has_native
    monkeypatch.setattr(dispatch, "has_native", lambda name, device: name != "gram_split" and whole(name, device))
    assert {c.name: c for c in doctor.checks()}["gram on the CPU"].state == "slow"
