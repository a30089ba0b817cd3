"""Calibration pools: ρ, the four kinds, ties, saving and reading back."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import tarq
from tarq.config import TarqConfig
from tarq.data.audio import Encoded
from tarq.data.corpora.registry import load_utterances
from tarq.data.intake import Intake
from tarq.data.manifests import write_manifest
from tarq.data.pools import draw_pool, given_pool, read_ids
from tarq.data.pools import rho as share
from tarq.data.sampling import sample_utterances
from tarq.data.utterance import Utterance
from tarq.errors import DataError, OutputError
from tarq.report import Report
from tarq.terminal.cli import app
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

RARITY = Rarity(Words())


def rho(text, rarity=RARITY, **fields):
    return share(Utterance("u", Path("u.wav"), text, extra=fields), rarity)


def said(rare, words=10):
    """A transcript of ``words`` words, ``rare`` of them rare."""
    return " ".join(["zyzzogeton"] * rare + ["house"] * (words - rare))


def corpus(name, counts, **fields):
    """Utterances with so many rare words among ten."""
    return [
        Utterance(f"{name}{i:03}", Path(f"{name}{i}.wav"), said(rare), duration=5.0, **fields)
        for i, rare in enumerate(counts)
    ]


def test_rho_is_the_share_of_rare_words():
    assert rho("NORTHANGER ABBEY, northanger") == pytest.approx(2 / 3)
    assert RARITY.counts("It cost £3,500 then") == (4, 1)
    assert rho("um") == rho("") == rho(None) == 0.0
    assert rho("northanger abbey", Rarity(Words(tail_threshold=4.0))) == 1.0
    assert Rarity(Words(), {"colour": "color"}).counts("colour") == (1, 0)


def test_an_utterance_is_in_its_own_language():
    assert rho("das Haus ist schön", language="de") == rho("das Haus ist schön", language="de-DE") == 0.0
    assert rho("das Haus ist schön") > 0.0
    assert rho("das Haus ist schön", Rarity(Words(language="de"))) == 0.0
    with pytest.raises(DataError, match="no word frequencies for language 'sw'"):
        rho("nyumba", language="sw")


def test_uniform_is_the_sample_it_always_was():
    utterances = corpus("a", range(10))
    pool = draw_pool({"a": utterances}, "uniform", 4, 3, RARITY)
    assert pool.utterances == sample_utterances(utterances, 4, 3)
    assert pool.sources == ["a"] * 4


def test_r_top_takes_the_highest():
    pool = draw_pool({"a": corpus("a", [0, 5, 2, 9, 5, 1])}, "r-top", 3, 0, RARITY)
    assert pool.utterances[0].id == "a003"
    assert {u.id for u in pool.utterances} == {"a003", "a001", "a004"}
    assert pool.rho == [0.9, 0.5, 0.5]
    assert pool.summary() == {
        "kind": "r-top",
        "utterances": 3,
        "candidates": 6,
        "sources": {"a": 3},
        "seconds": 15.0,
        "words": 30,
        "rare_words": 19,
        "rho": {"mean": pytest.approx(1.9 / 3), "min": 0.5, "max": 0.9},
    }


def test_among_equals_the_seed_decides_and_the_order_of_files_does_not():
    utterances = corpus("a", [3] * 40)

    def ids(seed, given=utterances, kind="r-top"):
        return [u.id for u in draw_pool({"a": given}, kind, 5, seed, RARITY).utterances]

    assert ids(0) == ids(0, utterances[::-1])
    assert ids(0, kind="r-mix") == ids(0, utterances[::-1], kind="r-mix")
    assert len({tuple(ids(seed)) for seed in range(5)}) > 1


def test_r_mix_is_half_top_and_half_at_random():
    utterances = corpus("a", [9, 8, 7, *[0] * 40])
    pools = [draw_pool({"a": utterances}, "r-mix", 5, seed, RARITY) for seed in range(4)]
    for pool in pools:
        assert [u.id for u in pool.utterances[:3]] == ["a000", "a001", "a002"]
        assert len({u.id for u in pool.utterances}) == 5
    assert len({tuple(u.id for u in pool.utterances[3:]) for pool in pools}) > 1
    assert len(draw_pool({"a": utterances[:2]}, "r-mix", 5, 0, RARITY).utterances) == 2


def test_r_cross_is_the_top_of_all():
    corpora = {"a": corpus("a", [9, 1, 1, 1]), "b": corpus("b", [2, 8, 7]), "c": corpus("c", [0, 0])}
    pool = draw_pool(corpora, "r-cross", 3, 0, RARITY)
    assert [u.id for u in pool.utterances] == ["a000", "b001", "b002"]
    assert pool.sources == ["a", "b", "b"]
    assert pool.summary("b")["rho"] == {"mean": pytest.approx(0.75), "min": 0.7, "max": 0.8}
    # The paper's first cut, the top ⌈4N/3⌉ of each corpus, leaves the outcome as it is.
    cut = math.ceil(4 * 3 / 3)
    tops = {
        name: draw_pool({name: utterances}, "r-top", cut, 0, RARITY).utterances for name, utterances in corpora.items()
    }
    assert {u.id for u in draw_pool(tops, "r-cross", 3, 0, RARITY).utterances} == {u.id for u in pool.utterances}


def test_ids_in_several_corpora_are_told_apart():
    pool = draw_pool({"a": corpus("u", [9]), "b": corpus("u", [8, 0])}, "r-cross", 2, 0, RARITY)
    assert [u.id for u in pool.utterances] == ["a/u000", "b/u000"]
    assert pool.sources == ["a", "b"]


def test_kinds_that_do_not_fit_what_is_given():
    one, two = {"a": corpus("a", [1])}, {"a": corpus("a", [1]), "b": corpus("b", [1])}
    with pytest.raises(DataError, match="r-top draws from one corpus: give one, or r-cross for several"):
        draw_pool(two, "r-top", 1, 0, RARITY)
    with pytest.raises(DataError, match="r-cross draws from several corpora"):
        draw_pool(one, "r-cross", 1, 0, RARITY)
    silent = {"a": [Utterance("a", Path("a.wav"), None, 1.0)]}
    with pytest.raises(DataError, match="needs the words of transcripts, and there are none"):
        draw_pool(silent, "r-top", 1, 0, RARITY, require_text=False)
    with pytest.raises(DataError, match="none of 1 utterances qualifies"):
        draw_pool(one, "r-top", 1, 0, RARITY, max_duration=1.0)
    assert draw_pool(silent, "uniform", 1, 0, RARITY, require_text=False).summary()["rho"] is None


def test_words_are_those_of_ones_own_file(tmp_path):
    path = tmp_path / "ward.txt"
    path.write_text("zyzzogeton 1000\nother 1000\n")
    own = Rarity(Words(word_frequencies=str(path)))
    assert (rho("zyzzogeton", own), rho("house", own)) == (0.0, 1.0)
    assert (rho("zyzzogeton"), rho("house")) == (1.0, 0.0)
    assert rho("house", own, language="sw") == 1.0  # the file takes the place of every list


def test_broken_files_are_replaced_by_the_next(tmp_path):
    utterances = [Utterance(f"u{i}", tmp_path / f"{i}.wav", said(9 - i)) for i in range(4)]
    for i in (1, 2, 3):
        soundfile.write(utterances[i].audio, np.zeros(1600, "f4"), 16000)
    utterances[0].audio.write_bytes(b"not audio")
    with pytest.raises(DataError, match=r"0\.wav: not readable.*--max-bad N"):
        draw_pool({"a": utterances}, "r-top", 2, 0, RARITY, intake=Intake())
    for options in ({}, {"max_duration": 30.0}):
        intake = Intake(max_bad=1)
        pool = draw_pool({"a": utterances}, "r-top", 2, 0, RARITY, intake=intake, **options)
        assert [u.id for u in pool.utterances] == ["u1", "u2"]
        assert list(intake.bad) == ["u0"]


# --- saving ---


def test_a_pool_is_read_back(tmp_path):
    folder = tmp_path / "pools"
    folder.mkdir()
    outside, inside = tmp_path / "talk.flac", folder / "audio" / "a.wav"
    inside.parent.mkdir()
    noise = np.random.default_rng(0).standard_normal(32000).astype("f4") * 0.1
    for path in (outside, inside):
        soundfile.write(path, noise, 16000)
    utterances = [
        Utterance("talk-1", outside, "the “house”", 0.5, "x", ("house",), {"domain": "y", "n": 1}, 0.25, 0.75),
        Utterance("a", inside, ""),
        Utterance("hub/row", Encoded("hub:a/b:test row.wav", inside.read_bytes()), "said"),
    ]
    path = folder / "pool.jsonl"
    write_manifest(path, utterances, [{"source": "s", "rho": 0.5}] * 3)
    again = load_utterances(path)
    assert [u.audio for u in again[:2]] == [outside, inside]
    assert again[0] == utterances[0]
    assert again[0].extra == {"domain": "y", "n": 1, "source": "s", "rho": 0.5}
    assert [(u.id, u.text, u.duration) for u in again[1:]] == [("a", "", None), ("hub/row", "said", None)]
    for one, other in zip(utterances, again, strict=True):
        np.testing.assert_array_equal(one.waveform(), other.waveform())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[1]["audio"] == "audio/a.wav"  # beside the manifest: the two move together
    assert rows[2]["audio"].startswith("pool.audio/")
    with pytest.raises(DataError, match="cannot be written"):
        write_manifest(tmp_path / "nowhere" / "pool.jsonl", utterances, [{}] * 3)
    with pytest.raises(OutputError, match=r"pool\.jsonl: the folder .*nowhere does not exist"):
        write_manifest(tmp_path / "nowhere" / "pool.jsonl", utterances[:2], [{}] * 2)


# --- choosing by ids ---


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"kind": "r-top", "ids": ["b", "a c", "9"]}),
        Report(calibration={"ids": ["b", "a c", "9"]}).to_json(),
        "\ufeffb\r\n\n  a c\n9\n",
    ],
)
def test_ids_are_read(tmp_path, content):
    for path in (tmp_path / "ids", tmp_path / "checkpoint" / "tarq_report.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        assert read_ids(path) == ["b", "a c", "9"]
    assert read_ids(path.parent) == ["b", "a c", "9"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n", "no ids in it"),
        (Report().to_json(), "no ids in it"),  # of RTN, which is calibrated on nothing
        ('{"ids": [', "invalid JSON"),
        ('{"id": "a", "audio": "a.wav"}\n{"id": "b", "audio": "b.wav"}', "invalid JSON .*`tarq pool --json`"),
        ('{"ids": "abc"}', """'ids' is "abc"; give a list of strings"""),
        ('{"calibration": ["a"]}', "no ids in it"),
        ("a\nb\na\n", "id 'a' occurs 2 times"),
    ],
)
def test_a_file_without_ids(tmp_path, content, message):
    (tmp_path / "ids.txt").write_text(content)
    with pytest.raises(DataError, match=rf"ids\.txt: {message}"):
        read_ids(tmp_path / "ids.txt")
    with pytest.raises(DataError, match=r"tarq_report\.json: no such file; give a pool's JSON"):
        read_ids(tmp_path)


def test_a_pool_is_taken_again_by_its_ids(tmp_path):
    corpora = {"a": corpus("u", [9, 1, 4, 4, 0]), "b": corpus("u", [8, 0, 4])}
    pool = draw_pool(corpora, "r-cross", 5, 1, RARITY)
    file = tmp_path / "pool.json"
    file.write_text(json.dumps({"ids": [u.id for u in pool.utterances]}))
    again = given_pool(corpora, file, RARITY)
    assert (again.utterances, again.sources, again.rho) == (pool.utterances, pool.sources, pool.rho)
    assert (again.summary()["kind"], again.candidates) == ("given", 5)
    file.write_text(json.dumps({"ids": [*"wxyz", "u001"]}))
    with pytest.raises(DataError, match=r"pool\.json: 4 of its 5 ids are in none of the corpora: w, x, y, …; give all"):
        given_pool({"a": corpora["a"]}, file, RARITY)


def test_a_model_is_calibrated_on_the_ids_of_a_pool_and_of_another_model(model_folder, manifest, tmp_path):
    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        return " ".join(result.output.replace("│", " ").split())

    def quantize(name, *arguments):
        run("quantize", model_folder, tmp_path / name, "--calibration", manifest, "--group-size", 32,
            "--method", "gptq", *arguments)  # fmt: skip
        return tarq.Report.read(tmp_path / name).calibration

    run("pool", manifest, "--kind", "r-top", "--samples", 3, "--json", tmp_path / "pool.json")
    ids = json.loads((tmp_path / "pool.json").read_text())["ids"]
    calibration = quantize("first", "--ids", tmp_path / "pool.json", "--seed", 3)
    assert calibration["ids"] == ids != sorted(ids)
    assert (calibration["source"], calibration["pool"]["kind"]) == (str(manifest), "given")
    assert tarq.Report.read(tmp_path / "first").config["ids"] == str(tmp_path / "pool.json")
    assert quantize("second", "--ids", tmp_path / "first") == calibration
    (tmp_path / "ids.txt").write_text("\n".join(reversed(ids)))
    run("pool", manifest, "--ids", tmp_path / "ids.txt", "--json", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["ids"] == ids[::-1]

    with pytest.raises(ValueError, match="both ids and pool r-top"):
        TarqConfig(ids="ids.txt", pool="r-top")
