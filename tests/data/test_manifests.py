"""Manifests of every spelling, tables, Kaldi folders, other layouts: what is read, what is named, what is refused."""

import json
import os

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tarq.data.corpora.registry import load_utterances
from tarq.data.fields import SPELLINGS
from tarq.data.intake import Intake
from tarq.data.manifests import write_manifest
from tarq.data.pools import read_ids
from tarq.data.sampling import select_utterances
from tarq.data.utterance import Utterance, language_of
from tarq.errors import DataError

RATE = 16000
TEXTS = ("it's the ninth of March", "doctor Okonkwo prescribed amoxicillin")


def tone(path, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.4 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * RATE)) / RATE)
    soundfile.write(path, samples.astype("f4"), RATE, format="WAV" if path.suffix == ".m4a" else None)
    return path


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def heard(source, max_bad=0):
    intake = Intake(max_bad)
    return load_utterances(source, intake), intake


# --- spellings ---


@pytest.mark.parametrize("name", ["m.jsonl", "m.json"])
def test_nemo(tmp_path, name):
    """Keys of NeMo's manifests, which are JSON lines called .json: offset and duration are a segment."""
    tone(tmp_path / "talk.wav", 6.0)
    rows = [
        {"audio_filepath": "talk.wav", "offset": 1.5, "duration": 2.0, "text": TEXTS[0], "lang": "de"},
        {"audio_filepath": str(tmp_path / "talk.wav"), "offset": 0, "duration": 1.0, "text": TEXTS[1], "lang": "en-US"},
    ]
    (one, two), intake = heard(lines(tmp_path / name, *rows))
    assert (one.id, one.text, one.start, one.end, one.seconds()) == ("talk-1.5-3.5", TEXTS[0], 1.5, 3.5, 2.0)
    assert len(one.waveform()) == 2 * RATE
    assert (two.start, two.end) == (0.0, 1.0)
    assert [language_of(u, "fr") for u in (one, two)] == ["de", "en"]
    assert intake.notes() == []


@pytest.mark.parametrize("field", ["audio", "text", "id", "speaker", "start", "end", "duration", "language"])
def test_every_spelling_is_read(tmp_path, field):
    tone(tmp_path / "a.wav", 4.0)
    values = {"audio": "a.wav", "text": "hello", "id": "x", "speaker": "s", "start": 1, "end": 3, "duration": 2}
    values["language"] = "German"
    for spelling in SPELLINGS[field]:
        for key in (spelling, spelling.upper(), spelling.replace("_", "-").title()):
            if field in ("start",) and spelling == "offset":
                continue
            row = {k: v for k, v in values.items() if k != field} | {key: values[field]}
            ((one,), intake) = heard(lines(tmp_path / "m.jsonl", row))
            expected = Utterance("x", tmp_path / "a.wav", "hello", 2.0, "s", start=1.0, end=3.0)
            assert one == expected, key
            assert language_of(one, "en") == "de"
            assert intake.remarks == []


def test_what_is_not_known_is_named(tmp_path):
    tone(tmp_path / "a.wav")
    ((one,), intake) = heard(
        lines(tmp_path / "m.jsonl", {"audio": "a.wav", "transcribed_words": "hello", "spoken_lang": "de", "mood": 1})
    )
    assert one.text is None
    assert intake.untranscribed == 1
    notes = " | ".join(intake.notes())
    assert "'transcribed_words' looks like the text and is not read: known are text, sentence" in notes
    assert "'spoken_lang' looks like the language" in notes
    assert "mood" not in notes
    assert "no transcript was found for 1 of 1 utterances" in notes
    assert select_utterances([one], ["mood=1"]) == [one]
    ((one,), intake) = heard(
        lines(tmp_path / "m.jsonl", {"audio": "a.wav", "text": "A.", "normalized_text": "a", "audio_len": 3})
    )
    assert one.text == "A."
    assert intake.remarks == [f"{tmp_path / 'm.jsonl'}: text is read from 'text', not from 'normalized_text'"]


def test_counts_of_transcripts(tmp_path):
    tone(tmp_path / "a.wav")
    rows = [{"audio": "a.wav", "id": str(n), "text": text} for n, text in enumerate(("one", "", None))]
    _, intake = heard(lines(tmp_path / "m.jsonl", *rows))
    assert intake.to_dict()["transcripts"] == {"found": 2, "missing": 1}
    assert intake.notes() == ["no transcript was found for 1 of 3 utterances"]


