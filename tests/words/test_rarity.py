"""Normalisers, Zipf scores, rare spans in raw text, subword and position tags."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from tarq.errors import DataError
from tarq.words.bands import NAMES, band_masks
from tarq.words.frequencies import described, frequencies, load_frequencies
from tarq.words.normalize import Normalizer, get_normalizer
from tarq.words.rarity import is_rare, position_tags, rare_counts, token_scores, word_spans, zipf

ASSETS = Path(__file__).parents[3] / "shared" / "assets"
ENGLISH = get_normalizer("english")


def rare_spans(text, normalizer, threshold=3.0, language="en"):
    """Spans of rare words; those that a dash joins are one."""
    spans = []
    for (start, end), score in word_spans(text, normalizer, language):
        if score < threshold:
            joined = spans and spans[-1][1] == start
            spans[-1:] = [(spans[-1][0], end)] if joined else [*spans[-1:], (start, end)]
    return spans


def tag_tokens(offsets, text):
    """Which tokens belong to a rare word."""
    return [score < 3.0 for score in token_scores(offsets, word_spans(text, ENGLISH))]


def rare_parts(text, normalizer="english", threshold=3.0, language="en"):
    spans = rare_spans(text, get_normalizer(normalizer), threshold, language)
    return [text[start:end] for start, end in spans]


# --- normalisers ---


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("english", "Mr. O'Brien's £3,500", ["mister", "0", "brien", "is", "£3500"]),
        ("english", "nineteen eighty four", ["1984"]),
        ("english", "um", []),
        ("basic", "Mr. O'Brien's £3,500", ["mr", "o", "brien", "s", "3", "500"]),
        ("none", "  Mr.  O'Brien's\n£3,500", ["Mr.", "O'Brien's", "£3,500"]),
    ],
)
def test_normalizers(name, text, words):
    normalizer = get_normalizer(name)
    assert normalizer.name == name
    assert normalizer.words(text) == words
    assert normalizer(text) == " ".join(words)


def test_a_spelling_table_is_used_and_named():
    spelled = get_normalizer("english", {"colour": "color"})
    assert spelled("The Colour!") == "the color"
    assert get_normalizer("english")("The Colour!") == "the colour"
    assert spelled.name != "english"


def test_normalizers_that_do_not_exist():
    with pytest.raises(DataError, match="unknown normalizer 'klingon': choose one of english, basic, none"):
        get_normalizer("klingon")
    with pytest.raises(DataError, match="'basic' takes no spelling table"):
        get_normalizer("basic", {"colour": "color"})


# --- words ---


def test_zipf_and_threshold():
    assert zipf("the") > 7
    assert zipf("NORTHANGER") == zipf("northanger")
    assert zipf("northanger") < 3 < zipf("abbey")
    assert zipf("zyzzogeton") == 0.0
    assert is_rare("northanger")
    assert not is_rare("northanger", 1.0)
    assert not is_rare("abbey")
    assert is_rare("abbey", 4.0)  # 3.88
    assert zipf("haus", "de") > zipf("haus", "en") + 1


def test_a_lone_dash_is_no_word():
    assert zipf("--") == 0.0
    assert not is_rare("--")
    assert not is_rare("")


def test_unknown_language():
    with pytest.raises(DataError, match=r"no word frequencies for language 'xx': choose one of .*\ben\b"):
        is_rare("word", 3.0, "xx")


def test_rare_words_are_counted():
    assert rare_counts("NORTHANGER ABBEY", ENGLISH) == (2, 1)
    assert rare_counts("it cost £3,500 then", ENGLISH) == (4, 1)
    assert rare_counts("um", ENGLISH) == (0, 0)


# --- spans ---


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("NORTHANGER ABBEY", ["NORTHANGER"]),
        ("It was, so to say, Zyzzogeton's: dog", ["Zyzzogeton's"]),
        ("“Zyzzogeton!” (he) cried", ["Zyzzogeton"]),
        ("Mr. O'Brien came", ["O'Brien"]),  # mister 0 brien came: brien is rare
        ("MISTER O'BRIEN CAME", ["O'BRIEN"]),
        ("he came in 1984.", []),  # wordfreq knows years
        ("he came in nineteen eighty four.", []),  # → 1984, common
        ("NINETEEN EIGHTY FOUR", []),
        ("it cost £3,500.", ["£3,500"]),
        ("it cost 3,500 £", ["3,500"]),
        # → 7309: none of these is rare alone, the numeral the evaluation sees is
        (
            "about seven thousand three hundred and nine men",
            ["seven", "thousand", "three", "hundred", "and", "nine"],
        ),
        ("a well-known man", []),
        ("a well-known Smith-Xylander", ["Xylander"]),  # the common half stays common
        ("of Zyzzogeton-Xylander", ["Zyzzogeton-Xylander"]),  # both rare: one span, dash and all
        ("the arts--Gutenberg, printing—Schoeffer", ["Gutenberg", "Schoeffer"]),
        ("don't, I'll, won't", []),
        ("Zoë Šušteršič said", ["Šušteršič"]),
        ("(Zyzzogeton Xylander laughs) hello", []),  # the evaluation never sees it
        ("one thousand men", ["thousand"]),  # → 1000; "one" is gone
        ("um, — uh", []),
        ("", []),
    ],
)
def test_spans_of_english(text, parts):
    assert rare_parts(text) == parts


def test_the_same_word_is_judged_where_it_stands():
    # "four" belongs to a rare numeral once and is itself, common, once.
    assert rare_parts("four men, seven thousand four hundred and one") == [
        "seven",
        "thousand",
        "four",
        "hundred",
        "and",
        "one",
    ]


def test_a_word_out_of_nowhere_belongs_to_its_neighbours():
    units = Normalizer("units", lambda text: text.replace("5 kg", "5 quokka kg"))
    text = "a 5 kg dog"
    assert [text[start:end] for start, end in rare_spans(text, units)] == ["5", "kg"]


def test_words_have_the_scores_that_the_evaluation_counts():
    text = "Mr. O'Brien's well-known 1984 (aside) —"
    found = {text[start:end]: score for (start, end), score in word_spans(text, ENGLISH)}
    mister, well, known = zipf("mister"), zipf("well"), zipf("known")
    # The name is counted as 0, brien, is: its rarest word decides. A dash goes with the more frequent of its two words.
    wanted = {
        "Mr": mister,
        "O'Brien's": zipf("brien"),
        "well": well,
        "-": max(well, known),
        "known": known,
        "1984": zipf("1984"),
        "aside": np.nan,
    }
    np.testing.assert_equal(found, wanted)
    # → 7309: all of it has the numeral's score.
    scores = [score for _, score in word_spans("seven thousand three hundred and nine", ENGLISH)]
    assert scores == [zipf("7309")] * 6


def test_bands_hold_each_score_once():
    scores = np.array([0.0, 0.99, 1.0, 2.999, 3.0, 5.99, 6.0, 7.7, np.nan, -0.5])
    found = band_masks(scores)
    assert tuple(found) == NAMES
    assert (*(f"Zipf {low}–{low + 1}" for low in range(6)), "Zipf 6+", "no word") == NAMES
    assert sum(chosen.astype(int) for chosen in found.values()).tolist() == [1] * 10
    held = {band: np.flatnonzero(chosen).tolist() for band, chosen in found.items() if chosen.any()}
    assert held == {
        "Zipf 0–1": [0, 1, 9],
        "Zipf 1–2": [2],
        "Zipf 2–3": [3],
        "Zipf 3–4": [4],
        "Zipf 5–6": [5],
        "Zipf 6+": [6, 7],
        "no word": [8],
    }


def test_spans_with_other_normalizers_and_thresholds():
    assert rare_parts("Mr. O'Brien -- nineteen eighty-four", "none") == []  # o'brien is 3.85, "--" no word
    assert rare_parts("Mr. Zyzzogeton, indeed", "none") == ["Zyzzogeton"]
    assert rare_parts("das Häuschen, Zyzzogeton!", "basic", language="de") == ["Zyzzogeton"]
    assert rare_parts("NORTHANGER ABBEY", threshold=4.0) == ["NORTHANGER", "ABBEY"]
    assert rare_parts("NORTHANGER ABBEY", threshold=1.0) == []


WORDS = [
    "the",
    "Zyzzogeton",
    "Mr.",
    "O'Brien's",
    "twenty",
    "five",
    "hundred",
    "--",
    "1984",
    "£3,500",
    "(aside)",
]
WORDS += ["um", "well-known", "Šušteršič", "and a half", "don't", "double", "dollars", "%", "東京", "[x"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), st.sampled_from(["english", "basic", "none"]))
def test_spans_hold_up_on_any_text(text, name):
    normalizer = get_normalizer(name)
    spans = rare_spans(text, normalizer)
    flat = [edge for span in spans for edge in span]
    assert flat == sorted(set(flat))  # ascending, apart, none empty
    assert all(start >= 0 and end <= len(text) for start, end in spans)
    assert not any(character.isspace() for start, end in spans for character in text[start:end])
    assert bool(spans) == any(is_rare(word) for word in normalizer.words(text))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_spans_never_fail(text):
    for start, end in rare_spans(text, ENGLISH):
        assert text[start:end].strip()


# --- tokens ---


def test_tokens_that_overlap_a_span_are_rare():
    # "so Zyzzogeton, yes": offsets as a byte-level tokenizer gives them, leading space and all.
    offsets = [(0, 0), (0, 2), (2, 6), (6, 13), (13, 14), (14, 18), (18, 18)]
    words = word_spans("so Zyzzogeton, yes", ENGLISH)
    assert [span for span, _ in words] == [(0, 2), (3, 13), (15, 18)]
    so, yes = zipf("so"), zipf("yes")
    none = np.nan
    np.testing.assert_equal(token_scores(offsets, words), [none, so, 0.0, 0.0, none, yes, none])
    assert tag_tokens(offsets, "so Zyzzogeton, yes") == [False, False, True, True, False, False, False]


def test_a_token_of_two_words_has_the_rarer_ones_score():
    assert token_scores([(0, 9)], [((0, 3), 6.5), ((3, 4), 6.5), ((4, 9), 1.25)]) == [1.25]


def test_edges_of_a_span():
    words = [((5, 10), 2.5)]
    cases = {
        (0, 5): False,
        (0, 6): True,
        (10, 12): False,
        (9, 12): True,
        (6, 7): True,
        (4, 11): True,
        (7, 7): False,
    }
    for offset, tag in cases.items():
        np.testing.assert_equal(token_scores([offset], words), [2.5 if tag else np.nan], str(offset))
    np.testing.assert_equal(token_scores([(0, 3)], []), [np.nan])
    assert token_scores([], words) == []


def byte_level(text, trim_offsets, prefix=False, pieces=270):
    """A byte-level BPE learned from ``text``: few merges, so that words fall apart."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 4, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=trim_offsets),
            processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
        ]
    )
    return tokenizer


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("pieces", [260, 270, 400])
def test_byte_level_tokens(trim, prefix, pieces):
    text = "he saw Šušteršič, and she saw Zyzzogeton in the street"
    encoding = byte_level("he saw and she saw the street Šuš", trim, prefix, pieces).encode(text)
    tags = tag_tokens(encoding.offsets, text)
    assert not tags[0]
    assert not tags[-1]
    # The bytes of the rare tokens, together again, are the rare words (and the space some carry), no more.
    decode = {c: b for b, c in _byte_characters().items()}
    groups, previous = [], False
    for token, tag in zip(encoding.tokens, tags, strict=True):
        if tag:
            groups = [*groups[:-1], groups[-1] + token] if previous else [*groups, token]
        previous = tag
    words = [bytes(decode[c] for c in group).decode().strip() for group in groups]
    assert words == ["Šušteršič", "Zyzzogeton"]
    assert sum(tags) > 2


