"""benchmarks/studies/headline.py: cells equal tarq.evaluate, a stopped run goes on, the tables are means over draws."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import tarq
from tarq.data.corpora.registry import load_utterances

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture(scope="module")
def headline():
    sys.path.insert(0, str(STUDIES))
    try:
        spec = importlib.util.spec_from_file_location("headline", STUDIES / "headline.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["headline"] = module  # which dataclasses look up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(STUDIES))
    return module


@pytest.fixture(scope="module")
def speech(manifest):
    """The manifest with four speakers; the halves are utterances 0, 1, 4, 5 and 2, 3, 6, 7."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for i, line in enumerate(lines):
        line["speaker"] = "abcd"[i // 2 % 2 * 2 + i // 4]
    path = manifest.with_name("speakers.jsonl")
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def study(headline, model_folder, speech, tmp_path, monkeypatch, capsys):
    """Run it; gives the results file's content, what was printed, and the cells that were measured."""

    def run(*options, file=tmp_path / "results.json"):
        measured = []
        quantized = headline.Bench.quantized
        with monkeypatch.context() as patch:
            patch.setattr(
                headline.Bench, "quantized", lambda b, c: measured.append((c.method, c.seed)) or quantized(b, c)
            )
            job = ["--calibration", speech, "--data", speech, "--json", file, "--samples", 3, *options]
            patch.setattr(sys, "argv", [str(arg) for arg in ("headline", model_folder, *job)])
            headline.main()
        return json.loads(Path(file).read_text()), capsys.readouterr().out, measured

    return run


def test_halves_go_by_speaker(headline, speech):
    halves = headline.halves(load_utterances(speech))
    assert [u.id for u in halves["choose"]] == ["u0", "u1", "u4", "u5"]
    assert [u.id for u in halves["report"]] == ["u2", "u3", "u6", "u7"]


def test_a_stopped_study_goes_on_and_its_table_is_the_mean_over_draws(study, speech, headline, monkeypatch, capsys):
    arms = ("--arms", "rtn", "gptq", "tarq")
    first, _, measured = study(*arms, "--draws", 1)
    assert measured == [("rtn", 0), ("gptq", 0), ("tarq", 0)]
    _, out, measured = study(*arms, "--draws", 2, "--minutes", 0)
    assert measured == []
    assert "no time left for tiny-whisper/gptq/1" in out
    both, out, measured = study(*arms, "--draws", 2, "--decode-draws", 1)
    # The cells of the first draw had no transcripts; rounding to nearest has one cell for all draws.
    assert measured == [("rtn", 0), ("gptq", 0), ("tarq", 0), ("gptq", 1), ("tarq", 1)]
    assert study(*arms, "--draws", 2, "--decode-draws", 1)[2] == []
    cells = both["cells"]
    for key, cell in first["cells"].items():
        assert cells[key]["kl"] == cell["kl"]
        assert len(cells[key]["hypotheses"]) == 4
    assert cells["tiny-whisper/tarq/0"]["kl"] != cells["tiny-whisper/tarq/1"]["kl"]

    count = sum(both["models"]["tiny-whisper"]["positions"]["rare"])
    damage = {
        arm: [sum(cells[f"tiny-whisper/{arm}/{d}"]["delta_nll"]["rare"]) / count for d in (0, 1)]
        for arm in ("gptq", "tarq")
    }
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in out.splitlines() if line.startswith("| ")}
    assert rows["gptq"][1].startswith(f"{np.mean(damage['gptq']):+.3f} [".replace("-", "−"))
    assert rows["tarq"][1].startswith(f"{np.mean(damage['tarq']):+.3f} [".replace("-", "−"))
    difference = np.mean(damage["tarq"]) - np.mean(damage["gptq"])
    assert f"{difference:+.3f} [".replace("-", "−") in rows["tarq − gptq"][1]
    assert rows["full precision"][1] == "–"
    assert "%" not in rows["full precision"][5]
    words = both["models"]["tiny-whisper"]["words"]["all"]
    wrong = sum(sum(words[kind]) for kind in ("substitutions", "deletions", "insertions"))
    assert rows["full precision"][6].startswith(f"{100 * wrong / sum(words['words']):.1f} [")
    assert "4 utterances of 2 speakers" in out
    # A draw that only one arm has is not compared.
    del cells["tiny-whisper/gptq/1"]
    assert "; 1 draw of 3 " in headline.markdown(both, list(headline.ARMS), headline.PAIRS)


def test_a_cell_is_what_evaluate_measures(study, speech, model_folder, headline):
    results, _, _ = study("--arms", "gptq", "--draws", 1, "--decode-draws", 1, "--half", "choose")
    cell = results["cells"]["tiny-whisper/gptq/0"]
    model = tarq.load_recognizer(model_folder)
    config = tarq.TarqConfig.preset("gptq", samples=3, seed=0)
    tarq.quantize(model, speech, config)
    some = headline.halves(load_utterances(speech))["choose"]
    scores = (
        tarq.evaluate({"full": model_folder, "q": model}, {"s": some}, reference="full", resamples=10)
        .sets["s"]
        .models["q"]
    )
    for kind in ("rare", "common"):
        count = sum(results["models"]["tiny-whisper"]["positions"][kind])
        for figure in ("kl", "delta_nll"):
            expected = scores.figures[f"{figure}_{kind}"].value
            assert sum(cell[figure][kind]) / count == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert cell["hypotheses"] == [scores.hypotheses[u.id] for u in some]
    assert sum(cell["words"]["all"]["deletions"]) == scores.counts["all"]["deletions"]


def test_files_of_one_study_are_put_together(study, headline, tmp_path, monkeypatch, capsys):
    one, _, _ = study("--arms", "gptq", "tarq", "--draws", 1, file=tmp_path / "one.json")
    two, _, _ = study("--arms", "gptq", "tarq", "--draws", 1, "--first-draw", 1, file=tmp_path / "two.json")
    together = headline.merged([one, two])
    assert set(together["cells"]) == {f"tiny-whisper/{arm}/{draw}" for arm in ("gptq", "tarq") for draw in (0, 1)}
    monkeypatch.setattr(sys, "argv", ["headline", "--table", str(tmp_path / "one.json"), str(tmp_path / "two.json")])
    headline.main()
    assert "; 2 draws of 3 " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="different settings"):
        headline.merged([one, two | {"settings": {}}])
    moved = {"tiny-whisper": two["models"]["tiny-whisper"] | {"ids": ["x"]}}
    with pytest.raises(SystemExit, match="tiny-whisper was scored on different utterances"):
        headline.merged([one, two | {"models": moved}])


def test_what_is_refused(study, speech, tmp_path):
    study("--arms", "rtn", "--draws", 1)
    with pytest.raises(SystemExit, match="other settings"):
        study("--arms", "rtn", "--draws", 1, "--scored", 2)
    with pytest.raises(SystemExit, match=r"skipped, not there: /nowhere/m\.jsonl"):
        study("--calibration", "/nowhere/m.jsonl")


def test_speakers_are_needed(headline, speech):
    silent = [dataclasses.replace(u, speaker=None) for u in load_utterances(speech)]
    with pytest.raises(SystemExit, match="two speakers"):
        headline.halves(silent)