def test_json_of_every_shape(tmp_path):
    tone(tmp_path / "a.wav")
    tone(tmp_path / "b.wav")
    rows = [{"wav": f"{n}.wav", "sentence": t} for n, t in zip("ab", TEXTS, strict=True)]
    for whole in (rows, {"data": rows, "version": 1}, dict(zip("ab", rows, strict=True))):
        (tmp_path / "m.json").write_text(json.dumps(whole, indent=1))
        utterances, _ = heard(tmp_path / "m.json")
        assert [(u.id, u.text) for u in utterances] == list(zip("ab", TEXTS, strict=True))
    (tmp_path / "m.json").write_text(json.dumps({"audio": {"path": "a.wav"}, "sentence": "x"}))
    assert heard(tmp_path / "m.json")[0][0].audio == tmp_path / "a.wav"
    for whole, message in (
        ({"a": 1}, "no list of utterances"),
        (3, "no list of utterances"),
        ([1], "not a JSON object"),
    ):
        (tmp_path / "m.json").write_text(json.dumps(whole))
        with pytest.raises(DataError, match=rf"m\.json: .*{message}"):
            load_utterances(tmp_path / "m.json")


# --- tables ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", 'path,sentence,duration\na.wav,"hello, ""world""",1.0\n\nb.wav,two,\n'),
        ("m.csv", 'path;sentence;duration\r\na.wav;"hello, ""world""";1.0\r\nb.wav;two;\r\n'),
        ("m.csv", '\ufeffPath|Sentence|Duration\na.wav|"hello, ""world"""|1.0\nb.wav|two|\n'),
        ("m.tsv", 'path\tsentence\tduration\na.wav\thello, "world"\t1.0\nb.wav\ttwo\t\n'),
        ("m.tsv", 'path\tsentence\tduration\na.wav\t"hello, ""world"""\t1.0\nb.wav\ttwo\t\n'),
    ],
)
def test_tables(tmp_path, name, content):
    tone(tmp_path / "a.wav")
    tone(tmp_path / "clips" / "b.wav")
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    (one, two), intake = heard(tmp_path / name)
    assert (one.id, one.text, one.duration) == ("a", 'hello, "world"', 1.0)
    assert (two.text, two.duration, two.audio) == ("two", None, tmp_path / "clips" / "b.wav")
    assert intake.notes() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a.wav,hello\n",
            r"m\.csv: no column names the audio files; its first line has a\.wav, hello; known are audio",
        ),
        ("path,text\na.wav,one,two\n", r"m\.csv:2: 3 values for 2 columns"),
        ("path,text,duration\na.wav,one,long\n", r"m\.csv:2: 'duration' is 'long'; give a number of seconds"),
        ("path,text,duration\na.wav,one,nan\n", r"m\.csv:2: 'duration' is nan; give seconds"),
        ("path,text,start\na.wav,one,-1\n", r"m\.csv:2: 'start' is -1.0; give seconds"),
        ("path,text\n,one\n", r"m\.csv:2: no 'audio'"),
        ("path,path\na.wav,a.wav\n", r"m\.csv: a column occurs twice"),
        ('path,text\na.wav,"one\nb.wav,two\n', r"m\.csv:3: no table \(unexpected end of data\)"),
        ("", r"m\.csv: no column names the audio files; its first line has nothing"),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    tone(tmp_path / "a.wav")
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_utterances(tmp_path / "m.csv")


def test_broken_rows_count_as_broken_files(tmp_path):
    tone(tmp_path / "a.wav")
    rows = [
        {"audio": "a.wav", "id": "fine"},
        "not json",
        [1],
        {"audio": ""},
        {"audio": "a.wav", "id": "b", "duration": -1},
        '{"audio": "a.wav", "id": "c", "start": NaN}',
        {"audio": "a.wav", "id": "d", "end": 10**400},
        {"audio": "a.wav", "id": "e", "start": 3, "end": 2},
        {"audio": "a.wav", "id": "fine"},
        {"audio": "https://example.com/a.wav", "id": "f"},
        {"audio": ".", "id": "g"},
        {"audio": "x" * 5000, "id": "h"},
        {"audio": "a\0.wav", "id": "i"},
        '{"audio": "a.wav", "text": "\\ud800", "id": "j"}',
    ]
    path = lines(tmp_path / "m.jsonl", *rows)
    utterances, intake = heard(path, max_bad=len(rows) - 1)
    assert [u.id for u in utterances] == ["fine"]
    assert len(intake.bad) == len(rows) - 1
    for number, words in (
        (2, "invalid JSON"),
        (3, "not a JSON object"),
        (4, "no 'audio'"),
        (5, "'duration' is -1"),
        (6, "'start' is nan"),
        (7, "'end' is inf"),
        (8, "'end' is 2, not after 'start'"),
        (10, "is an address, and nothing is fetched"),
        (14, "half a surrogate pair"),
    ):
        assert words in intake.bad[f"{path}:{number}"]
    assert "id 'fine' occurs 2 times" in intake.bad["fine (2)"]
    assert "is a folder" in intake.bad["g"]
    with pytest.raises(DataError, match="--max-bad N"):
        heard(path, max_bad=len(rows) - 2)


