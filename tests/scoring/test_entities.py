"""Entity scores against their definition, counted by hand."""

import dataclasses

import numpy as np
import pytest

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.scoring.bootstrap import Ratio, resample
from tarq.scoring.entities import score_entities
from tarq.words.normalize import get_normalizer

PLAIN = get_normalizer("basic")


def scored(reference, hypothesis, *entities, normalizer=PLAIN):
    return score_entities([reference], [hypothesis], [entities], normalizer=normalizer)


def counts(scores):
    return tuple(int(getattr(scores, name)[0]) for name in ("mentions", "missed", "words", "errors"))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "entities", "expected"),
    [
        # mentions, missed, their words, errors
        ("Dr Okonkwo gave amoxicillin", "Dr Okonkwo gave amoxicillin", ["Okonkwo", "amoxicillin"], (2, 0, 2, 0)),
        ("Dr Okonkwo gave amoxicillin", "doctor a conquest gave amoxicillin", ["Okonkwo", "Amoxicillin"], (2, 1, 2, 1)),
        ("Dr Okonkwo gave amoxicillin", "", ["Okonkwo", "amoxicillin"], (2, 2, 2, 2)),
        # said twice, heard once; heard more often than said
        ("Okonkwo and Okonkwo", "Okonkwo and who", ["Okonkwo"], (2, 1, 2, 1)),
        ("Okonkwo came", "Okonkwo Okonkwo Okonkwo came", ["Okonkwo"], (1, 0, 1, 2)),
        # three words allow one edit, two words none: a near miss is one word wrong, not three
        ("the Dolby Atmos mix is out", "the dolby at mix is out", ["Dolby Atmos mix"], (1, 1, 3, 1)),
        ("a Dolby Atmos", "a dolby at", ["Dolby Atmos"], (1, 1, 2, 2)),
        # a word left out, a word put in
        ("see the New York Times now", "see the york times now", ["New York Times"], (1, 1, 3, 1)),
        ("see the New York Times now", "see the new big york times now", ["New York Times"], (1, 1, 3, 1)),
        # the same entity listed twice is one; order of the list does not matter
        ("Justin Bieber met Ghost", "ghost met justin bieber", ["Ghost", "Justin Bieber", "Ghost"], (2, 0, 3, 2)),
        ("nobody", "nobody", [], (0, 0, 0, 0)),
    ],
)
def test_counts(reference, hypothesis, entities, expected):
    assert counts(scored(reference, hypothesis, *entities)) == expected


def test_an_exact_entity_within_a_wider_window_is_just_that():
    # The window "a b c" of three words is found first at its own place, with nothing lost after it.
    scores = scored("x a b c a b c", "x a b c a b c", "a b c")
    assert counts(scores) == (2, 0, 6, 0)


def test_entities_go_through_the_normaliser():
    english = get_normalizer("english")
    text = "It cost £3,500 in nineteen eighty four, Mr. O'Brien's colour"
    scores = scored(text, text.lower(), "£3,500", "Mr. O'Brien", "Wales", normalizer=english)
    assert counts(scores)[:2] == (2, 0)
    assert scores.not_in_reference == ((0, "Wales"),)


def test_an_entity_within_another_counts_on_its_own():
    assert counts(scored("in New York today", "in New York today", "New York", "York")) == (2, 0, 3, 0)


@pytest.fixture(scope="module")
def evaluation(model_folder, manifest):
    """Two models that hear different things, on utterances of which five have entities."""
    utterances = load_utterances(manifest)
    marked = {"u0": ("Reykjavik",), "u1": ("Okonkwo", "amoxicillin"), "u3": ("Ouagadougou",), "u6": ("Wojciechowski",)}
    marked["u7"] = ("Timbuktu",)
    utterances = [dataclasses.replace(u, entities=marked.get(u.id, ())) for u in utterances]
    heard = {"full": {"Ouagadougou": "wagga"}, "q": {"Okonkwo": "a conquest", "Ouagadougou": "wagga"}}
    models = {}
    for name, changes in heard.items():
        recognizer = models[name] = tarq.load_recognizer(model_folder)
        texts = iter([u.text for u in utterances])

        def transcribe(waveforms, language, changes=changes, texts=texts):
            said = [next(texts) for _ in waveforms]
            for word, instead in changes.items():
                said = [text.replace(word, instead) for text in said]
            return said

        recognizer.transcribe = transcribe
    return tarq.evaluate(models, {"s": utterances}, resamples=300)


def test_evaluation_has_entity_rates_with_paired_intervals(evaluation):
    scores = evaluation.sets["s"]
    assert scores.entities == 5
    assert scores.models["full"].figures["ne_fnr"].value == pytest.approx(1 / 5)
    assert scores.models["q"].figures["ne_fnr"].value == pytest.approx(2 / 5)
    assert scores.models["q"].counts["entities"] == {"mentions": 5, "missed": 2, "words": 5, "errors": 2}
    assert scores.models["q"].figures["ne_wer"].value == pytest.approx(2 / 5)
    mentions, full, q = np.array([1, 2, 0, 1, 0, 0, 1, 0]), np.eye(8)[3], np.eye(8)[3] + np.eye(8)[1]
    expected = resample({"q": Ratio(q, mentions), "full": Ratio(full, mentions)}, resamples=300, seed=0)
    assert scores.differences["q − full"]["ne_fnr"] == expected["q"].minus(expected["full"])
    assert any("'Timbuktu' in u7" in note for note in scores.notes)
    assert sum("Timbuktu" in note for note in scores.notes) == 1


def test_sets_without_entities_have_no_such_rates(model_folder, manifest):
    scores = tarq.evaluate({"m": model_folder}, {"s": manifest}, samples=2, resamples=20).sets["s"]
    assert not {"ne_wer", "ne_fnr"} & set(scores.models["m"].figures)
    assert scores.entities == 0
