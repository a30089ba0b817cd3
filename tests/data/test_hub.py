"""Data sets of the hub: the columns of each corpus, streamed from folders laid out as its repository is."""

import io
import json
import socket
import tarfile

import numpy as np
import pytest
import soundfile

from tarq.data import hub, rowfiles
from tarq.data.audio import Encoded
from tarq.data.corpora.registry import load_utterances
from tarq.data.intake import Intake
from tarq.data.utterance import language_of
from tarq.errors import DataError

datasets = pytest.importorskip("datasets", reason="the optional `datasets` is not installed: pip install 'tarq[hub]'")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TEXTS = ("it's the ninth of March", "doctor Okonkwo prescribed amoxicillin", "flight 4471 to Ouagadougou")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path, request):
    """No test here asks the hub, but those that say so; no bars on the screen."""
    datasets.disable_progress_bars()
    if "online" not in request.keywords:
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(number, rate=16000):
    """A FLAC file of half a second and more, and its samples."""
    samples = 0.4 * np.sin(2 * np.pi * (300 + 200 * number) * np.arange(rate * (2 + number) // 4) / rate)
    file = io.BytesIO()
    soundfile.write(file, samples.astype("f4"), rate, format="FLAC")
    return file.getvalue(), samples


def table(features, *rows, rate=16000):
    """A data set with an audio column, made without an audio codec: its bytes are what a repository would hold."""
    kinds = features | {"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    full = [
        row if "audio" in row else row | {"audio": {"bytes": encoded(number, rate)[0], "path": f"{number}.flac"}}
        for number, row in enumerate(rows)
    ]
    made = datasets.Dataset.from_list(full, features=datasets.Features(kinds))
    return made.cast_column("audio", datasets.Audio(sampling_rate=rate))


def repository(folder, splits):
    """A repository of Parquet files with its card; ``splits`` is "config/split" to data set."""
    configs = {}
    for name, made in splits.items():
        config, split = name.split("/")
        path = folder / config / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        made.to_parquet(path)
        configs.setdefault(config, []).append(split)
    lines = ["---", "configs:"]
    for config, names in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [line for n in names for line in (f"  - split: {n}", f"    path: {config}/{n}/*.parquet")]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def heard(utterances, rate=16000):
    for number, utterance in enumerate(utterances):
        assert isinstance(utterance.audio, Encoded)
        np.testing.assert_allclose(utterance.waveform(rate), encoded(number, rate)[1], atol=1e-4)
        assert utterance.seconds() == pytest.approx((2 + number) / 4, abs=1e-3)


text, number = datasets.Value("string"), datasets.Value("int64")
LIBRISPEECH = {"file": text, "text": text, "speaker_id": number, "chapter_id": number, "id": text}


def librispeech(texts=TEXTS):
    rows = (
        {"file": f"19-198-000{n}.flac", "text": t.upper(), "speaker_id": 19, "chapter_id": 198, "id": f"19-198-000{n}"}
        for n, t in enumerate(texts)
    )
    return table(LIBRISPEECH, *rows)


@pytest.fixture
def clean(tmp_path):
    made = librispeech()
    return repository(tmp_path / "librispeech_asr", {"clean/test": made, "clean/train.100": made, "other/test": made})


def test_librispeech(clean):
    utterances = load_utterances(f"{clean}:clean/test")
    assert [(u.id, u.text, u.speaker) for u in utterances] == [
        (f"19-198-000{n}", t.upper(), "19") for n, t in enumerate(TEXTS)
    ]
    assert utterances[0].extra["chapter_id"] == 198
    heard(utterances)


def test_a_name_of_the_hub(clean, monkeypatch):
    asked = []
    load = datasets.load_dataset

    def redirected(name, config=None, **options):
        asked.append((name, config, options["split"], options["revision"], options["streaming"]))
        return load(str(clean), config, split=options["split"], streaming=options["streaming"])

    monkeypatch.setattr(datasets, "load_dataset", redirected)
    assert len(load_utterances("hub:openslr/librispeech_asr:clean/train.100")) == 3
    assert [u.id for u in load_utterances("hub:openslr/librispeech_asr@refs/convert/parquet:other/test[:2]")] == [
        "19-198-0000",
        "19-198-0001",
    ]
    assert load_utterances("hub:openslr/librispeech_asr:other/")[0].text == TEXTS[0].upper()  # its only split
    assert asked == [
        ("openslr/librispeech_asr", "clean", "train.100", None, True),
        ("openslr/librispeech_asr", "other", "test", "refs/convert/parquet", True),
        ("openslr/librispeech_asr", "other", None, None, True),
    ]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("", r"Config name is missing.*\['clean', 'other'\]"),
        ("clean/", "several splits; name one of them, as SOURCE:SPLIT: clean/test, clean/train.100"),
        ("clean/dev", r"Bad split: dev. Available splits: \['test', 'train.100'\]"),
        ("nope/test", r"BuilderConfig 'nope' not found. Available: \['clean', 'other'\]"),
        ("clean/test[2:]", "is not a part; write"),
    ],
)
def test_a_part_that_is_not_there(clean, part, message):
    with pytest.raises(DataError, match=message):
        load_utterances(f"{clean}:{part}" if part else clean)