# --- folders ---


def test_metadata_of_an_audiofolder(tmp_path):
    for split in ("train", "test"):
        tone(tmp_path / split / "sub" / "a.wav")
        lines(tmp_path / split / "metadata.csv", "file_name,transcription", f'sub/a.wav,"{split}, indeed"')
    with pytest.raises(DataError, match=r"several manifests; name one of them: test, train"):
        load_utterances(tmp_path)
    ((one,), _) = heard(f"{tmp_path}:test")
    assert (one.id, one.text) == ("sub/a", "test, indeed")
    ((one,), _) = heard(tmp_path / "train")
    assert one.text == "train, indeed"
    lines(tmp_path / "train" / "metadata.jsonl", {"file_name": "sub/a.wav", "text": "lines"})
    assert heard(tmp_path / "train")[0][0].text == "lines"


def test_a_table_in_a_folder_is_its_transcripts(tmp_path):
    """Once it lay there unread, and the model's own transcripts were taught."""
    tone(tmp_path / "wavs" / "a.wav")
    lines(tmp_path / "train.tsv", "wav\ttext", "wavs/a.wav\tone")
    lines(tmp_path / "notes.csv", "who,when", "me,now")
    lines(tmp_path / "config.json", {"sampling_rate": 16000})
    assert heard(tmp_path)[0][0].text == "one"
    lines(tmp_path / "test.json", {"audio_filepath": "wavs/a.wav", "text": "two"})
    with pytest.raises(DataError, match="name one of them: test, train"):
        load_utterances(tmp_path)
    assert heard(f"{tmp_path}:test")[0][0].text == "two"


