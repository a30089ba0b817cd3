"""The packaged testbed, the demonstration on it, and the recipe that makes it."""

from __future__ import annotations

import importlib
import json
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import tarq
from tarq import testbed
from tarq.data.corpora.registry import load_utterances
from tarq.errors import DataError
from tarq.models.base import Recognizer
from tarq.report import Reporter
from tarq.speech.calibration import batched, make_examples
from tarq.terminal.cli import app
from tarq.words.rarity import is_rare
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

RECIPE = Path(__file__).resolve().parents[2] / "benchmarks" / "testbed"
needs_recipe = pytest.mark.skipif(not RECIPE.is_dir(), reason="the recipe is not in this distribution")
needs_synthesizer = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="no espeak-ng on the PATH")


@pytest.fixture(scope="module")
def recipe():
    """Imports a module of the recipe, whose modules import each other by their bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPE))
        yield importlib.import_module
    for name in ("text", "speech", "corpus", "train", "build"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return tarq.load_recognizer(testbed.model())


def test_packaged_speech_is_what_the_card_says():
    pool, scored = testbed.calibration_pool(), testbed.test_set()
    assert len(pool) >= 512
    assert len(scored) >= 600
    rare = [w for u in scored for w in (u.text or "").split() if is_rare(w)]
    assert len(rare) >= 500
    assert {u.extra["voices"] for u in scored} == {"seen", "unseen"}
    assert not {u.text for u in pool} & {u.text for u in scored}
    heard = {u.speaker for u in scored if u.extra["voices"] == "seen"} | {u.speaker for u in pool}
    assert not heard & {u.speaker for u in scored if u.extra["voices"] == "unseen"}


def test_packaged_files_are_small():
    def megabytes(part: str) -> float:
        return sum(p.stat().st_size for p in (testbed.root() / part).rglob("*")) / 1e6

    assert megabytes("model") <= 20
    assert megabytes("calibration") + megabytes("test") <= 12


def test_clips_are_as_long_as_the_manifest_says(recognizer):
    for utterance in testbed.calibration_pool()[::100] + testbed.test_set()[::100]:
        wave = utterance.waveform(recognizer.sampling_rate)
        assert len(wave) / recognizer.sampling_rate == pytest.approx(utterance.duration, abs=1e-3)
        assert len(wave) <= recognizer.window * recognizer.sampling_rate


def test_packaged_model_hears(recognizer):
    """Word errors on a dozen clips are few: the weights are trained and the clips are theirs."""
    import jiwer

    chosen = testbed.test_set()[:12]
    heard = tarq.transcribe(recognizer, [u.audio for u in chosen], batch_size=12)
    assert jiwer.wer([u.text for u in chosen], heard) < 0.25


def test_transformers_alone_transcribes_the_same(recognizer):
    """The packaged folder is an ordinary checkpoint: Whisper's own ``generate`` writes what tarq writes."""
    features = recognizer.stack([recognizer.audio_inputs(u.waveform())[0] for u in testbed.test_set()[:8]])
    with torch.no_grad():
        ours = recognizer.decode(recognizer.encode(features))
        ids = recognizer.model.generate(**features, num_beams=1, do_sample=False)
    assert [t.strip() for t in recognizer.tokenizer.batch_decode(ids, skip_special_tokens=True)] == ours


@pytest.mark.parametrize(
    "settings", [{}, {"suppress_tokens": [70]}, {"begin_suppress_tokens": [260]}, {"max_length": 25}]
)
def test_forced_transcripts_are_the_decoded_ones(recognizer, settings, monkeypatch):
    """Rows heard as they were forced are not decoded again, whatever the model's generation settings ask for."""
    for name, value in settings.items():
        monkeypatch.setattr(recognizer.model.generation_config, name, value)
    made = make_examples(recognizer, testbed.test_set()[:16], Rarity(Words()), Reporter())
    (batch,) = batched(recognizer, made.examples, 16)
    forced = {int(t) for row in batch.targets for t in row}
    assert forced.issuperset(settings.get("suppress_tokens", []))
    assert {int(row[row != -100][0]) for row in batch.targets}.issuperset(settings.get("begin_suppress_tokens", []))
    with torch.no_grad():
        audio = recognizer.encode(batch.features)
        expected, decoded = recognizer.decode(audio), []
        monkeypatch.setattr(
            recognizer,
            "decode",
            lambda rows, language=None, decode=recognizer.decode: decoded.append(len(rows)) or decode(rows, language),
        )
        assert recognizer.decode_forced(batch, audio, recognizer.logits(batch, audio)) == expected
    said = {u.id: u.text for u in testbed.test_set()[:16]}
    right = sum(text == said[name] for name, text in zip(batch.ids, expected, strict=True))
    assert 0 < right < 16
    assert 16 - right <= decoded[0] <= 17 - right  # a length limit may take just the end token, which no text shows


@pytest.mark.parametrize("damage", ["missing", "changed", "no checksums", "part not listed"])
def test_damaged_package_is_a_clear_error(damage, tmp_path, monkeypatch):
    copy = tmp_path / "testbed"
    shutil.copytree(testbed.root(), copy)
    monkeypatch.setattr(testbed, "root", lambda: copy)
    clip = next((copy / "test").glob("*.ogg"))
    sums = copy / testbed.CHECKSUMS
    if damage == "missing":
        clip.unlink()
    elif damage == "changed":
        clip.write_bytes(clip.read_bytes()[:-1])
    elif damage == "no checksums":
        sums.unlink()
    else:
        sums.write_text("".join(row for row in sums.read_text().splitlines(True) if "  test/" not in row))
    with pytest.raises(DataError, match=r"reinstall the package, or rebuild the testbed") as error:
        testbed.test_set()
    assert str(sums if "no" in damage else clip) in str(error.value)


