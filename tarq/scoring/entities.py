"""Entity scores: NE-WER and NE-FNR of ContextASR-Bench (arXiv 2507.05727).

Names and terms a corpus marks in a transcript are looked for in the hypothesis, word by word after the run's
normaliser: exactly for NE-FNR, within an edit distance for NE-WER.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from tarq.words.normalize import Normalizer

Words = tuple[str, ...]


@dataclass(frozen=True)
class EntityScores:
    """Sums per utterance; every array is int64 [utterances].

    Attributes:
        mentions: entities in the reference; one that occurs twice counts twice.
        missed: those of them that do not occur verbatim in the hypothesis. NE-FNR is Σ missed / Σ mentions.
        words: words of the mentions.
        errors: edits between them and what the hypothesis has in their place. NE-WER is Σ errors / Σ words.
        not_in_reference: (utterance, entity) of the entities that their own reference does not contain, after
            normalisation; they are in no count.
    """

    mentions: NDArray[np.int64]
    missed: NDArray[np.int64]
    words: NDArray[np.int64]
    errors: NDArray[np.int64]
    not_in_reference: tuple[tuple[int, str], ...]


def score_entities(
    references: Sequence[str],
    hypotheses: Sequence[str],
    entities: Sequence[Sequence[str]],
    *,
    normalizer: Normalizer,
) -> EntityScores:
    """Count which entities were recognized.

    NE-FNR: an entity's exact occurrences in the hypothesis count as hits, at most as many as the reference has.
    NE-WER: in the hypothesis, windows within edit distance ⌈n/2⌉ − 1 words of an entity of n words are matched to it,
    from the left, without overlap; all windows in order are one word sequence, all mentions of the reference another,
    and the edits between the two are the errors.

    Args:
        references, hypotheses: raw texts, one per utterance.
        entities: of each utterance.
    """
    rows: list[tuple[int, int, int, int]] = []
    not_in_reference: list[tuple[int, str]] = []
    for number, (reference, hypothesis, marked) in enumerate(zip(references, hypotheses, entities, strict=True)):
        reference_words, hypothesis_words = (tuple(normalizer.words(text)) for text in (reference, hypothesis))
        wanted: list[Words] = []
        for entity in marked:
            words = tuple(normalizer.words(entity))
            if not _places(reference_words, words):
                not_in_reference.append((number, entity))
            elif words not in wanted:
                wanted.append(words)
        mentions = [(place, words) for words in wanted for place in _places(reference_words, words)]
        counts = Counter(words for _, words in mentions)
        hits = sum(min(count, len(_places(hypothesis_words, words))) for words, count in counts.items())
        expected = _in_order(mentions)
        found = _in_order([window for words in wanted for window in _windows(hypothesis_words, words)])
        errors = Levenshtein.distance(found, expected)
        rows.append((len(mentions), len(mentions) - hits, len(expected), errors))
    mentions_in, missed, words_in, errors_in = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return EntityScores(mentions_in, missed, words_in, errors_in, tuple(not_in_reference))


def _places(words: Words, entity: Words) -> list[int]:
    """Start positions of an entity in a sequence of words."""
    length = len(entity)
    return [i for i in range(len(words) - length + 1) if words[i : i + length] == entity] if length else []


def _windows(words: Words, entity: Words) -> list[tuple[int, Words]]:
    """Windows of a hypothesis that match an entity: (position, words), from the left, without overlap.

    Windows of the entity's own length come first, then shorter, then longer ones. A window that contains
    the entity verbatim counts as exactly that.
    """
    length = len(entity)
    slack = math.ceil(length / 2) - 1
    sizes = [length, *range(length - 1, max(1, length - slack) - 1, -1), *range(length + 1, length + slack + 1)]
    found: list[tuple[int, Words]] = []
    start = 0
    while start < len(words):
        candidates = (words[start : start + size] for size in sizes if start + size <= len(words))
        window = next((w for w in candidates if Levenshtein.distance(w, entity) <= slack), None)
        if window is None:
            start += 1
            continue
        inside = _places(window, entity)
        found.append((start, entity if inside else window))
        start += inside[0] + length if inside else len(window)
    return found


def _in_order(mentions: list[tuple[int, Words]]) -> list[str]:
    """The words of all mentions, by position; at one position the shorter first."""
    unique = dict.fromkeys(sorted(mentions, key=lambda mention: (mention[0], len(mention[1]))))
    return [word for _, words in unique for word in words]
