"""Every corpus in its own layout, written here with made-up audio, read to the same utterances."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tarq
from tarq.data.audio import read_audio
from tarq.data.corpora import commonvoice, gigaspeech, tedlium
from tarq.data.corpora.registry import load_utterances
from tarq.data.intake import Intake
from tarq.data.sampling import first_usable
from tarq.data.utterance import Utterance
from tarq.errors import DataError

RATE = 16000
TEXTS = ("it's the ninth of March", "doctor Okonkwo prescribed amoxicillin", "flight 4471 to Ouagadougou")
SECONDS = (0.5, 0.75, 1.0)
GAP = 0.25  # between the segments of a talk


def wave(number, rate=RATE):
    """The audio of utterance ``number``: a tone of its own."""
    return (0.4 * np.sin(2 * np.pi * (300 + 200 * number) * np.arange(int(SECONDS[number] * rate)) / rate)).astype("f4")


def write(path, samples, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def talk():
    """All three utterances in one recording with silence around them, and where each begins and ends (seconds)."""
    parts, segments, at = [np.zeros(int(GAP * RATE), "f4")], [], GAP
    for number, seconds in enumerate(SECONDS):
        parts += [wave(number), np.zeros(int(GAP * RATE), "f4")]
        segments.append((at, at + seconds))
        at += seconds + GAP
    return np.concatenate(parts), segments


def said_and_heard(utterances, texts=TEXTS, tolerance=1e-3):
    """Assert that the utterances are the made-up ones: transcript, length and sound."""
    assert [u.text for u in utterances] == list(texts)
    for number, utterance in enumerate(utterances):
        assert utterance.seconds() == pytest.approx(SECONDS[number], abs=0.05)
        heard, expected = utterance.waveform(), wave(number)
        assert len(heard) == pytest.approx(len(expected), abs=800)
        length = min(len(heard), len(expected))
        middle = slice(2000, length - 2000)  # lossy codecs ring at the ends
        assert np.sqrt(np.mean((heard[middle] - expected[middle]) ** 2)) < tolerance


# --- segments ---


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("talk.wav", {}, 1e-4),
        ("talk.flac", {}, 1e-4),
        ("talk.sph", {"format": "NIST", "subtype": "PCM_16"}, 1e-4),
        ("talk.opus", {"format": "OGG", "subtype": "OPUS"}, 1e-6),
        ("talk.ogg", {"format": "OGG", "subtype": "VORBIS"}, 1e-6),
        ("talk.mp3", {"format": "MP3"}, 1e-6),
    ],
)
def test_a_segment_is_that_part_of_the_whole(tmp_path, name, options, tolerance):
    samples, segments = talk()
    path = write(tmp_path / name, np.tile(samples, 4), **options)  # long enough for MP3's reservoir to matter
    whole = read_audio(path)
    for start, end in [*segments, (7.3, 9.1), (0.0, 0.5), (11.4, 12.9)]:
        segment = read_audio(path, start=start, end=end)
        first = round(start * RATE)
        assert len(segment) == round(end * RATE) - first
        np.testing.assert_allclose(segment, whole[first : first + len(segment)], atol=tolerance)
    np.testing.assert_allclose(read_audio(path, start=9.0), whole[9 * RATE :], atol=tolerance)


def test_a_segment_is_sought_not_decoded_through(tmp_path, monkeypatch):
    path = write(tmp_path / "talk.flac", np.zeros(60 * RATE, "f4"))
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames=-1, **options: read.append(frames) or original(self, frames, **options),
    )
    Utterance("a", path, start=50.0, end=51.5).waveform()
    assert read == [int(1.5 * RATE)]


@pytest.mark.parametrize(("start", "end"), [(0.5, 2.5), (2.0, None), (2.1, 3.0)])
def test_a_segment_outside_its_file(tmp_path, start, end):
    path = write(tmp_path / "a.wav", np.zeros(2 * RATE, "f4"))
    with pytest.raises(DataError, match=r"a\.wav: the segment from .* lies outside the file, which has 2 s"):
        read_audio(path, start=start, end=end)
    read_audio(path, start=1.0, end=2.05)  # STM files round


def test_a_file_cut_short(tmp_path):
    path = write(tmp_path / "a.flac", np.random.default_rng(0).standard_normal(RATE).astype("f4") * 0.1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\.flac: (the audio ends after|not readable)"):
        read_audio(path)


def test_shortened_sphere_audio_is_named(tmp_path):
    path = write(tmp_path / "a.sph", np.zeros(RATE, "f4"), format="NIST", subtype="PCM_16")
    data = path.read_bytes()
    coding = b"sample_coding -s26 pcm,embedded-shorten-v2.00"
    path.write_bytes(data[:1024].replace(b"sample_coding -s3 pcm", coding)[:1024] + data[1024:])
    with pytest.raises(DataError, match=r"a\.sph: SPHERE audio compressed with shorten.*sph2pipe -f wav"):
        read_audio(path)


# --- broken files ---


def manifest_with_broken_files(folder):
    """Five utterances: fine, missing, no audio at all, empty, not finite."""
    write(folder / "fine.wav", wave(0))
    (folder / "noise.wav").write_bytes(b"this is not audio")
    write(folder / "empty.wav", np.zeros(0, "f4"))
    write(folder / "nan.wav", np.full(RATE, np.nan, "f4"), subtype="FLOAT")
    rows = [{"audio": f"{name}.wav", "text": "the house"} for name in ("fine", "missing", "noise", "empty", "nan")]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_missing_files_are_counted_up_to_a_limit(tmp_path):
    folder = manifest_with_broken_files(tmp_path)
    with pytest.raises(DataError, match=r"missing\.wav does not exist.*--max-bad N"):
        load_utterances(folder)
    intake = Intake(max_bad=1)
    assert [u.id for u in load_utterances(folder, intake)] == ["fine", "noise", "empty", "nan"]
    assert list(intake.bad) == ["missing"]
    assert "missing.wav does not exist" in intake.bad["missing"]
    assert intake.notes()[0] == "1 broken files left out: missing"


def test_all_kinds_of_broken_files_are_found(tmp_path):
    folder = manifest_with_broken_files(tmp_path)
    intake = Intake(max_bad=4)
    utterances = load_utterances(folder, intake)
    assert [u.id for u in first_usable(utterances, 9, intake=intake)] == ["fine"]
    reasons = {"missing": "does not exist", "noise": "not readable", "empty": "empty", "nan": "not finite"}
    assert list(intake.bad) == list(reasons)
    assert all(words in intake.bad[name] for name, words in reasons.items())
    with pytest.raises(DataError, match=r"nan\.wav: .*leaves out up to N broken files; 3 broken files were left out"):
        first_usable(load_utterances(folder, intake := Intake(max_bad=3)), 9, intake=intake)
    # With none allowed, the first one ends it, before any work is done.
    for name, words in (("nan", "not finite"), ("empty", "the audio is empty")):
        with pytest.raises(DataError, match=rf"{name}\.wav: .*{words}"):
            first_usable([u for u in utterances if u.id in ("fine", name)], 9, intake=Intake())


# --- LibriSpeech ---


def librispeech(root):
    chapter = root / "test-clean" / "19" / "198"
    for number in range(3):
        write(chapter / f"19-198-000{number}.flac", wave(number))
    lines = (f"19-198-000{number} {text.upper()}\n" for number, text in enumerate(TEXTS))
    (chapter / "19-198.trans.txt").write_text("".join(lines))
    return root


def test_librispeech(tmp_path):
    root = librispeech(tmp_path)
    utterances = load_utterances(root / "test-clean")
    said_and_heard(utterances, [text.upper() for text in TEXTS])
    assert utterances[0].speaker == "19"
    librispeech(tmp_path / "again")
    (tmp_path / "again" / "test-clean").rename(root / "dev-clean")
    assert load_utterances(f"{root}:test-clean") == utterances
    with pytest.raises(DataError, match=r"name one of them: dev-clean, test-clean \(as .*:dev-clean\)"):
        load_utterances(root)
    with pytest.raises(DataError, match="no part 'test-other' in it; it has dev-clean, test-clean"):
        load_utterances(f"{root}:test-other")
    with pytest.raises(DataError, match="no part 'x' in it; it has no parts"):
        load_utterances(f"{root}/test-clean:x")


# --- TED-LIUM ---


def ted(root, split="test", suffix="sph"):
    samples, segments = talk()
    folder = root / "legacy" / split
    options = {"format": "NIST", "subtype": "PCM_16"} if suffix == "sph" else {}
    write(folder / suffix / f"AimeeMullins_2009P.{suffix}", samples, **options)
    (folder / "stm").mkdir()
    spoken = (
        "it 's the ninth of March",
        "<unk> doctor Okonkwo prescribed(2) {NOISE} amoxicillin <sil>",
        "flight 4471 to Ouagadougou",
    )
    name = "AimeeMullins_2009P 1 AimeeMullins_2009P"
    lines = [";; a comment", f"{name} 0.0 0.25 <o,,unknown> ignore_time_segment_in_scoring"]
    lines += [f"{name} {a} {b} <o,f0,female> {t}" for (a, b), t in zip(segments, spoken, strict=True)]
    lines += [f"{name} 3.0 3.1 <o,f0,female> <unk>", ""]
    (folder / "stm" / "AimeeMullins_2009P.stm").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("suffix", ["sph", "wav"])
def test_tedlium(tmp_path, suffix):
    root = ted(tmp_path / "TEDLIUM_release-3", suffix=suffix)
    intake = Intake()
    utterances = load_utterances(root / "legacy" / "test", intake)
    said_and_heard(utterances)
    assert utterances[0].id == "AimeeMullins_2009P-0.25-0.75"
    assert utterances[0].speaker == "AimeeMullins_2009P"
    assert list(intake.left_out.values()) == [2]
    assert load_utterances(root) == load_utterances(f"{root}:test") == utterances
    ted(root, "dev")
    with pytest.raises(DataError, match="TED-LIUM splits; name one of them: dev, test"):
        load_utterances(root / "legacy")


def test_tedlium_with_its_files_side_by_side(tmp_path):
    split = ted(tmp_path) / "legacy" / "test"
    for path in (split / "sph" / "AimeeMullins_2009P.sph", split / "stm" / "AimeeMullins_2009P.stm"):
        path.rename(split / path.name)
        path.parent.rmdir()
    said_and_heard(load_utterances(split))


def test_a_missing_talk_is_one_broken_file(tmp_path):
    root = ted(tmp_path)
    other = root / "legacy/test/stm/Gone_2010.stm"
    other.write_text("Gone_2010 1 Gone_2010 0.0 1.0 <o> one\nGone_2010 1 Gone_2010 1.0 2.0 <o> two\n")
    with pytest.raises(DataError, match=r"Gone_2010\.stm:1: audio file .*Gone_2010\.sph does not exist"):
        load_utterances(root)
    intake = Intake(max_bad=1)
    said_and_heard(load_utterances(root, intake))
    assert list(intake.bad) == ["Gone_2010"]
    other.write_text("Gone_2010 1 Gone_2010 zero 1.0 <o> one\n")
    with pytest.raises(DataError, match=r"Gone_2010\.stm:1: not an STM line"):
        load_utterances(root)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("i 'd like to share what they 're doing", "i'd like to share what they're doing"),
        ("{COUGH} but <sil> unqualified for(2) this {SMACK} <sil> (PaulaScher_2008P-1)", "but unqualified for this"),
        ("ignore_time_segment_in_scoring", None),
        ("ignore time segment in scoring", None),  # as copies with normalised text have it
        ("<unk> {NOISE} [NOISE]", None),
        ("", None),
    ],
)
def test_transcripts_of_tedlium(written, words):
    assert tedlium.transcript(written) == words


# --- SPGISpeech ---


def spgi(root, split="val"):
    for number in range(3):
        write(root / "spgispeech" / split / "13aa6c0669adb5544a0d62beef677189" / f"{number}.wav", wave(number))
    rows = [f"13aa6c0669adb5544a0d62beef677189/{number}.wav|24044|{text}" for number, text in enumerate(TEXTS)]
    (root / f"{split}.csv").write_text("\n".join(["wav_filename|wav_filesize|transcript", *rows]) + "\n")
    return root


def test_spgispeech(tmp_path):
    root = spgi(tmp_path)
    utterances = load_utterances(root)
    said_and_heard(utterances)
    assert utterances[0].id == "13aa6c0669adb5544a0d62beef677189/0"
    assert utterances[0].extra == {"call": "13aa6c0669adb5544a0d62beef677189"}
    assert load_utterances(root / "val.csv") == load_utterances(f"{root}:val") == utterances
    spgi(root, "train")
    with pytest.raises(DataError, match="name one of them: train, val"):
        load_utterances(root)
    (root / "spgispeech" / "val").rename(root / "val")  # the other way it is unpacked
    said_and_heard(load_utterances(root / "val.csv"))


def test_a_table_is_taken_as_written(tmp_path):
    path = spgi(tmp_path) / "val.csv"
    text = path.read_text()
    path.write_text(text.replace(TEXTS[0], '"Look," he said. It\'s "fine'))
    assert load_utterances(path)[0].text == '"Look," he said. It\'s "fine'
    path.write_text(text.replace("|24044|", "|", 1))
    with pytest.raises(DataError, match=r"val\.csv:2: 2 values for 3 columns"):
        load_utterances(path)
    intake = Intake(max_bad=1)  # the other rows are there
    assert [u.text for u in load_utterances(path, intake)] == list(TEXTS[1:])
    assert list(intake.bad) == [f"{path}:2"]


# --- VoxPopuli ---


def voxpopuli(root, split="test", hub=False):
    header = ["id", "raw_text", "normalized_text", "speaker_id", "split", "gender"]
    header += ["is_gold_transcript", "accent"] if hub else []
    rows = []
    for number, text in enumerate((*TEXTS, "")):
        name = f"20130114-0900-PLENARY-1-en_20130114-17:12:30_{number}"
        rows.append([name, f'"{text.upper()}"', text, "None" if number else "1122", split, "female"])
        rows[-1] += ["True", "None"] if hub else []
        if number < 3 and hub:
            write(root / f"{split}_part_0" / f"{name}.wav", wave(number))
        elif number < 3:
            write(root / "2013" / f"{name}.ogg", wave(number), format="OGG", subtype="VORBIS")
    (root / f"asr_{split}.tsv").write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    return root


@pytest.mark.parametrize("hub", [False, True])
def test_voxpopuli(tmp_path, hub):
    root = voxpopuli(tmp_path / "transcribed_data" / "en", hub=hub)
    intake = Intake()
    utterances = load_utterances(root, intake)
    said_and_heard(utterances, tolerance=1e-3 if hub else 0.05)
    assert [u.speaker for u in utterances] == ["1122", None, None]
    assert utterances[0].extra["gender"] == "female"
    assert intake.left_out == {"no normalized transcript (VoxPopuli)": 1}
    assert load_utterances(root / "asr_test.tsv") == load_utterances(f"{root}:test") == utterances


@pytest.mark.parametrize(("folder", "language"), [("de", "de"), ("en_accented", "en"), ("mine", None)])
def test_voxpopuli_is_in_the_language_of_its_folder(tmp_path, monkeypatch, folder, language):
    root = voxpopuli(tmp_path / "transcribed_data" / folder)
    monkeypatch.chdir(root)
    for source in (root, "asr_test.tsv"):
        assert [u.extra.get("language") for u in load_utterances(source)] == [language] * 3


# --- Common Voice ---


def common_voice(root, split="test"):
    header = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender"
    header += " accents variant locale segment"
    language = root.name
    rows, durations = [], []
    for number, text in enumerate((TEXTS[0], f'"{TEXTS[1]}"', TEXTS[2])):
        clip = f"common_voice_{language}_1000{number}.mp3"
        write(root / "clips" / clip, wave(number, 48000), 48000, format="MP3")
        rows.append(["f00d", clip, "s1", text, "", "2", "0", "", "male_masculine", "", "", language, ""])
        durations.append([clip, str(int(1000 * SECONDS[number]))])
    table = "\n".join("\t".join(row) for row in [header.split(), *rows])
    (root / f"{split}.tsv").write_text(table + "\n", encoding="utf-8")
    table = "\n".join("\t".join(row) for row in [["clip", "duration[ms]"], *durations])
    (root / "clip_durations.tsv").write_text(table + "\n")
    return root


def test_common_voice(tmp_path):
    root = common_voice(tmp_path / "cv-corpus-17.0-2024-03-15" / "de")
    utterances = load_utterances(root)
    said_and_heard(utterances, tolerance=0.05)
    assert (utterances[0].id, utterances[0].speaker) == ("common_voice_de_10000", "f00d")
    assert utterances[0].extra["language"] == "de"  # its locale
    assert [u.duration for u in utterances] == list(SECONDS)
    assert load_utterances(root / "test.tsv") == load_utterances(f"{root}:test") == utterances
    durations = (root / "clip_durations.tsv").read_text()
    (root / "clip_durations.tsv").write_text(durations.replace("500", "half a second", 1))
    with pytest.raises(DataError, match=r"clip_durations\.tsv:2: duration\[ms\] is 'half a second'"):
        load_utterances(root)
    assert [u.duration for u in load_utterances(root, Intake(max_bad=1))] == [None, *SECONDS[1:]]
    (root / "clip_durations.tsv").unlink()
    assert [u.duration for u in load_utterances(root)] == [None] * 3


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ('"Guten Tag," sagte er.', '"Guten Tag," sagte er.'),
        ('"""Guten Tag,"" sagte er."', '"Guten Tag," sagte er.'),
        ('"Ja."', "Ja."),
        ('"', '"'),
        (" plain ", "plain"),
    ],
)
def test_transcripts_of_common_voice(written, words):
    assert commonvoice.transcript(written) == words


