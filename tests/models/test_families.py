"""Adapters: prompts, what a model must have, and what happens when it has not."""

import json

import pytest
import torch
from transformers import BertConfig, BertModel, WhisperConfig, WhisperModel

import tarq
from tarq.errors import ModelError
from tarq.models.registry import FAMILIES, adapt
from tarq.recognizers import as_recognizer


@pytest.fixture
def recognizer(model_folder):
    return tarq.load_recognizer(model_folder)


def test_prompt_of_an_english_model(recognizer):
    prompted = recognizer.prompt("the house")
    assert prompted.ids[:2] == (1, 2)
    assert prompted.ids[-1] == 0
    assert recognizer.tokenizer.decode(prompted.ids[2:-1]) == " the house"
    assert [t for t, flag in zip(prompted.ids, prompted.is_text, strict=True) if not flag] == [1, 2, 0]
    covered = {c for (a, b), text in zip(prompted.offsets, prompted.is_text, strict=True) if text for c in range(a, b)}
    assert covered == set(range(len("the house")))


def test_prompt_of_a_multilingual_model(recognizer):
    generation = recognizer.model.generation_config
    generation.is_multilingual = True
    generation.lang_to_id, generation.task_to_id = {"<|en|>": 50, "<|de|>": 51}, {"transcribe": 60, "translate": 61}
    assert recognizer.prompt("haus", language="de").ids[:4] == (1, 51, 60, 2)
    with pytest.raises(ModelError, match="no language 'xx'; it knows de, en"):
        recognizer.prompt("haus", language="xx")
    del generation.lang_to_id
    with pytest.raises(ModelError, match="no lang_to_id"):
        recognizer.prompt("haus")


def test_an_english_model_refuses_other_languages(recognizer):
    with pytest.raises(ModelError, match="English only, not 'de'"):
        recognizer.prompt("haus", language="de")


def test_the_language_of_a_recognizer_is_not_a_state(recognizer):
    """Another language is another view of the same model; whoever holds the first one notices nothing."""
    german = as_recognizer(recognizer, language="de")
    assert (german.language, recognizer.language) == ("de", "en")
    assert german.model is recognizer.model
    assert as_recognizer(german).language == "de"
    with pytest.raises(AttributeError):
        recognizer.language = "de"


def test_generation_begins_with_the_prompt_that_teacher_forcing_uses(recognizer, monkeypatch):
    """A multilingual generation config like the hub's: the decoder's first call gets the very same prefix."""
    generation = recognizer.model.generation_config
    generation.is_multilingual = True
    generation.lang_to_id, generation.task_to_id = {"<|en|>": 50, "<|de|>": 51}, {"transcribe": 60, "translate": 61}
    seen = []
    forward = recognizer.model.model.decoder.forward

    def spy(*args, **kwargs):
        seen.append(kwargs.get("input_ids", args[0] if args else None))
        return forward(*args, **kwargs)

    monkeypatch.setattr(recognizer.model.model.decoder, "forward", spy)
    recognizer.transcribe([torch.zeros(8000).numpy()], "de")
    assert seen[0][0].tolist() == recognizer.prefix("de") == [1, 51, 60, 2]


def test_a_batch_encoded_in_parts_is_the_batch(recognizer, monkeypatch):
    features = torch.randn(5, 80, 200)
    with torch.no_grad():
        whole = recognizer.encoder(features).last_hidden_state
        monkeypatch.setattr("tarq.models.whisper.ENCODED_AT_ONCE", 250)  # two windows of 100 positions
        sizes = []
        forward = recognizer.encoder.forward

        def spy(input_features, **kwargs):
            sizes.append(len(input_features))
            return forward(input_features, **kwargs)

        monkeypatch.setattr(recognizer.encoder, "forward", spy)
        torch.testing.assert_close(recognizer.encode({"input_features": features}), whole)
    assert sizes == [2, 2, 1]


