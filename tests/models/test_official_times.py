"""Times on OpenAI's own Whisper: long-form as transformers', words where they are spoken, silence, ``pipeline``.

The official checkpoints are found as in ``test_official.py``.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import pipeline

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.speech.decoding import decoded
from tarq.speech.settings import Transcription
from tarq.speech.transcript import Transcript, transcript_of

from .test_official import folder  # noqa: F401

pytestmark = [pytest.mark.assets, pytest.mark.slow, pytest.mark.timeout(3000)]
TINY = pytest.mark.parametrize("folder", ["whisper-tiny.en"], indirect=True)
BOTH = pytest.mark.parametrize("folder", ["whisper-tiny.en", "whisper-base"], indirect=True)
RATE = 16000


@pytest.fixture(scope="module")
def utterances(assets):
    """Some three minutes of one speaker's, in the order they were read."""
    every = sorted(load_utterances(assets / "speech" / "librispeech_dev"), key=lambda u: u.id)
    return every[:14]


def recorded(utterances) -> np.ndarray:
    return np.concatenate([utterance.waveform() for utterance in utterances])


def heard(recognizer, wave: np.ndarray, **config) -> Transcript:
    segments = []
    for step in decoded(recognizer, [wave], Transcription(**config), [None]):
        segments += step.segments
    return transcript_of(segments, None)


def quantized(folder):  # noqa: F811
    recognizer = tarq.load_recognizer(folder)
    tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn"))
    return recognizer


def long_form(recognizer, wave: np.ndarray, **options) -> list[dict]:
    """transformers' own segments of the same audio."""
    features = recognizer.feature_extractor(
        wave, sampling_rate=RATE, return_tensors="pt", truncation=False, padding="longest"
    ).input_features
    with torch.no_grad():
        found = recognizer.model.generate(features, return_timestamps=True, return_segments=True, **options)
    return found["segments"][0]


@TINY
@pytest.mark.parametrize("load", [tarq.load_recognizer, quantized], ids=["full", "packed"])
def test_three_minutes_are_transformers_own(folder, load, utterances):  # noqa: F811
    recognizer, wave = load(folder), recorded(utterances)
    assert len(wave) > 170 * RATE
    ours = heard(recognizer, wave, long_form="sequential")
    theirs = long_form(recognizer, wave)
    times = [(round(float(s["start"]), 2), round(float(s["end"]), 2)) for s in theirs]
    assert [(round(s.start, 2), round(s.end, 2)) for s in ours.segments] == times
    tokens = [t for s in theirs for t in s["tokens"].tolist() if t < recognizer.timestamp_begin]
    assert ours.text == recognizer.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@BOTH
@pytest.mark.parametrize("load", [tarq.load_recognizer, quantized], ids=["full", "packed"])
def test_words_are_where_they_are_spoken(folder, load, utterances):  # noqa: F811
    """A word of one utterance only begins in it, and has its middle there: it lasts until the next one begins."""
    recognizer, some = load(folder), utterances[:4]
    found = heard(recognizer, recorded(some), words=True)
    words = [word for segment in found.segments for word in segment.words]
    assert [word.text for word in words] == found.text.split()
    assert all(a.start <= a.end <= b.start + 1e-9 for a, b in pairwise(words))
    texts = [set(re.findall(r"[a-z]+", utterance.text.lower())) for utterance in some]
    ends = np.cumsum([0, *(len(utterance.waveform()) / RATE for utterance in some)])
    checked = 0
    for word in words:
        at = [i for i, text in enumerate(texts) if re.sub(r"[^a-z]", "", word.text.lower()) in text]
        if len(at) == 1:
            assert ends[at[0]] - 0.3 <= word.start, word
            assert (word.start + word.end) / 2 <= ends[at[0] + 1] + 0.3, word
            checked += 1
    assert checked > 40


@TINY
def test_words_are_timed_as_by_the_pipeline(folder, utterances):  # noqa: F811
    """Within a fifth of a second of transformers' own, for nine words of ten; a window with one segment."""
    recognizer, wave = tarq.load_recognizer(folder), recorded(utterances[:1])
    asr = pipeline(
        "automatic-speech-recognition", model=recognizer.model, tokenizer=recognizer.tokenizer,
        feature_extractor=recognizer.feature_extractor,
    )  # fmt: skip
    theirs = asr(wave.copy(), return_timestamps="word")["chunks"]
    recognizer = tarq.load_recognizer(folder)  # the pipeline changes the attention's implementation
    ours = [word for segment in heard(recognizer, wave, words=True).segments for word in segment.words]
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a.text == b["text"].strip()]
    assert len(pairs) > 30
    far = [a for a, b in pairs if abs(a.start - b["timestamp"][0]) > 0.2]
    assert len(far) <= 0.1 * len(pairs), far


