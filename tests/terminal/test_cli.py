"""The command line, as a user types it."""

import hashlib
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import tarq
from tarq.config import TarqConfig
from tarq.data.speech import short_labels
from tarq.terminal.cli import app
from tarq.terminal.tables import grouped

runner = CliRunner()


def run(*arguments: object, code: int = 0) -> str:
    result = runner.invoke(app, [str(a) for a in arguments], catch_exceptions=code == 0)
    assert result.exit_code == code, result.output
    return result.output


def plain(text: str) -> str:
    """Without boxes and line breaks."""
    return " ".join(text.replace("│", " ").split())


def test_quantize_inspect_evaluate_transcribe(model_folder, manifest, tmp_path):
    """The whole job: one model quantized two ways, inspected, scored, used."""
    for method in ("rtn", "tarq"):
        out = run(
            "quantize", model_folder, tmp_path / method, "--method", method, "--calibration", manifest,
            "--group-size", 32, "--json", tmp_path / f"{method}.json",
        )  # fmt: skip
        assert "32 layers quantized" in out
    report = json.loads((tmp_path / "tarq.json").read_text())
    assert len(report["layers"]) == 32
    assert report["calibration"]["utterances"] == 8

    out = run("inspect", tmp_path / "tarq", "--json", tmp_path / "inspect.json")
    assert "plain metric" in " ".join(out.split())
    assert json.loads((tmp_path / "inspect.json").read_text()) == report

    out = run(
        "evaluate", model_folder, tmp_path / "rtn", tmp_path / "tarq", "--data", manifest,
        "--resamples", 200, "--json", tmp_path / "scores.json",
    )  # fmt: skip
    assert "paired differences" in out
    assert "tarq was calibrated on 8 of its 8 utterances" in " ".join(out.split())
    assert "rtn was calibrated" not in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["reference"] == "tiny-whisper"
    (one,) = scores["sets"].values()
    assert set(one["models"]) == {"tiny-whisper", "rtn", "tarq"}
    assert one["models"]["tarq"]["figures"]["kl_rare"]["value"] > 0

    audio = manifest.parent / "u0.wav"
    other = tmp_path / "same.wav"
    other.write_bytes(audio.read_bytes())
    run("transcribe", tmp_path / "tarq", audio, other, audio, "--json", tmp_path / "texts.json")
    texts = json.loads((tmp_path / "texts.json").read_text())
    assert [t["audio"] for t in texts] == [str(audio), str(other)]  # each file once
    assert texts[0]["text"] == texts[1]["text"]
    run("transcribe", tmp_path / "tarq", audio, "--int8-activations")
    out = run(
        "evaluate", model_folder, tmp_path / "tarq", "--data", manifest, "--int8-activations", "--samples", 2,
        "--resamples", 20, "--json", tmp_path / "int8.json",
    )  # fmt: skip
    (int8,) = json.loads((tmp_path / "int8.json").read_text())["sets"].values()
    assert int8["models"]["tarq"]["figures"]["kl_common"]["value"] > 0


def test_int8_activations_that_do_nothing_are_refused(model_folder, manifest, tmp_path):
    audio = manifest.parent / "u0.wav"
    commands = (("transcribe", model_folder, audio), ("evaluate", model_folder, "--data", manifest))
    for command in commands:
        out = plain(run(*command, "--int8-activations", code=2))
        assert "--int8-activations" in out
        assert "a full-precision model, which has no packed layers" in out
    run("quantize", model_folder, tmp_path / "wide", "--method", "rtn", "--bits", 8)
    out = plain(run("transcribe", tmp_path / "wide", audio, "--int8-activations", code=2))
    assert "32 of 32 packed layers keep exact inputs" in out
    assert "has no kernel for 8 bits" in out or "is missing" in out  # without the extension nothing rounds
    with pytest.raises(tarq.ModelError, match="int8_activations has no effect here: 32 of 32 packed layers"):
        tarq.load_recognizer(tmp_path / "wide", int8_activations=True)


def test_pool_is_drawn_saved_and_calibrated_on(model_folder, manifest, tmp_path):
    out = run(
        "pool", manifest, "--kind", "r-top", "--samples", 3, "--out", tmp_path / "pool.jsonl",
        "--json", tmp_path / "pool.json",
    )  # fmt: skip
    assert "r-top pool, of 8 utterances" in out
    figures = json.loads((tmp_path / "pool.json").read_text())
    assert figures["rho"]["max"] >= figures["rho"]["mean"] >= figures["rho"]["min"] > 0
    assert figures["word_frequencies"] == {"wordfreq": "en"}
    out = run(
        "quantize", model_folder, tmp_path / "saved", "--calibration", tmp_path / "pool.jsonl", "--samples", 3,
        "--group-size", 32,
    )  # fmt: skip
    saved = tarq.Report.read(tmp_path / "saved").calibration
    assert sorted(saved["ids"]) == sorted(figures["ids"])
    out = run("evaluate", model_folder, tmp_path / "saved", "--data", manifest, "--resamples", 20)
    assert "saved was calibrated on 3 of its 8 utterances" in " ".join(out.split())  # through the pool's file
    assert saved["pool"]["rho"] == pytest.approx(figures["rho"])
    run("quantize", model_folder, tmp_path / "drawn", "--calibration", manifest, "--pool", "r-top", "--samples", 3,
        "--group-size", 32)  # fmt: skip
    drawn = tarq.Report.read(tmp_path / "drawn").calibration
    assert drawn["ids"] == figures["ids"]
    assert drawn["pool"]["kind"] == "r-top"
    assert "exists: --overwrite replaces it" in run("pool", manifest, "--out", tmp_path / "pool.jsonl", code=2)


