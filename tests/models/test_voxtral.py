"""Voxtral: its own tokenizer and transcription prompt, windows whose padding the decoder reads too."""

import json

import pytest
import torch

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import ModelError
from tarq.models.common import byte_spans
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set, make_examples
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

from .conftest import CONFIG
from .families import make_voxtral

pytest.importorskip("mistral_common", reason="Voxtral's tokenizer needs mistral-common")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_voxtral(tmp_path_factory.mktemp("model") / "voxtral")


@pytest.fixture(scope="module")
def recognizer(folder):
    return tarq.load_recognizer(folder)


@pytest.mark.slow
def test_round_trip(folder, manifest, tmp_path, round_trip):
    report = round_trip(folder, manifest, tmp_path / "out")
    assert [r.stage for r in report.layers] == ["encoder"] * 12 + ["projector"] * 2 + ["decoder"] * 14
    assert report.left_out == {"lm_head": "the output head"}
    assert (tmp_path / "out" / "tekken.json").exists()
    entry = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert entry["ignore"] == [r"re:^(?:lm_head|language_model\.lm_head)$"]
    places = report.calibration["positions"]
    assert places["decoder"]["padding"] == places["projector"]["padding"] > 0
    assert places["decoder"]["audio"] == places["projector"]["audio"]
    assert places["decoder"]["tail"] > 0


def test_batches_do_not_change_the_statistics(folder, manifest, same_statistics):
    same_statistics(folder, manifest)


def test_audio_rows_are_tagged_by_what_the_text_listens_to(folder, manifest, audio_language_frame_tags):
    audio_language_frame_tags(folder, manifest, merged=4)


def test_prompt_is_the_processors(recognizer, manifest):
    """Teacher forcing begins with what ``apply_transcription_request`` makes of the same audio."""
    utterance = load_utterances(manifest)[0]
    request = recognizer.processor.apply_transcription_request(
        audio=[utterance.waveform()], format=["WAV"], sampling_rate=16000, language="en", model_id="voxtral"
    )
    (example,) = make_examples(recognizer, [utterance], Rarity(Words()), Reporter()).examples
    expected = request["input_ids"][0].tolist()
    assert list(example.prompted.ids[: len(expected)]) == expected
    assert expected.count(24) == 375
    assert example.prompted.ids[-1] == 2
    said = [i for i, text in zip(example.prompted.ids, example.prompted.is_text, strict=True) if text]
    assert recognizer.tokenizer.decode(said) == utterance.text
    torch.testing.assert_close(example.features["input_features"], request["input_features"][0], atol=2e-2, rtol=1e-2)


def test_logits_are_the_models_own(recognizer, manifest):
    """Embedding, scattering, masking and picking rows by hand gives what one plain call of the model gives."""
    examples = make_examples(recognizer, load_utterances(manifest)[:3], Rarity(Words()), Reporter()).examples
    batch = recognizer.collate(examples)
    with torch.no_grad():
        ours = recognizer.logits(batch)
        theirs = recognizer.model(
            input_ids=batch.input_ids,
            input_features=batch.features["input_features"],
            attention_mask=batch.positions["decoder"].exists.long(),
        ).logits
    for b, example in enumerate(examples):
        said = [t for t, text in enumerate(example.prompted.is_text) if text]
        count = len(said) + 1
        torch.testing.assert_close(ours[b, :count], theirs[b, said[0] - 1 : said[-1] + 1])
        assert batch.targets[b, :count].tolist() == list(example.prompted.ids[said[0] :])
        assert (batch.targets[b, count:] == -100).all()


def test_generation_is_the_models_own(recognizer, manifest):
    wave = load_utterances(manifest)[1].waveform()
    request = recognizer.processor.apply_transcription_request(
        audio=[wave], format=["WAV"], sampling_rate=16000, language="en", model_id="voxtral"
    )
    features = recognizer.stack([recognizer.audio_inputs(wave)[0]])
    with torch.no_grad():
        written = recognizer.model.generate(
            input_ids=request["input_ids"], attention_mask=request["attention_mask"],
            input_features=features["input_features"], max_new_tokens=12, do_sample=False,
        )  # fmt: skip
    expected = recognizer.tokenizer.batch_decode(written[:, request["input_ids"].shape[1] :], skip_special_tokens=True)
    assert recognizer.transcribe([wave]) == [expected[0].strip()]


def test_rare_words_are_tagged_among_the_text_rows_only(recognizer, manifest):
    batches = calibration_set(recognizer, load_utterances(manifest)[:2], CONFIG, Reporter())[0]
    for batch in batches:
        rows = batch.positions["decoder"]
        assert rows.tail.any()
        assert not (rows.tail & rows.audio).any()
        assert (batch.input_ids[rows.audio] == 24).all()


def test_characters_of_tokens_that_split_them(recognizer):
    assert byte_spans("aé是b", [1, 1, 1, 2, 2]) == [(0, 1), (1, 2), (1, 2), (2, 3), (2, 4)]
    text = "the naïve house"
    ids, spans = recognizer.tokens(text)
    assert {c for span in spans for c in range(*span)} == set(range(len(text)))
    assert len(ids) == len(spans)


def test_without_mistral_common_it_is_said(folder, monkeypatch):
    monkeypatch.setattr("tarq.models.voxtral.is_mistral_common_available", lambda: False)
    with pytest.raises(ModelError, match=r"needs mistral-common: pip install 'tarq\[voxtral\]'"):
        tarq.load_recognizer(folder)


def test_a_language_that_is_none_is_refused(recognizer):
    with pytest.raises(ModelError, match="no prompt for language 'klingon'"):
        recognizer.prompt("house", frames=3, language="klingon")