def test_notes_on_one_file_are_no_table(tmp_path):
    tone(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("one")
    lines(tmp_path / "a.json", {"path": "a.wav", "text": "not this"})
    assert [(u.id, u.text) for u in load_utterances(tmp_path)] == [("a", "one")]


def test_a_folder_without_transcripts_says_where_they_were_looked_for(tmp_path):
    tone(tmp_path / "a.wav")
    tone(tmp_path / "b.m4a")
    (tmp_path / "c.xyz").write_text("")
    utterances, intake = heard(tmp_path)
    assert [u.id for u in utterances] == ["a", "b"]  # other programs' formats are not passed over
    notes = " | ".join(intake.notes())
    assert "no transcripts; they are looked for beside each audio file (.txt, .normalized.txt" in notes
    assert "no transcript was found for 2 of 2 utterances" in notes
    assert "not read: 1 .xyz" in notes


@pytest.mark.parametrize("third", [True, False])
def test_ljspeech(tmp_path, third):
    for number in range(2):
        tone(tmp_path / "wavs" / f"LJ001-000{number}.wav")
    rows = [f'LJ001-000{n}|raw "{n}{f"|{t}" if third else ""}' for n, t in enumerate(TEXTS)]
    lines(tmp_path / "metadata.csv", *rows)
    for source in (tmp_path, tmp_path / "metadata.csv"):
        utterances, intake = heard(source)
        expected = TEXTS if third else ('raw "0', 'raw "1')
        assert [(u.id, u.text) for u in utterances] == [(f"LJ001-000{n}", t) for n, t in enumerate(expected)]
        assert intake.notes() == []
    lines(tmp_path / "metadata.csv", *rows, "broken")
    with pytest.raises(DataError, match=r"metadata\.csv:3: not a name and a transcript with \| between"):
        load_utterances(tmp_path)


def test_libritts(tmp_path):
    for number, text in enumerate(TEXTS):
        name = f"84_121123_00000{number}_000000"
        tone(tmp_path / "LibriTTS" / "dev-clean" / "84" / "121123" / f"{name}.wav")
        for kind, content in (("normalized", text + "\n"), ("original", "not this")):
            (tmp_path / f"LibriTTS/dev-clean/84/121123/{name}.{kind}.txt").write_text(content)
    for source in (tmp_path / "LibriTTS", tmp_path / "LibriTTS" / "dev-clean", f"{tmp_path / 'LibriTTS'}:dev-clean"):
        utterances, _ = heard(source)
        assert [(u.text, u.speaker) for u in utterances] == [(t, "84") for t in TEXTS]
        assert utterances[0].id == "84_121123_000000_000000"


def test_librispeech_that_was_converted(tmp_path):
    tone(tmp_path / "19" / "198" / "19-198-0000.wav")
    lines(tmp_path / "19" / "198" / "19-198.trans.txt", "19-198-0000 NORTHANGER\u2028ABBEY")
    ((one,), _) = heard(tmp_path)
    assert one.text == "NORTHANGER\u2028ABBEY"
    assert one.audio.suffix == ".wav"


def kaldi(folder):
    tone(folder.parent / "audio" / "talk.wav", 6.0)
    lines(folder / "wav.scp", "talk  audio/talk.wav")
    lines(folder / "segments", "talk-b talk 1.0 2.5", "talk-a talk 3.0 -1")
    lines(folder / "text", f"talk-a {TEXTS[0]}", f"talk-b\t{TEXTS[1]}")
    lines(folder / "utt2spk", "talk-a ann", "talk-b bob")
    lines(folder / "utt2lang", "talk-a de")
    return folder


def test_kaldi(tmp_path):
    folder = kaldi(tmp_path / "data" / "train")
    for source in (folder, tmp_path / "data", folder / "wav.scp"):
        (one, two), intake = heard(source)
        assert (one.id, one.text, one.speaker, one.start, one.end) == ("talk-b", TEXTS[1], "bob", 1.0, 2.5)
        assert (two.text, two.start, two.end) == (TEXTS[0], 3.0, None)
        assert [language_of(u, "en") for u in (one, two)] == ["en", "de"]
        assert len(one.waveform()) == 1.5 * RATE
        assert intake.notes() == []
    (folder / "segments").unlink()
    ((whole,), intake) = heard(folder)
    assert (whole.id, whole.text) == ("talk", None)
    assert intake.untranscribed == 1


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("wav.scp", "x touch {}/ran |", r"wav\.scp:1: '.*' is a command, and commands are not run"),
        ("wav.scp", "x a.ark:123", r"wav\.scp:1: .* is in an archive"),
        ("wav.scp", "x", r"wav\.scp:1: 'x' has no path"),
        ("wav.scp", "x gone.wav", r"wav\.scp:1: audio file .*gone\.wav does not exist"),
        ("segments", "a talk 1.0", r"segments:1: 3 values"),
        ("segments", "a talk nan 2.0", r"segments:1: the start is 'nan'"),
        ("segments", "a talk 3.0 2.0", r"segments:1: the segment ends at 2"),
        ("segments", "a other 1.0 2.0", r"segments:1: recording 'other' is not in wav\.scp"),
    ],
)
def test_kaldi_that_is_broken(tmp_path, file, line, message):
    folder = kaldi(tmp_path / "train")
    lines(folder / file, line.format(tmp_path))
    with pytest.raises(DataError, match=message):
        load_utterances(folder)
    assert not (tmp_path / "ran").exists()


# --- what means nothing ---


@pytest.mark.parametrize("source", ["", "  ", "\n"])
def test_an_empty_path_is_not_this_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone(tmp_path / "a.wav")
    with pytest.raises(DataError, match="the path of a corpus is empty"):
        load_utterances(source)
    with pytest.raises(DataError, match="no such file or folder"):
        load_utterances(f"{source}:test")
    with pytest.raises(DataError, match="no path"):
        load_utterances("x" * 5000)


def test_conditions_that_mean_nothing(tmp_path):
    some = [Utterance("a", tmp_path / "a.wav")]
    for condition in ("", "=", "=x", " =x"):
        with pytest.raises(DataError, match="write KEY=VALUE"):
            select_utterances(some, [condition])


def test_ids_that_mean_nothing(tmp_path):
    (tmp_path / "ids").write_text(" \n\n")
    with pytest.raises(DataError, match="no ids in it"):
        read_ids(tmp_path / "ids")