@pytest.mark.slow
def test_demo_on_a_few_utterances(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--samples", "4", "--score", "8", "--json", str(tmp_path / "demo.json")])
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "demo.json").read_text())
    (only,) = scores["sets"].values()
    methods = [f"{method} W{bits}" for bits in (4, 3) for method in ("RTN", "GPTQ", "default")]
    assert list(only["models"]) == ["full precision", *methods]
    assert only["utterances"] == 8
    for name in methods:
        model = only["models"][name]
        counts = model["counts"]
        assert counts["all"]["words"] == counts["rare"]["words"] + counts["common"]["words"] == only["words"]
        errors = sum(counts["all"][k] for k in ("substitutions", "deletions", "insertions"))
        assert model["figures"]["wer"]["value"] == pytest.approx(errors / only["words"])
        assert model["figures"]["kl_rare"]["value"] > 0
        assert name in result.output
    # The tags: rare words of the transcripts, counted again here.
    spoken = {u.id: u.text for u in testbed.test_set()}
    heard = only["models"]["full precision"]["hypotheses"]
    rare = [w for i in heard for w in spoken[i].split() if is_rare(w)]
    assert abs(only["rare_words"] - len(rare)) <= 2  # the normaliser writes a few words otherwise
    full, *quantized = scores["linear_bytes"].values()
    assert len(set(quantized)) == 4  # by width, and with zero points or without
    assert 0.25 < quantized[0] / full < 0.26  # a nibble of 16 bits, and a scale every 128 weights
    assert 0.19 < quantized[-1] / full < 0.2
    assert "next, on your own model" in result.output
    assert "Loading weights" not in result.output + result.stderr  # transformers' bars, which would break up ours


@needs_recipe
def test_sentences_come_from_the_seed(recipe):
    text = recipe("text")
    once = list(text.sentences("train", 50, avoid=set()))
    assert once == list(text.sentences("train", 50, avoid=set()))
    assert once != list(text.sentences("calibration", 50, avoid=set()))
    assert all(c.isalpha() or c == " " for s in once for c in s)


@needs_recipe
def test_sentences_have_a_tail(recipe):
    text = recipe("text")
    avoid: set[str] = set()
    scored, trained = (list(text.sentences(s, 2000, avoid=avoid)) for s in ("test", "train"))
    unseen = text.unseen_words()
    for sentences, least, most in ((scored, 0.05, 0.09), (trained, 0.13, 0.2)):  # training is denser, to learn spelling
        words = [w for s in sentences for w in s.split()]
        assert least < sum(map(text.is_rare, words)) / len(words) < most
    assert not unseen & {w for s in trained for w in s.split()}
    rare = [w for s in scored for w in s.split() if text.is_rare(w)]
    assert 0.25 < sum(w in unseen for w in rare) / len(rare) < 0.5
    common = Counter(w for s in trained for w in s.split() if not text.is_rare(w))
    ranked = np.log([count for _, count in common.most_common(1000)])
    slope = np.polyfit(np.log(np.arange(10, 1000)), ranked[10:], 1)[0]
    assert -1.6 < slope < -0.6  # Zipf's law


@needs_recipe
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (20, "twenty"),
        (45, "forty five"),
        (100, "one hundred"),
        (1204, "one thousand two hundred and four"),
    ],
)
def test_spoken_numbers(recipe, number, words):
    assert recipe("text").spoken(number) == words


@needs_recipe
def test_packaged_sentences_are_the_recipes(recipe):
    lines = recipe("corpus").lines
    for shipped, names in (
        (testbed.calibration_pool(), ["calibration"]),
        (testbed.test_set(), ["test", "test-unseen-voices"]),
    ):
        assert {u.id: u.text for u in shipped} == {line.id: line.text for n in names for line in lines(n)}


@needs_recipe
@needs_synthesizer
def test_speech_comes_from_the_seed(recipe):
    corpus = recipe("corpus")
    line = corpus.lines("calibration")[3]
    (once, voice), (again, _) = corpus.render(line), corpus.render(line)
    assert np.array_equal(once, again)
    assert voice == testbed.calibration_pool()[3].speaker
    assert once.dtype == np.float32
    assert np.abs(once).max() == pytest.approx(0.5)
    clip, rate = soundfile.read(corpus.encode(once), dtype="float32")
    assert rate == 16_000
    assert np.corrcoef(clip, once)[0, 1] > 0.9


@needs_recipe
@needs_synthesizer
def test_a_further_set_is_new(tmp_path):
    build = [sys.executable, RECIPE / "build.py", "more", tmp_path / "more", "--utterances", "3", "--voices", "unseen"]
    subprocess.run(build, check=True)
    utterances = load_utterances(tmp_path / "more")
    assert len(utterances) == 3
    assert not {u.text for u in utterances} & {u.text for u in testbed.test_set()}
    again = subprocess.run(build, capture_output=True, text=True)
    assert again.returncode == 2
    assert "holds a set already" in " ".join(again.stderr.split())


@needs_recipe
def test_missing_synthesizer_is_a_clear_error(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["build.py", "check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RECIPE / "build.py"), run_name="__main__")
    assert ended.value.code == 1
    assert "apt install espeak-ng" in " ".join(capsys.readouterr().out.split())