def test_a_set_that_cannot_be_had():
    with pytest.raises(DataError, match=r"hub:nobody/nothing:test: cannot be read .*check the network"):
        load_utterances("hub:nobody/nothing:test")


def test_a_set_that_is_a_script(monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found tedlium.py")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    with pytest.raises(DataError, match=r"found tedlium\.py\); give its Parquet copy, hub:.*@refs/convert/parquet"):
        load_utterances("hub:LIUM/tedlium:release3/test")


def test_without_datasets(clean, monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    for source in (f"{clean}:clean/test", "hub:openslr/librispeech_asr:clean/test"):
        with pytest.raises(DataError, match=r"pip install 'tarq\[hub\]'"):
            load_utterances(source)


def test_voxpopuli(tmp_path):
    features = {"audio_id": text, "language": datasets.ClassLabel(names=["en", "de"]), "raw_text": text}
    features |= {
        "normalized_text": text,
        "gender": text,
        "speaker_id": text,
        "is_gold_transcript": datasets.Value("bool"),
    }
    common = {"language": 1, "raw_text": "Hm.", "gender": "female", "is_gold_transcript": True}
    rows = [
        common | {"audio_id": f"a{n}", "normalized_text": t, "speaker_id": "None"} for n, t in enumerate((*TEXTS, ""))
    ]
    folder = repository(tmp_path / "voxpopuli", {"de/test": table(features, *rows)})
    intake = Intake()
    utterances = load_utterances(folder, intake)
    assert [(u.id, u.text, u.speaker) for u in utterances] == [(f"a{n}", t, None) for n, t in enumerate(TEXTS)]
    assert utterances[0].extra["language"] == "de"  # as on disk
    assert intake.left_out == {"not to be scored, by the text conventions of voxpopuli": 1}
    heard(utterances)


def test_gigaspeech(tmp_path):
    seconds = datasets.Value("float32")
    features = {"segment_id": text, "speaker": text, "text": text, "begin_time": seconds, "end_time": seconds}
    features |= {"audio_id": text, "title": text, "source": datasets.ClassLabel(names=["audiobook", "podcast"])}
    common = {"speaker": "N/A", "begin_time": 1.0, "end_time": 2.0, "audio_id": "POD1", "title": "a talk", "source": 1}
    said = (TEXTS[0].upper() + " <PERIOD>", TEXTS[1].upper(), TEXTS[2].upper(), "<SIL>")
    rows = [common | {"segment_id": f"POD1_S{n}", "text": t} for n, t in enumerate(said)]
    folder = repository(tmp_path / "gigaspeech", {"xs/train": table(features, *rows)})
    utterances = load_utterances(f"{folder}:xs/train")
    assert [u.id for u in utterances] == ["POD1_S0", "POD1_S1", "POD1_S2"]
    assert (utterances[0].text, utterances[0].speaker) == ("IT'S THE NINTH OF MARCH.", None)
    assert utterances[0].extra["source"] == "podcast"
    heard(utterances)


def test_spgispeech(tmp_path):
    features = {"wav_filename": text, "wav_filesize": number, "transcript": text}
    rows = [{"wav_filename": f"13aa/{n}.wav", "wav_filesize": 9, "transcript": t} for n, t in enumerate(TEXTS)]
    folder = repository(tmp_path / "spgispeech", {"S/validation": table(features, *rows)})
    utterances = load_utterances(f"{folder}:S/validation")
    assert [(u.id, u.text) for u in utterances] == [(f"13aa/{n}", t) for n, t in enumerate(TEXTS)]
    heard(utterances)


def test_common_voice(tmp_path):
    features = dict.fromkeys(("client_id", "path", "sentence", "age", "gender", "accent", "locale", "segment"), text)
    features |= {"up_votes": number, "down_votes": number}
    common = dict.fromkeys(("age", "gender", "accent", "segment"), "") | {
        "locale": "de",
        "up_votes": 2,
        "down_votes": 0,
    }
    said = (f'"{TEXTS[0]}"', *TEXTS[1:])
    rows = [common | {"client_id": "f00d", "path": f"de_{n}.mp3", "sentence": t} for n, t in enumerate(said)]
    folder = repository(tmp_path / "common_voice_17_0", {"de/test": table(features, *rows, rate=48000)})
    utterances = load_utterances(f"{folder}:de/test")
    assert [(u.id, u.text, u.speaker) for u in utterances] == [(f"de_{n}", t, "f00d") for n, t in enumerate(TEXTS)]
    assert utterances[0].extra["language"] == "de"  # as on disk
    heard(utterances, 48000)


TED = ("it 's the ninth of March", "doctor Okonkwo prescribed <unk> amoxicillin", TEXTS[2])


def test_tedlium(tmp_path):
    gender = datasets.ClassLabel(names=["unknown", "female", "male"])
    features = {"text": text, "speaker_id": text, "gender": gender, "file": text, "id": text}
    common = {"speaker_id": "AimeeMullins_2009P", "gender": 1, "file": "AimeeMullins_2009P.sph"}
    rows = [common | {"text": t, "id": f"A-{n}"} for n, t in enumerate((*TED, "ignore_time_segment_in_scoring"))]
    folder = repository(tmp_path / "tedlium-dev-test", {"default/test": table(features, *rows)})
    utterances = load_utterances(f"{folder}:test")
    assert [(u.id, u.text) for u in utterances] == [(f"A-{n}", t) for n, t in enumerate(TEXTS)]
    assert utterances[0].extra["gender"] == "female"
    heard(utterances)


def test_esb_has_the_conventions_of_the_corpus_it_names(tmp_path):
    features = {"dataset": text, "text": text, "id": text, "audio_length_s": datasets.Value("float64")}
    rows = [{"dataset": "tedlium", "text": t, "id": f"A-{n}", "audio_length_s": 1.0} for n, t in enumerate(TED)]
    sets = {"tedlium/test": table(features, *rows), "spgispeech/test": table(features, *rows)}
    folder = repository(tmp_path / "esb-datasets-test-only-sorted", sets)
    assert [u.text for u in load_utterances(f"{folder}:tedlium/test")] == list(TEXTS)
    assert [u.text for u in load_utterances(f"{folder}:spgispeech/test")] == list(TED)  # as written


def test_profasr_as_it_is_saved(tmp_path):
    features = dict.fromkeys(("utterance_id", "text", "profile", "domain", "voice", "truth"), text)
    features |= {"asr_difficulty": datasets.Value("float32"), "prompt": datasets.Sequence(text)}
    common = {"text": "not the reference", "profile": "", "domain": "MEDICAL", "voice": "af_heart", "prompt": ["a"]}
    rows = [common | {"utterance_id": f"u{n}", "truth": t, "asr_difficulty": 0.5} for n, t in enumerate(TEXTS)]
    table(features, *rows, rate=22050).save_to_disk(tmp_path / "ProfASR-Bench" / "data" / "train")
    utterances = load_utterances(tmp_path / "ProfASR-Bench")
    assert [(u.id, u.text, u.speaker) for u in utterances] == [(f"u{n}", t, "af_heart") for n, t in enumerate(TEXTS)]
    assert utterances[0].entities == ()
    assert utterances[0].extra["domain"] == "MEDICAL"
    heard(utterances, 22050)


def test_contextasr_streams_its_archives(tmp_path, monkeypatch):
    root = tmp_path / "MrSupW" / "ContextASR-Bench"
    archive = root / "audio/ContextASR-Speech/English/ContextASR-Speech_English_1.tar"
    archive.parent.mkdir(parents=True)
    lines = []
    with tarfile.open(archive, "w") as tar:
        for n in (2, 0, 1):
            member, data = tarfile.TarInfo(f"FNED-00{n}_EN.wav"), encoded(n)[0]
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            audio = f"audio/ContextASR-Speech/English/FNED-00{n}_EN.wav"
            row = {"uniq_id": f"FNED-00{n}_EN", "audio": audio, "text": TEXTS[n], "duration": 1.0}
            lines.append(json.dumps(row | {"domain_label": "Medicine", "entity_list": TEXTS[n].split()[-1:]}))
    (root / "ContextASR-Speech_English.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(hub, "LOCATION", f"{tmp_path}/")
    utterances = load_utterances("hub:MrSupW/ContextASR-Bench:ContextASR-Speech_English")
    assert [u.id for u in utterances] == [f"FNED-00{n}_EN" for n in (2, 0, 1)]  # as the archive has them
    utterances.sort(key=lambda u: u.id)
    assert [(u.text, u.entities) for u in utterances] == [(t, (t.split()[-1],)) for t in TEXTS]
    assert utterances[0].extra["language"] == "en"
    heard(utterances)
    assert len(load_utterances("hub:MrSupW/ContextASR-Bench:ContextASR-Speech_English[:1]")) == 1
    with pytest.raises(DataError, match="name one of its sets, such as ContextASR-Speech_English"):
        load_utterances("hub:MrSupW/ContextASR-Bench")


def test_files_of_a_repository_that_is_an_audiofolder(tmp_path, monkeypatch):
    folder = tmp_path / "me" / "own" / "test"
    folder.mkdir(parents=True)
    monkeypatch.setattr(hub, "LOCATION", f"{tmp_path}/")
    for n, spoken in enumerate(TEXTS):
        (folder / f"{n}.flac").write_bytes(encoded(n)[0])
        with (folder / "metadata.jsonl").open("a") as file:
            file.write(json.dumps({"file_name": f"{n}.flac", "transcription": spoken, "speaker": "a"}) + "\n")
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **o: load(str(tmp_path / "me" / "own"), split=o["split"], streaming=True)
    )
    utterances = load_utterances("hub:me/own:test")
    assert [(u.id, u.text, u.speaker) for u in utterances] == [(f"{n:06}", t, "a") for n, t in enumerate(TEXTS)]
    assert utterances[2].waveform().shape == (16000,)


def test_a_row_names_files_of_its_own_repository():
    import fsspec

    with fsspec.open("memory://far/set/away.flac", "wb") as file:
        file.write(encoded(0)[0])
    with fsspec.open("memory://far/other/away.flac", "wb") as file:
        file.write(encoded(0)[0])
    own = {"path": "memory://far/set/away.flac", "bytes": None}
    assert rowfiles.encoded(own, "set", "0", "memory://far/set") == Encoded("set 0.flac", encoded(0)[0])
    for location in ("memory://far/other", "memory://far/se", "hf://datasets/far/set", None):
        with pytest.raises(DataError, match=r"set: row '0' names memory://far/set/away\.flac, outside the data set"):
            rowfiles.encoded(own, "set", "0", location)


@pytest.mark.parametrize(
    "path",
    [
        "https://example.com/a.wav",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "hf://datasets/me/own/../../other/set/a.wav",
        "hf://datasets/me/own-other/a.wav",
        "hf://datasets/me/own@main/../../../x/a.wav",
        "zip://a.wav::https://example.com/a.zip",
        "simplecache::hf://datasets/me/own@main/a.wav",
        "/etc/passwd",
        "../a.wav",
        "a.wav",
    ],
)
def test_a_row_of_the_hub_names_nothing_else(path, tmp_path, monkeypatch):
    """A row of a strange data set is not trusted: no path of this machine, no address elsewhere."""
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 16000)
    with pytest.raises(DataError, match="outside the data set; nothing but a data set's own files is opened"):
        rowfiles.encoded({"path": path, "bytes": None}, "hub:me/own", "0", "hf://datasets/me/own")
    # What comes with its bytes is named by the path, and nothing is opened.
    audio = rowfiles.encoded({"path": path, "bytes": b"x"}, "hub:me/own", "0", "hf://datasets/me/own")
    assert isinstance(audio, Encoded)


