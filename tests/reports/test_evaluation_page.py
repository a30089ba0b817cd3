"""tarq evaluate --html, the same page of --json's file, and the breakdown both rest on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tarq.errors import DataError
from tarq.reports.make import evaluation_page, write_report
from tarq.scoring.breakdown import break_down, by_band, by_kind, reference_names
from tarq.scoring.words import score_words
from tarq.terminal.cli import app
from tarq.words.bands import NAMES
from tarq.words.normalize import get_normalizer

from .test_report import BAD, Outline

ENGLISH = get_normalizer("english")


@pytest.fixture(scope="module")
def evaluated(model_folder, manifest, tmp_path_factory):
    """A page, its figures, and the folder they are in."""
    folder = tmp_path_factory.mktemp("evaluated")
    runner = CliRunner()
    out = folder / "gptq"
    quantize = ["quantize", model_folder, out, "--method", "gptq", "--bits", 3, "--calibration", manifest]
    evaluate = ["evaluate", model_folder, out, "--data", manifest, "--resamples", 50]
    commands = [
        [*quantize, "--group-size", 32],
        [*evaluate, "--json", folder / "scores.json", "--html", folder / "page.html"],
    ]
    for command in commands:
        result = runner.invoke(app, list(map(str, command)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return folder


def test_the_page_of_ones_own_models(evaluated, manifest):
    source = (evaluated / "page.html").read_text()
    page = Outline(source)
    scores = json.loads((evaluated / "scores.json").read_text())
    (one,) = scores["sets"].values()
    damage = one["models"]["gptq"]["figures"]["delta_nll_rare"]
    assert f"{damage['value']:+.3f}".replace("-", "−") in page.text
    assert "Damage by word frequency" in page.text
    rarest = next(band for band in NAMES if one["targets"][band])
    found = one["models"]["gptq"]["figures"][f"delta_nll {rarest}"]
    shown = f"ΔNLL {found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]".replace("-", "−")
    assert shown in page.text
    assert f"{rarest} {one['targets'][rarest]} targets" in page.text
    assert "Layers" in page.text
    assert '"bits": 3' in page.text
    assert len(one["references"]) == 8
    assert one["references"]["u2"] == "she sells the house by the river"
    assert set(scores["quantized"]) == {"gptq"}
    assert scores["quantized"]["gptq"]["layers"][0].keys() == {"name", "lam", "alpha", "loss", "bits"}
    changed = one["models"]["gptq"]["lost"] + one["models"]["gptq"]["regained"]
    assert len(page.all("audio")) == len(changed)
    kinds = one["models"]["gptq"]["breakdown"]["kinds"]
    assert kinds["rare"]["words"] == one["rare_words"]
    assert kinds["rare"]["words"] + kinds["common"]["words"] == one["words"]
    assert kinds["rare"]["rate"] == one["models"]["gptq"]["figures"]["rare_wer"]
    assert kinds["rare"]["change"]["value"] == next(iter(one["differences"].values()))["rare_wer"]["value"]


def test_the_same_page_from_its_json(evaluated, manifest, tmp_path):
    written = write_report([evaluated / "scores.json"], tmp_path, data=[manifest])
    again = Outline(written.page.read_text())
    first = Outline((evaluated / "page.html").read_text())
    assert again.text.replace("Results scores.json ", "") == first.text
    assert "| gptq |" in written.summary.read_text()


def test_older_results_say_what_they_lack(evaluated, tmp_path):
    scores = json.loads((evaluated / "scores.json").read_text())
    (one,) = scores["sets"].values()
    del one["targets"]
    for known in (one["models"]["gptq"]["figures"], *one["differences"].values()):
        for figure in [figure for figure in known if " " in figure]:
            del known[figure]
    page = Outline(evaluation_page(scores, {}))
    assert "ΔNLL and KL by word frequency: the results hold none" in page.text
    assert "Word errors" in page.text


def negated(known: dict) -> dict:
    """A difference taken the other way round."""
    if known["value"] is None:
        return known
    return known | {"value": -known["value"], "low": -known["high"], "high": -known["low"]}


def test_lost_words_and_models_in_either_order(evaluated, tmp_path):
    scores = json.loads((evaluated / "scores.json").read_text())
    (label,) = scores["sets"]
    one = scores["sets"][label]
    one["models"]["gptq"]["lost"] = [
        {"id": "u1", "position": 3, "word": "amoxicillin", "full_precision": f"{BAD} amoxicillin", "quantized": BAD}
    ]
    (pair,) = one["differences"]
    turned = " − ".join(reversed(pair.split(" − ")))
    figures = one["differences"][pair]
    page = Outline(evaluation_page(scores, {}))
    assert "amoxicillin lost u1" in page.text
    assert len(page.all("script")) == 1
    one["differences"] = {turned: {figure: negated(known) for figure, known in figures.items()}}
    assert Outline(evaluation_page(scores, {})).text == page.text


def test_wrong_evaluations_are_refused(evaluated, tmp_path):
    scores = json.loads((evaluated / "scores.json").read_text())
    (label,) = scores["sets"]
    del scores["sets"][label]["models"]["gptq"]["figures"]["wer"]["low"]
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(scores))
    with pytest.raises(DataError, match=rf"wrong\.json: sets/{label}/models/gptq/figures/wer/low is missing"):
        write_report([file], tmp_path / "out")
    scores["sets"] = {}
    file.write_text(json.dumps(scores))
    with pytest.raises(DataError, match=r"wrong\.json: sets is empty"):
        write_report([file], tmp_path / "out")


# --- the breakdown ---


def test_counts_by_kind_and_band_add_up():
    said = ["flight 4471 to Ouagadougou leaves", "doctor Okonkwo waits"]
    heard = ["flight 4470 to waga dugu leaves", "doctor Okonkwo waits"]
    scores = score_words(said, heard, normalizer=ENGLISH)
    names = reference_names(said, ENGLISH, "en")
    assert names == [frozenset({"ouagadougou"}), frozenset({"okonkwo"})]
    kinds = by_kind(scores, names)
    assert kinds["names"].words.tolist() == [1, 1]
    assert kinds["names"].errors.tolist() == [2, 0]  # one substituted, one inserted before it
    assert kinds["numerals"].errors.tolist() == [1, 0]
    for part in (by_band(scores), {kind: kinds[kind] for kind in ("rare", "common")}):
        for count in ("substitutions", "deletions", "insertions", "words"):
            assert sum(getattr(c, count) for c in part.values()).tolist() == getattr(scores.plain, count).tolist()
    full = score_words(said, said, normalizer=ENGLISH)
    found = break_down({"full": full, "q": scores}, "full", names, resamples=20)
    assert found["q"]["kinds"]["names"]["rate"].value == 1.0
    assert found["q"]["kinds"]["names"]["change"].value == 1.0
    assert found["full"]["kinds"]["names"]["change"] is None


def test_names_are_told_by_the_corpus_or_by_capitals_within_a_sentence():
    texts = ["Then I met Anna. She left", "IN CAPITALS ALL OF IT", "i'm in lower case"]
    assert reference_names(texts, ENGLISH, "en") == [frozenset({"anna"}), frozenset(), frozenset()]
    assert reference_names(texts[1:], ENGLISH, "en") is None
    assert reference_names(texts, ENGLISH, "de") is reference_names(texts, ENGLISH, "de_AT") is None
    marked = reference_names(texts, ENGLISH, "de", [["Anna"], [], []])
    assert marked is not None
    assert marked[0] == {"anna"}
    assert np.sum([len(words) for words in marked]) == 1