# --- GigaSpeech ---


def giga(root):
    samples, segments = talk()
    write(root / "audio/podcast/P0001/POD0000000001.opus", samples, format="OGG", subtype="OPUS")
    spoken = (
        "IT'S THE NINTH OF MARCH <PERIOD>",
        "DOCTOR OKONKWO PRESCRIBED <COMMA> AMOXICILLIN <QUESTIONMARK>",
        "FLIGHT 4471 TO OUAGADOUGOU",
        "<MUSIC>",
    )
    times = [*segments, (0.0, 0.2)]
    entries = [
        {
            "sid": f"POD0000000001_S000000{number}",
            "speaker": "N/A",
            "begin_time": begin,
            "end_time": end,
            "text_tn": text,
            "subsets": ["{TEST}"] if number != 2 else ["{TEST}", "{XL}"],
        }
        for number, ((begin, end), text) in enumerate(zip(times, spoken, strict=True))
    ]
    audio = {
        "title": "a talk",
        "url": "https://…",
        "path": "audio/podcast/P0001/POD0000000001.opus",
        "aid": "POD0000000001",
        "source": "podcast",
        "codec": "opus",
        "channels": 1,
        "sample_rate": 16000,
        "format": "opus",
        "duration": len(samples) / RATE,
        "subsets": ["{TEST}", "{XL}"],
        "category": "Science and Technology",
        "segments": entries,
    }
    (root / "GigaSpeech.json").write_text(
        json.dumps({"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": [audio]})
    )
    return root