def _byte_characters():
    """Byte → printable character, the table of byte-level BPE (GPT-2's bytes_to_unicode)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(256 + n) for n, byte in enumerate(others)}


@pytest.mark.assets
@pytest.mark.skipif(not ASSETS.is_dir(), reason="../shared/assets is absent: no recognizer's tokenizer")
def test_tokens_of_a_real_recognizer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "whisper-tiny-relearned")
    text = "in fact gunther zeiner's first type is remarkably like northanger abbey"
    encoding = tokenizer(text, return_offsets_mapping=True)
    tags = tag_tokens(encoding["offset_mapping"], text)
    rare = [token for token, tag in zip(encoding["input_ids"], tags, strict=True) if tag]
    common = [token for token, tag in zip(encoding["input_ids"], tags, strict=True) if not tag]
    # A space that is a token by itself, as before "zeiner" here, is in no word and stays common.
    assert tokenizer.decode(rare).replace(" ", "") == "guntherzeiner'snorthanger"
    assert tokenizer.decode(common).split() == [
        "in",
        "fact",
        "first",
        "type",
        "is",
        "remarkably",
        "like",
        "abbey",
    ]


# --- positions ---


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        #          <s>    so     Zyz    zog    ,       (the end </s> is predicted, never read)
        ("input", [False, False, True, True, False]),
        ("target", [False, True, True, False, False]),
        ("either", [False, True, True, True, False]),
    ],
)
def test_position_tags(mode, expected):
    tags = torch.tensor([False, False, True, True, False, False])
    result = position_tags(tags, mode)
    assert result.dtype == torch.bool
    assert result.tolist() == expected
    assert position_tags(tags.repeat(3, 2, 1), mode).tolist() == [[expected] * 2] * 3


def test_position_tags_refuse():
    tags = torch.tensor([False, True])
    with pytest.raises(ValueError, match="unknown position tag mode 'both'"):
        position_tags(tags, "both")
    with pytest.raises(ValueError, match="must be bool"):
        position_tags(tags.float())
    with pytest.raises(ValueError, match="at least one token"):
        position_tags(tags[:0])
    assert position_tags(tags[:1]).shape == (0,)


# --- languages and frequencies of one's own ---


@pytest.mark.parametrize(
    ("language", "common", "rare"),
    [
        ("de", "haus", "Donaudampfschiff"),
        ("fr", "maison", "anticonstitutionnellement"),
        ("es", "casa", "otorrinolaringólogo"),
        ("pl", "dom", "gżegżółka"),
        ("ru", "дом", "превысокомногорассмотрительствующий"),
        ("no", "hus", "skyvestikling"),  # wordfreq's list is called nb
        ("hr", "kuća", "izraubovali"),  # and sh
        ("pt-BR", "casa", "paralelepipedante"),
    ],
)
def test_languages_of_wordfreq(language, common, rare):
    assert not is_rare(common, 3.0, language)
    assert is_rare(rare, 3.0, language)
    assert rare_parts(f"{common} {rare} {common}", "basic", language=language) == [rare]


@pytest.mark.parametrize("language", ["xx", "sw", "th", "hy", "english", ""])
def test_languages_wordfreq_lacks(language):
    """Also those for which wordfreq itself would take another language's list: English for Swahili."""
    with pytest.raises(DataError, match=r"choose one of ar, bg, .*, or give your own counts with --word-freq"):
        zipf("word", language)


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_languages_without_spaces(language):
    with pytest.raises(DataError, match="written without spaces"):
        zipf("東京", language)


