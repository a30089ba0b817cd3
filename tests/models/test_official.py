"""The whole job on OpenAI's own Whisper: transcripts are transformers' own, and a quantized one comes back as saved.

``TARQ_MODELS=FOLDER`` names the folder that holds ``whisper-tiny.en`` and ``whisper-base``; otherwise they are made
from the assets beside the repository, once, under ``build/models``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.data.sampling import sample_utterances
from tarq.linear import QuantLinear
from tarq.scoring.words import score_words
from tarq.words.normalize import get_normalizer

pytestmark = [pytest.mark.assets, pytest.mark.slow, pytest.mark.timeout(3000)]

CACHE = Path(__file__).resolve().parents[2] / "build" / "models"
PROMPTS = {"whisper-tiny.en": {}, "whisper-base": {"language": "en", "task": "transcribe"}}


@pytest.fixture(scope="module", params=PROMPTS)
def folder(request, assets):
    """An official checkpoint; the test skips with the reason where it can neither be found nor made."""
    home = Path(os.environ.get("TARQ_MODELS", CACHE))
    path = home / request.param
    if not (path / "model.safetensors").is_file():
        script = assets / "official_whisper.py"
        if "TARQ_MODELS" in os.environ or not script.is_file():
            pytest.skip(f"{path} is not there; set TARQ_MODELS to the folder that holds it")
        name = request.param.removeprefix("whisper-")
        made = subprocess.run([sys.executable, script, home, name], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"{script.name} could not make {path}: {made.stderr.strip()[-300:]}")
    return path


@pytest.fixture(scope="module")
def speech(assets):
    return sample_utterances(load_utterances(assets / "speech" / "librispeech_dev"), 50, 0)


def generated(recognizer, features, **options):
    """What transformers' own ``generate`` transcribes."""
    with torch.no_grad():
        ids = recognizer.model.generate(
            features, **options, **PROMPTS[Path(recognizer.model.config._name_or_path).name]
        )
    return [text.strip() for text in recognizer.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def test_transcripts_are_transformers_own(folder, speech):
    """Fifty utterances, each encoded once for both; the first three also from the audio on."""
    recognizer = tarq.load_recognizer(folder)
    ours, theirs = [], []
    for first in range(0, len(speech), 10):
        waves = [utterance.waveform() for utterance in speech[first : first + 10]]
        features = recognizer.feature_extractor(waves, sampling_rate=16000, return_tensors="pt").input_features
        with torch.no_grad():
            encoded = recognizer.encode({"input_features": features})
            ours += recognizer.decode(encoded)
        theirs += generated(recognizer, features, encoder_outputs=BaseModelOutput(encoded))
    assert len(ours) == 50
    assert ours == theirs
    assert tarq.transcribe(recognizer, [u.audio for u in speech[:3]], batch_size=2) == theirs[:3]
    assert score_words([u.text for u in speech], ours, normalizer=get_normalizer("english")).wer < 0.10


@pytest.mark.parametrize(
    ("folder", "method"),
    [*(("whisper-tiny.en", method) for method in ("rtn", "gptq", "tarq", "refined")), ("whisper-base", "refined")],
    indirect=["folder"],
)
def test_quantize_save_load_evaluate_transcribe(folder, speech, method, tmp_path):
    recognizer = tarq.load_recognizer(folder)
    config = tarq.TarqConfig.preset(method, samples=2)
    report = tarq.quantize(recognizer, speech[:2], config)
    tarq.save(recognizer, tmp_path / "out", report)
    expected = tarq.transcribe(recognizer, [u.audio for u in speech[:2]])

    again = tarq.load_recognizer(tmp_path / "out")
    blocks = again.model.config.encoder_layers * 6 + again.model.config.decoder_layers * 10
    assert sum(isinstance(m, QuantLinear) for m in again.model.modules()) == blocks
    assert tarq.transcribe(again, [u.audio for u in speech[:2]]) == expected

    scored = speech[8:11]
    result = tarq.evaluate({"full": folder, "quantized": again}, {"s": scored}, reference="full", resamples=50)
    models = result.sets["s"].models
    assert models["full"].figures["wer"].value < 0.2
    assert models["quantized"].figures["wer"].value < 0.6
    assert models["quantized"].figures["kl_common"].value > 0
    # teacher forcing takes the short way to the same transcripts
    plain = tarq.load_recognizer(folder)
    assert list(models["full"].hypotheses.values()) == tarq.transcribe(plain, [u.audio for u in scored])
