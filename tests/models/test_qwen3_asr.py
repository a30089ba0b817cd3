"""Qwen3-ASR: a packed tower, the prompt of its chat template, audio and text in one sequence."""

import pytest
import torch

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import ModelError
from tarq.report import Reporter
from tarq.speech.calibration import make_examples
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

from .conftest import tone
from .families import make_qwen3_asr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_qwen3_asr(tmp_path_factory.mktemp("model") / "qwen3_asr")


@pytest.fixture(scope="module")
def recognizer(folder):
    return tarq.load_recognizer(folder)


def test_round_trip(folder, manifest, tmp_path, round_trip):
    report = round_trip(folder, manifest, tmp_path / "out")
    assert [r.stage for r in report.layers] == ["encoder"] * 12 + ["projector"] * 2 + ["decoder"] * 14
    assert report.left_out == {
        "lm_head": "the output head, tied to the token embedding",
        "model.audio_tower.conv_out": "the stem: it reads convolution features, before the first block",
    }
    assert (tmp_path / "out" / "chat_template.jinja").exists()
    places = report.calibration["positions"]
    assert places["encoder"] == places["projector"]
    assert places["encoder"]["audio"] == places["decoder"]["audio"] > 0
    assert places["decoder"]["tail"] > 0


def test_batches_do_not_change_the_statistics(folder, manifest, same_statistics):
    same_statistics(folder, manifest)


def test_audio_rows_are_tagged_by_what_the_text_listens_to(folder, manifest, audio_language_frame_tags):
    audio_language_frame_tags(folder, manifest, merged=1)


@pytest.mark.slow
def test_two_processes_quantize_as_one(folder, manifest, quantizes_as_one):
    quantizes_as_one(folder, manifest, "--batch-size 2 --frame-tags aligned")


def test_prompt_is_the_processors(recognizer, manifest):
    utterance = load_utterances(manifest)[3]
    request = recognizer.processor.apply_transcription_request(audio=utterance.waveform(), language="en")
    (example,) = make_examples(recognizer, [utterance], Rarity(Words()), Reporter()).examples
    expected = request["input_ids"][0].tolist()
    assert list(example.prompted.ids[: len(expected)]) == expected
    text = recognizer.tokenizer.decode(list(example.prompted.ids))
    assert text.endswith(f"<|im_start|>assistant\nlanguage English<asr_text>{utterance.text}<|im_end|>")
    assert text.count("<|audio_pad|>") == example.frames


@pytest.mark.parametrize("seconds", [0.1, 0.99, 1.0, 2.37])
def test_audio_rows_are_as_many_as_the_tower_makes(recognizer, seconds):
    features, frames = recognizer.audio_inputs(tone(seconds))
    with torch.no_grad():
        (rows,) = recognizer.encode(recognizer.stack([features]))
    assert len(rows) == frames


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
        assert batch.input_ids[b, batch.scored[b, 1:count]].tolist() == batch.targets[b, : count - 1].tolist()
    waves = [u.waveform() for u in utterances]
    request = recognizer.processor.apply_transcription_request(audio=waves, language=["en"] * 3)
    with torch.no_grad():
        written = recognizer.model.generate(**request, max_new_tokens=12, do_sample=False)
    expected = recognizer.tokenizer.batch_decode(written[:, request["input_ids"].shape[1] :], skip_special_tokens=True)
    assert recognizer.transcribe(waves) == [t.strip() for t in expected]


def test_languages(recognizer):
    text = recognizer.tokenizer.decode(list(recognizer.prompt("haus", frames=3, language="de").ids))
    assert "language German<asr_text>haus" in text
    with pytest.raises(ModelError, match="no prompt for language 'xx'"):
        recognizer.prompt("haus", frames=3, language="xx")


def test_the_other_layout_is_refused(folder, tmp_path):
    import json

    config = json.loads((folder / "config.json").read_text())
    config["thinker_config"] = {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"Qwen3-ASR-0\.6B-hf"):
        tarq.load(tmp_path)