def silence(kind: str, seconds: int) -> np.ndarray:
    wave = np.zeros(seconds * RATE, dtype=np.float32)
    return wave if kind == "zeros" else wave + np.random.default_rng(0).normal(0, 1e-3, len(wave)).astype(np.float32)


@TINY
@pytest.mark.parametrize("kind", ["zeros", "noise"])
def test_silence_is_heard_no_worse_than_by_transformers(folder, kind):  # noqa: F811
    """Words where nobody speaks: at most as many as transformers' own long-form, and as its short-form of a window."""
    recognizer = tarq.load_recognizer(folder)
    for seconds in (30, 90):
        wave = silence(kind, seconds)
        tokens = [t for s in long_form(recognizer, wave) for t in s["tokens"].tolist()]
        theirs = recognizer.tokenizer.decode(
            [t for t in tokens if t < recognizer.timestamp_begin], skip_special_tokens=True
        )
        assert len(heard(recognizer, wave, long_form="sequential").text.split()) <= len(theirs.split())
    features = recognizer.feature_extractor(silence(kind, 30), sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        (short,) = recognizer.tokenizer.batch_decode(recognizer.model.generate(features), skip_special_tokens=True)
    assert heard(recognizer, silence(kind, 30)).text == short.strip()


@TINY
def test_nothing_is_heard_in_silence_that_is_left_out(folder, tmp_path):  # noqa: F811
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("silero_vad", reason="the extra vad is not installed")
    for kind in ("zeros", "noise"):
        soundfile.write(tmp_path / f"{kind}.wav", silence(kind, 40), RATE)
    recognizer = tarq.load_recognizer(folder)
    found = tarq.timed_transcripts(recognizer, [tmp_path / "zeros.wav", tmp_path / "noise.wav"], vad=True)
    assert [result.text for _, result in found] == ["", ""]


@TINY
def test_silence_between_is_left_out_and_times_are_the_recordings(folder, utterances, tmp_path):  # noqa: F811
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("silero_vad", reason="the extra vad is not installed")
    one, other = (utterance.waveform() for utterance in utterances[:2])
    soundfile.write(tmp_path / "a.wav", np.concatenate([one, silence("zeros", 20), other]), RATE)
    ((_, found),) = tarq.timed_transcripts(tarq.load_recognizer(folder), [tmp_path / "a.wav"], vad=True, words=True)
    begin, end = len(one) / RATE, len(one) / RATE + 20
    words = [word for segment in found.segments for word in segment.words]
    assert not [word for word in words if begin + 0.5 < (word.start + word.end) / 2 < end - 0.5]
    assert [word for word in words if word.end < begin]
    assert [word for word in words if word.start > end]


@pytest.mark.parametrize("folder", ["whisper-base"], indirect=True)
def test_the_language_is_detected(folder, utterances):  # noqa: F811
    recognizer = tarq.load_recognizer(folder)
    assert recognizer.detect_language([utterance.waveform() for utterance in utterances[:2]]) == ["en", "en"]


@TINY
def test_a_loaded_checkpoint_works_in_a_pipeline(folder, utterances, tmp_path):  # noqa: F811
    """``tarq.load`` of a saved folder, with timestamps; the same segments as tarq's own."""
    recognizer = quantized(folder)
    tarq.save(recognizer, tmp_path / "out")
    loaded = tarq.load_recognizer(tmp_path / "out")
    asr = pipeline(
        "automatic-speech-recognition", model=tarq.load(tmp_path / "out"), tokenizer=loaded.tokenizer,
        feature_extractor=loaded.feature_extractor,
    )  # fmt: skip
    wave = recorded(utterances[:4])
    assert len(wave) > 35 * RATE
    theirs = asr(wave.copy(), return_timestamps=True)
    ours = heard(loaded, wave, long_form="sequential")
    assert theirs["text"].strip() == ours.text
    assert [chunk["timestamp"][0] for chunk in theirs["chunks"]] == pytest.approx([s.start for s in ours.segments])
