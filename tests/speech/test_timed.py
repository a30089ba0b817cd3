"""Recordings to transcripts with times: order, streaming, languages, silence left out."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import tarq
from tarq.errors import ConfigError, DataError, ModelError
from tarq.models.types import Segment, Word
from tarq.report import Reporter
from tarq.speech import transcription
from tarq.speech.decoding import decoded
from tarq.speech.settings import Transcription
from tarq.speech.voice import Speech

RATE = 1000


class Clock:
    """A model that hears seconds: each is a segment that says its own number; windows of 4 s.

    Of several waveforms it does a segment each step, as Whisper does a window.
    """

    window, sampling_rate, frames_only, language, word_times_note = 4.0, RATE, False, "en", ""

    def __init__(self, can=("timestamps", "words", "language")) -> None:
        self.can, self.calls = can, []

    def why_not(self, ability):
        return "" if ability in self.can else f"Clock has no {ability}"

    def transcribe(self, waveforms, language=None):
        self.calls.append(("text", language, [len(w) for w in waveforms]))
        return [" ".join(text for _, text in self._numbers(w)) for w in waveforms]

    def timed(self, waveforms, language=None, words=False):
        self.calls.append(("timed", language, [len(w) for w in waveforms]))
        rest = [self._numbers(w) for w in waveforms]
        for second in range(max(map(len, rest))):
            yield [
                [
                    Segment(at, at + 1.0, f" {text}", (Word(at, at + 0.5, text),) if words else None)
                    for at, text in found
                ]
                for found in (numbers[second : second + 1] for numbers in rest)
            ]

    def detect_language(self, waveforms):
        return ["de" if w.max() > 50 else "en" for w in waveforms]

    @staticmethod
    def _numbers(waveform):
        return [(int(i) / RATE - 0.5, str(int(waveform[i]) - 1)) for i in waveform.nonzero()[0]]


def recording(seconds: int, first: int = 0) -> np.ndarray:
    """In the middle of each second, one sample says its number."""
    wave = np.zeros(seconds * RATE, dtype=np.float32)
    wave[RATE // 2 :: RATE] = np.arange(first, first + seconds) + 1
    return wave


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Paths whose audio is what the dictionary holds; anything else is broken."""
    audio = {"a": recording(10), "b": recording(3, 100), "c": recording(6, 20)}

    def read(path, rate, notes=None):
        if path.name not in audio:
            raise DataError(f"{path.name}: broken")
        return audio[path.name]

    monkeypatch.setattr(transcription, "read_audio", read)
    return SimpleNamespace(audio=audio, of=lambda names: [tmp_path / name for name in names])


def run(files, names, model=None, on_segment=None, **config):
    return list(
        transcription.timed_files(
            model or Clock(), files.of(names), Transcription(**config), Reporter(), on_segment=on_segment
        )
    )


NUMBERS = " ".join(map(str, range(10)))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "how", [{"times": True}, {"times": True, "long_form": "windows"}, {"long_form": "sequential"}, {"words": True}, {}]
)
def test_transcripts_are_whole_and_in_order(files, how, batch_size):
    told = []
    found = run(
        files, ["a", "x", "b", "c"], batch_size=batch_size, **how,
        on_segment=lambda path, segment: told.append((path.name, segment.text.strip())),
    )  # fmt: skip
    assert [path.name for path, _ in found] == ["a", "x", "b", "c"]
    assert str(found[1][1]) == "x: broken"
    texts = [result.text for _, result in found if not isinstance(result, DataError)]
    assert texts == [NUMBERS, "100 101 102", "20 21 22 23 24 25"]
    for name in "abc":
        assert [text for path, text in told if path == name] == [
            s.text for path, result in found if path.name == name for s in result.segments
        ]
    assert [name for i, (name, _) in enumerate(told) if i == 0 or told[i - 1][0] != name] == ["a", "b", "c"]
    if how:
        whole = found[0][1]
        assert [(s.start, s.text) for s in whole.segments] == [(float(i), str(i)) for i in range(10)]
        assert whole.segments[-1].end == 10.0
        if "words" in how:
            assert whole.segments[7].words == (Word(7.0, 7.5, "7"),)
    else:  # windows, cut near their ends
        assert len(found[0][1].segments) >= 3
        assert found[0][1].segments[0].end == found[0][1].segments[1].start


def test_a_model_that_writes_timestamps_hears_long_audio_whole_when_times_are_asked(files):
    for config, whole in (
        ({"times": True}, True),
        ({"times": True, "long_form": "windows"}, False),
        ({"long_form": "sequential"}, True),
        ({}, False),
    ):
        model = Clock()
        run(files, ["a"], model, **config)
        assert (model.calls[0][2] == [10_000]) == whole, config
    model = Clock(can=())
    run(files, ["a"], model, times=True)
    assert max(size for _, _, sizes in model.calls for size in sizes) <= 4000


def test_segments_come_before_the_recording_is_done(files):
    steps = []

    class Slow(Clock):
        def timed(self, waveforms, language=None, words=False):
            for step in super().timed(waveforms, language, words):
                steps.append("heard")
                yield step

    run(files, ["a"], Slow(), times=True, on_segment=lambda *_: steps.append("told"))
    assert steps == ["heard", "told"] * 10


def test_what_a_model_cannot_do_is_refused_before_any_audio_is_read(files, monkeypatch):
    monkeypatch.setattr(transcription, "read_audio", lambda *_, **__: pytest.fail("read"))
    for config, said in (
        ({"words": True}, r"no words: leave words \(--words\) out"),
        ({"long_form": "sequential"}, r"no timestamps: take long_form windows"),
        ({"language": "auto"}, r"no language: name the language"),
    ):
        with pytest.raises(ModelError, match=said):
            run(files, ["a"], Clock(can=()), **config)


