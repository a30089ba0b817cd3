"""Whisper's variants: mel bins, decoders of two layers, prompts by language, times around transcripts."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import tarq
from tarq import api
from tarq.data.corpora.registry import load_utterances
from tarq.errors import ModelError
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set, make_examples
from tarq.terminal.cli import app
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

from .conftest import CONFIG
from .families import make_whisper

VARIANTS = {
    "large-v3": {"mel": 128},
    "turbo": {"mel": 128, "encoder": 3, "decoder": 1},
    "small.en": {"multilingual": False},
    "distil-small.en": {"multilingual": False, "encoder": 4, "decoder": 2},
}


@pytest.mark.parametrize(
    "variant", [next(iter(VARIANTS)), *(pytest.param(v, marks=pytest.mark.slow) for v in [*VARIANTS][1:])]
)
def test_round_trip(variant, manifest, tmp_path, round_trip):
    options = {"encoder": 2, "decoder": 2} | VARIANTS[variant]
    report = round_trip(make_whisper(tmp_path / "model", **options), manifest, tmp_path / "out")
    assert len(report.layers) == 6 * options["encoder"] + 10 * options["decoder"]
    assert report.left_out == {"proj_out": "the output head, tied to the token embedding"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp("model") / "whisper", encoder=1, decoder=1)


@pytest.fixture(scope="module")
def recognizer(folder):
    return tarq.load_recognizer(folder)


def test_batches_do_not_change_the_statistics(folder, manifest, same_statistics):
    same_statistics(folder, manifest)


def test_transcribes_in_the_language_asked(folder, manifest, monkeypatch):
    heard = []
    audio = manifest.parent / "u0.wav"
    monkeypatch.setattr(
        api, "transcribe_files", lambda recognizer, *_: heard.append(recognizer.prefix()[1]) or iter([(audio, "")])
    )
    german = tarq.load_recognizer(folder, language="de")
    tarq.transcribe(german, [audio])
    tarq.transcribe(german, [audio], language="en")
    tarq.transcribe(folder, [audio])
    assert CliRunner().invoke(app, ["transcribe", str(folder), str(audio), "--language", "de"]).exit_code == 0
    de, en = (german.tokenizer.convert_tokens_to_ids(f"<|{language}|>") for language in ("de", "en"))
    assert heard == [de, en, en, de]


def test_a_transcript_with_times(recognizer):
    name = recognizer.tokenizer.convert_ids_to_tokens
    prompted = recognizer.prompt("the house", frames=87, timestamps=True)
    assert name(list(prompted.ids[:4])) == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|0.00|>"]
    assert name(list(prompted.ids[-2:])) == ["<|1.74|>", "<|endoftext|>"]  # 87 frames of 20 ms
    assert [i for i, text in zip(prompted.ids, prompted.is_text, strict=True) if text] == [
        i
        for i, text in zip(recognizer.prompt("the house").ids, recognizer.prompt("the house").is_text, strict=True)
        if text
    ]


@pytest.mark.parametrize(("mode", "with_times"), [("without", 0), ("with", 4), ("alternate", 2)])
def test_calibration_with_and_without_times(recognizer, manifest, mode, with_times):
    made = make_examples(
        recognizer, load_utterances(manifest)[:4], Rarity(Words()), Reporter(), timestamps=mode
    ).examples
    begin = recognizer.tokenizer.convert_tokens_to_ids("<|0.00|>")
    assert sum(begin in e.prompted.ids for e in made) == with_times
    assert all(not e.rare[torch.tensor(e.prompted.ids) >= begin].any() for e in made)


def test_models_without_times_say_so(tmp_path, manifest):
    recognizer = tarq.load_recognizer(make_whisper(tmp_path / "m", encoder=1, decoder=1, times=False))
    recognizer.model.generation_config.no_timestamps_token_id = recognizer.model.config.vocab_size - 1
    with pytest.raises(ModelError, match="no tokens for timestamps"):
        tarq.quantize(recognizer, manifest, replace(CONFIG, timestamps="with"))


@pytest.fixture
def german_and_english(manifest, tmp_path):
    """Three utterances: one German, one Austrian, one whose language is not stated."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()[:3]]
    for line, language in zip(lines, ("de", "de-AT", None), strict=True):
        line["audio"] = str(manifest.parent / line["audio"])
        if language:
            line["language"] = language
    lines[0]["text"] = "das Wetter ist heute schön"
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_a_set_is_scored_language_by_language(recognizer, german_and_english, monkeypatch):
    prompted = []
    prefix = type(recognizer).prefix

    def spy(self, language=None):
        prompted.append(language)
        return prefix(self, language)

    monkeypatch.setattr(type(recognizer), "prefix", spy)
    sets = tarq.evaluate({"m": recognizer}, {"s": german_and_english}, resamples=20).sets
    assert {label: scores.utterances for label, scores in sets.items()} == {"s (de)": 2, "s (en)": 1}
    assert [scores.word_frequencies for scores in sets.values()] == [{"wordfreq": "de"}, {"wordfreq": "en"}]
    assert [scores.normalizer for scores in sets.values()] == ["basic", "english"]
    assert set(prompted) == {"de", "en"}
    assert recognizer.language == "en"
    spoken = load_utterances(german_and_english)
    expected = recognizer.transcribe([u.waveform() for u in spoken[:2]], "de")
    assert list(sets["s (de)"].models["m"].hypotheses.values()) == expected


def test_each_utterance_is_prompted_in_its_language(recognizer, german_and_english):
    batches, summary, _ = calibration_set(recognizer, load_utterances(german_and_english), CONFIG, Reporter())
    prompts = {u: row for b in batches for u, row in zip(b.ids, b.input_ids[:, 1].tolist(), strict=True)}
    german, english = recognizer.tokenizer.convert_tokens_to_ids(["<|de|>", "<|en|>"])
    assert prompts == {"u0": german, "u1": german, "u2": english}
    assert summary["languages"] == {"de": 2, "en": 1}
    assert recognizer.language == "en"
    own = make_examples(
        recognizer, load_utterances(german_and_english), Rarity(Words()), Reporter(), transcripts="self"
    )
    assert own.self_transcribed == 3
