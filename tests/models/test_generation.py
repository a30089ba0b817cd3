"""generation_config.json field by field: honoured as transformers does, set aside, or refused by name."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from typer.testing import CliRunner

import tarq
from tarq.errors import ModelError
from tarq.models.generation import HONOURED, NEUTRAL, REFUSED, are_numbers, new_tokens, require_finite
from tarq.speech.calibration import make_example
from tarq.terminal.cli import app
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

from .conftest import tone
from .families import FAMILIES, make_moonshine, make_whisper, plain_transcript

GENERATING = [f for f in FAMILIES if f.name in ("whisper", "moonshine", "qwen2_audio")]
WAVE = tone(1.5)

#: Values at which a field changes a transcript; functions are given the tokens that are transcribed without it.
ACTIVE = {
    "max_new_tokens": 6,
    "min_new_tokens": 8,
    "stop_strings": lambda ids, decode: [decode(ids[1:2]).strip()],
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": lambda ids, decode: [[ids[0]]],
    "sequence_bias": lambda ids, decode: [[[ids[0]], -50.0]],
    "exponential_decay_length_penalty": (1, 40.0),
    "suppress_tokens": lambda ids, decode: [ids[0]],
    "begin_suppress_tokens": lambda ids, decode: [ids[0]],
    "forced_eos_token_id": lambda ids, decode: ids[0],
    "eos_token_id": lambda ids, decode: [ids[7], ids[5]],
    "watermarking_config": {"greenlist_ratio": 0.25, "bias": 8.0},
}
#: Values that no transcript may change by, though ``generate`` fails, returns something else or searches otherwise.
SET_ASIDE = {
    "num_beams": 4,
    "num_beam_groups": 2,
    "num_return_sequences": 3,
    "diversity_penalty": 0.5,
    "early_stopping": True,
    "length_penalty": 3.0,
    "renormalize_logits": True,
    "do_sample": True,
    "temperature": 5.0,
    "top_k": 3,
    "top_p": 0.3,
    "min_p": 0.3,
    "top_h": 0.3,
    "typical_p": 0.3,
    "epsilon_cutoff": 0.3,
    "eta_cutoff": 0.3,
    "encoder_repetition_penalty": 3.0,
    "encoder_no_repeat_ngram_size": 1,
    "remove_invalid_values": True,
    "use_mtp": True,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 2,
    "is_assistant": True,
    "num_assistant_tokens": 2,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.99,
    "assistant_early_exit": 1,
    "assistant_lookbehind": 2,
    "target_lookbehind": 2,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "x",
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "return_dict_in_generate": True,
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {"backend": "quanto"},
    "max_cache_len": 3,
    "compile_config": {"fullgraph": True},
    "disable_compile": False,
    "continuous_batching_config": {"block_size": 2},
    "low_memory": True,
    "prefill_chunk_size": 2,
}
UNSUPPORTED = {
    "constraints": [1],
    "force_words_ids": [[5]],
    "guidance_scale": 1.5,
    "token_healing": True,
    "max_time": 0.001,
    "no_speech_threshold": 0.6,
}
#: Ids that prompts are made of, and what other tests hold.
ELSEWHERE = {
    "max_length",
    "min_length",
    "pad_token_id",
    "bos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
}


@pytest.fixture(scope="module", params=GENERATING, ids=lambda f: f.name)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(family, tmp_path_factory):
    return tarq.load_recognizer(family.make(tmp_path_factory.mktemp("model") / family.name))


@pytest.fixture(scope="module")
def configured(family, loaded):
    """A generation configuration for transcripts of several different tokens, no timestamps; what is transcribed so,
    and its tokens.

    After a timestamp Whisper's own ``generate`` goes on with another window.
    """
    loaded.model.generation_config = generation = copy.deepcopy(loaded.model.generation_config)
    text = {i for token, i in loaded.vocabulary.items() if token.startswith("<|")} - {generation.eos_token_id}
    generation.suppress_tokens = sorted(text)
    generation.min_new_tokens, generation.max_new_tokens, generation.max_length = 5, 9, None
    generation.repetition_penalty = 1.5
    return generation, transcript(loaded), own_tokens(family, loaded)


@pytest.fixture
def recognizer(loaded, configured):
    """With a copy of that configuration, which a test may change."""
    loaded.model.generation_config = copy.deepcopy(configured[0])
    return loaded


def transcript(recognizer, wave=WAVE):
    with torch.no_grad():
        return recognizer.transcribe([wave])[0]


def own_tokens(family, recognizer):
    """The tokens transcribed as the configuration is."""
    inputs = family.inputs(recognizer, WAVE)
    with torch.no_grad():
        ids = recognizer.model.generate(**inputs)[0].tolist()
    start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return [i for i in ids[start:] if i not in recognizer.tokenizer.all_special_ids]


def test_every_field_has_its_place():
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    groups = [set(HONOURED), set(NEUTRAL), set(REFUSED)]
    assert fields <= set.union(*groups)
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert set(ACTIVE) | ELSEWHERE == set(HONOURED)
    assert set(SET_ASIDE) == set(NEUTRAL)
    assert set(UNSUPPORTED) == set(REFUSED)


@pytest.mark.parametrize("field", ACTIVE)
def test_what_decides_a_transcript_is_honoured(family, recognizer, configured, field):
    generation = recognizer.model.generation_config
    _, without, own = configured
    assert len(own) > 7
    if field == "min_new_tokens":  # of a model that would end before
        generation.eos_token_id = next(i for i in own[5:] if i not in own[:5])
    if field == "no_repeat_ngram_size":
        generation.repetition_penalty = 1.0
    if field in ("min_new_tokens", "no_repeat_ngram_size"):
        without = transcript(recognizer)
    value = ACTIVE[field]
    value = value(own, recognizer.tokenizer.decode) if callable(value) else value
    if field == "suppress_tokens":
        value = value + generation.suppress_tokens
    setattr(generation, field, GenerationConfig(**{field: value}).watermarking_config if "water" in field else value)
    options = {"tokenizer": recognizer.tokenizer} if field == "stop_strings" else {}
    expected = plain_transcript(family, recognizer, WAVE, **options)
    if field in ("eos_token_id", "min_new_tokens"):  # what ends a transcript is no part of it
        end = recognizer.tokenizer.decode(np.atleast_1d(generation.eos_token_id)[-1:].tolist())
        expected = expected.removesuffix(end.strip()).strip()
    assert recognizer.check() == []
    assert transcript(recognizer) == expected
    assert expected != without
    # teacher forcing takes no short cut past it
    example = make_example(recognizer, "x", WAVE, without or "a", Rarity(Words()), "en")
    with torch.no_grad():
        batch = recognizer.collate([example])
        encoded = recognizer.encode(batch.features)
        assert recognizer.decode_forced(batch, encoded, recognizer.logits(batch, encoded)) == [expected]


@pytest.mark.parametrize("field", SET_ASIDE)
def test_other_searches_and_what_is_returned_change_no_transcript(family, recognizer, configured, field):
    setattr(recognizer.model.generation_config, field, SET_ASIDE[field])
    notes = recognizer.check()
    assert (f"{field}={SET_ASIDE[field]}" in " ".join(notes)) == (field in ("num_beams", "do_sample"))
    if family is GENERATING[0]:  # the others are given them together, below
        assert transcript(recognizer) == configured[1]


def test_all_of_them_together_change_no_transcript(recognizer, configured):
    for field, value in SET_ASIDE.items():
        setattr(recognizer.model.generation_config, field, value)
    assert transcript(recognizer) == configured[1]


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_not_carried_out_is_refused_by_name(recognizer, field):
    setattr(recognizer.model.generation_config, field, UNSUPPORTED[field])
    with pytest.raises(ModelError, match=f"generation_config.json: {field} is not supported"):
        recognizer.check()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_length", "many"), ("max_length", -1), ("max_new_tokens", 0), ("suppress_tokens", "x"),
        ("suppress_tokens", [10**6]), ("eos_token_id", -3), ("eos_token_id", []), ("eos_token_id", 10**6),
        ("repetition_penalty", float("nan")), ("bad_words_ids", [[]]), ("stop_strings", 3), ("pad_token_id", 1.5),
        ("begin_suppress_tokens", {"a": 1}), ("no_repeat_ngram_size", -2), ("sequence_bias", [[["a"], 1]]),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_named(recognizer, field, value):
    setattr(recognizer.model.generation_config, field, value)
    with pytest.raises(ModelError, match=f"generation_config.json: {field} must be"):
        recognizer.check()


def test_without_a_length_the_models_own_maximum_holds(tmp_path):
    """transformers ends such a transcript after 20 tokens."""
    recognizer = tarq.load_recognizer(make_whisper(tmp_path / "m", positions=64))
    generation = recognizer.model.generation_config
    generation.max_length = None
    generation.suppress_tokens = [0]  # no end
    prompt = len(recognizer.prefix())
    for length in (None, 64, 1000):
        generation.max_length = length
        assert len(written(recognizer)) == 64 - prompt
    generation.max_length = None
    for count, expected in ((448, 64 - prompt), (7, 7)):
        generation.max_new_tokens = count
        assert len(written(recognizer)) == expected
    generation.max_new_tokens, generation.max_length = None, 20
    assert len(written(recognizer)) == 20  # Whisper's own generate() counts behind the prompt


def written(recognizer):
    features = recognizer.stack([recognizer.audio_inputs(WAVE)[0]])
    with torch.no_grad():
        ids = recognizer._generate(recognizer.encode(features), recognizer.prefix())
    return ids[0, len(recognizer.prefix()) :]


def test_room_behind_a_prompt():
    assert new_tokens(GenerationConfig(max_length=10), 4, 100) == 6
    assert new_tokens(GenerationConfig(max_new_tokens=10), 4, 12) == 8
    assert new_tokens(GenerationConfig(), 4, 100) == 96
    assert new_tokens(GenerationConfig(), 4, 100, default=50) == 50
    with pytest.raises(ModelError, match=r"no token may follow a prompt of 12.*max_length 10"):
        new_tokens(GenerationConfig(max_length=10), 12, 100)


@pytest.fixture(scope="module")
def without_times(tmp_path_factory):
    """An English and a multilingual model; the English one's recognizer and what it transcribes."""
    folder = tmp_path_factory.mktemp("without")
    make_whisper(folder / "en", multilingual=False, times=False)
    make_whisper(folder / "many", times=False)
    english = tarq.load_recognizer(folder / "en")
    return folder, english, transcript(english)


