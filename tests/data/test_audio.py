"""The door audio comes in by: broken and odd files, made here, are read to their end or refused by name."""

import os
import shutil
import struct
import subprocess

import numpy as np
import pytest
import soundfile

from tarq.data import decoding, ffmpeg
from tarq.data.audio import Encoded, audio_duration, check_audio, read_audio
from tarq.data.intake import Intake
from tarq.data.sampling import first_usable
from tarq.data.utterance import Utterance
from tarq.errors import DataError

RATE = 16000
SECONDS = 4.0


def speech(seconds=SECONDS, rate=RATE, loud_first=True):
    """Noise in bursts, one half of it loud: bit rates vary as those of speech do."""
    count = round(seconds * rate)
    noise = np.random.default_rng(0).standard_normal(count) * 0.1
    quiet = np.arange(count) >= count // 2
    return (noise * np.where(quiet == loud_first, 0.001, 1.0)).astype("f4")


def write(path, samples=None, rate=RATE, **options):
    soundfile.write(path, speech() if samples is None else samples, rate, **options)
    return path


def mp3(path, counted, loud_first=True):
    """A variable-rate MP3; ``counted``: its first frame counts the others. Encoders write a frame that does."""
    write(path, speech(loud_first=loud_first), format="MP3", bitrate_mode="VARIABLE")
    data = path.read_bytes()
    place = next(data.index(mark) for mark in (b"Xing", b"Info") if mark in data)
    if not counted:
        second = data.index(data[:2], place)
        path.write_bytes(data[second:])
    return path


def read(path, **options):
    notes = []
    samples = read_audio(path, notes=notes, **options)
    return samples, " / ".join(notes)


# --- read to the end ---


@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_that_does_not_say_its_length_is_read_whole(tmp_path, loud_first):
    path = mp3(tmp_path / "a.mp3", counted=False, loud_first=loud_first)
    with soundfile.SoundFile(path) as file:
        assert abs(file.frames / RATE - SECONDS) > 0.5  # libsndfile guesses
    samples, notes = read(path)
    assert len(samples) / RATE == pytest.approx(SECONDS, abs=0.15)
    assert audio_duration(path) == pytest.approx(len(samples) / RATE)
    assert "its frames were counted" in notes
    whole, _ = read(mp3(tmp_path / "b.mp3", counted=True, loud_first=loud_first))
    loud = np.abs(samples[: RATE if loud_first else None][: None if loud_first else -RATE]).mean()
    assert loud > 0
    assert np.std(samples) == pytest.approx(np.std(whole), rel=0.05)
    # A segment of it is that part.
    segment = read_audio(path, start=1.0, end=2.0)
    np.testing.assert_allclose(segment, samples[RATE : 2 * RATE], atol=1e-6)


