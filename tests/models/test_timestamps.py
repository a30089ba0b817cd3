"""Segments and words with times: on random models against transformers', and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

import tarq
from tarq.errors import ModelError
from tarq.models.alignment import token_starts
from tarq.models.types import Segment, Word
from tarq.models.whisper_times import split_at_timestamps
from tarq.models.words import characters, grouped, words_within

from .families import make_hubert, make_moonshine, make_parakeet, make_wav2vec2, make_whisper

BEGIN = 1000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Bursts, so that a random model hears something else in each window."""
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.uniform(0, 0.5, int(seconds * 10) + 1), 1600)[: int(seconds * 16000)]
    return (loud * rng.standard_normal(len(loud))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A multilingual Whisper with timestamps: windows of 2 s, and no more tokens than positions."""
    return make_whisper(tmp_path_factory.mktemp("timestamps") / "whisper", positions=40)


@pytest.fixture(scope="module", params=[False, True], ids=["float", "packed"])
def recognizer(request, folder, tmp_path_factory):
    if not request.param:
        return tarq.load_recognizer(folder)
    quantized = tarq.load_recognizer(folder)
    out = tmp_path_factory.mktemp("packed") / "out"
    tarq.save(quantized, out, tarq.quantize(quantized, None, tarq.TarqConfig.preset("rtn", group_size=32)))
    return tarq.load_recognizer(out)


@pytest.mark.parametrize("seconds", [2.5, 9.3])
def test_long_form_is_transformers_own(recognizer, seconds):
    """Segments, their times and tokens, over windows that end within a piece, and at one."""
    ends = []
    for seed in range(3):
        wave = noise(seconds, seed)
        features = recognizer.feature_extractor(
            wave, sampling_rate=16000, return_tensors="pt", truncation=False, padding="longest"
        ).input_features
        with torch.no_grad():
            ours = [segment for step in recognizer.timed([wave]) for segment in step[0]]
            theirs = recognizer.model.generate(
                features, return_timestamps=True, return_segments=True, language="en", task="transcribe"
            )["segments"][0]
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            times = [token for token in other["tokens"].tolist() if token >= recognizer.timestamp_begin]
            text = [token for token in other["tokens"].tolist() if token < recognizer.timestamp_begin]
            assert one.text == recognizer.tokenizer.decode(text, skip_special_tokens=True)
            if len(times) != 1:  # with a start and no end ours lasts to the end of the window
                assert one.start == pytest.approx(float(other["start"]))
                assert one.end == pytest.approx(float(other["end"]))
            ends.append(len(times))
    assert {2, 3} <= set(ends)  # windows that end with one timestamp, and with a pair


def test_waveforms_are_sought_through_independently(recognizer):
    waves = [noise(seconds, seed) for seconds, seed in ((5.0, 1), (0.7, 2), (3.1, 3))]
    together: list[list[Segment]] = [[], [], []]
    with torch.no_grad():
        for step in recognizer.timed(waves):
            for i, segments in enumerate(step):
                together[i] += segments
        alone = [[s for step in recognizer.timed([wave]) for s in step[0]] for wave in waves]
    assert together == alone
    assert all(together)


@pytest.mark.parametrize(
    ("tokens", "pieces", "done"),
    [
        ([1000, 5, 6, 1010], [(0, 10, [5, 6])], None),
        ([1000, 5, 1010, 1010, 6, 1030], [(0, 10, [5]), (10, 30, [6])], None),
        ([1000, 5, 1010, 1012, 6], [(0, 10, [5])], 10),
        ([1002, 5, 1010, 1010], [(2, 10, [5])], 10),
        ([1004, 5, 6], [(4, 50, [5, 6])], None),
        ([], [(0, 50, [])], None),
        ([1000, 1000], [(0, 0, [])], 1),  # never stands still
    ],
)
def test_a_window_is_split_at_its_timestamps(tokens, pieces, done):
    found, at = split_at_timestamps(tokens, BEGIN, 50)
    assert [(piece.start, piece.end, piece.tokens) for piece in found] == pieces
    assert at == done


@pytest.mark.parametrize(("tokens", "frames"), [(1, 1), (1, 9), (7, 5), (5, 40), (23, 61)])
def test_warping_is_transformers_own(tokens, frames):
    rng = np.random.default_rng(tokens)
    for scores in (rng.standard_normal((tokens, frames)), rng.integers(0, 2, (tokens, frames)).astype(float)):
        text, time = _dynamic_time_warping(-scores)
        jumps = np.pad(np.diff(text), (1, 0), constant_values=1).astype(bool)
        assert token_starts(scores).tolist() == time[jumps].tolist()


def test_words_of_whisper_lie_in_their_segments(recognizer):
    wave = noise(7.0)
    with torch.no_grad():
        plain = [segment for step in recognizer.timed([wave]) for segment in step[0]]
        timed = [segment for step in recognizer.timed([wave], words=True) for segment in step[0]]
    assert [(s.start, s.end, s.text) for s in timed] == [(s.start, s.end, s.text) for s in plain]
    assert recognizer.model.config._attn_implementation != "eager"  # as it was
    for segment in timed:
        assert "".join(word.text for word in segment.words) == "".join(segment.text.split())
        times = [time for word in segment.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert all(segment.start <= time <= segment.end + 1e-9 for time in times)
    assert sum(len(segment.words) for segment in timed) > 3


def test_words_follow_attention(recognizer, monkeypatch):
    """Each word begins at the frame its first token attends to, whatever is in the window."""
    with torch.no_grad():
        found = next(recognizer.timed([noise(1.9)], words=True))[0]
    text = "the old town"
    ids, _ = recognizer.tokens(text)

    def attention(states, input_ids):
        rows, places = input_ids.shape[1], len(input_ids[0]) - len(ids) - 1
        weights = torch.full((1, 2, rows, 100), 1e-3)
        for k in range(len(ids) + 1):
            weights[:, :, places + k, 10 + 6 * k : 16 + 6 * k] = 1.0
        return weights

    begin = recognizer.timestamp_begin
    monkeypatch.setattr(recognizer, "alignment_attention", attention)
    monkeypatch.setattr(recognizer, "_tokens", lambda *_: [[begin, *ids, begin + 90]])
    (segment,) = next(recognizer.timed([noise(1.9)], words=True))[0]
    pieces = [recognizer.tokenizer.decode([i]) for i in ids]
    firsts = [k for k, piece in enumerate(pieces) if piece.startswith(" ")]
    assert [word.text for word in segment.words] == text.split()
    assert [word.start for word in segment.words[1:]] == pytest.approx([0.02 * (10 + 6 * k) for k in firsts[1:]])
    assert found[0].words is not None


def test_characters_of_several_tokens_stay_whole():
    spelled = {1: " a", 2: "\ufffd", 3: "\ufffd", 4: "b", (2, 3): "é"}

    def decode(tokens):
        return spelled[tuple(tokens)] if len(tokens) > 1 else spelled[tokens[0]]

    assert characters([1, 2, 3, 4], decode) == [(" a", 0), ("é", 1), ("b", 3)]


@pytest.mark.parametrize(
    ("parts", "spaced", "words"),
    [
        ([(" He", 0), (" said", 1), (",", 2), (" \"", 3), ("Go", 4), ("!\"", 5)], True,
         [("He", 0), ("said,", 1), ("\"Go!\"", 3)]),
        ([("Ouaga", 0), ("dougou", 1), (" is", 2)], True, [("Ouagadougou", 0), ("is", 2)]),
        ([("今", 0), ("日", 1), ("。", 2), ("は", 3)], False, [("今", 0), ("日。", 1), ("は", 3)]),
        ([(" ", 0), (" ", 1)], True, []),
    ],
)  # fmt: skip
def test_words_are_grouped_by_spaces(parts, spaced, words):
    assert grouped(parts, spaced) == words


def test_words_stay_within_their_segment():
    assert words_within([("a", 0.1, 0.5), ("b", 0.5, 3.0)], 0.2, 1.0) == (Word(0.2, 0.5, "a"), Word(0.5, 1.0, "b"))


@pytest.mark.parametrize("make", [make_wav2vec2, make_hubert])
def test_ctc_words_are_transformers_own(make, tmp_path):
    """``output_word_offsets`` of the character tokenizer."""
    recognizer = tarq.load_recognizer(make(tmp_path / "m"))
    waves = [noise(2.0), noise(3.1, 1)]
    with torch.no_grad():
        (found,) = recognizer.timed(waves, words=True)
        texts = recognizer.transcribe(waves)
    heard = 0
    for wave, (segment,), text in zip(waves, found, texts, strict=True):
        assert segment.text == text
        assert (segment.start, segment.end) == (0.0, len(wave) / 16000)
        with torch.no_grad():
            scores = recognizer.encode(recognizer.stack([recognizer.audio_inputs(wave)[0]]))[0]
        offsets = recognizer.tokenizer.decode(scores[0].argmax(-1), output_word_offsets=True).word_offsets
        step = recognizer.model.config.inputs_to_logits_ratio / 16000
        named = [(o["word"].strip(), o["start_offset"] * step, o["end_offset"] * step) for o in offsets]
        special = set(recognizer.tokenizer.all_special_tokens)
        if not any(token in word for token in special for word, *_ in named):
            assert [w.text for w in segment.words] == [word for word, *_ in named if word]
            assert [w.start for w in segment.words] == pytest.approx([start for word, start, _ in named if word])
            heard += len(segment.words)
        assert " ".join(word.text for word in segment.words) == " ".join(text.split())
    assert heard or any(texts)


def test_parakeet_words(tmp_path):
    recognizer = tarq.load_recognizer(make_parakeet(tmp_path / "m"))
    with torch.no_grad():
        (((segment,),),) = recognizer.timed([noise(4.0)], words=True)
    assert [word.text for word in segment.words] == segment.text.split()
    assert all(0 <= a.start < a.end <= b.start for a, b in zip(segment.words, segment.words[1:], strict=False))


def test_what_a_model_cannot_do_is_said_by_name(tmp_path, model_folder):
    moonshine = tarq.load_recognizer(make_moonshine(tmp_path / "moonshine"))
    with pytest.raises(ModelError, match="MoonshineForConditionalGeneration gives no word times"):
        next(moonshine.timed([noise(1.0)], words=True))
    with pytest.raises(ModelError, match="MoonshineForConditionalGeneration does not detect the language"):
        moonshine.detect_language([noise(1.0)])
    assert "writes no timestamps" in moonshine.why_not("timestamps")
    english = tarq.load_recognizer(make_whisper(tmp_path / "en", multilingual=False))
    with pytest.raises(ModelError, match="transcribes English only"):
        english.detect_language([noise(1.0)])
    assert english.why_not("timestamps") == english.why_not("words") == ""
    without = tarq.load_recognizer(model_folder)  # has no timestamps: a window is one segment
    wave = noise(1.5)
    with torch.no_grad():
        assert list(without.timed([wave])) == [[[Segment(0.0, 1.5, without.transcribe([wave])[0])]]]
    with pytest.raises(ModelError, match="no tokens for timestamps"):
        next(without.timed([wave], words=True))


def test_the_language_is_transformers_own(recognizer):
    waves = [noise(2.0, seed) for seed in range(6)]
    features = recognizer.feature_extractor(waves, sampling_rate=16000, return_tensors="pt").input_features
    ids = recognizer.model.detect_language(features, num_segment_frames=200).tolist()
    names = {token: name.strip("<|>") for name, token in recognizer.model.generation_config.lang_to_id.items()}
    with torch.no_grad():
        assert recognizer.detect_language(waves) == [names[i] for i in ids]
        longer = [np.concatenate([wave, noise(3.0, 9)]) for wave in waves]
        assert recognizer.detect_language(longer) == [names[i] for i in ids]  # the first window decides