def test_rows_of_a_folder_name_files_in_it(tmp_path):
    """End to end: a table of Parquet that names a file elsewhere on the disk."""
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, encoded(0)[1], 16000)
    rows = [
        {"id": n, "text": "one", "audio": {"bytes": None, "path": path}}
        for n, path in (("own", "own.wav"), ("outer", str(secret)), ("up", "../secret.wav"), ("link", "link.wav"))
    ]
    folder = tmp_path / "set"
    folder.mkdir()
    audio = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("id", pyarrow.string()), ("text", pyarrow.string()), ("audio", audio)])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), folder / "test.parquet")
    soundfile.write(folder / "own.wav", encoded(0)[1], 16000)
    (folder / "link.wav").symlink_to(secret)
    intake = Intake(max_bad=3)
    (own,) = load_utterances(folder, intake)
    assert own.audio == folder / "own.wav"
    assert list(intake.bad) == ["outer", "up", "link"]
    assert all("outside the data set" in reason for reason in intake.bad.values())


def test_links_of_the_hubs_cache_are_its_own(tmp_path):
    blob = tmp_path / "datasets--me--own" / "blobs" / "0"
    blob.parent.mkdir(parents=True)
    soundfile.write(blob, encoded(0)[1], 16000, format="WAV")
    snapshot = tmp_path / "datasets--me--own" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "a.wav").symlink_to("../../blobs/0")
    assert rowfiles.encoded({"path": "a.wav"}, "set", "0", snapshot) == snapshot / "a.wav"