def test_files_joined_to_one_are_read_whole(tmp_path):
    first = mp3(tmp_path / "a.mp3", counted=True).read_bytes()
    tag = b"TAG" + bytes(125)
    uncounted = mp3(tmp_path / "b.mp3", counted=False).read_bytes()
    for name, data in (
        ("twice.mp3", first + first),
        ("tagged.mp3", first + tag + first),
        ("uncounted.mp3", first + uncounted),
    ):
        (tmp_path / name).write_bytes(data)
        samples, notes = read(tmp_path / name)
        assert len(samples) / RATE == pytest.approx(2 * SECONDS, abs=0.25), name
        assert "2 MP3 files concatenated" in notes
        assert np.std(samples[-len(samples) // 2 :]) == pytest.approx(np.std(speech()), rel=0.1)
    for kind, options, word in (
        ("ogg", {}, "chained Ogg"),
        ("opus", {"format": "OGG", "subtype": "OPUS"}, "chained Ogg"),
        ("flac", {}, "FLAC files concatenated"),
        ("wav", {}, "WAV files concatenated"),
    ):
        data = write(tmp_path / f"one.{kind}", **options).read_bytes()
        (tmp_path / f"two.{kind}").write_bytes(data + data)
        samples, notes = read(tmp_path / f"two.{kind}")
        one = read_audio(tmp_path / f"one.{kind}")
        assert word in notes
        np.testing.assert_allclose(samples, np.concatenate([one, one]), atol=1e-3)


def test_parts_of_different_rates_are_joined_at_the_first(tmp_path):
    low = write(tmp_path / "low.ogg", speech(2, 8000), 8000).read_bytes()
    high = write(tmp_path / "high.ogg", speech(2, 16000), 16000).read_bytes()
    (tmp_path / "both.ogg").write_bytes(low + high)
    assert len(read_audio(tmp_path / "both.ogg")) == pytest.approx(4 * RATE, abs=2)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
@pytest.mark.parametrize("channels", [1, 2])
def test_streamed_wav_is_read_to_its_end(tmp_path, size, channels):
    path = write(tmp_path / "a.wav", np.stack([speech()] * channels, axis=1))
    data = bytearray(path.read_bytes())
    place = data.index(b"data")
    data[place + 4 : place + 8] = struct.pack("<I", size)
    path.write_bytes(data)
    samples, notes = read(path)
    np.testing.assert_allclose(samples, speech(), atol=1e-4)
    assert "streamed WAV" in notes
    assert audio_duration(path) == SECONDS


def test_streamed_flac_is_read_to_its_end(tmp_path):
    path = write(tmp_path / "a.flac")
    data = bytearray(path.read_bytes())
    assert int.from_bytes(data[21:26], "big") & (1 << 36) - 1 == SECONDS * RATE
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)
    samples, notes = read(path)
    np.testing.assert_allclose(samples, speech(), atol=1e-4)
    assert "streamed FLAC" in notes


def test_ogg_without_a_mark_of_its_end_is_told(tmp_path):
    path = write(tmp_path / "a.ogg")
    data = bytearray(path.read_bytes())
    last = data.rindex(b"OggS")
    path.write_bytes(data[:last])
    samples, notes = read(path)
    assert 0 < len(samples) < SECONDS * RATE
    assert "without a mark of its end" in notes


# --- cut short, damaged ---


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("float.wav", {"subtype": "FLOAT"}),
        ("a.flac", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {"format": "MP3"}),
        ("a.aiff", {}),
        ("a.au", {}),
        ("a.w64", {}),
        ("a.rf64", {"format": "RF64"}),
        ("a.sph", {"format": "NIST", "subtype": "PCM_16"}),
        ("a.caf", {}),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.55, 0.9])
def test_a_file_cut_short_is_refused(tmp_path, monkeypatch, name, options, share):
    monkeypatch.setattr(ffmpeg, "available", lambda: False)  # CAF: libsndfile refuses it outright
    path = write(tmp_path / name, **options)
    assert check_audio(path).seconds == pytest.approx(SECONDS, abs=0.1)
    data = path.read_bytes()
    for audio in (path, Encoded(name, data[: int(len(data) * share)])):
        if audio is path:
            path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError, match=rf"{name}: .*(cut short|damaged|not readable)"):
            read_audio(audio)


def test_a_few_lost_samples_are_no_cut(tmp_path):
    path = write(tmp_path / "a.wav")
    path.write_bytes(path.read_bytes()[:-800])  # 25 ms
    assert len(read_audio(path)) == SECONDS * RATE - 400


