"""Gates of evaluate and compare, the CSV of every utterance, and what compare takes."""

import csv
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from tarq.scoring.bootstrap import Difference
from tarq.scoring.gates import Gate, failures, paired
from tarq.terminal.cli import app

runner = CliRunner()
OPTION = "--max-rare-wer-increase"
GATE = Gate("rare_wer", "rare WER", 0.5, OPTION)
ERRORS = ("substitutions", "deletions", "insertions")


def run(*arguments, code=0):
    result = runner.invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (0.005, -0.1, 0.1, ""),  # at the limit
        (-0.02, -0.03, 0.1, ""),
        (
            0.012, -0.003, 0.027,
            f"{OPTION} 0.5: rare WER rose by 1.20 points [-0.30, 2.70] (the limit is within the interval)",
        ),
        (
            0.012, 0.006, 0.027,
            f"{OPTION} 0.5: rare WER rose by 1.20 points [0.60, 2.70] (the limit is below the interval)",
        ),
        (math.nan, math.nan, math.nan, f"{OPTION} 0.5: rare WER was not measured (no such word, or no transcripts)"),
    ],
)  # fmt: skip
def test_a_gate_names_value_and_interval(value, low, high, said):
    assert GATE.broken(Difference(value, low, high, 0.1)) == said


def test_what_was_not_measured_does_not_pass():
    assert "was not measured" in GATE.broken(None)
    assert failures([GATE], {"s": {}}, ["b"], "a") == [f"s, b against a: {GATE.broken(None)}"]


def test_a_pair_is_read_in_either_direction():
    pairs = {"b − a": {"wer": Difference(0.02, 0.01, 0.04, 0.0)}}
    assert paired(pairs, "b", "a")["wer"] == Difference(0.02, 0.01, 0.04, 0.0)
    assert paired(pairs, "a", "b")["wer"] == Difference(-0.02, -0.04, -0.01, 0.0)
    assert paired(pairs, "a", "c") == {}


@pytest.fixture(scope="module")
def scored(model_folder, manifest, tmp_path_factory):
    """An evaluation of a model and a bad copy, the transcripts faked so that one of two words is lost."""
    folder = tmp_path_factory.mktemp("scored")
    run("quantize", model_folder, folder / "bad", "--method", "rtn", "--bits", 2, "--group-size", 32)
    run(
        "evaluate", model_folder, folder / "bad", "--data", manifest, "--resamples", 50, "--json", folder / "all.json",
        "--csv", folder / "all.csv",
    )  # fmt: skip
    return folder


def test_every_utterance_is_in_the_table_and_adds_up(scored, manifest):
    rows = list(csv.DictReader((scored / "all.csv").open(encoding="utf-8")))
    (found,) = json.loads((scored / "all.json").read_text())["sets"].values()
    texts = {row["id"]: row["text"] for row in map(json.loads, manifest.read_text().splitlines())}
    assert len(rows) == 2 * len(texts)
    for name, model in found["models"].items():
        own = [row for row in rows if row["model"] == name]
        assert {row["id"]: row["reference"] for row in own} == texts
        assert {row["id"]: row["hypothesis"] for row in own} == model["hypotheses"]
        columns = ("errors", "words", "rare_errors", "kl_rare", "targets_rare")
        total = {key: sum(float(row[key] or 0) for row in own) for key in columns}
        assert total["errors"] / total["words"] == pytest.approx(model["figures"]["wer"]["value"])
        assert total["rare_errors"] == sum(model["counts"]["rare"][k] for k in ERRORS)
        if name == "bad":
            assert total["kl_rare"] / total["targets_rare"] == pytest.approx(model["figures"]["kl_rare"]["value"])
            assert found["targets"]["rare"] == total["targets_rare"]
        else:
            assert {row["kl_rare"] for row in own} == {""}  # there is nothing to compare the reference with


def evaluate(monkeypatch, heard, manifest, *options, code=0):
    """``tarq evaluate`` with transcripts by model."""
    from tarq.models.whisper import WhisperRecognizer

    def decoded(self, batch, *rest):
        name = str(self.model.config._name_or_path).rsplit("/", 1)[-1]
        return [heard[name]] * len(batch.ids)

    monkeypatch.setattr(WhisperRecognizer, "decode_forced", decoded)
    return run("evaluate", *options, "--data", manifest, "--resamples", 50, code=code)


