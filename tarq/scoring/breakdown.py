"""Where word errors are: counts over kinds of reference words (rare, numerals, names) and over bands of frequency."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarq.scoring.bootstrap import RESAMPLES, Ratio, resample
from tarq.scoring.words import Counts, WordScores
from tarq.words.bands import band_masks
from tarq.words.normalize import Normalizer, primary_language
from tarq.words.protect import Protected
from tarq.words.rarity import is_rare, zipf

#: Languages that capitalise other words than names, too.
CAPITALISED = ("de", "lb")
_SENTENCE_END = re.compile(r"[.!?…:;\"“”«»]$")


def by_kind(
    scores: WordScores, names: Sequence[frozenset[str]] | None = None, protected: Protected | None = None
) -> dict[str, Counts]:
    """Counts over rare and common words, over protected ones, over those with a digit and over names.

    Insertions are charged as in rare-WER: to the reference word that follows them.

    Args:
        names: of each utterance (:func:`reference_names`); None where nothing marks them.
        protected: where the words to protect are; None without a list of them.
    """
    words = [word for reference in scores.references for word in reference]
    rare = _mask(is_rare(word, scores.thresholds[0], scores.language) for word in words)
    kinds = {"rare": rare, "common": ~rare}
    if protected is not None:
        kinds["protected"] = protected_mask(scores, protected)
    kinds["numerals"] = _mask(any(map(str.isdigit, word)) for word in words)
    if names is not None:
        kinds["names"] = _mask(
            word in marked for reference, marked in zip(scores.references, names, strict=True) for word in reference
        )
    return {kind: scores.counts(chosen) for kind, chosen in kinds.items() if chosen.any()}


def protected_mask(scores: WordScores, protected: Protected) -> NDArray[np.bool_]:
    """Bool [reference words]: those that belong to a protected entry."""
    return _mask(mark for reference in scores.references for mark in protected.marks(reference))


def by_band(scores: WordScores) -> dict[str, Counts]:
    """Counts over bands of word frequency, rarest first; bands without words are left out."""
    zipfs = np.array([zipf(word, scores.language) for reference in scores.references for word in reference])
    return {band: scores.counts(chosen) for band, chosen in band_masks(zipfs).items() if chosen.any()}


def reference_names(
    texts: Sequence[str], normalizer: Normalizer, language: str, entities: Sequence[Sequence[str]] = ()
) -> list[frozenset[str]] | None:
    """The words of names in each utterance: marked by its corpus, else written with a capital within a sentence.

    Args:
        texts: reference transcripts.
        entities: of each utterance, where the corpus marks them.

    Returns:
        normalised words; None where names are not known: nothing is marked, and transcripts are in one case or the
        language capitalises other words too.
    """
    if any(entities):
        return [frozenset(word for entity in some for word in normalizer.words(entity)) for some in entities]
    if primary_language(language) in CAPITALISED:
        return None
    found = [frozenset(_capitalised(text, normalizer)) for text in texts]
    return found if any(found) else None


def _capitalised(text: str, normalizer: Normalizer) -> list[str]:
    if text == text.upper() or text == text.lower():
        return []
    pieces = text.split()
    within = [
        piece
        for before, piece in pairwise(pieces)
        if not _SENTENCE_END.search(before) and piece.lstrip("\"'(“‘")[:1].isupper()
    ]
    # The pronoun is no name: "I", "I'm", "I'll".
    return [word for piece in within if not re.match(r"\W*I\b", piece) for word in normalizer.words(piece)]


def _mask(values: Iterable[bool]) -> NDArray[np.bool_]:
    return np.fromiter(values, dtype=bool)


def break_down(
    words: Mapping[str, WordScores],
    reference: str | None,
    names: Sequence[frozenset[str]] | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    protected: Protected | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Errors of every model by kind and by band, with intervals.

    Args:
        words: model to its words, all of the same references.
        reference: label of the full-precision model that changes are measured against, if there is one.
        names, protected: see :func:`by_kind`.

    Returns:
        model → ``kinds`` and ``bands`` → name → S, D, I and words, ``rate`` with its interval, and ``change`` of the
        rate against the reference model (None of that model).
    """
    counts = {
        (model, part, name): found
        for model, scores in words.items()
        for part, parts in (("kinds", by_kind(scores, names, protected)), ("bands", by_band(scores)))
        for name, found in parts.items()
    }
    resampled = resample({key: Ratio(c.errors, c.words) for key, c in counts.items()}, resamples, seed)
    result: dict[str, dict[str, dict[str, Any]]] = {model: {"kinds": {}, "bands": {}} for model in words}
    for (model, part, name), found in counts.items():
        ours, theirs = resampled[model, part, name], resampled.get((reference or "", part, name))
        change = ours.minus(theirs) if theirs is not None and model != reference else None
        result[model][part][name] = found.totals() | {"rate": ours.interval(), "change": change}
    return result