def test_gigaspeech(tmp_path):
    root = giga(tmp_path)
    intake = Intake()
    utterances = load_utterances(f"{root}:TEST", intake)
    marked = ("IT'S THE NINTH OF MARCH.", "DOCTOR OKONKWO PRESCRIBED, AMOXICILLIN?", "FLIGHT 4471 TO OUAGADOUGOU")
    said_and_heard(utterances, marked, tolerance=0.05)
    assert (utterances[0].id, utterances[0].speaker) == ("POD0000000001_S0000000", None)
    assert utterances[0].extra["category"] == "Science and Technology"
    assert sum(intake.left_out.values()) == 1
    assert load_utterances(f"{root}/GigaSpeech.json:XL") == utterances[2:]
    with pytest.raises(DataError, match="several subsets; name one of them: TEST, XL"):
        load_utterances(root)


def test_gigaspeech_without_its_audio_or_metadata(tmp_path):
    root = giga(tmp_path)
    (root / "audio/podcast/P0001/POD0000000001.opus").unlink()
    with pytest.raises(DataError, match=r"POD0000000001\.opus does not exist"):
        load_utterances(f"{root}:TEST")
    (root / "GigaSpeech.json").write_text('{"audios": [{"segments": [{}]}]}')
    with pytest.raises(DataError, match=r"GigaSpeech\.json: not GigaSpeech's metadata"):
        load_utterances(f"{root}:TEST")