def test_what_save_to_disk_wrote(tmp_path):
    made = librispeech()
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "two")
    heard(load_utterances(tmp_path / "one"))
    heard(load_utterances(f"{tmp_path / 'two'}:test"))
    assert len(load_utterances(f"{tmp_path / 'two'}:test[:2]")) == 2
    for source, message in (
        (tmp_path / "two", "several splits; name one of them, as SOURCE:SPLIT: test, train"),
        (f"{tmp_path / 'two'}:dev", "no split 'dev'; it has train, test"),
        (f"{tmp_path / 'one'}:dev", "no split 'dev'; it has no parts"),
        (f"{tmp_path / 'one'}:[:0]", "asks for no rows"),
    ):
        with pytest.raises(DataError, match=message):
            load_utterances(source)
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../two/test/data-00000-of-00001.arrow"
    (tmp_path / "one" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"state\.json: it names data files in other folders"):
        load_utterances(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"one: cannot be read .*write it again$"):  # and nothing of the network
        load_utterances(tmp_path / "one")


def test_a_data_set_object(tmp_path):
    heard(load_utterances(librispeech()))
    heard(load_utterances(librispeech().to_iterable_dataset()))
    with pytest.raises(DataError, match="several splits"):
        load_utterances(datasets.DatasetDict({"train": librispeech(), "test": librispeech()}))
    path = tmp_path / "own.wav"
    soundfile.write(path, encoded(0)[1], 16000)
    rows = [{"text": "one", "audio": {"bytes": None, "path": str(path)}}]
    assert load_utterances(table({"text": text}, *rows))[0].audio == path  # one's own object may name any file