def test_pools_of_several_corpora(model_folder, manifest, tmp_path):
    other = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [row | {"audio": str(manifest.parent / row["audio"])} for row in rows]
    other.write_text("\n".join(map(json.dumps, rows)))
    run(
        "quantize", model_folder, tmp_path / "out", "--calibration", manifest, "--calibration", other, "--pool",
        "r-cross", "--samples", 4, "--group-size", 32,
    )  # fmt: skip
    calibration = tarq.Report.read(tmp_path / "out").calibration
    speech = manifest.parent.name
    assert calibration["source"] == {speech: str(manifest), "other.jsonl": str(other)}
    assert sum(calibration["pool"]["sources"].values()) == 4
    assert all(name.startswith((f"{speech}/", "other.jsonl/")) for name in calibration["ids"])


def test_broken_files_are_left_out_and_shown(model_folder, manifest, tmp_path):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [row | {"audio": str(manifest.parent / row["audio"])} for row in rows]
    (tmp_path / "noise.wav").write_bytes(b"not audio")
    rows += [{"id": "gone", "audio": "gone.wav", "text": "the house"}]
    rows += [{"id": "noise", "audio": "noise.wav", "text": "the house", "duration": 1.0}]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    commands = {
        "quantize": (model_folder, tmp_path / "out", "--calibration", data, "--group-size", 32, "--method", "gptq"),
        "evaluate": (model_folder, "--data", data, "--resamples", 20),
        "pool": (data,),
    }
    for command, arguments in commands.items():
        for allowed, name in ((0, "gone.wav"), (1, "noise.wav")):
            assert name in run(command, *arguments, "--max-bad", allowed, code=1)
        json_file = tmp_path / f"{command}.json"
        out = run(command, *arguments, "--max-bad", 2, "--json", json_file)
        assert "2 broken files left out: gone, noise" in " ".join(out.split())
        report = json.loads(json_file.read_text())
        where = {"quantize": lambda r: r["calibration"], "evaluate": lambda r: r["sets"]["data.jsonl"], "pool": dict}
        assert list(where[command](report)["bad"]) == ["gone", "noise"]
    assert json.loads((tmp_path / "evaluate.json").read_text())["sets"]["data.jsonl"]["utterances"] == 8


def test_word_frequencies_of_ones_own(model_folder, manifest, tmp_path):
    own = tmp_path / "ward.txt"
    own.write_text("the 900000\nokonkwo 90000\nreykjavik 10\n")
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    run(
        "quantize", model_folder, tmp_path / "out", "--calibration", manifest, "--group-size", 32, "--word-frequencies",
        own, "--json", tmp_path / "report.json",
    )  # fmt: skip
    report = tarq.Report.read(tmp_path / "out")
    assert report.config["word_frequencies"] == str(own)
    assert report.calibration["word_frequencies"]["sha256"] == digest
    assert report.calibration["rare_word_share"] > 0.7  # all but "the" and Okonkwo
    out = run(
        "evaluate", model_folder, "--data", manifest, "--resamples", 20, "--word-frequencies", own, "--json",
        tmp_path / "scores.json",
    )  # fmt: skip
    assert f"ward.txt (sha256 {digest[:12]}" in " ".join(out.split())
    scores = json.loads((tmp_path / "scores.json").read_text())
    (one,) = scores["sets"].values()
    assert one["word_frequencies"]["file"] == "ward.txt"
    assert one["rare_words"] > 0.7 * one["words"]
    out = run("evaluate", model_folder, "--data", manifest, "--word-frequencies", tmp_path / "gone.txt", code=1)
    assert "gone.txt: no word frequencies there" in plain(out)
    out = run("evaluate", model_folder, "--data", manifest, "--language", "sw", code=1)
    assert "no word frequencies for language 'sw'" in plain(out)


def test_no_reference_model_is_said(model_folder, manifest, tmp_path):
    run("quantize", model_folder, tmp_path / "rtn", "--method", "rtn", "--group-size", 32)
    out = run("evaluate", tmp_path / "rtn", "--data", manifest, "--samples", 2, "--resamples", 20)
    assert "no reference model" in out


