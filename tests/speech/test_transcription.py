"""Audio of any length: windows cut where it is quiet, transcripts joined in order."""

import numpy as np
import pytest

import tarq
from tarq.errors import DataError
from tarq.report import Reporter
from tarq.speech.transcription import transcribe_waveforms
from tarq.speech.windows import windows


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


@pytest.mark.parametrize("seconds", [31, 45, 59, 61, 75, 83])
def test_no_short_piece_is_left_over(seconds):
    """Of silence at the end, as recordings have it, a recognizer would make words."""
    wave = np.random.default_rng(0).standard_normal(seconds * 1000).astype(np.float32)
    wave[-300:] = 0
    pieces = windows(wave, 30_000, 1000)
    assert min(map(len, pieces)) > 10_000
    assert max(map(len, pieces)) <= 30_000
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


def test_a_broken_file_does_not_void_the_others(model_folder, tmp_path):
    """Each file comes as it is done, in order, with its transcript or with why it cannot be read."""
    import soundfile

    good = np.random.default_rng(0).uniform(-0.1, 0.1, 8000)
    names = ["a.wav", "broken.wav", "b.wav", "missing.wav", "c.wav"]
    for name in ("a.wav", "b.wav", "c.wav"):
        soundfile.write(tmp_path / name, good, 16000)
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")
    paths = [tmp_path / name for name in names]

    class Listener(Reporter):
        done = 0

        def advance(self, steps=1):
            self.done += steps

    listener = Listener()
    results = list(tarq.iter_transcripts(model_folder, paths, batch_size=2, reporter=listener))
    assert [path for path, _ in results] == paths
    assert listener.done == 5
    whole = [text for path, text in results if not isinstance(text, DataError)]
    assert whole == tarq.transcribe(model_folder, [p for p in paths if p.name in ("a.wav", "b.wav", "c.wav")])
    for path, error in (results[1], results[3]):
        assert isinstance(error, DataError)
        assert path.name in str(error)
    with pytest.raises(DataError, match=r"broken\.wav"):
        tarq.transcribe(model_folder, paths)


def test_transcripts_come_as_they_are_done(model_folder, tmp_path, monkeypatch):
    import soundfile

    from tarq.speech import transcription

    read = []
    original = transcription.read_audio
    monkeypatch.setattr(transcription, "read_audio", lambda path, *a, **k: read.append(path) or original(path, *a, **k))
    paths = [tmp_path / f"{i}.wav" for i in range(5)]
    for path in paths:
        soundfile.write(path, np.zeros(1600), 16000)
    results = tarq.iter_transcripts(model_folder, paths, batch_size=2)
    assert next(results)[0] == paths[0]
    assert read == paths[:2]
