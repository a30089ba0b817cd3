"""Audio of any length: windows cut where it is quiet, transcripts joined in order."""

import numpy as np
import pytest

import tarq
from tarq.report import Reporter
from tarq.speech.transcription import transcribe_waveforms, windows


def test_short_audio_is_one_window():
    wave = np.ones(100, dtype=np.float32)
    assert [len(w) for w in windows(wave, 100, 16000)] == [100]
    assert [len(w) for w in windows(wave[:0], 100, 16000)] == [0]


def test_long_audio_is_cut_where_it_is_quiet():
    rate, size = 1000, 30_000
    wave = np.random.default_rng(0).standard_normal(65_000).astype(np.float32)
    wave[27_400:27_600] = 0
    pieces = windows(wave, size, rate)
    assert 27_400 <= len(pieces[0]) <= 27_600
    assert all(0 < len(p) <= size for p in pieces)
    assert np.array_equal(np.concatenate(pieces), wave)


@pytest.mark.parametrize("length", [101, 199, 200, 201, 1000])
def test_windows_shorter_than_the_search_still_end(length):
    pieces = windows(np.ones(length, dtype=np.float32), 100, 16000)
    assert sum(map(len, pieces)) == length
    assert all(0 < len(p) <= 100 for p in pieces)


def test_windows_are_decoded_in_batches_and_joined():
    class Recognizer:
        window, sampling_rate, sizes = 1.0, 1000, []

        def transcribe(self, waveforms, language=None):
            self.sizes.append(len(waveforms))
            return [str(int(w[0])) if len(w) else "" for w in waveforms]

    class Listener(Reporter):
        done = 0

        def advance(self, steps=1):
            self.done += steps

    recognizer, listener = Recognizer(), Listener()
    waveforms = [np.full(n, n, dtype=np.float32) for n in (500, 2500, 1000)]
    texts = transcribe_waveforms(recognizer, waveforms, 2, listener)
    assert texts[0] == "500"
    assert set(texts[1].split()) == {"2500"}
    assert len(texts[1].split()) >= 3
    assert texts[2] == "1000"
    assert max(recognizer.sizes) == 2
    assert listener.done == 3


def test_files_of_any_length_and_rate(model_folder, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "long.flac", np.random.default_rng(0).uniform(-0.1, 0.1, (44100 * 5, 2)), 44100)
    soundfile.write(tmp_path / "short.ogg", np.random.default_rng(0).uniform(-0.1, 0.1, 8000), 8000)
    texts = tarq.transcribe(model_folder, [tmp_path / "long.flac", tmp_path / "short.ogg"])
    assert len(texts) == 2
    assert all(isinstance(t, str) for t in texts)