def test_the_language_of_the_configuration_reaches_the_prompt(recognizer, manifest):
    with pytest.raises(ModelError, match="English only"):
        tarq.quantize(recognizer, manifest, tarq.TarqConfig(language="de"))


def test_teacher_forced_logits_follow_the_prompt(recognizer):
    """The adapter's batch gives the logits of the plain model call."""
    features = torch.randn(80, 200)
    ids = torch.tensor([[1, 2, 9, 12]])
    with torch.no_grad():
        expected = recognizer.model(input_features=features[None], decoder_input_ids=ids).logits
        from tarq.models.types import Example, Prompted

        prompted = Prompted((1, 2, 9, 12, 0), ((0, 0),) * 5, (False, False, True, True, False))
        rare = torch.zeros(5, dtype=torch.bool)
        batch = recognizer.collate(
            [Example("x", {"input_features": features}, 100, prompted, rare, rare[1:], rare.double())]
        )
        torch.testing.assert_close(recognizer.logits(batch), expected)


def test_other_models_are_refused(recognizer):
    bert = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16))
    with pytest.raises(ModelError, match=r"BertModel.*'bert'.*supported: whisper"):
        adapt(bert, recognizer.tokenizer, recognizer.feature_extractor, torch.float32)


def test_every_family_names_classes_that_transformers_has():
    import transformers

    served = [model_type for family in FAMILIES for model_type in family.model_classes]
    assert len(served) == len(set(served))
    for family in FAMILIES:
        for model_type, name in family.model_classes.items():
            assert getattr(transformers, name).config_class.model_type == model_type


@pytest.mark.parametrize(
    ("model_type", "why"), [("granite_speech", "LoRA"), ("parakeet_tdt", "Parakeet-CTC is supported"), ("bert", "")]
)
def test_what_is_not_supported_is_refused_before_anything_is_loaded(tmp_path, model_type, why):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelError, match=rf"'{model_type}'\) is not supported.*{why}.*supported: whisper, moonshine"):
        tarq.load(tmp_path)


def test_a_whisper_without_the_expected_parts_is_refused(recognizer):
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=400, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=1,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"WhisperModel has no model\.encoder\.layers: a Whisper"):
        adapt(WhisperModel(config), recognizer.tokenizer, recognizer.feature_extractor, torch.float32)


def test_a_tokenizer_without_offsets_is_refused(recognizer):
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow gives no character offsets"):
        adapt(recognizer.model, Slow(), recognizer.feature_extractor, torch.float32)


def test_a_folder_without_tokenizer_is_named(model_folder, tmp_path):
    import shutil

    shutil.copytree(model_folder, tmp_path / "m", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelError, match=r"tokenizer=…"):
        tarq.load_recognizer(tmp_path / "m")


def test_a_folder_without_feature_extractor_is_named(model_folder, tmp_path):
    import shutil

    shutil.copytree(model_folder, tmp_path / "m", ignore=shutil.ignore_patterns("preprocessor*"))
    with pytest.raises(ModelError, match=r"no usable feature_extractor there.*feature_extractor=…"):
        tarq.load_recognizer(tmp_path / "m")


def test_objects_the_user_has_already(model_folder, manifest):
    """``tarq.quantize`` takes a plain transformers model; parts are found where it was loaded from, or passed."""
    model = tarq.load(model_folder)
    report = tarq.quantize(model, manifest, tarq.TarqConfig.preset("gptq", group_size=32, samples=2))
    assert len(report.layers) == 32
    assert report.config["scale_dtype"] == "float32"  # the dtype of the model handed in
    orphan = tarq.load(model_folder)
    orphan.config._name_or_path = ""
    parts = tarq.load_recognizer(model_folder)
    tarq.quantize(
        orphan,
        manifest,
        tarq.TarqConfig.preset("rtn", group_size=32),
        tokenizer=parts.tokenizer,
        feature_extractor=parts.feature_extractor,
    )
