"""Audio, manifests, LibriSpeech trees, samples: what they give and how they refuse."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tarq.data.audio import audio_duration, read_audio
from tarq.data.corpora.registry import load_utterances
from tarq.data.sampling import sample_utterances, select_utterances
from tarq.data.utterance import Utterance
from tarq.errors import DataError, TarqError

ASSETS = Path(__file__).parents[3] / "shared" / "assets"


def tone(seconds=0.5, rate=16000, frequency=440.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path, samples=None, rate=16000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone() if samples is None else samples, rate, **options)
    return path


def manifest(folder, *rows, name="manifest.jsonl"):
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


# --- audio ---


def test_audio_at_its_own_rate_is_what_was_written(tmp_path):
    path = write(tmp_path / "a.wav", subtype="FLOAT")
    samples = read_audio(path, 16000)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, tone())


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_another_rate_is_resampled(tmp_path, rate):
    path = write(tmp_path / "a.wav", tone(rate=rate), rate, subtype="FLOAT")
    samples = read_audio(path, 16000)
    assert samples.dtype == np.float32
    assert abs(len(samples) - 8000) <= 1
    middle = slice(1000, 7000)  # away from the filter's ends
    np.testing.assert_allclose(samples[middle], tone()[middle], atol=2e-3)


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([tone(), np.full(8000, 0.25, np.float32)], axis=1)
    path = write(tmp_path / "a.wav", stereo, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path, 16000), (tone() + 0.25) / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "options"), [("a.flac", {}), ("a.ogg", {}), ("a.wav", {"subtype": "PCM_U8"}), ("a.aiff", {})]
)
def test_formats(tmp_path, name, options):
    samples = read_audio(write(tmp_path / name, **options), 16000)
    assert samples.shape == (8000,)
    assert np.sqrt(np.mean((samples - tone()) ** 2)) < 0.02


def test_duration_is_in_the_header(tmp_path):
    assert audio_duration(write(tmp_path / "a.wav", tone(0.75, 8000), 8000)) == pytest.approx(0.75)


def test_utterance_knows_its_audio(tmp_path):
    path = write(tmp_path / "a.wav")
    assert Utterance("a", path).seconds() == pytest.approx(0.5)
    assert Utterance("a", path, duration=3.0).seconds() == 3.0
    assert Utterance("a", path).waveform(8000).shape == (4000,)


def test_missing_audio(tmp_path):
    with pytest.raises(DataError, match=r"none\.wav: there is no such audio file"):
        read_audio(tmp_path / "none.wav")


@pytest.mark.parametrize("name", ["a.wav", "a.raw", "a.mp3"])
def test_unreadable_audio(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"this is not audio")
    for read in (read_audio, audio_duration):
        with pytest.raises(DataError, match=rf"{name}: not readable as audio .*convert"):
            read(path)


def test_empty_audio(tmp_path):
    with pytest.raises(DataError, match=r"a\.wav: the audio is empty"):
        read_audio(write(tmp_path / "a.wav", np.zeros(0, np.float32)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_audio_that_is_not_finite(tmp_path, bad):
    samples = tone()
    samples[17] = bad
    with pytest.raises(DataError, match=r"a\.wav: the audio has samples that are not finite"):
        read_audio(write(tmp_path / "a.wav", samples, subtype="FLOAT"))


# --- manifests ---


def test_manifest_gives_every_field(tmp_path):
    write(tmp_path / "audio" / "a.wav")
    elsewhere = write(tmp_path / "elsewhere" / "b.flac")
    first = {"audio": "audio/a.wav", "text": "Mr. O’Brien", "duration": 2, "id": "x", "speaker": 7}
    path = manifest(
        tmp_path, first | {"entities": ["O’Brien"], "other": 1}, "", {"audio": str(elsewhere), "text": None}
    )
    one, two = load_utterances(path)
    assert one == Utterance("x", tmp_path / "audio/a.wav", "Mr. O’Brien", 2.0, "7", ("O’Brien",))
    assert one.extra == {"other": 1}
    assert isinstance(one.duration, float)
    assert two == Utterance(str(elsewhere.with_suffix("")), elsewhere)
    assert one.waveform().shape == (8000,)


def test_utterances_are_selected_by_any_key(tmp_path):
    write(tmp_path / "a.wav")
    rows = [{"audio": "a.wav", "id": str(i), "speaker": "ab"[i % 2], "held_out": i > 2} for i in range(5)]
    utterances = load_utterances(manifest(tmp_path, *rows))
    assert [u.id for u in select_utterances(utterances, ["held_out=true"])] == ["3", "4"]
    assert [u.id for u in select_utterances(utterances, ["held_out=false", "speaker=b"])] == ["1"]
    assert select_utterances(utterances, []) == utterances
    for condition, message in (
        ("held_out", "write KEY=VALUE"),
        ("accent=x", "no utterance has a 'accent'"),
        ("speaker=c", "values of 'speaker' are a, b"),
    ):
        with pytest.raises(DataError, match=message):
            select_utterances(utterances, [condition])


def test_manifest_by_its_folder_and_ids_by_path(tmp_path):
    for name in ("1/a.wav", "2/a.wav"):
        write(tmp_path / name)
    manifest(tmp_path, {"audio": "1/a.wav", "text": ""}, {"audio": "2/a.wav"})
    one, two = load_utterances(str(tmp_path))
    assert (one.id, two.id) == ("1/a", "2/a")
    assert one.text == ""
    assert two.text is None


def test_manifest_with_byte_order_mark_and_line_separator(tmp_path):
    write(tmp_path / "a.wav")
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"audio": "a.wav", "text": "one\u2028two"}\r\n'.encode())
    assert load_utterances(path)[0].text == "one\u2028two"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"audio": "a.wav"', r"m\.jsonl:2: invalid JSON"),
        ('["a.wav"]', r"m\.jsonl:2: not a JSON object"),
        ({"text": "no audio"}, r"m\.jsonl:2: no 'audio'"),
        ({"audio": None}, r"m\.jsonl:2: no 'audio'"),
        ({"audio": "gone.wav"}, r"m\.jsonl:2: audio file .*gone\.wav does not exist"),
        ({"audio": 5}, r"m\.jsonl:2: 'audio' is 5; give a string"),
        ({"audio": "a.wav", "text": ["x"]}, r"m\.jsonl:2: 'text' is \[\"x\"\]; give a string"),
        ({"audio": "a.wav", "text": True}, r"m\.jsonl:2: 'text' is true; give a string"),
        ({"audio": "a.wav", "duration": "3"}, r"m\.jsonl:2: 'duration' is \"3\"; give a number"),
        ({"audio": "a.wav", "duration": True}, r"m\.jsonl:2: 'duration' is true; give a number"),
        ({"audio": "a.wav", "duration": -1.0}, r"m\.jsonl:2: 'duration' is -1\.0; give seconds"),
        ('{"audio": "a.wav", "duration": NaN}', r"m\.jsonl:2: 'duration' is nan; give seconds"),
        ({"audio": "a.wav", "entities": "O'Brien"}, r"m\.jsonl:2: 'entities' is .*; give a list of strings"),
        ({"audio": "a.wav", "entities": [1]}, r"m\.jsonl:2: 'entities' is not a list of strings"),
    ],
)
def test_bad_line_is_named(tmp_path, row, message):
    write(tmp_path / "a.wav")
    path = manifest(tmp_path, {"audio": "a.wav", "id": "fine"}, row, name="m.jsonl")
    with pytest.raises(DataError, match=message):
        load_utterances(path)


def test_empty_manifest(tmp_path):
    with pytest.raises(DataError, match=r"m\.jsonl: the corpus is empty"):
        load_utterances(manifest(tmp_path, "", "  ", name="m.jsonl"))


def test_manifest_of_another_encoding(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes('{"audio": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"m\.jsonl: not UTF-8"):
        load_utterances(path)


def test_duplicate_ids(tmp_path):
    write(tmp_path / "a.wav")
    path = manifest(tmp_path, {"audio": "a.wav", "id": "x"}, {"audio": "a.wav", "id": "x"})
    with pytest.raises(DataError, match="id 'x' occurs 2 times"):
        load_utterances(path)


# --- LibriSpeech trees ---


def librispeech(subset):
    chapter = subset / "19" / "198"
    for number in range(2):
        write(chapter / f"19-198-000{number}.flac")
    (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n19-198-0001 HELLO\n")
    other = subset / "7" / "5"
    write(other / "7-5-0000.flac")
    (other / "7-5.trans.txt").write_text("7-5-0000 GOOD DAY\n")
    return subset


def test_librispeech_subset(tmp_path):
    utterances = load_utterances(librispeech(tmp_path / "test-clean"))
    assert [(u.id, u.text, u.speaker) for u in utterances] == [
        ("19-198-0000", "NORTHANGER ABBEY", "19"),
        ("19-198-0001", "HELLO", "19"),
        ("7-5-0000", "GOOD DAY", "7"),
    ]
    assert utterances[0].audio == tmp_path / "test-clean/19/198/19-198-0000.flac"
    assert utterances[0].waveform().shape == (8000,)


def test_librispeech_root_asks_for_a_subset(tmp_path):
    librispeech(tmp_path / "test-clean")
    librispeech(tmp_path / "dev-other")
    with pytest.raises(DataError, match="name one of them: dev-other, test-clean"):
        load_utterances(tmp_path)


def test_librispeech_without_one_of_its_files(tmp_path):
    (librispeech(tmp_path) / "19/198/19-198-0001.flac").unlink()
    with pytest.raises(DataError, match=r"19-198\.trans\.txt:2: audio file .*19-198-0001\.flac"):
        load_utterances(tmp_path)


def test_what_is_no_corpus(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load_utterances(tmp_path / "gone")
    empty = tmp_path / "empty"
    empty.mkdir()
    for source in (empty, write(tmp_path / "a.wav")):
        with pytest.raises(DataError, match=r"not a corpus; give .* or a JSONL manifest.* or LibriSpeech"):
            load_utterances(source)


def test_a_data_error_is_a_tarq_error():
    assert issubclass(DataError, TarqError)


# --- samples ---


def made(count, **fields):
    return [Utterance(f"u{i:03}", Path(f"{i}.wav"), "text", float(i), **fields) for i in range(count)]


def ids(utterances):
    return [utterance.id for utterance in utterances]


def test_sample_is_fixed_by_seed_not_by_order():
    utterances = made(50)
    sample = sample_utterances(utterances, 10, seed=3)
    assert len(set(ids(sample))) == 10
    assert ids(sample_utterances(utterances[::-1], 10, seed=3)) == ids(sample)
    assert ids(sample_utterances(utterances, 10, seed=4)) != ids(sample)
    assert ids(sample_utterances(utterances, 4, seed=3)) == ids(sample)[:4]


def test_sample_is_uniform():
    utterances = made(10)
    drawn = Counter(name for seed in range(3000) for name in ids(sample_utterances(utterances, 3, seed)))
    assert len(drawn) == 10
    # Each is drawn 900 times with a standard deviation of 25: five of those either way.
    assert all(775 < times < 1025 for times in drawn.values())


def test_sample_conditions(tmp_path):
    utterances = made(20)
    short = sample_utterances(utterances, 20, 0, max_duration=6.0)
    assert sorted(ids(short)) == ids(utterances[:7])  # fewer than asked: all that qualify
    mute = [Utterance("m1", Path("m"), None), Utterance("m2", Path("m"), " ")]
    assert sorted(ids(sample_utterances(utterances + mute, 99, 0, require_text=True))) == ids(utterances)
    unstated = [Utterance(f"{s}", write(tmp_path / f"{s}.wav", tone(s))) for s in (0.25, 0.75)]
    assert ids(sample_utterances(unstated, 2, 0, max_duration=0.5)) == ["0.25"]


def test_sample_of_nothing():
    with pytest.raises(DataError, match="cannot sample 0 utterances"):
        sample_utterances(made(3), 0, 0)
    with pytest.raises(DataError, match=r"none of 3 utterances qualifies \(max_duration=-1"):
        sample_utterances(made(3), 1, 0, max_duration=-1)
    with pytest.raises(DataError, match=r"none of 0 utterances qualifies \(no condition\)"):
        sample_utterances([], 1, 0)


@pytest.mark.assets
@pytest.mark.skipif(not ASSETS.is_dir(), reason="../shared/assets is absent: no real speech to load")
def test_real_speech():
    utterances = load_utterances(ASSETS / "speech" / "lj")
    assert len(utterances) == 385
    for utterance in sample_utterances(utterances, 5, 0, require_text=True, max_duration=10):
        samples = utterance.waveform()
        assert utterance.duration is not None
        assert utterance.duration <= 10
        assert abs(len(samples) / 16000 - utterance.duration) < 0.1
        assert 0.01 < np.abs(samples).max() <= 1.5