def test_demo_on_a_model_and_speech_of_ones_own(model_folder, manifest, tmp_path):
    out = run(
        "demo", model_folder, "--calibration", manifest, "--data", manifest, "--score", 3, "--bits", 4, "--bits", 3,
        "--json", tmp_path / "demo.json",
    )  # fmt: skip
    scores = json.loads((tmp_path / "demo.json").read_text())["sets"]["demo"]
    methods = [f"{method} W{bits}" for bits in (4, 3) for method in ("RTN", "GPTQ", "default")]
    assert list(scores["models"]) == ["full precision", *methods]
    assert "next, on your own model" in out


def test_options_override_the_preset(model_folder, manifest, tmp_path):
    run(
        "quantize", model_folder, tmp_path / "out", "--method", "gptq", "--residual", "0.5", "--metric", "random",
        "--calibration", manifest, "--group-size", 64, "--tail-positions", "either", "--samples", 4,
        "--ignore", "model.encoder", "--padding-weight", 0.1, "--asymmetric", "--scale-rule", "mse",
    )  # fmt: skip
    config = TarqConfig.from_dict(tarq.Report.read(tmp_path / "out").config)
    assert config == TarqConfig(
        metric="random", residual=0.5, group_size=64, tail_positions="either", samples=4, ignore=("model.encoder",),
        padding_weight=0.1, symmetric=False, scale_rule="mse", scale_dtype="float16", solver="sweep",
        reparametrize="none", max_positions=None,
    )  # fmt: skip


def test_every_field_of_the_configuration_has_an_option():
    from typer.main import get_command

    options = {p.name for p in get_command(app).commands["quantize"].params}
    assert set(TarqConfig.__dataclass_fields__) - {"bits_for"} <= options  # --bits encoder=8 sets it


@pytest.mark.parametrize("command", ["quantize", "evaluate", "transcribe", "inspect", "doctor", "demo"])
def test_help(command):
    assert "--json" in run(command, "--help")


def test_doctor(tmp_path):
    out = run("doctor", "--json", tmp_path / "doctor.json")
    assert "compiled extension" in out
    checks = {c["check"]: c for c in json.loads((tmp_path / "doctor.json").read_text())}
    assert checks["torch"]["ok"]
    assert {"gram on the CPU", "group_quantize on the CPU", "w4_linear on the CPU"} <= set(checks)


def test_errors_are_one_line(model_folder, manifest, tmp_path):
    for arguments, message in (
        (("quantize", model_folder, tmp_path, "--calibration", manifest), "--overwrite"),
        (("quantize", model_folder, tmp_path / "o", "--calibration", tmp_path / "none.jsonl"), "none.jsonl"),
        (("inspect", tmp_path), "tarq_report.json"),
    ):
        result = runner.invoke(app, [str(a) for a in arguments])
        assert result.exit_code == 1
        assert message in result.stderr.replace("\n", "")
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("options", [("--device", "gpu"), ("--dtype", "int8"), ("--batch-size", 0)])
def test_wrong_options_are_refused_before_the_work(model_folder, tmp_path, options):
    assert "Invalid value" in run("transcribe", model_folder, tmp_path / "none.wav", *options, code=2)


def test_an_error_of_a_process_of_its_own(tmp_path):
    """On its standard error, without a traceback; markup in a path is printed as it is."""
    command = [sys.executable, "-P", "-m", "tarq", "inspect", tmp_path / "a [live] b[/x]"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "a [live] b[/x]" in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr


def test_a_method_that_needs_speech_says_so(model_folder, tmp_path):
    out = plain(run("quantize", model_folder, tmp_path / "o", "--language", "de", code=1))
    assert "calibration speech" in out


def test_a_json_file_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    for path in (tmp_path / "nowhere" / "x.json", tmp_path):
        assert "Invalid value" in run("doctor", "--json", path, code=2)


def test_what_is_said_of_many_utterances_is_said_once():
    notes = ["a note", *(f"u{i}: longer than the 30 s window, left out" for i in range(4)), "u9: 700 tokens, left out"]
    assert grouped(notes) == [
        "a note",
        "4 utterances such as u0: longer than the 30 s window, left out",
        "u9: 700 tokens, left out",
    ]


def test_labels_tell_sources_apart():
    assert short_labels(["a/x/manifest.jsonl", "b/y/manifest.jsonl"]) == {
        "x": "a/x/manifest.jsonl",
        "y": "b/y/manifest.jsonl",
    }
    assert list(short_labels(["a/out", "b/out", "a/out"])) == ["a/out", "b/out"]
    assert list(short_labels(["openai/whisper-tiny"])) == ["whisper-tiny"]
    assert list(short_labels(["out", "a/out"])) == ["out", "a/out"]
