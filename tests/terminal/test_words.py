"""``tarq words``: which words are rare, and why."""

import json

import pytest
from typer.testing import CliRunner

from tarq.data.transcripts import Transcript, read_transcripts
from tarq.errors import DataError
from tarq.terminal.cli import app
from tarq.words.listing import list_words
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

runner = CliRunner()
TEXT = "Doctor Okonkwo sells the the house, 4471 and nineteen eighty four, to Wojciechowskis of New York"


def run(*arguments, code=0, given=None):
    result = runner.invoke(app, ["words", *map(str, arguments)], input=given)
    assert result.exit_code == code, result.output
    return result.output


def found(*arguments, path, **options):
    run(*arguments, "--json", path, **options)
    return json.loads(path.read_text())


def test_each_rare_word_has_its_reason(tmp_path):
    (tmp_path / "names.txt").write_text("new york\nhouse\nZyx\n")
    out = found(TEXT, "--protect", tmp_path / "names.txt", path=tmp_path / "out.json")
    assert {w["word"]: w["reasons"] for w in out["words"]} == {
        "wojciechowskis": ["not in the list"],
        "4471": ["rare", "numeral"],
        "okonkwo": ["rare"],
        "house": ["protected"],
        "york": ["protected"],
        "new": ["protected"],
    }
    scores = [w["zipf"] for w in out["words"]]
    assert scores == sorted(scores)
    assert (out["running_words"], out["rare_words"], out["protected_words"]) == (14, 3, 3)
    assert out["protected"]["entries"] == {"new york": 1, "house": 1, "Zyx": 0}
    assert out["tail_threshold"] == 3.0


def test_all_words_counted_and_sorted(tmp_path):
    out = found(TEXT, "--all", path=tmp_path / "out.json")
    words = {w["word"]: w for w in out["words"]}
    assert words["the"] == {
        "word": "the", "language": "en", "count": 2, "zipf": words["the"]["zipf"], "rare": False, "protected": 0,
        "reasons": [],
    }  # fmt: skip
    assert words["1984"]["reasons"] == ["numeral"]  # wordfreq knows years
    assert out["different_words"] == len(words)
    listed = list_words([("b zyx a zyx zyxy zyxy zyxy", None)], Rarity(Words()))
    assert [w.word for w in listed][:2] == ["zyxy", "zyx"]  # alike rare: the one that occurs more often


def test_what_is_rare_is_for_the_options_to_say(tmp_path):
    path = tmp_path / "out.json"
    assert [w["word"] for w in found("the abbey", "--tail-threshold", 4, path=path)["words"]] == ["abbey"]
    (tmp_path / "own.tsv").write_text("the\t900000\nokonkwo\t100000\n")
    out = found("the okonkwo abbey", "--word-frequencies", tmp_path / "own.tsv", path=path)
    assert [w["word"] for w in out["words"]] == ["abbey"]
    assert [w["word"] for w in found("das Haus", "--language", "de", "--all", path=path)["words"]] == ["haus", "das"]
    assert "no word frequencies for language 'sw'" in run("habari", "--language", "sw", code=1)


def test_manifests_text_and_standard_input_are_read(tmp_path, manifest):
    path = tmp_path / "out.json"
    assert "okonkwo" in run(manifest)
    text = tmp_path / "notes.txt"
    text.write_bytes("first Okonkwo\r\nsecond Ouagadougou\n".encode("utf-8-sig"))
    assert {w["word"] for w in found(text, path=path)["words"]} == {"okonkwo", "ouagadougou"}
    assert {w["word"] for w in found("-", path=path, given="an Okonkwo\n")["words"]} == {"okonkwo"}
    (tmp_path / "two.jsonl").write_text(
        '{"id": "a", "text": "das Haus", "language": "de"}\n{"id": "b", "text": "the house", "language": "en"}\n'
    )
    out = found(tmp_path / "two.jsonl", "--all", path=path)
    assert {(w["word"], w["language"]) for w in out["words"]} == {
        ("das", "de"), ("haus", "de"), ("the", "en"), ("house", "en"),
    }  # fmt: skip
    assert "language" in run(tmp_path / "two.jsonl", "--all")


@pytest.mark.parametrize("given", ["gone.txt", "gone/folder", "speech.jsonl"])
def test_a_file_that_is_not_there_is_not_taken_for_a_text(given):
    assert f"{given}: no such file; give a file, or a text" in run(given, code=1)


def test_exit_codes(tmp_path):
    assert "no words in it" in run("()", code=1)
    assert "--tail-threshold" in run("a", "--tail-threshold", "nan", code=2)
    run("a", "--protect", tmp_path / "gone.txt", code=1)


def test_many_words_are_cut_and_it_is_said():
    out = run("zyxa zyxb zyxc", "--rows", 2)
    assert "… and 1 more (--rows 0 shows all)" in out
    assert "zyxc" not in out
    assert "zyxc" in run("zyxa zyxb zyxc", "--rows", 0)


# --- transcripts ---


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.txt", "the house\n\nOkonkwo\n", {"1": "the house", "3": "Okonkwo"}),
        ("a.txt", "x/u1.wav\tthe house\nx/u2.wav\t\n", {"x/u1": "the house", "x/u2": ""}),
        ("a.tsv", "u1.wav\tthe house\nu2.wav\tOkonkwo\n", {"u1": "the house", "u2": "Okonkwo"}),
        ("a.tsv", "audio\tstart\ttext\nu1.wav\t0\tthe house\nu1.wav\t2.5\t is here\n", {"u1": "the house is here"}),
        ("a.json", '[{"audio": "u1.wav", "text": "the house"}]', {"u1": "the house"}),
        ("a.jsonl", '{"id": "u1", "audio": "gone.wav", "text": "the house"}\n', {"u1": "the house"}),
        ("a.csv", "id,text\nu1,the house\n", {"u1": "the house"}),
    ],
)
def test_transcripts_are_read_without_their_audio(tmp_path, name, content, wanted):
    (tmp_path / name).write_text(content)
    assert {t.id: t.text for t in read_transcripts(tmp_path / name)} == wanted


def test_audio_below_the_files_folder_is_named_as_a_manifest_names_it(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"audio": str(tmp_path / "x" / "u1.ogg"), "text": "a"}]))
    assert read_transcripts(tmp_path / "a.json") == [Transcript("x/u1", "a")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"id": "a"}\n', "a.jsonl:1: no text; every row needs a transcript"),
        ('{"audio": "u.wav", "error": "is no audio"}\n', "a.jsonl:1: it was not transcribed .is no audio."),
        ("not json\n", "a.jsonl:1"),
        ("", "no transcripts in it"),
    ],
)
def test_bad_transcripts_are_named(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=said):
        read_transcripts(tmp_path / "a.jsonl")