def test_transcripts_of_gigaspeech():
    assert gigaspeech.transcript("WELL <COMMA> <NOISE> YES <EXCLAMATIONPOINT>") == "WELL, YES!"
    assert gigaspeech.transcript("<SIL>") is None


# --- ContextASR-Bench ---

ENTITIES = ((), ("Okonkwo", "amoxicillin"), ("Ouagadougou",))


def context_asr(root, name="ContextASR-Speech_English"):
    lines = []
    for number, text in enumerate(TEXTS):
        audio = f"audio/ContextASR-Speech/English/FNED-00{number}_EN.wav"
        write(root / audio, wave(number))
        row = {"uniq_id": f"FNED-00{number}_EN", "language": "English", "audio": audio, "text": text}
        row |= {"duration": SECONDS[number], "domain_label": "Medicine", "entity_list": list(ENTITIES[number])}
        lines.append(json.dumps(row))
    (root / f"{name}.jsonl").write_text("\n".join(lines))
    return root


def test_contextasr(tmp_path):
    root = context_asr(tmp_path)
    utterances = load_utterances(root)
    said_and_heard(utterances)
    assert utterances[1].id == "FNED-001_EN"
    assert tuple(u.entities for u in utterances) == ENTITIES
    assert utterances[0].extra == {"domain_label": "Medicine", "language": "en"}
    assert load_utterances(f"{root}:ContextASR-Speech_English") == utterances
    assert load_utterances(root / "ContextASR-Speech_English.jsonl") == utterances
    context_asr(root, "ContextASR-Speech_Mandarin")
    with pytest.raises(DataError, match="name one of them: ContextASR-Speech_English, ContextASR-Speech_Mandarin"):
        load_utterances(root)


