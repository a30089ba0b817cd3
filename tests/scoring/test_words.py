"""Word scores against counts made by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tarq.errors import DataError
from tarq.scoring.words import biased_counts, changed_words, hallucination_signs, repeats_itself, score_words
from tarq.words.normalize import get_normalizer
from tarq.words.rarity import is_rare

ENGLISH = get_normalizer("english")
NONE = get_normalizer("none")


def score(*pairs, normalizer=NONE, **options):
    references, hypotheses = zip(*pairs, strict=True)
    return score_words(references, hypotheses, normalizer=normalizer, **options)


def sdin(counts):
    """The counts as rows S, D, I, N, one list an utterance."""
    return [
        [int(x) for x in row]
        for row in zip(counts.substitutions, counts.deletions, counts.insertions, counts.words, strict=True)
    ]


def test_the_words_used_below_are_what_they_are_said_to_be():
    assert all(is_rare(word) for word in ("quokka", "zyzzogeton", "northanger", "brien", "7309", "£3500"))
    assert not any(is_rare(word) for word in ("the", "saw", "a", "dog", "1984", "mister", "abbey", "0"))


# --- plain and rare counts ---


@pytest.mark.parametrize(
    ("reference", "hypothesis", "plain", "rare", "common"),
    [
        #                                                        S  D  I  N
        ("the quokka saw a dog", "the quokka saw a dog", [0, 0, 0, 5], [0, 0, 0, 1], [0, 0, 0, 4]),
        ("the quokka saw a dog", "the quota saw a dog", [1, 0, 0, 5], [1, 0, 0, 1], [0, 0, 0, 4]),
        ("the quokka saw a dog", "the quokka saw a quokka", [1, 0, 0, 5], [0, 0, 0, 1], [1, 0, 0, 4]),
        ("the quokka saw a dog", "the saw a dog", [0, 1, 0, 5], [0, 1, 0, 1], [0, 0, 0, 4]),
        ("the quokka saw a dog", "the quokka saw dog", [0, 1, 0, 5], [0, 0, 0, 1], [0, 1, 0, 4]),
        # An insertion is charged to the word after it …
        ("the quokka saw a dog", "the big fat quokka saw a dog", [0, 0, 2, 5], [0, 0, 2, 1], [0, 0, 0, 4]),
        # … not to the one before, and its own rarity does not matter.
        ("the quokka saw a dog", "the quokka zyzzogeton saw a dog", [0, 0, 1, 5], [0, 0, 0, 1], [0, 0, 1, 4]),
        ("quokka saw", "the quokka saw", [0, 0, 1, 2], [0, 0, 1, 1], [0, 0, 0, 1]),
        # At the end it is charged to the last word.
        ("a dog saw the quokka", "a dog saw the quokka twice here", [0, 0, 2, 5], [0, 0, 2, 1], [0, 0, 0, 4]),
        ("the quokka saw", "the quokka saw zyzzogeton", [0, 0, 1, 3], [0, 0, 0, 1], [0, 0, 1, 2]),
        # An empty hypothesis deletes all; an empty reference has nothing to charge.
        ("the quokka", "", [0, 2, 0, 2], [0, 1, 0, 1], [0, 1, 0, 1]),
        ("", "the quokka", [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
        ("", "", [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_counts_by_hand(reference, hypothesis, plain, rare, common):
    scores = score((reference, hypothesis))
    assert sdin(scores.plain) == [plain]
    assert sdin(scores.rare[3.0]) == [rare]
    assert sdin(scores.common[3.0]) == [common]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "plain", "rare"),
    [
        # mister 0 brien came / mister bryan came: jiwer substitutes 0 and deletes brien
        ("Mr. O'Brien came", "MISTER BRYAN CAME", [1, 1, 0, 4], [0, 1, 0, 1]),
        ("MISTER O'BRIEN'S DOG", "Mr. O'Brien's dog!", [0, 0, 0, 5], [0, 0, 0, 1]),
        ("nineteen eighty four", "1984", [0, 0, 0, 1], [0, 0, 0, 0]),
        ("seven thousand three hundred and nine", "7,309", [0, 0, 0, 1], [0, 0, 0, 1]),
        ("it cost £3,500.", "it cost 3500 pounds", [0, 0, 0, 3], [0, 0, 0, 1]),
        ("it cost £3,500.", "it cost £3,600", [1, 0, 0, 3], [1, 0, 0, 1]),
        ("NORTHANGER ABBEY", "north hanger abbey", [1, 0, 1, 2], [1, 0, 1, 1]),
        ("the well-known dog", "the well known dog", [0, 0, 0, 4], [0, 0, 0, 0]),
        ("um, uh", "hello there", [0, 0, 2, 0], [0, 0, 0, 0]),
    ],
)
def test_counts_in_english(reference, hypothesis, plain, rare):
    scores = score((reference, hypothesis), normalizer=ENGLISH)
    assert sdin(scores.plain) == [plain]
    assert sdin(scores.rare[3.0]) == [rare]


def test_rates_are_ratios_of_sums():
    scores = score(
        ("the quokka saw a dog", "the big quota saw a dog"),  # S 1 (rare), I 1 (see below)
        ("the dog", "a dog"),  # S 1
        ("", "so"),  # I 1, N 0
        ("northanger abbey", "northanger"),  # D 1
    )
    # "the [big quota] saw": one insertion, then quokka → quota; the insertion is charged to quokka.
    assert sdin(scores.plain) == [[1, 0, 1, 5], [1, 0, 0, 2], [0, 0, 1, 0], [0, 1, 0, 2]]
    assert sdin(scores.rare[3.0]) == [[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert scores.wer == pytest.approx(5 / 9)
    assert scores.rare_wer == pytest.approx(2 / 2)
    assert scores.rare_miss_rate == pytest.approx(1 / 2)
    assert scores.common_wer == pytest.approx(2 / 7)
    assert scores.plain.errors.tolist() == [2, 1, 1, 1]
    assert scores.plain.misses.tolist() == [1, 1, 0, 1]
    for counts in (scores.plain, scores.rare[2.0], scores.common[4.0]):
        assert {array.dtype for array in vars(counts).values()} == {np.dtype(np.int64)}


def test_thresholds():
    scores = score(("northanger abbey missus", "x y z"), thresholds=(4.0, 2.0, 3.0))  # 1.93, 3.88, 2.78
    assert scores.thresholds == (4.0, 2.0, 3.0)
    assert [int(scores.rare[t].words[0]) for t in (2.0, 3.0, 4.0)] == [1, 2, 3]
    assert scores.rare_wer == 1.0
    assert math.isnan(scores.common_wer)  # at 4.0 no word is common


WORD = st.sampled_from(["the", "dog", "quokka", "northanger", "saw", "zyzzogeton", "1984", "7309"])
TEXT = st.lists(WORD, max_size=7).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_rare_and_common_add_up(pairs):
    scores = score(*pairs)
    nonempty = scores.plain.words > 0
    for threshold in scores.thresholds:
        for name in ("substitutions", "deletions", "words"):
            parts = getattr(scores.rare[threshold], name) + getattr(scores.common[threshold], name)
            assert (parts == getattr(scores.plain, name)).all()
        charged = scores.rare[threshold].insertions + scores.common[threshold].insertions
        assert (charged == scores.plain.insertions * nonempty).all()
    lengths = np.array([len(words) for words in scores.hypotheses])
    assert (lengths == scores.plain.words - scores.plain.deletions + scores.plain.insertions).all()


def test_what_cannot_be_scored():
    with pytest.raises(DataError, match="cannot score 2 references with 1 hypotheses"):
        score_words(["a", "b"], ["a"], normalizer=NONE)
    with pytest.raises(DataError, match="cannot score 0 references"):
        score_words([], [], normalizer=NONE)
    with pytest.raises(DataError, match="1 different ids for 2 utterances"):
        score(("a", "a"), ("b", "b"), ids=["x", "x"])
    with pytest.raises(DataError, match="no Zipf threshold"):
        score(("a", "a"), thresholds=())
    with pytest.raises(DataError, match="language 'xx'"):
        score(("a", "a"), language="xx")


# --- B-WER and U-WER ---


def test_biased_counts():
    scores = score(
        # quokka → quota (B); dog deleted (U)
        ("the quokka saw a dog", "the quota saw a"),
        # quokka inserted before a common word (B by the hypothesis word); "fat" before a listed one (U)
        ("dog saw zyzzogeton", "quokka dog saw fat zyzzogeton"),
        ids=["one", "two"],
    )
    biased, unbiased = biased_counts(scores, ["Quokka".lower(), "zyzzogeton"])
    assert sdin(biased) == [[1, 0, 0, 1], [0, 0, 1, 1]]
    assert sdin(unbiased) == [[0, 1, 0, 4], [0, 0, 1, 2]]
    assert biased.error_rate == pytest.approx(2 / 2)
    assert unbiased.error_rate == pytest.approx(2 / 6)

    own, rest = biased_counts(scores, {"two": ["quokka"]})
    assert sdin(own) == [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert sdin(rest) == [[1, 1, 0, 5], [0, 0, 1, 3]]


def test_biased_words_are_normalised():
    scores = score(("Mr. O'Brien saw 7,309 dogs", "mister brian saw 7310 dogs"), normalizer=ENGLISH)
    biased, _ = biased_counts(scores, ["O'Brien", "seven thousand three hundred nine"])
    assert sdin(biased) == [[2, 1, 0, 3]]  # 0, brien, 7309


# --- hallucination ---


def test_hallucination_signs():
    scores = score(
        ("the dog saw a dog", "the dog saw a dog"),
        ("the dog", ""),
        ("", ""),
        ("the dog saw", "the dog " * 4),
        ids=["fine", "mute", "silence", "loop"],
    )
    signs = hallucination_signs(scores)
    # "loop": 8 words for 3: one substituted or two kept, 5 inserted; "mute": none.
    assert signs.insertions_per_1000 == pytest.approx(1000 * 5 / 10)
    assert signs.length_ratio == pytest.approx((5 + 0 + 0 + 8) / 10)
    assert signs.empty == ("mute",)
    assert signs.looping == ("loop",)


@pytest.mark.parametrize(
    ("hypothesis", "reference", "loops"),
    [
        ("no no no no no no", "", True),
        ("no no no no no", "", False),  # five words: could be said
        ("no no no no no no", "no no no no no no", False),  # it was said
        ("a b a b a b", "", True),
        ("a b a b", "", False),
        ("a b c a b c a b c", "a b c a b c", True),
        ("x a b c d a b c d a b c d y", "", True),
        ("a b c d e f", "", False),
        ("", "", False),
    ],
)
def test_loops(hypothesis, reference, loops):
    assert repeats_itself(hypothesis.split(), reference.split()) is loops


def test_long_loops_are_found_up_to_the_longest():
    words = [str(i) for i in range(16)]
    assert repeats_itself(words * 3)
    assert not repeats_itself(words * 3, longest=15)


# --- changed words ---


def test_changed_words():
    references = ["the quokka saw zyzzogeton", "northanger abbey northanger"]
    full = score_words(
        references,
        ["the quokka saw sisyphus", "northanger abbey northanger"],
        normalizer=NONE,
        ids=["a", "b"],
    )
    # "northanger" is lost at its second place only; the lost "abbey" is common; "zyzzogeton" is won.
    quantized = score_words(
        references,
        ["big the quota saw zyzzogeton", "northanger abby hanger"],
        normalizer=NONE,
        ids=["a", "b"],
    )
    lost, won = changed_words(full, quantized)
    assert [(w.id, w.position, w.word) for w in lost] == [("a", 1, "quokka"), ("b", 2, "northanger")]
    assert lost[0].full_precision == "the quokka saw sisyphus"
    assert lost[0].quantized == "big the quota saw zyzzogeton"
    assert [(w.id, w.position, w.word) for w in won] == [("a", 3, "zyzzogeton")]
    assert changed_words(quantized, full)[0] == [
        type(w)(w.id, w.position, w.word, w.quantized, w.full_precision) for w in won
    ]
    assert [w.word for w in changed_words(full, quantized, threshold=4.0)[0]] == [
        "quokka",
        "abbey",
        "northanger",
    ]
    assert changed_words(full, full) == ([], [])


def test_changed_words_after_an_empty_reference():
    pairs = [("", "so"), ("quokka", "quokka")]
    full = score(*pairs)
    lost, won = changed_words(full, score(("", ""), ("quokka", "")))
    assert [(w.id, w.position, w.word, w.quantized) for w in lost] == [("1", 0, "quokka", "")]
    assert won == []


def test_changed_words_need_the_same_utterances():
    full = score(("the dog", "the dog"))
    for other in (score(("a dog", "the dog")), score(("the dog", "the dog"), ids=["z"])):
        with pytest.raises(DataError, match="different utterances or references"):
            changed_words(full, other)
