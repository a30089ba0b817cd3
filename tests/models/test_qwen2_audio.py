"""Qwen2-Audio: a tower that masks what is beyond the audio, half as many rows in the decoder."""

import pytest
import torch

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import ModelError
from tarq.report import Reporter
from tarq.speech.calibration import make_examples
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

from .families import make_qwen2_audio


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_qwen2_audio(tmp_path_factory.mktemp("model") / "qwen2_audio")


@pytest.fixture(scope="module")
def recognizer(folder):
    return tarq.load_recognizer(folder)


@pytest.mark.slow
def test_round_trip(folder, manifest, tmp_path, round_trip):
    report = round_trip(folder, manifest, tmp_path / "out")
    assert [r.stage for r in report.layers] == ["encoder"] * 12 + ["projector"] + ["decoder"] * 14
    assert report.left_out == {"lm_head": "the output head"}
    places = report.calibration["positions"]
    assert places["projector"]["audio"] == places["decoder"]["audio"] < places["encoder"]["audio"]


def test_batches_do_not_change_the_statistics(folder, manifest, same_statistics):
    same_statistics(folder, manifest)


def test_audio_rows_are_tagged_by_what_the_text_listens_to(folder, manifest, audio_language_frame_tags):
    audio_language_frame_tags(folder, manifest, merged=2)


def test_logits_and_generation_are_the_models_own(recognizer, manifest):
    utterances = load_utterances(manifest)[:3]
    batch = recognizer.collate(make_examples(recognizer, utterances, Rarity(Words()), Reporter()).examples)
    with torch.no_grad():
        ours = recognizer.logits(batch)
        theirs = recognizer.model(
            input_ids=batch.input_ids, attention_mask=batch.positions["decoder"].exists.long(), **batch.features
        ).logits
    for b in range(3):
        count = int((batch.targets[b] != -100).sum())
        torch.testing.assert_close(ours[b, :count], theirs[b, batch.scored[b, :count]])
    wave = utterances[2].waveform()
    task = "<|audio_bos|><|AUDIO|><|audio_eos|>Detect the language and recognize the speech: <|en|>"
    request = recognizer.processor(text=task, audio=[wave], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        written = recognizer.model.generate(**request, max_new_tokens=12, do_sample=False)
    expected = recognizer.tokenizer.batch_decode(written[:, request["input_ids"].shape[1] :], skip_special_tokens=True)
    assert recognizer.transcribe([wave]) == [expected[0].strip()]
    assert request["input_ids"][0].tolist() == recognizer.prefix(recognizer.audio_tokens(request)[0])


def test_a_language_without_a_token_is_refused(recognizer):
    with pytest.raises(ModelError, match=r"no token <\|xx\|>: language 'xx'"):
        recognizer.prompt("house", frames=3, language="xx")
