"""``tarq transcribe`` as a user types it: what is named, what is printed as it comes, what is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tarq import api
from tarq.errors import DataError, ModelError
from tarq.models.types import Segment, Word
from tarq.speech.settings import Transcription
from tarq.speech.transcript import Transcript
from tarq.terminal.cli import app

runner = CliRunner()


def plain(text: str) -> str:
    """Without colours, boxes and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


HELLO = (Segment(0.0, 1.5, " Hello"), Segment(1.5, 3.0, " there & back. "))
SAID = "Hello there & back."


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A model that hears HELLO in every file, or an error in those called broken; what it was asked for."""
    seen = SimpleNamespace(files=[], how={}, loaded=0)

    def load(source, **how):
        seen.loaded += 1
        seen.how |= {"load": how}

    def timed(recognizer, files, *, on_segment=None, reporter=None, **how):
        seen.files, seen.how = list(files), seen.how | how
        for file in files:
            if "broken" in file.name:
                yield file, DataError(f"{file.name}: broken")
                continue
            for segment in HELLO:
                if on_segment:
                    on_segment(file, segment)
            words = tuple(Word(s.start, s.end, s.text.strip()) for s in HELLO) if how.get("words") else None
            kept = tuple(
                Segment(s.start, s.end, s.text.strip(), words and words[i : i + 1]) for i, s in enumerate(HELLO)
            )
            yield file, Transcript(SAID, kept, "en")

    def texts(*arguments, **how):
        for file, result in timed(*arguments, **how):
            yield file, result.text if isinstance(result, Transcript) else result

    monkeypatch.setattr(api, "load_recognizer", load)
    monkeypatch.setattr(api, "timed_transcripts", timed)
    monkeypatch.setattr(api, "iter_transcripts", texts)
    monkeypatch.chdir(tmp_path)
    return seen


def transcribe(*arguments: object, code: int = 0, **settings):
    result = runner.invoke(app, ["transcribe", "model", *map(str, arguments)], **settings)
    assert result.exit_code == code, result.output
    return result


def touch(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


SRT = "1\n00:00:00,000 --> 00:00:01,500\nHello\n\n2\n00:00:01,500 --> 00:00:03,000\nthere & back.\n\n"
CONTENT = {
    "text": f"{SAID}\n",
    "srt": SRT,
    "vtt": "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello\n\n00:00:01.500 --> 00:00:03.000\nthere &amp; back.\n\n",
    "tsv": "start\tend\ttext\n0\t1500\tHello\n1500\t3000\tthere & back.\n",
}


@pytest.mark.parametrize("kind", CONTENT)
def test_one_file_goes_to_standard_output_and_to_a_file_alike(asked, kind):
    touch("a.wav")
    assert transcribe("a.wav", "--format", kind).stdout == CONTENT[kind]
    suffix = "txt" if kind == "text" else kind
    result = transcribe("a.wav", "--format", kind, "--output", "new/folder")
    assert result.stdout == f"new/folder/a.{suffix}\n"
    assert Path(f"new/folder/a.{suffix}").read_text() == CONTENT[kind]


def test_json(asked):
    touch("a.wav")
    content = json.loads(transcribe("a.wav", "--format", "json", "--words").stdout)
    assert content["segments"][0] == {
        "start": 0.0, "end": 1.5, "text": "Hello", "words": [{"start": 0.0, "end": 1.5, "text": "Hello"}],
    }  # fmt: skip
    transcribe("a.wav", "--format", "json", "--output", "out")
    content = json.loads(Path("out/a.json").read_text())
    assert content["text"] == SAID
    assert content["language"] == "en"
    assert "words" not in content["segments"][0]
    transcribe("a.wav", "--words", "--json", "results.json")
    (result,) = json.loads(Path("results.json").read_text())
    assert result["audio"] == "a.wav"
    assert result["segments"][1]["words"][0]["start"] == 1.5


def test_text_is_printed_as_it_comes(asked, monkeypatch):
    """Piece by piece, so that a long recording shows what is known of it; the whole is one line."""
    from tarq.terminal import transcripts

    parts = []
    monkeypatch.setattr(transcripts, "say_part", parts.append)
    touch("a.wav", "b.wav")
    result = transcribe("a.wav")
    assert parts == ["Hello", " there & back."]
    assert result.stdout == "\n"
    parts.clear()
    transcribe("a.wav", "b.wav")
    assert parts == ["a.wav\tHello", " there & back.", "b.wav\tHello", " there & back."]
    parts.clear()
    transcribe("a.wav", "--format", "srt")
    assert "".join(parts) == SRT
    assert len(parts) == 2


def test_a_line_is_ended_where_the_model_fails(asked, monkeypatch):
    def failing(recognizer, files, on_segment, **_):
        on_segment(files[0], HELLO[0])
        raise ModelError("the model computes NaN")
        yield

    monkeypatch.setattr(api, "iter_transcripts", failing)
    touch("a.wav")
    result = transcribe("a.wav", code=1)
    assert result.stdout == "Hello\n"
    assert "NaN" in result.stderr


def test_results_are_written_before_they_are_printed(asked, monkeypatch):
    from tarq.terminal import transcripts

    monkeypatch.setattr(
        transcripts, "say_part", lambda _: pytest.fail("printed") if not Path("r.json").exists() else None
    )
    touch("a.wav")
    transcribe("a.wav", "--json", "r.json")
    assert json.loads(Path("r.json").read_text()) == [{"audio": "a.wav", "text": SAID}]


def test_progress_is_on_standard_error_only(asked):
    touch("a.wav")
    result = transcribe("a.wav")
    assert result.stdout == f"{SAID}\n"
    assert "loading model" in result.stderr


def test_files_folders_patterns_and_standard_input_each_once(asked):
    touch("x/b.wav", "x/sub/c.m4a", "x/notes.txt", "y/one.mp3", "y/two.mp3", "y/z/three.mp3", "odd[1].wav")
    Path("link.wav").symlink_to("x/b.wav")
    result = transcribe("y/*.mp3", "x", "x/b.wav", "y/**/*.mp3", "link.wav", "-", "-", "odd[1].wav", input=b"RIFF")
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [
        "y/one.mp3", "y/two.mp3", "x/b.wav", "x/sub/c.m4a", "y/z/three.mp3", "-", "odd[1].wav",
    ]  # fmt: skip
    assert asked.files[5].data == b"RIFF"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "https://host/talk.mp3",
            "https://host/talk.mp3 is an address, and nothing is downloaded here: fetch it first",
        ),
        ("gs://bucket/talk.mp3", "is an address"),
        ("nothing/*.mp3", "nothing/*.mp3: no file matches this pattern"),
        (".", "no audio in this folder"),
    ],
)
def test_what_cannot_be_named_is_refused_before_the_model_is_loaded(asked, name, said):
    assert said in plain(transcribe(name, code=1).stderr)
    assert not asked.loaded


def test_a_link_to_itself_is_one_more_broken_file(monkeypatch, tmp_path):
    """It is read, and reported, like any other."""
    from tarq.terminal.recordings import recordings

    monkeypatch.chdir(tmp_path)
    Path("loop.wav").symlink_to("loop.wav")
    touch("a.wav")
    assert [one.name for one in recordings(["loop.wav", "a.wav", "loop.wav"])] == ["loop.wav", "a.wav"]


def test_a_broken_file_has_no_output_and_the_exit_code_is_1(asked):
    touch("a.wav", "broken.wav", "c.wav")
    result = transcribe(".", "--format", "srt", "--output", "out", code=1)
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.srt", "c.srt"]
    assert "broken.wav: broken" in result.stderr
    assert "1 of 3 files could not be read" in result.stderr


def test_folders_keep_their_form(asked):
    touch("talks/mon/a.wav", "talks/tue/a.wav", "v1.2 final.wav")
    transcribe("talks", "v1.2 final.wav", "-", "--output", "out", "--format", "vtt", input=b"RIFF")
    found = sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.vtt"))
    assert found == ["mon/a.vtt", "stdin.vtt", "tue/a.vtt", "v1.2 final.vtt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x/a.wav", "y/a.wav"], "out/a.srt would be written for both x/a.wav and y/a.wav"),
        (["x/a.wav", "x/a.mp3"], "out/a.srt would be written for both x/a.wav and x/a.mp3"),
        (["x/old.wav"], "out/old.srt exists already: --overwrite replaces it"),
        (["x/old.wav", "x/older.wav"], "out/old.srt and 1 more exists already"),
        (["x/taken.wav", "--overwrite"], "is a folder; name a file"),
        (["x/a.wav", "--output", "x/a.wav"], "could not write"),
        (["x/a.wav", "--json", "out/a.srt"], "out/a.srt would be written for both --json and x/a.wav"),
        (["x/movie.srt", "--output", "x", "--overwrite"], "x/movie.srt is a recording itself: name another --output"),
        (["x/a.wav", "--output", "/proc/new"], "could not write"),
    ],
)
def test_what_cannot_be_written_is_told_before_any_work(asked, arguments, said):
    touch("x/a.wav", "y/a.wav", "x/a.mp3", "x/old.wav", "x/older.wav", "x/taken.wav", "x/movie.srt")
    touch("out/old.srt", "out/older.srt", "out/taken.srt/file")
    Path("x/movie.srt").write_text("a recording")
    before = sorted(str(path) for path in Path().rglob("*"))
    options = ["--format", "srt", *([] if "--output" in arguments else ["--output", "out"])]
    assert said in plain(transcribe(*arguments, *options, code=1).stderr)
    assert not asked.loaded
    assert sorted(str(path) for path in Path().rglob("*")) == before
    assert Path("x/movie.srt").read_text() == "a recording"


def test_overwrite_replaces_files(asked):
    touch("a.wav", "out/a.srt")
    transcribe("a.wav", "--format", "srt", "--output", "out", "--overwrite")
    assert Path("out/a.srt").read_text() == SRT


@pytest.mark.parametrize(
    ("options", "named", "said"),
    [
        (["--words"], "--words", "has no place in the format text: take --format json or vtt, or add --json FILE"),
        (["--words", "--format", "srt"], "--words", "has no place in the format srt"),
        (["--overwrite"], "--overwrite", "--output DIR, which is not given"),
        (["--format", "srt", "b.wav"], "--format", "srt of 2 files needs a folder for them: add --output DIR"),
        (["--format", "ass"], "--format", "must be text, srt, vtt, json or tsv, not 'ass'"),
        (["--long-form", "fast"], "--long-form", "must be windows or sequential, not 'fast'"),
        (["--language", "automatic"], "--language", "must be a language code such as en or pt-BR, or auto"),
        (["--batch-size", "0"], "--batch-size", "must be a whole number of at least 1"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(asked, options, named, said):
    touch("a.wav", "b.wav")
    result = plain(transcribe("a.wav", *options, code=2).output)
    assert named in result
    assert said in result
    assert not asked.loaded


def test_each_option_reaches_the_model(asked):
    touch("a.wav")
    transcribe("a.wav", "--language", "de", "--batch-size", 7)
    assert asked.how["load"]["language"] == "de"
    assert asked.how["batch_size"] == 7
    options = [
        "--language",
        "auto",
        "--long-form",
        "windows",
        "--vad",
        "--words",
        "--format",
        "json",
        "--batch-size",
        3,
    ]
    transcribe("a.wav", *options)
    assert asked.how.pop("load")["language"] is None
    wanted = Transcription(language="auto", batch_size=3, times=True, words=True, long_form="windows", vad=True)
    assert asked.how == vars(wanted)


@pytest.mark.parametrize("options", [["--vad"], ["--long-form", "sequential"], ["--language", "auto"]])
def test_text_without_times_where_none_are_asked(asked, options):
    touch("a.wav")
    assert transcribe("a.wav", *options).stdout == f"{SAID}\n"
    assert asked.how["times"] is False


def test_times_of_a_real_checkpoint(model_folder, manifest, tmp_path):
    """Without timestamps a window is a segment, and it is said so."""
    audio = manifest.parent / "u7.wav"
    result = runner.invoke(app, ["transcribe", str(model_folder), str(audio), "--format", "tsv"])
    assert result.exit_code == 0, result.output
    header, row = result.stdout.splitlines()
    assert header == "start\tend\ttext"
    assert row.startswith("0\t1860\t")
    assert "has no tokens for timestamps: each segment is a window of at most 2 s" in plain(result.stderr)
    result = runner.invoke(app, ["transcribe", str(model_folder), str(audio), "--language", "auto"])
    assert result.exit_code == 1
    assert "transcribes English only, so it detects no language" in plain(result.stderr)