# --- manifests and folders ---


def test_manifest_with_segments(tmp_path):
    samples, segments = talk()
    write(tmp_path / "talk.flac", samples)
    rows = [
        {"audio": "talk.flac", "text": text, "start": start, "end": end}
        for text, (start, end) in zip(TEXTS, segments, strict=True)
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    utterances = load_utterances(path)
    said_and_heard(utterances)
    assert utterances[0].id == "talk-0.25-0.75"
    path.write_text(json.dumps(rows[0] | {"end": 0.1}))
    with pytest.raises(DataError, match=r"m\.jsonl:1: 'end' is 0\.1, not after 'start'"):
        load_utterances(path)


def test_a_folder_of_audio_with_transcripts(tmp_path):
    for number, text in enumerate(TEXTS):
        write(tmp_path / "talks" / f"{number}.wav", wave(number))
        (tmp_path / "talks" / f"{number}.txt").write_text(text + "\n")
    write(tmp_path / "b.FLAC", wave(0), format="FLAC")
    utterances = load_utterances(tmp_path)
    assert [u.id for u in utterances] == ["b", "talks/0", "talks/1", "talks/2"]
    assert utterances[0].text is None
    said_and_heard(utterances[1:])
    assert dataclasses.replace(utterances[1], id="x").origin == utterances[1].origin != utterances[2].origin
    assert dataclasses.replace(utterances[1], start=0.1).origin != utterances[1].origin


@pytest.mark.parametrize(
    ("write_corpus", "below", "named", "message"),
    [
        (common_voice, "cv-corpus-17.0/de", "cv-corpus-17.0", r"Common Voice .* below it \(de, en\); give .*17\.0/de$"),
        (
            common_voice,
            "cv/cv-corpus-17.0/de",
            "cv",
            r"Common Voice .* below it \(cv-corpus-17\.0/de, cv-corpus-17\.0/en\); give .*/de$",
        ),
        (librispeech, "speech/LibriSpeech", "speech", r"LibriSpeech .* below it \(.*\); give .*speech/LibriSpeech$"),
        (voxpopuli, "transcribed_data/de", "transcribed_data", r"VoxPopuli .* below it \(de, en\); give .*_data/de$"),
        (ted, "talks/TEDLIUM_release-3", "talks", r"TED-LIUM .*; give .*TEDLIUM_release-3$"),
        (manifest_with_broken_files, "own/a", "own", r"a JSONL manifest .* below it \(a, en\); give .*/a$"),
    ],
)
def test_a_corpus_named_too_high_is_not_a_folder_of_audio(tmp_path, write_corpus, below, named, message):
    write_corpus(tmp_path / below)
    write_corpus((tmp_path / below).with_name("en"))
    for source in (tmp_path / named, f"{tmp_path / named}:en"):
        with pytest.raises(DataError, match=f"{named}: no corpus itself, but there is {message}"):
            load_utterances(source)
    write(tmp_path / "plain" / "a" / "b" / "c.wav", wave(0))
    assert [u.text for u in load_utterances(tmp_path / "plain")] == [None]


def test_a_path_is_not_taken_for_a_part(tmp_path):
    folder = tmp_path / "a:b"
    write(folder / "0.wav", wave(0))
    assert len(load_utterances(folder)) == 1
    with pytest.raises(DataError, match="no such file or folder; give the path of a corpus, or hub:OWNER/NAME"):
        load_utterances(f"{tmp_path}/gone:test")
    assert Path(folder).is_dir()


# --- what is done with them ---


def test_a_model_is_calibrated_on_one_corpus_and_scored_on_others(tmp_path, model_folder):
    """Segments of a talk in, entities and left-out lines out; every corpus by the same argument."""
    recognizer = tarq.load_recognizer(model_folder)
    report = tarq.quantize(
        recognizer, f"{ted(tmp_path / 'ted')}:test", tarq.TarqConfig.preset("gptq", group_size=32, samples=3)
    )
    assert report.calibration["ids"][0].startswith("AimeeMullins_2009P-")
    assert report.calibration["left_out"] == {"marked as not to be scored, or nothing but noise (TED-LIUM)": 2}
    sets = {
        "giga": f"{giga(tmp_path / 'giga')}:TEST",
        "context": context_asr(tmp_path / "context"),
        "voices": common_voice(tmp_path / "cv" / "en"),
    }
    models = {"full": tarq.load_recognizer(model_folder), "gptq": recognizer}
    scores = tarq.evaluate(models, sets, reference="full", resamples=20)
    assert [scores.sets[name].utterances for name in sets] == [3, 3, 3]
    assert sum(scores.sets["giga"].left_out.values()) == 1
    assert {"ne_wer", "ne_fnr"} <= set(scores.sets["context"].differences["gptq − full"])
    assert scores.sets["context"].entities == 3
    assert scores.sets["voices"].models["gptq"].figures["kl_common"].value > 0