def test_which_columns_are_read_is_told(tmp_path):
    features = {"segment": text, "sentence": text, "lang": text, "client_id": text, "mood": text}
    rows = [{"segment": "x", "sentence": t, "lang": "de", "client_id": "a", "mood": ""} for t in TEXTS]
    intake = Intake()
    load_utterances(repository(tmp_path / "own", {"default/test": table(features, *rows)}), intake)
    (note,) = intake.notes()
    assert "columns guessed by their names: audio from 'audio', text from 'sentence', speaker from 'client_id'" in note
    assert "language from 'lang'" in note
    assert note.endswith("not read: segment, mood")
    intake = Intake()
    load_utterances(repository(tmp_path / "mute", {"default/test": table({"words": text}, {"words": "a"})}), intake)
    assert any("no column of transcripts; looked for text, sentence" in note for note in intake.notes())
    assert "no transcript was found for 1 of 1 utterances" in intake.notes()
    intake = Intake()
    load_utterances(repository(tmp_path / "libri", {"default/test": librispeech()}), intake)
    assert intake.notes() == [f"{tmp_path / 'libri'}: read as librispeech, by its columns id, text, chapter_id"]


def test_a_set_whose_ids_number_sentences(tmp_path):
    """FLEURS: several people read a sentence, labels are missing, the language is named."""
    features = {"id": number, "transcription": text, "gender": datasets.ClassLabel(names=["male", "female"])}
    features |= {"lang_id": datasets.ClassLabel(names=["ast_es", "de_de"]), "language": text}
    common = {"gender": -1, "lang_id": 1, "language": "German"}
    rows = [common | {"id": 7, "transcription": t} for t in TEXTS] + [common | {"id": 8, "transcription": ""}]
    folder = repository(tmp_path / "fleurs", {"de_de/test": table(features, *rows)})
    utterances = load_utterances(folder)
    assert [u.id for u in utterances] == ["7", "7-000001", "7-000002", "8"]
    assert utterances[0].extra == {"lang_id": "de_de", "language": "de_de"}
    assert language_of(utterances[0], "en") == "de"
    assert [u.id for u in load_utterances(f"{folder}:test[:2]")] == ["7", "7-000001"]
    heard(utterances)