def counts(folder, text):
    path = folder / "counts.tsv"
    path.write_text(text, encoding="utf-8")
    return load_frequencies(path)


def test_counts_of_ones_own(tmp_path):
    own = counts(
        tmp_path, "# from the ward's letters\nword\tcount\nThe\t1000000\nAmoxicillin\t900\namoxicillin\t100\nZoë\t1\n"
    )
    total = 1_001_001
    assert own.total == total
    assert zipf("amoxicillin,", own) == pytest.approx(np.log10(1000 / total * 1e9))
    assert not is_rare("AMOXICILLIN", 3.0, own)
    assert is_rare("amoxicillin", 3.0, "en")
    assert zipf("house", own) == 0.0
    assert is_rare("house", 3.0, own)
    assert is_rare("zoë", 3.0, own)
    assert not is_rare("--", 3.0, own)
    spans = rare_spans("The house of amoxicillin", ENGLISH, 3.0, own)
    assert spans == [(4, 9), (10, 12)]  # "house", "of"
    assert described(own, 3.0) == {
        "file": "counts.tsv",
        "sha256": hashlib.sha256((tmp_path / "counts.tsv").read_bytes()).hexdigest(),
        "words": 3,
        "running_words": total,
    }


def test_a_small_file_is_warned_of(tmp_path):
    own = counts(tmp_path, "the, 900\nAmoxicillin 100\n")
    assert "a word seen once has Zipf 6.00: only words it lacks are rare" in described(own, 3.0)["note"]


