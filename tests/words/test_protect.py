"""Lists of words and names to protect: read, and found in transcripts."""

import hashlib

import pytest

from tarq.errors import DataError
from tarq.words.normalize import get_normalizer
from tarq.words.protect import Protected, load_protected, notes_on, occurrences, protected_list
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

ENGLISH, BASIC = get_normalizer("english"), get_normalizer("basic")


def parts(text, *entries, normalizer=ENGLISH):
    """What of a text is protected."""
    return [text[start:end] for start, end in sorted(Protected(protected_list(entries), normalizer).spans(text))]


# --- files ---


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_whatever_wrote_it(tmp_path, encoding, end):
    lines = [
        "# staff of the ward",
        "",
        "Okonkwo",
        "  Ångström   Müller ",
        "Okonkwo # the chair",
        "C#",
        "# end",
        "O’Brien",
    ]
    path = tmp_path / "names.txt"
    path.write_bytes(end.join(lines).encode(encoding))
    found = load_protected(path)
    assert found.entries == ("Okonkwo", "Ångström Müller", "C#", "O’Brien")
    assert (found.file, found.sha256) == ("names.txt", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no list of words there .* give a text file with one word or name a line"),
        (b"", r"names.txt: it has no entries"),
        (b"# only\n\n# comments\n", r"names.txt: it has no entries"),
        (
            "ward\nMüller\n".encode("latin-1"),
            r"names.txt:2: not UTF-8 .*save it as UTF-8.*iconv -f WINDOWS-1252 -t UTF-8",
        ),
        (b"\xff\xfea\x00b", r"names.txt:1: not UTF-16"),
        (b"Okonkwo\nthe\t12\n", r"names.txt:2: 'the\\t12' has a tab: write one word or name a line, without counts"),
        (b"PK\x03\x04 name\n", r"names.txt:1: '\\x03' in it: this is no text file"),
        (b"O\x00k\x00", r"names.txt:1: '\\x00' in it"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, content, said):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        Words(protect=path).protected()


def test_a_list_of_python_is_a_list(tmp_path):
    found = Words(protect=["Okonkwo", " New  York ", "Okonkwo"]).protected()
    assert found.entries == ("Okonkwo", "New York")
    assert found.file == ""
    assert Words().protected() is None
    with pytest.raises(DataError, match="protect is an empty list"):
        Words(protect=[]).protected()


# --- places ---


@pytest.mark.parametrize(
    ("text", "entries", "found"),
    [
        ("OKONKWO sells the house", ["Okonkwo"], ["OKONKWO"]),
        ("the “Okonkwo’s” house", ["okonkwo"], ["Okonkwo’s"]),  # okonkwo is
        ("the house is the house", ["house"], ["house", "house"]),  # however common
        ("the houses", ["house"], []),  # a form is an entry of its own
        ("doctor Smith of New York, not new or York", ["New York"], ["New", "York"]),
        ("in New York New York", ["new york", "york new"], ["New", "York", "New", "York"]),
        ("mister Okonkwo and Okonkwo", ["Mr. Okonkwo"], ["mister", "Okonkwo"]),
        ("he said New", ["New York"], []),
        ("Smith-Okonkwo came", ["Okonkwo"], ["Okonkwo"]),
        ("Smith-Okonkwo came", ["Smith Okonkwo"], ["Smith", "-", "Okonkwo"]),
        ("in nineteen eighty four men", ["1984"], ["nineteen", "eighty", "four"]),
        ("(Okonkwo laughs) hello", ["Okonkwo"], []),  # the evaluation never sees it
        ("", ["Okonkwo"], []),
    ],
)
def test_entries_are_found_as_the_evaluation_splits_words(text, entries, found):
    assert parts(text, *entries) == found


@pytest.mark.parametrize(
    ("text", "entry", "found"),
    [
        ("今天去饕餮餐厅", "饕餮", ["饕餮"]),
        ("今天 去 饕 餮 餐厅", "饕餮", ["饕 餮"]),
        ("東京タワーと東京駅", "東京", ["東京", "東京"]),
        ("東京！", "東京", ["東京"]),
        ("か\u3099んこ", "がん", ["か\u3099ん"]),  # marks by themselves
        ("ｶﾞﾝ", "ガン", ["ｶﾞﾝ"]),
        ("ยากล่อมประสาทขนาดสูง", "ประสาท", ["ประสาท"]),
        ("買iPhone手机了", "iPhone手机", ["iPhone手机"]),
        ("天气", "今天", []),
    ],
)
def test_scripts_without_spaces_are_searched_by_character(text, entry, found):
    assert parts(text, entry, normalizer=BASIC) == found
    matcher = Protected(protected_list([entry]), BASIC)
    assert matcher.counts(text)[entry] == len(found)
    words = BASIC.words(text)
    assert sum(matcher.marks(words)) == (0 if not found else {"今天 去 饕 餮 餐厅": 2}.get(text, 1))


def test_words_of_the_evaluation_are_marked():
    matcher = Protected(protected_list(["New York", "ward"]), ENGLISH)
    words = ENGLISH.words("The ward of New York, new wards")
    assert matcher.marks(words) == [False, True, False, True, True, False, False]
    assert matcher.counts("ward New York ward") == {"ward": 2, "New York": 1}
    assert matcher.marks([]) == []


def test_a_dash_alone_parts_no_name():
    matcher = Protected(protected_list(["Smith Okonkwo"]), get_normalizer("none"))
    assert matcher.marks(["Smith", "-", "OKONKWO,", "Smith"]) == [True, True, True, False]


def test_each_language_has_its_own_normaliser():
    rarity = Rarity(Words(protect=["Straße", "um"]))
    assert rarity.protected("de").counts("die straße um acht") == {"Straße": 1, "um": 1}
    assert rarity.protected() is rarity.protected("en")
    assert rarity.protected().lost == ["um"]  # English leaves it out
    assert Rarity(Words()).protected() is None


def test_what_occurs_is_told_and_what_does_not_is_named():
    matcher = Protected(protected_list(["Okonkwo", "okonkwo", "New York", "Zyx", "um", "ward"]), ENGLISH)
    found = occurrences([(matcher, "Okonkwo of New York"), (matcher, "okonkwo")])
    assert found["entries"] == {"Okonkwo": 2, "New York": 1, "Zyx": 0, "ward": 0}
    assert found["unusable"] == ["um"]
    assert notes_on(found, "do not occur") == [
        "2 of the 4 entries of the protected words do not occur: Zyx, ward",
        "the normalizer leaves no word of these entries of the protected words: um",
    ]
    assert notes_on({"file": "n", "entries": {"a": 1}, "unusable": []}, "do not occur") == []


def test_a_list_that_was_edited_is_read_again(tmp_path):
    """By the next run; within one it stays the same."""
    path = tmp_path / "names.txt"
    path.write_text("ward")
    words = Words(protect=path)
    rarity = Rarity(words)
    assert rarity.protected().entries == ["ward"]
    path.write_text("house")
    assert rarity.protected("de").entries == ["ward"]
    assert Rarity(words).protected().entries == ["house"]