@pytest.mark.parametrize(
    ("stated", "language"),
    [("German", "de"), ("de-CH", "de"), ("castilian", "es"), ("cmn_hans_cn", "cmn"), ("unknown", "en"), ("und", "en")],
)
def test_what_a_set_calls_its_language(tmp_path, stated, language):
    made = table({"text": text, "language": text}, {"text": "one", "language": stated})
    (utterance,) = load_utterances(repository(tmp_path / "set", {"default/test": made}))
    assert language_of(utterance, "en") == language


def test_rows_without_audio_are_broken(tmp_path):
    rows = [{"id": "a", "text": "one"}, {"id": "b", "text": "two", "audio": {"bytes": None, "path": None}}]
    folder = repository(tmp_path / "set", {"default/test": table({"id": text, "text": text}, *rows)})
    with pytest.raises(DataError, match="row 'b' has no audio"):
        load_utterances(folder)
    intake = Intake(max_bad=1)
    assert [u.id for u in load_utterances(folder, intake)] == ["a"]
    assert list(intake.bad) == ["b"]


def test_a_set_without_audio(tmp_path):
    made = datasets.Dataset.from_list([{"id": "a", "text": "one"}])
    folder = repository(tmp_path / "set", {"default/test": made})
    with pytest.raises(DataError, match="no audio column; it has id, text"):
        load_utterances(folder)


@pytest.mark.online
@pytest.mark.parametrize(
    "source",
    [
        "hub:openslr/librispeech_asr:clean/test[:2]",
        "hub:facebook/voxpopuli:en/test[:2]",
        "hub:distil-whisper/tedlium-dev-test:test[:2]",
        "hub:hf-audio/esb-datasets-test-only-sorted:tedlium/test[:2]",
        "hub:fixie-ai/common_voice_17_0:en/test[:2]",
        "hub:prdeepakbabu/ProfASR-Bench:train[:2]",
        "hub:MrSupW/ContextASR-Bench:ContextASR-Speech_English[:2]",
    ],
)
def test_the_hub_itself(source):
    try:
        socket.create_connection(("huggingface.co", 443), timeout=5).close()
    except OSError as error:
        pytest.skip(f"the hub cannot be reached: {error}")
    utterances = load_utterances(source)
    assert len(utterances) == 2
    for utterance in utterances:
        assert utterance.text
        assert utterance.waveform().size