@pytest.mark.parametrize("content", [None, "{}", '{"eos_token_id": null}'])
def test_a_folder_without_a_usable_file(without_times, tmp_path, content):
    """An English model's prompt follows from its tokenizer, a multilingual one's is asked for; neither is empty."""
    folder, english, expected = without_times
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("en", "many"):
        (tmp_path / name / "generation_config.json").unlink()
        if content is not None:
            (tmp_path / name / "generation_config.json").write_text(content)
    again = tarq.load_recognizer(tmp_path / "en")
    assert again.prefix() == english.prefix()
    assert transcript(again).startswith(expected)
    with pytest.raises(ModelError, match="neither is_multilingual nor lang_to_id"):
        tarq.load_recognizer(tmp_path / "many")


@pytest.mark.parametrize("content", ["no json", "", "[]"])
def test_a_damaged_file_is_named(tmp_path, content):
    (make_whisper(tmp_path / "m") / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json (cannot be read|holds list)"):
        tarq.load_recognizer(tmp_path / "m")


def make_forced(path, language="<|de|>", **fields):
    """A multilingual fine-tune of 2022: forced_decoder_ids, and nothing else of Whisper's."""
    make_whisper(path)
    kept = json.loads((path / "generation_config.json").read_text())
    tokenizer = tarq.load_recognizer(path).tokenizer
    ids = tokenizer.convert_tokens_to_ids([language, "<|transcribe|>"])
    old = {k: kept[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length")}
    forced = [[1, ids[0]], [2, ids[1]], [3, kept["no_timestamps_token_id"]]]
    (path / "generation_config.json").write_text(json.dumps(old | {"forced_decoder_ids": forced} | fields))
    return path


def test_forced_tokens_are_the_prompt(tmp_path):
    folder = make_forced(tmp_path / "m")
    recognizer = tarq.load_recognizer(folder)
    assert recognizer.language == "de"
    family = FAMILIES[0]
    inputs = family.inputs(recognizer, WAVE)
    with torch.no_grad():
        ids = recognizer.model.generate(inputs["input_features"])[0].tolist()
    expected = recognizer.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert transcript(recognizer) == expected
    with torch.no_grad():  # and another language is asked of the tokenizer
        english = recognizer.tokenizer.convert_tokens_to_ids(["<|en|>", "<|transcribe|>"])
        assert recognizer.prefix("en")[1:3] == english
    with pytest.raises(ModelError, match=r"transcribes 'de', not 'en': pass language='de'"):
        tarq.load_recognizer(folder, language="en")
    assert tarq.load_recognizer(folder, language="de").prefix() == recognizer.prefix()


def test_a_german_model_needs_no_language_to_transcribe(manifest, tmp_path, monkeypatch):
    """``transcribe`` takes the model's own; where words are scored, in English by default, the mend is said."""
    german = str(make_forced(tmp_path / "german"))
    heard = []
    monkeypatch.setattr(
        "tarq.api.transcribe_files",
        lambda recognizer, files, *_: heard.append(recognizer.language) or ((file, "") for file in files),
    )
    runner = CliRunner()
    assert runner.invoke(app, ["transcribe", german, str(manifest.parent / "u0.wav")]).exit_code == 0
    assert heard == ["de"]
    quantize = ["quantize", german, str(tmp_path / "q"), "--method", "rtn"]
    for command in (quantize, ["evaluate", german, "--data", str(manifest), "--no-decode", "--resamples", "10"]):
        refused = runner.invoke(app, command)
        assert refused.exit_code == 1
        assert "pass language='de' (--language de)" in " ".join(refused.output.split())
        done = runner.invoke(app, [*command, "--language", "de"])
        assert done.exit_code == 0, done.output


def test_forced_tokens_that_are_none_are_named(tmp_path):
    for pairs in ([[1, 10**6]], [[2, 3]], "x", [[1]]):
        folder = make_forced(tmp_path / "m", forced_decoder_ids=pairs)
        with pytest.raises(ModelError, match="forced_decoder_ids must be pairs"):
            tarq.load_recognizer(folder)
        shutil.rmtree(folder)


def test_moonshine_without_a_file(tmp_path):
    expected = transcript(tarq.load_recognizer(make_moonshine(tmp_path / "m")))
    (tmp_path / "m" / "generation_config.json").unlink()
    assert transcript(tarq.load_recognizer(tmp_path / "m")) == expected


@pytest.mark.parametrize(("value", "number"), [(-torch.inf, True), (torch.inf, False), (torch.nan, False)])
def test_logits_may_forbid_a_token_and_nothing_else(value, number):
    logits = torch.tensor([[[0.0, 1.0]], [[value, 1.0]]])
    assert are_numbers(logits).tolist() == [[True], [number]]
    if number:
        assert require_finite(logits) is logits
    else:
        with pytest.raises(ModelError, match="NaN or infinity"):
            require_finite(logits)
