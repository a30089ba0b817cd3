"""Tokenizers of every layout that transformers reads give the same prompts and transcripts."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

import tarq
from tarq.errors import ModelError

from .conftest import tone
from .families import make_moonshine, make_wav2vec2, make_whisper

WAVE = tone(1.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp("model") / "whisper")


def as_of_2022(folder, out):
    """The same tokenizer as vocab.json, merges.txt and added_tokens.json, where no added token is a special one."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("tokenizer*", "special_tokens_map*"))
    stored = json.loads((folder / "tokenizer.json").read_text())
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["model"]["merges"]]
    added = {t["content"]: t["id"] for t in stored["added_tokens"]}
    (out / "vocab.json").write_text(json.dumps(stored["model"]["vocab"], ensure_ascii=False))
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (out / "added_tokens.json").write_text(json.dumps(added))
    roles = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "WhisperTokenizer", "add_prefix_space": False, "errors": "replace"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings | roles))
    (out / "special_tokens_map.json").write_text(json.dumps(roles))
    return out


def transcript(recognizer, **options):
    with torch.no_grad():
        return recognizer.transcribe([WAVE], **options)


def test_a_prompt_is_cut_off_by_its_length_not_by_what_its_tokens_are(folder, tmp_path):
    old = as_of_2022(folder, tmp_path / "old")
    ours, theirs = tarq.load_recognizer(old), tarq.load_recognizer(folder)
    assert ours.prompt("the house").ids == theirs.prompt("the house").ids
    assert transcript(ours) == transcript(theirs)
    assert transcript(ours, language="de") == transcript(theirs, language="de")
    shown = AutoTokenizer.from_pretrained(old).decode(ours.prefix(), skip_special_tokens=True)
    assert "<|en|>" in shown  # what skipping special tokens would have left


def test_a_tokenizer_class_by_name(folder, tmp_path):
    """As official Whisper checkpoints have it: batch_decode takes lists, not tensors."""
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "WhisperTokenizer"}))
    named, plain = tarq.load_recognizer(tmp_path / "m"), tarq.load_recognizer(folder)
    assert type(named.tokenizer).__name__.startswith("WhisperTokenizer")
    assert transcript(named) == transcript(plain)


def test_only_tokenizer_json(tmp_path):
    folder = make_moonshine(tmp_path / "m")
    expected = transcript(tarq.load_recognizer(folder))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {k: settings[k] for k in ("tokenizer_class", "eos_token", "bos_token", "pad_token") if k in settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    assert transcript(tarq.load_recognizer(folder)) == expected


def test_a_vocabulary_of_characters_alone(tmp_path):
    """wav2vec 2.0's vocab.json, without any other file of the tokenizer."""
    folder = make_wav2vec2(tmp_path / "m")
    expected = transcript(tarq.load_recognizer(folder))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    again = tarq.load_recognizer(folder)
    assert transcript(again) == expected
    assert again.tokens("THE HOUSE")[1][-1] == (8, 9)


def test_a_tokenizer_of_another_model_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelError, match=r"tokenizer=…"):
        tarq.load_recognizer(tmp_path / "m")