# --- written whole or not at all ---


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "m.jsonl"
    utterance = Utterance("a", tone(tmp_path / "a.wav"), "one")
    write_manifest(path, [utterance], [{}])
    before = path.read_text()
    assert load_utterances(path) == [utterance]
    with pytest.raises(TypeError):
        write_manifest(path, [utterance, Utterance("b", tmp_path / "a.wav")], [{}, {"x": object()}])
    assert path.read_text() == before
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "m.jsonl"]
    tsv = lines(tmp_path / "n.tsv", "Audio_Filepath\tSentence\tOffset\tDuration\tLang", "a.wav\tone\t0.25\t0.5\tde")
    segment = load_utterances(tsv)
    write_manifest(path, segment, [{}])
    again = load_utterances(path)
    assert again == segment
    assert again[0].extra["language"] == "de"


# --- anything at all ---

_VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**400),
    st.floats(),
    st.sampled_from(["a.wav", "", ".", "..", "gone.wav", "https://x/y.wav", "\0", "\ud800", "x" * 400, "NaN", "1e999"]),
    st.text(max_size=8),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
_KEY = st.one_of(st.sampled_from([s for spellings in SPELLINGS.values() for s in spellings]), st.text(max_size=6))
_FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def survives(folder, name, content):
    """Loaded or refused by name, whatever is in a file."""
    path = folder / name
    path.write_bytes(content)
    tone(folder / "a.wav", 0.1)
    for max_bad in (0, 1000):
        try:
            utterances = load_utterances(path, Intake(max_bad))
        except DataError as error:
            assert str(error)  # noqa: PT017 - either is right
        else:
            assert all(u.id and u.start >= 0 and u.origin for u in utterances)


@_FUZZ
@given(
    rows=st.lists(st.dictionaries(_KEY, _VALUE, max_size=5), max_size=3), name=st.sampled_from(["m.jsonl", "m.json"])
)
def test_any_rows_of_json(tmp_path, rows, name):
    survives(tmp_path, name, "\n".join(json.dumps(row) for row in rows).encode())
    survives(tmp_path, "m.json", json.dumps(rows).encode())


@_FUZZ
@given(
    header=st.sampled_from(["path,text", "path\ttext\tduration", "wav;start;end", "client_id\tpath\tsentence", "a|b"]),
    body=st.one_of(
        st.text(alphabet='a.wav,;\t|"\n\r\0\u2028é1-', max_size=60).map(lambda text: text.encode()),
        st.binary(max_size=60),
    ),
    name=st.sampled_from(["m.csv", "m.tsv"]),
)
def test_any_table(tmp_path, header, body, name):
    survives(tmp_path, name, header.encode() + b"\n" + body)


@_FUZZ
@given(content=st.one_of(st.binary(max_size=80), st.text(alphabet='[]{}":,\n0Nu\\d8', max_size=40).map(str.encode)))
def test_any_bytes(tmp_path, content):
    for name in ("m.jsonl", "m.json", "m.csv", "m.tsv"):
        survives(tmp_path, name, content)


@_FUZZ
@given(
    line=st.one_of(
        st.lists(st.sampled_from(["a", "1", "0.5", "nan", "-1", "1e999", "<o>", "word", "\0"]), max_size=9).map(
            " ".join
        ),
        st.text(max_size=30),
    )
)
def test_any_line_of_stm_and_kaldi(tmp_path, line):
    talks, folder = tmp_path / "talks", tmp_path / "kaldi"
    tone(talks / "a.wav", 0.6)
    tone(folder / "a.wav", 0.6)
    files = [(talks, "a.stm"), (folder, "segments"), (folder, "text"), (folder, "utt2spk")]
    (folder / "wav.scp").write_text("a a.wav\n")
    for place, name in files:
        (place / name).write_bytes(line.encode("utf-8", "surrogatepass") + b"\n")
    for place in (talks, folder):
        for max_bad in (0, 1000):
            try:
                load_utterances(place, Intake(max_bad))
            except DataError as error:
                assert str(error)  # noqa: PT017 - either is right


def test_brackets_by_the_thousand(tmp_path):
    survives(tmp_path, "m.jsonl", b"[" * 100_000)
    survives(tmp_path, "m.json", b"[" * 100_000)
    survives(tmp_path, "m.json", b'{"a":' * 50_000)
    survives(tmp_path, "m.jsonl", b'{"audio": "a.wav", "duration": ' + b"9" * 10_000 + b"}")
    survives(tmp_path, "m.csv", b'path,text\na.wav,"' + b"x" * 200_000 + b'"\n')