def test_it_is_warned_of_where_a_word_seen_once_is_just_common(tmp_path):
    """Of a million running words one is Zipf 3: not under a threshold of 3."""
    own = counts(tmp_path, "the\t999999\nquokka\t1\n")
    for threshold, rare in ((3.0, False), (3.1, True)):
        assert is_rare("quokka", threshold, own) == rare
        assert ("note" in described(own, threshold)) != rare


def test_zipf_scores_of_ones_own(tmp_path):
    own = counts(tmp_path, "word;zipf\nthe;7.7\nThe;5.1\namoxicillin;2.4\nward;3.0\n")
    assert (zipf("the", own), zipf("amoxicillin", own), own.total) == (7.7, 2.4, None)
    assert is_rare("amoxicillin", 3.0, own)
    assert not is_rare("ward", 3.0, own)  # rare is under the threshold, not at it
    assert is_rare("ward", 3.01, own)


def test_an_apostrophe_is_one_however_it_is_written(tmp_path):
    own = counts(tmp_path, "don't\t50\nl’eau\t5\n")
    assert zipf("don’t", own) == zipf("Don't!", own) > zipf("l'eau", own) == zipf("l’eau", own) > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the\t5\nhouse\n", r"counts\.tsv:2: 'house' is not a word and its count"),
        ("the\tfive\n", r"counts\.tsv:1: .* is not a word and its count"),
        ("the\t-1\n", r"counts\.tsv:1: .* is not a word and its count"),
        ("New York\t5\n", r"counts\.tsv:1: .* is not a word and its count"),
        ("# nothing\n", r"counts\.tsv: it has no words"),
        ("the\t0\n", r"counts\.tsv: it has no words"),
    ],
)
def test_files_that_count_nothing(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        counts(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"gone\.tsv: no word frequencies there"):
        frequencies("en", str(tmp_path / "gone.tsv"))
    assert frequencies("de") == "de"
    with pytest.raises(DataError, match="language 'sw'"):
        frequencies("sw")