def test_a_broken_gate_has_an_exit_code_of_its_own(scored, model_folder, manifest, monkeypatch, tmp_path):
    heard = {"tiny-whisper": "the house by the river", "bad": "hats"}
    base = (model_folder, scored / "bad")
    written = tmp_path / "out.json"
    out = evaluate(monkeypatch, heard, manifest, *base, "--max-wer-increase", 0.5, "--json", written, code=3)
    assert "error gate: " in out
    assert "bad against tiny-whisper: --max-wer-increase 0.5: WER rose by" in out
    assert "paired differences" in out  # the results come first
    value = json.loads(written.read_text())["sets"][manifest.parent.name]["differences"]["bad − tiny-whisper"]["wer"]
    assert f"rose by {100 * value['value']:.2f} points [{100 * value['low']:.2f}, {100 * value['high']:.2f}]" in out
    evaluate(monkeypatch, heard, manifest, *base, "--max-wer-increase", 100)
    # The first model is what others are measured against, wherever it stands, and a reference where there is one model.
    evaluate(monkeypatch, heard, manifest, *reversed(base), "--max-wer-increase", 0)
    evaluate(
        monkeypatch, heard, manifest, scored / "bad", "--reference", model_folder, "--max-wer-increase", 0.5, code=3
    )
    # No protected word is in the speech: it cannot be checked, and so does not pass.
    (tmp_path / "n.txt").write_text("Zyx\n")
    out = evaluate(
        monkeypatch, heard, manifest, *base, "--protect", tmp_path / "n.txt", "--max-protected-wer-increase", 5, code=3
    )
    assert "protected WER was not measured" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["m", "--data", "d", "--max-wer-increase", "1"], "needs a second model"),
        (["m", "m", "--data", "d", "--max-wer-increase", "1"], "needs a second model"),
        (["m", "n", "--data", "d", "--no-decode", "--max-rare-wer-increase", "1"], "leave --no-decode out"),
        (["m", "n", "--data", "d", "--max-protected-wer-increase", "1"], "needs a list of words: --protect"),
        (["m", "n", "--data", "d", "--max-wer-increase", "nan"], "--max-wer-increase"),
    ],
)
def test_a_gate_that_could_not_be_checked_is_refused_before_the_work(options, said):
    assert said in run("evaluate", *options, code=2).replace("│ ", "")


# --- compare ---


def test_results_are_compared_by_utterance(scored, tmp_path):
    stored = json.loads((scored / "all.json").read_text())
    worse = json.loads(json.dumps(stored))
    (label,) = worse["sets"]
    sums = worse["sets"][label]["models"]["bad"]["utterances"]
    for one in sums.values():
        one["errors"] += 1
    gone = next(iter(sums))
    del sums[gone]
    (tmp_path / "b.json").write_text(json.dumps(worse))
    out = run("compare", scored / "all.json", tmp_path / "b.json", "--json", tmp_path / "c.json")
    assert "1 utterances are in one of the two only" in out
    (found,) = json.loads((tmp_path / "c.json").read_text())
    assert found["utterances"] == 7
    words = sum(one["words"] for one in sums.values())
    assert found["differences"]["wer"]["value"] == pytest.approx(7 / words)
    assert found["differences"]["kl_rare"]["value"] == 0
    assert "WER rose by" in run("compare", scored / "all.json", tmp_path / "b.json", "--max-wer-increase", 0.5, code=3)
    run("compare", tmp_path / "b.json", scored / "all.json", "--max-wer-increase", 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(thresholds=[4.0]), "rare is Zipf < 3 in the first and < 4 in the second"),
        (lambda r: r.update(sets={"other": next(iter(r["sets"].values()))}), "no set is in both"),
        (lambda r: next(iter(r["sets"].values())).update(normalizer="none"), "normalizer is english"),
        (lambda r: [m.pop("utterances") for m in next(iter(r["sets"].values()))["models"].values()], "evaluate again"),
    ],
)
def test_what_cannot_be_compared_says_why(scored, tmp_path, change, said):
    other = json.loads((scored / "all.json").read_text())
    change(other)
    (tmp_path / "b.json").write_text(json.dumps(other))
    assert said in run("compare", scored / "all.json", tmp_path / "b.json", code=1)


def test_transcripts_are_scored_against_what_was_said(tmp_path, manifest):
    said = [json.loads(line) for line in manifest.read_text().splitlines()]
    (tmp_path / "a.tsv").write_text("".join(f"{r['audio']}\t{r['text']}\n" for r in said))
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"id": r["id"], "text": r["text"].replace("Okonkwo", "a contra")}) + "\n" for r in said)
    )
    files = (tmp_path / "a.tsv", tmp_path / "b.jsonl", "--reference", manifest)
    out = run("compare", *files, "--json", tmp_path / "c.json")
    assert "rare WER %" in out
    (found,) = json.loads((tmp_path / "c.json").read_text())
    words = sum(len(r["text"].split()) for r in said)
    assert found["differences"]["wer"]["value"] == pytest.approx(2 / words, rel=0.1)  # numbers are one word
    assert found["differences"]["rare_wer"]["value"] > 0
    gate = ("--max-rare-wer-increase", 1)
    out = run("compare", *files, *gate, code=3)
    assert "a.tsv → b.jsonl, second against first: --max-rare-wer-increase 1: rare WER rose by" in out
    assert "--reference" in run("compare", tmp_path / "a.tsv", tmp_path / "b.jsonl", code=2)
    (tmp_path / "n.txt").write_text("Okonkwo\n")
    run(
        "compare", tmp_path / "a.tsv", tmp_path / "b.jsonl", "--reference", manifest, "--protect", tmp_path / "n.txt",
        "--max-protected-wer-increase", 50, code=3,
    )  # fmt: skip


def test_checkpoints_are_compared_by_their_reports(scored, model_folder, tmp_path):
    run("quantize", model_folder, tmp_path / "more", "--method", "rtn", "--bits", 4, "--group-size", 64)
    out = run("compare", scored / "bad", tmp_path / "more", "--json", tmp_path / "c.json")
    assert "bits" in out
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["config"] == {"bits": [2, 4], "group_size": [32, 64]}
    assert np.diff(found["numbers"]["linear_bytes"]) > 0
    assert "tarq evaluate" in run("compare", scored / "bad", tmp_path / "more", "--max-wer-increase", 1, code=2)
    assert "a checkpoint is compared with a checkpoint" in run("compare", scored / "bad", scored / "all.json", code=1)
    assert "gone.json: no such file" in run("compare", "gone.json", "gone.json", "--reference", "x", code=1)