def test_windows_as_segments_are_said(files):
    notes = []
    reporter = SimpleNamespace(note=notes.append, phase=lambda *_: None, advance=lambda *_: None)
    list(transcription.timed_files(Clock(can=()), files.of(["a"]), Transcription(times=True), reporter))
    assert notes == ["Clock has no timestamps: each segment is a window of at most 4 s"]


def test_each_recording_has_its_own_language(files):
    model, notes = Clock(), []
    reporter = SimpleNamespace(note=notes.append, phase=lambda *_: None, advance=lambda *_: None)
    config = Transcription(language="auto", times=True)
    found = list(transcription.timed_files(model, files.of("abc"), config, reporter))
    assert [result.language for _, result in found] == ["en", "de", "en"]
    assert [language for _, language, _ in model.calls] == ["en", "de", "en"]
    assert notes == ["a: language en, detected", "b: language de, detected", "c: language en, detected"]
    assert run(files, ["b"], times=True, language="fr")[0][1].language == "fr"
    assert run(files, ["b"], times=True)[0][1].language == "en"


def test_progress_of_one_recording_is_in_seconds(files):
    seen = []
    reporter = SimpleNamespace(
        note=lambda _: None, phase=lambda text, total=None: seen.append((text, total)), advance=seen.append
    )
    list(transcription.timed_files(Clock(), files.of("a"), Transcription(times=True), reporter))
    assert seen[0] == ("transcribing a", 10)
    assert sum(step for step in seen[1:]) == 10


def test_processes_share_windows(files, monkeypatch):
    """With two processes each decodes every other batch; both get all segments."""
    from tarq import distributed

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    model = Clock()
    waves = [recording(10), recording(6, 20)]
    shares = {}
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "shard", lambda items, rank=rank: items[rank::2])
        monkeypatch.setattr(distributed, "all_gather", lambda own, rank=rank: shares.setdefault(rank, own))
        list(decoded(model, waves, Transcription(batch_size=2), [None, None]))
    calls = len(model.calls)
    merged = [s for pair in zip(shares[0], [*shares[1], []], strict=False) for s in pair if s]
    monkeypatch.setattr(distributed, "all_gather", lambda own: merged)
    steps = list(decoded(Clock(), waves, Transcription(batch_size=2), [None, None]))
    assert calls == len(merged) == len(shares[0]) + len(shares[1])
    text = "".join(s.text for step in steps if step.file == 0 for s in step.segments)
    assert text.split() == NUMBERS.split()


def test_times_are_those_of_the_recording_where_silence_was_left_out():
    """Two parts, 1–3 s and 10–14 s, of which the model hears six seconds."""
    speech = Speech(np.zeros(6 * RATE, np.float32), np.array([0.0, 2.0]), np.array([1.0, 8.0]))

    def moved(start, end, *words):
        return speech.in_recording(Segment(start, end, "x", tuple(Word(*w, "w") for w in words)))

    assert moved(0.0, 2.0) == Segment(1.0, 3.0, "x", ())  # what ends where parts meet ends with the first
    assert moved(2.0, 6.0) == Segment(10.0, 14.0, "x", ())
    assert moved(1.0, 5.0) == Segment(2.0, 13.0, "x", ())  # over the pause
    assert moved(1.7, 5.0).start == 10.0  # begins in the silence kept before the pause
    assert moved(0.5, 2.3).end == 3.0
    assert moved(0.0, 6.0, (1.9, 2.3), (1.6, 2.2)).words == (Word(10.0, 10.3, "w"), Word(2.6, 3.0, "w"))


def test_the_detector_is_an_extra_that_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    threads = torch.get_num_threads()
    with pytest.raises(ConfigError, match=r"vad \(--vad\) needs .* pip install silero-vad"):
        run(files, ["a"], vad=True)
    assert torch.get_num_threads() == threads


def test_silence_is_not_heard(tmp_path):
    """Silero VAD hears nobody in silence and noise, so the model is not asked; threads are left alone."""
    pytest.importorskip("silero_vad", reason="the extra vad is not installed")
    threads = torch.get_num_threads()
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "zeros.wav", np.zeros(16000 * 3), 16000)
    soundfile.write(tmp_path / "noise.wav", 0.003 * rng.standard_normal(16000 * 3), 16000)

    class Deaf(Clock):
        sampling_rate = 16000

        def transcribe(self, *_):
            pytest.fail("asked")

    paths = [tmp_path / "zeros.wav", tmp_path / "noise.wav"]
    results = list(transcription.timed_files(Deaf(), paths, Transcription(vad=True), Reporter()))
    assert [result for _, result in results] == [tarq.Transcript("", (), "en")] * 2
    assert torch.get_num_threads() == threads


def test_an_address_is_refused_by_name(model_folder):
    for address in ("https://host/a.wav", "s3://bucket/a.wav", "file:///a.wav"):
        with pytest.raises(DataError, match=r"is an address, and nothing is downloaded here: fetch it first"):
            tarq.transcribe(model_folder, [address])


def test_timed_transcripts_of_files(model_folder, manifest):
    """Of a model without timestamps: the whole text in windows, and the same text as without times."""
    paths = [manifest.parent / "u0.wav", manifest.parent / "u7.wav", manifest.parent / "none.wav"]
    found = list(tarq.timed_transcripts(model_folder, paths))
    assert isinstance(found[2][1], DataError)
    for path, transcript in found[:2]:
        assert isinstance(transcript, tarq.Transcript)
        assert transcript.text == tarq.transcribe(model_folder, path)[0]
        assert transcript.segments[0].start == 0.0
        assert transcript.segments[-1].end == pytest.approx(soundfile.info(path).duration, abs=1e-3)