def test_more_than_a_header_states_is_refused(tmp_path):
    path = write(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    place = data.index(b"data")
    data[place + 4 : place + 8] = struct.pack("<I", 3200)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.wav: \d+ more bytes follow than its header states"):
        read_audio(path)


def test_a_little_after_the_audio_is_nothing(tmp_path):
    path = write(tmp_path / "a.wav")
    path.write_bytes(path.read_bytes() + b"\x01\x02" * 50)
    assert len(read_audio(path)) == SECONDS * RATE


def test_ogg_with_missing_pages_is_refused(tmp_path):
    path = write(tmp_path / "a.ogg", speech(20))
    data = path.read_bytes()
    pages = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    assert len(pages) > 5
    path.write_bytes(data[: pages[3]] + data[pages[4] :])
    with pytest.raises(DataError, match=r"a\.ogg: pages are missing or damaged in 1 places"):
        read_audio(path)


def flac_stating(path, samples):
    data = bytearray(write(path).read_bytes())
    fields = int.from_bytes(data[18:26], "big") >> 36 << 36 | samples
    data[18:26] = fields.to_bytes(8, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("samples", [(1 << 36) - 1, 100 * RATE])
def test_an_absurd_length_counts_as_broken(tmp_path, samples):
    """Nothing is allocated for what a header claims, and a length that is not believed is not filtered by either."""
    path = flac_stating(tmp_path / "a.flac", samples)
    with pytest.raises(DataError, match=r"a\.flac: .*(cannot hold|ends after)"):
        read_audio(path)
    fine = Utterance("fine", write(tmp_path / "fine.wav"))
    intake = Intake(max_bad=1)
    assert first_usable([Utterance("a", path), fine], 2, max_duration=30, intake=intake) == [fine]
    assert list(intake.bad) == ["a"]


@pytest.mark.parametrize(
    ("place", "kind", "value", "message"),
    [
        (22, "<H", 1000, "1000 channels, and up to 64"),
        (24, "<I", 3, "3 Hz, which no recording has"),
        (24, "<I", 4_000_000_000, "Hz, which no recording has|not readable"),
    ],
)
def test_absurd_headers_are_refused(tmp_path, place, kind, value, message):
    path = write(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    data[place : place + struct.calcsize(kind)] = struct.pack(kind, value)
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.wav: .*({message})"):
        read_audio(path)


# --- no audio at all ---


@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.flac", "a.m4a"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>\n<html><body>404</body></html>" * 50, "it is a web page"),
        (b'\xef\xbb\xbf\n<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "ZIP archive: unpack it"),
        (b"", r"the file is empty \(0 bytes\)"),
        (bytes(9000), "nothing but zeros"),
    ],
)
def test_what_is_no_audio_is_told_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for read_it in (read_audio, audio_duration, check_audio):
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            read_it(tmp_path / name)


def test_folders_pipes_and_devices_are_no_files(tmp_path):
    with pytest.raises(DataError, match="a folder, not an audio file"):
        read_audio(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.wav")  # opening it for reading would wait for ever
        with pytest.raises(DataError, match=r"pipe\.wav: a pipe, socket or device, not an audio file"):
            read_audio(tmp_path / "pipe.wav")
    with pytest.raises(DataError, match="cannot be opened"):
        read_audio("a\0b.wav")


@pytest.mark.parametrize(
    ("start", "end"), [(float("nan"), None), (-1.0, None), (0.0, float("inf")), (2.0, 1.0), (1.0, 1.0)]
)
def test_segments_that_are_none(tmp_path, start, end):
    path = write(tmp_path / "a.wav")
    with pytest.raises(DataError, match=r"a\.wav: there is no segment from"):
        read_audio(path, start=start, end=end)
    with pytest.raises(DataError, match=r"'start'|'end'"):
        Utterance("a", path, start=start, end=end)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64", "CAF", "NIST", "RF64"])
def test_any_damage_is_read_or_refused(tmp_path, monkeypatch, kind):
    """Bytes changed, lost and doubled, most of them in the header: samples or a DataError, and nothing else."""
    monkeypatch.setattr(ffmpeg, "available", lambda: False)
    monkeypatch.setattr(decoding, "_BLOCK", 1 << 18)
    subtype = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(kind, "PCM_16")
    whole = write(tmp_path / "whole", speech(0.5), format=kind, subtype=subtype).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for number in range(60):
        data = bytearray(whole)
        for _ in range(random.integers(1, 5)):
            place = int(random.integers(min(len(data), 100 if number % 3 else len(data))))
            if (choice := random.integers(4)) == 0:
                del data[place : place + int(random.integers(1, 200))]
            elif choice == 1:
                data[place : place + 4] = bytes([random.choice([0, 255, 127])]) * 4
            else:
                data[place : place + 1] = bytes([random.integers(256)])
        for audio in (tmp_path / f"{number}.bin", Encoded("memory", bytes(data))):
            if not isinstance(audio, Encoded):
                audio.write_bytes(data)
            try:
                assert np.isfinite(read_audio(audio)).all()
            except DataError as error:
                assert str(audio) in str(error)  # noqa: PT017 - either is right
                refused += 1
    assert 0 < refused < 120


# --- channels ---


@pytest.mark.parametrize(("right", "cancels"), [(-1.0, True), (-0.9, True), (0.0, False), (1.0, False), (-0.3, False)])
def test_channels_in_opposite_phase_are_not_averaged(tmp_path, right, cancels):
    left = speech() + 0.05  # an offset common to both hides nothing
    path = write(tmp_path / "a.wav", np.stack([left, right * speech() + 0.05], axis=1), subtype="FLOAT")
    samples, notes = read(path)
    if cancels:
        np.testing.assert_allclose(samples, left, atol=1e-6)
        assert "channel 1 is taken" in notes
    else:
        np.testing.assert_allclose(samples, (1 + right) / 2 * speech() + 0.05, atol=1e-6)
        assert notes == ""


def test_many_channels_that_have_nothing_in_common_are_averaged(tmp_path):
    samples = np.random.default_rng(0).standard_normal((RATE, 16)).astype("f4") * 0.1
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    heard, notes = read(path)
    np.testing.assert_allclose(heard, samples.mean(axis=1), atol=1e-6)
    assert notes == ""


def test_a_channel_that_is_not_finite_is_found(tmp_path):
    samples = np.stack([speech(), speech()], axis=1)
    samples[5, 0], samples[5, 1] = np.inf, -np.inf
    with pytest.raises(DataError, match="not finite"):
        read_audio(write(tmp_path / "a.wav", samples, subtype="FLOAT"))


def test_long_files_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_BLOCK", 1000)
    path = write(tmp_path / "a.wav", np.stack([speech(), speech()], axis=1))
    np.testing.assert_allclose(read_audio(path), speech(), atol=1e-4)
    np.testing.assert_allclose(read_audio(path, start=0.5, end=1.0), speech()[8000:16000], atol=1e-4)


# --- other programs' formats ---

FOREIGN = {
    "a.m4a": ["-c:a", "aac"],
    "fast.mp4": ["-c:a", "aac", "-movflags", "faststart"],
    "a.aac": ["-c:a", "aac"],
    "a.webm": ["-c:a", "libopus"],
    "a.wma": ["-c:a", "wmav2"],
    "a.mkv": ["-c:a", "flac"],
}


def foreign(folder, name):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed: no such file can be made")
    source = write(folder / "source.wav")
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-y", "-i", source, *FOREIGN[name], folder / name], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this ffmpeg cannot encode {name}: {done.stderr.decode()[:100]}")
    return folder / name


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_by_ffmpeg(tmp_path, name):
    path = foreign(tmp_path, name)
    samples, notes = read(path)
    assert "decoded by ffmpeg" in notes
    assert len(samples) / RATE == pytest.approx(SECONDS, abs=0.15)
    assert np.std(samples) == pytest.approx(np.std(speech()), rel=0.2)
    assert audio_duration(path) == pytest.approx(SECONDS, abs=0.15)
    part = read_audio(path, start=1.0, end=1.5)
    middle = slice(500, 7500)  # resampled, it rings at its ends
    np.testing.assert_allclose(part[middle], samples[RATE : RATE + RATE // 2][middle], atol=1e-3)
    np.testing.assert_array_equal(read_audio(Encoded(name, path.read_bytes())), samples)


@pytest.mark.parametrize("name", ["a.m4a", "fast.mp4", "a.webm", "a.mkv"])
def test_other_formats_cut_short(tmp_path, name):
    path = foreign(tmp_path, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 55 // 100])
    with pytest.raises(DataError, match=rf"{name}: .*(cut short|not readable)"):
        read_audio(path)


def test_a_video_without_sound_has_none(tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    path = tmp_path / "silent.mkv"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=size=16x16:duration=1", "-c:v", "ffv1", path]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(DataError, match=r"silent\.mkv: .*no audio stream"):
        read_audio(path)


def test_ffmpeg_follows_no_playlist(tmp_path):
    """A file that names others, as a malicious one may: nothing but the file itself is opened."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    write(tmp_path / "secret.wav")
    for name, content in (
        ("a.m4a", f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n"),
        ("b.mp4", f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=rf"{name}: not readable as audio"):
            read_audio(tmp_path / name)


@pytest.mark.parametrize("name", ["a.m4a", "a.webm"])
def test_other_formats_by_torchcodec(tmp_path, monkeypatch, name):
    path = foreign(tmp_path, name)
    try:
        import torchcodec  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec is not installed, or does not fit this torch: {str(error)[:80]}")
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda _: None)
    samples, notes = read(path)
    assert "decoded by torchcodec" in notes
    assert len(samples) / RATE == pytest.approx(SECONDS, abs=0.15)
    assert np.std(samples) == pytest.approx(np.std(speech()), rel=0.2)


def test_torchcodec_is_given_no_playlist(tmp_path, monkeypatch):
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda _: None)
    monkeypatch.setattr(ffmpeg, "find_spec", lambda _: True)
    (tmp_path / "a.m4a").write_text("#EXTM3U\n#EXTINF:4,\nhttps://example.com/a.aac\n")
    with pytest.raises(DataError, match=r"a\.m4a: .*begins like no audio format that torchcodec is given"):
        read_audio(tmp_path / "a.m4a")


def test_without_a_decoder_the_mend_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x1cftypM4A \0\0\2\0M4A isomiso2" + bytes(1000))
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda _: None)
    monkeypatch.setattr(ffmpeg, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"a\.m4a: .*install ffmpeg \(or `pip install torchcodec`\), or convert it"):
        read_audio(path)


def test_ffmpeg_that_does_not_come_back_is_stopped(tmp_path, monkeypatch):
    slow = tmp_path / "ffmpeg"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda _: str(slow))
    monkeypatch.setattr(ffmpeg, "TIMEOUT", 0.2)
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x1cftypM4A " + bytes(range(256)))
    with pytest.raises(DataError, match=r"a\.m4a: .*ffmpeg was stopped after 0\.2 s"):
        read_audio(path)


# --- against what a corpus states ---


@pytest.mark.parametrize(
    ("stated", "broken", "note"),
    [(4.0, False, ""), (4.2, False, ""), (4.6, True, ""), (40.0, True, ""), (2.0, False, "longer than the corpus")],
)
def test_audio_is_compared_with_what_its_manifest_states(tmp_path, stated, broken, note):
    utterance = Utterance("a", write(tmp_path / "a.wav"), duration=stated)
    if broken:
        with pytest.raises(DataError, match=rf"a\.wav: it has 4\.00 s of audio where the corpus states {stated:.2f} s"):
            utterance.check()
    else:
        assert note in " ".join(utterance.check().notes)


def test_what_was_odd_is_in_the_notes(tmp_path):
    stereo = np.stack([speech(), -speech()], axis=1)
    utterances = [Utterance(name, write(tmp_path / f"{name}.wav", stereo)) for name in ("a", "b")]
    intake = Intake()
    first_usable(utterances, 2, intake=intake)
    (note,) = intake.notes()
    assert note.startswith("2 audio files: its 2 channels are in opposite phase")
    assert note.endswith(": a, b")
    assert list(intake.to_dict()["handled"].values()) == [["a", "b"]]


def test_a_file_is_opened_twice_at_most(tmp_path, monkeypatch):
    utterance = Utterance("a", write(tmp_path / "a.flac"))
    opened = []
    monkeypatch.setattr(decoding.os, "open", lambda *a, real=os.open, **k: opened.append(a) or real(*a, **k))
    first_usable([utterance], 1, max_duration=30, intake=Intake())
    assert utterance.seconds() == SECONDS
    utterance.waveform()
    assert utterance.seconds() == SECONDS
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("format", "subtype"), [("WAV", "GSM610"), ("WAV", "G721_32"), ("AU", "G721_32"), ("W64", "GSM610")]
)
def test_formats_that_cannot_be_sought_in_are_read(tmp_path, format, subtype):
    """Telephony: libsndfile decodes GSM 6.10 and G.721 from the start on, and in no other way."""
    file = tmp_path / "call"
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(24000) / 8000)
    soundfile.write(file, wave, 8000, format=format, subtype=subtype)
    whole = read_audio(file, 8000)
    assert len(whole) == pytest.approx(24000, abs=400)
    assert np.abs(whole[:24000] - wave).mean() < 0.03
    np.testing.assert_array_equal(read_audio(file, 8000, 1.0, 2.0), whole[8000:16000])
    assert check_audio(file).seconds == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("peak", [32767.0, 1e30])
def test_float_samples_that_were_never_scaled_are_refused(tmp_path, peak):
    wave = np.zeros(16000, np.float32)
    wave[1000] = peak
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav: samples of up to .* where full scale is 1.*divide them"):
        read_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", wave / peak * 3, 16000, subtype="FLOAT")  # clips, but is a recording
    assert read_audio(tmp_path / "b.wav").max() == 3


@pytest.mark.parametrize("format", ["AVR", "MAT5", "SVX", "VOC", "CAF"])
def test_lesser_formats_cut_short_are_refused(tmp_path, format):
    file = tmp_path / "a.bin"
    soundfile.write(file, 0.1 * np.ones(32000), 16000, format=format, subtype="PCM_16")
    assert len(read_audio(file)) == 32000
    file.write_bytes(file.read_bytes()[:40000])
    with pytest.raises(DataError, match=r"a\.bin: .*cut short"):
        read_audio(file)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg")
def test_what_ffmpeg_drops_is_told(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 48000), 16000)
    file = tmp_path / "a.aac"
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", file], check=True)
    assert not any("damaged" in note for note in check_audio(file).notes)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) // 4) + data[len(data) * 3 // 4 :])
    assert any("damaged, so some of it may be missing (ffmpeg: " in note for note in check_audio(file).notes)
