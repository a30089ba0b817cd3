"""Word scores: WER, rare-WER, B-WER, signs of hallucination, and which words a quantized model lost.

``jiwer`` aligns and counts, after the same named normaliser on both sides. Results are integer counts per
utterance, so that a rate is a ratio of sums and a bootstrap (``tarq.scoring.bootstrap``) is cheap.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

import jiwer
import numpy as np
from numpy.typing import NDArray

from tarq.errors import DataError
from tarq.words.frequencies import Frequencies
from tarq.words.normalize import Normalizer
from tarq.words.rarity import is_rare

HIT, SUBSTITUTED, DELETED = 0, 1, 2

Words = tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """Errors and reference words per utterance; every array is int64 [utterances]."""

    substitutions: NDArray[np.int64]
    deletions: NDArray[np.int64]
    insertions: NDArray[np.int64]
    words: NDArray[np.int64]

    @property
    def misses(self) -> NDArray[np.int64]:
        """S + D, int64 [utterances]."""
        return self.substitutions + self.deletions

    @property
    def errors(self) -> NDArray[np.int64]:
        """S + D + I, int64 [utterances]."""
        return self.misses + self.insertions

    def totals(self) -> dict[str, int]:
        """S, D, I and N over all utterances, by the names of the fields."""
        return {f.name: int(getattr(self, f.name).sum()) for f in fields(self)}

    @property
    def error_rate(self) -> float:
        """(S + D + I) / N, pooled over the utterances; nan where N is 0."""
        return _ratio(self.errors.sum(), self.words.sum())

    @property
    def miss_rate(self) -> float:
        """(S + D) / N, pooled over the utterances; nan where N is 0."""
        return _ratio(self.misses.sum(), self.words.sum())


@dataclass(frozen=True)
class WordScores:
    """The words of a set of utterances, aligned and counted.

    Attributes:
        normalizer, language, thresholds: what it was scored with; ``thresholds[0]`` is the one the
            properties below report.
        ids: one per utterance.
        references, hypotheses: the normalised words of each utterance.
        texts: the hypotheses as they were given.
        alignments: jiwer's chunks of each utterance.
        utterance_of: int64 [reference words], index of the utterance that each reference word is in.
        outcome: int64 [reference words], HIT, SUBSTITUTED or DELETED.
        inserted: int64 [reference words], insertions charged to the word.
        plain: counts over all words.
        rare, common: per threshold, counts over the words on either side of it.
    """

    normalizer: Normalizer
    language: Frequencies
    thresholds: tuple[float, ...]
    ids: tuple[str, ...]
    references: tuple[Words, ...]
    hypotheses: tuple[Words, ...]
    texts: tuple[str, ...]
    alignments: list[list[jiwer.AlignmentChunk]]
    utterance_of: NDArray[np.int64]
    outcome: NDArray[np.int64]
    inserted: NDArray[np.int64]
    plain: Counts
    rare: dict[float, Counts]
    common: dict[float, Counts]

    def counts(self, chosen: NDArray[np.bool_]) -> Counts:
        """Errors on the chosen reference words, bool [reference words], with the insertions charged to them."""
        return _counts(chosen, self.utterance_of, self.outcome, self.inserted, len(self.ids))

    @property
    def positions(self) -> NDArray[np.int64]:
        """int64 [reference words], the place of each word in its utterance, from 0."""
        return np.arange(len(self.utterance_of)) - np.searchsorted(self.utterance_of, self.utterance_of)

    @property
    def wer(self) -> float:
        """Plain word error rate, a fraction."""
        return self.plain.error_rate

    @property
    def rare_wer(self) -> float:
        """Rare word error rate with the insertions charged to rare words (the paper's), a fraction."""
        return self.rare[self.thresholds[0]].error_rate

    @property
    def rare_miss_rate(self) -> float:
        """Share of the rare reference words substituted or deleted; no insertions."""
        return self.rare[self.thresholds[0]].miss_rate

    @property
    def common_wer(self) -> float:
        """Word error rate over the words that are not rare, with the insertions charged to them."""
        return self.common[self.thresholds[0]].error_rate


def score_words(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    normalizer: Normalizer,
    thresholds: Sequence[float] = (3.0, 2.0, 4.0),
    language: Frequencies = "en",
    ids: Sequence[str] | None = None,
) -> WordScores:
    """Align each hypothesis with its reference and count.

    A substitution or deletion is rare if its reference word is. An insertion is charged to the reference word
    that follows it in the alignment, at the end of an utterance to the last one, and is rare if that word is
    (the paper's rule). Insertions against an empty reference cannot be charged to a word: they count in plain
    WER (N grows by 0) but neither as rare nor as common.

    Args:
        references, hypotheses: raw texts, one per utterance.
        thresholds: Zipf scores; the first is the main one.
        ids: names of the utterances, all different; their numbers by default.

    Raises:
        DataError: no utterance, lists of unequal length, no threshold, an id that occurs twice, or an
            unknown language.
    """
    if not references or len(references) != len(hypotheses):
        raise DataError(
            f"cannot score {len(references)} references with {len(hypotheses)} hypotheses: "
            "give one of each for every utterance, and at least one"
        )
    names = tuple(ids) if ids is not None else tuple(map(str, range(len(references))))
    if len(names) != len(references) or len(set(names)) != len(names):
        raise DataError(f"{len(set(names))} different ids for {len(references)} utterances: give each its own")
    if not thresholds:
        raise DataError("no Zipf threshold to score rare words with: give at least one, such as 3")

    # jiwer's own transforms split at single spaces, which is how a Normalizer joins its words.
    aligned = jiwer.process_words(list(map(normalizer, references)), list(map(normalizer, hypotheses)))
    scored = [
        _outcomes(len(words), chunks) for words, chunks in zip(aligned.references, aligned.alignments, strict=True)
    ]
    utterance_of = np.repeat(np.arange(len(names)), [len(words) for words in aligned.references])
    outcome = np.concatenate([outcome for outcome, _ in scored])
    inserted = np.concatenate([inserted for _, inserted in scored])

    def counts(chosen: NDArray[np.bool_]) -> Counts:
        return _counts(chosen, utterance_of, outcome, inserted, len(names))

    every = counts(np.ones(len(utterance_of), dtype=bool))
    plain = Counts(every.substitutions, every.deletions, _insertions(aligned.alignments), every.words)
    tails = {
        float(threshold): np.array(
            [is_rare(word, threshold, language) for words in aligned.references for word in words], dtype=bool
        )
        for threshold in thresholds
    }
    return WordScores(
        normalizer=normalizer,
        language=language,
        thresholds=tuple(tails),
        ids=names,
        references=tuple(map(tuple, aligned.references)),
        hypotheses=tuple(map(tuple, aligned.hypotheses)),
        texts=tuple(hypotheses),
        alignments=aligned.alignments,
        utterance_of=utterance_of,
        outcome=outcome,
        inserted=inserted,
        plain=plain,
        rare={threshold: counts(tail) for threshold, tail in tails.items()},
        common={threshold: counts(~tail) for threshold, tail in tails.items()},
    )


def _counts(
    chosen: NDArray[np.bool_],
    utterance_of: NDArray[np.int64],
    outcome: NDArray[np.int64],
    inserted: NDArray[np.int64],
    utterances: int,
) -> Counts:
    """Counts over the chosen reference words; the arrays are those of :class:`WordScores`."""

    def per_utterance(values: NDArray) -> NDArray[np.int64]:
        weights = values[chosen].astype(np.float64)  # whole numbers far below 2**53: exact
        return np.bincount(utterance_of[chosen], weights, minlength=utterances).astype(np.int64)

    return Counts(
        substitutions=per_utterance(outcome == SUBSTITUTED),
        deletions=per_utterance(outcome == DELETED),
        insertions=per_utterance(inserted),
        words=per_utterance(np.ones_like(outcome)),
    )


def _outcomes(length: int, chunks: Sequence[jiwer.AlignmentChunk]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The outcome of each of ``length`` reference words, and how many insertions it is charged with."""
    outcome = np.full(length, HIT, dtype=np.int64)
    inserted = np.zeros(length, dtype=np.int64)
    for chunk in chunks:
        words = slice(chunk.ref_start_idx, chunk.ref_end_idx)
        if chunk.type == "substitute":
            outcome[words] = SUBSTITUTED
        elif chunk.type == "delete":
            outcome[words] = DELETED
        elif chunk.type == "insert" and length:
            inserted[min(chunk.ref_start_idx, length - 1)] += chunk.hyp_end_idx - chunk.hyp_start_idx
    return outcome, inserted


def _insertions(alignments: Sequence[Sequence[jiwer.AlignmentChunk]]) -> NDArray[np.int64]:
    return np.array(
        [
            sum(chunk.hyp_end_idx - chunk.hyp_start_idx for chunk in chunks if chunk.type == "insert")
            for chunks in alignments
        ],
        dtype=np.int64,
    )


def biased_counts(scores: WordScores, words: Collection[str] | Mapping[str, Collection[str]]) -> tuple[Counts, Counts]:
    """Counts of B-WER and U-WER for a list of words (Le et al., arXiv 2104.02194).

    S, D and N go to B where the *reference* word is listed; an insertion goes to B where the *hypothesis*
    word is. The rest is U, so the two add up to the plain counts.

    Args:
        words: one list for all utterances, or utterance id → its own list (an id left out has none). Entries
            are normalised as the texts were; every word of a phrase is listed.

    Returns:
        (B, U); ``.error_rate`` of each is B-WER and U-WER.
    """
    listed: dict[str, frozenset[str]] = {}
    if isinstance(words, Mapping):
        listed = {name: _word_set(scores.normalizer, entries) for name, entries in words.items()}
        lists = [listed.get(name, frozenset()) for name in scores.ids]
    else:
        lists = [_word_set(scores.normalizer, words)] * len(scores.ids)

    table = np.zeros((2, 4, len(scores.ids)), dtype=np.int64)  # U and B; S, D, I, N
    for u, (chunks, biased) in enumerate(zip(scores.alignments, lists, strict=True)):
        for word in scores.references[u]:
            table[int(word in biased), 3, u] += 1
        for chunk in chunks:
            for word in scores.references[u][chunk.ref_start_idx : chunk.ref_end_idx]:
                if chunk.type in ("substitute", "delete"):
                    table[int(word in biased), int(chunk.type == "delete"), u] += 1
            if chunk.type == "insert":
                for word in scores.hypotheses[u][chunk.hyp_start_idx : chunk.hyp_end_idx]:
                    table[int(word in biased), 2, u] += 1
    return Counts(*table[1]), Counts(*table[0])


def rare_reference_words(scores: WordScores) -> frozenset[str]:
    """The rare words of all references, at the main threshold: a list for :func:`biased_counts`."""
    words = frozenset(word for reference in scores.references for word in reference)
    return frozenset(word for word in words if is_rare(word, scores.thresholds[0], scores.language))


def _word_set(normalizer: Normalizer, entries: Collection[str]) -> frozenset[str]:
    return frozenset(word for entry in entries for word in normalizer.words(entry))


@dataclass(frozen=True)
class HallucinationSigns:
    """Signs that a recognizer hallucinates.

    Attributes:
        insertions_per_1000: insertions per 1,000 reference words; nan where there is none.
        length_ratio: hypothesis words over reference words, pooled; nan likewise.
        empty: ids of the utterances with words in the reference and none in the hypothesis.
        looping: ids of the utterances whose hypothesis repeats itself (``repeats_itself``).
    """

    insertions_per_1000: float
    length_ratio: float
    empty: tuple[str, ...]
    looping: tuple[str, ...]


def hallucination_signs(scores: WordScores) -> HallucinationSigns:
    """The signs of hallucination in a set of scored utterances."""
    total = scores.plain.words.sum()
    pairs = list(zip(scores.ids, scores.references, scores.hypotheses, strict=True))
    return HallucinationSigns(
        insertions_per_1000=1000 * _ratio(scores.plain.insertions.sum(), total),
        length_ratio=_ratio(sum(map(len, scores.hypotheses)), total),
        empty=tuple(name for name, reference, hypothesis in pairs if reference and not hypothesis),
        looping=tuple(name for name, reference, hypothesis in pairs if repeats_itself(hypothesis, reference)),
    )


def repeats_itself(hypothesis: Sequence[str], reference: Sequence[str] = (), longest: int = 16) -> bool:
    """Whether a hypothesis loops: an n-gram (n ≤ ``longest``) three times or more in a row, over at least six
    words, and more often in a row than any n-gram of that length in the reference."""
    for n in range(1, min(longest, len(hypothesis) // 3) + 1):
        times = _times_in_a_row(hypothesis, n)
        if times >= max(3, 6 / n) and times > _times_in_a_row(reference, n):
            return True
    return False


def _times_in_a_row(words: Sequence[str], n: int) -> int:
    """Number of times the most repeated n-gram occurs in direct succession."""
    # A run of m words each equal to the word n further on is an n-gram m // n + 1 times in a row.
    run = best = 0
    for i in range(len(words) - n):
        run = run + 1 if words[i] == words[i + n] else 0
        best = max(best, run)
    return best // n + 1


@dataclass(frozen=True)
class ChangedWord:
    """A rare or protected reference word that one of two models got right and the other did not.

    Attributes:
        id: of the utterance.
        position: of the word among the reference's normalised words, from 0.
        word: as normalised.
        full_precision, quantized: the two hypotheses, normalised.
    """

    id: str
    position: int
    word: str
    full_precision: str
    quantized: str


def changed_words(
    full_precision: WordScores,
    quantized: WordScores,
    threshold: float | None = None,
    chosen: NDArray[np.bool_] | None = None,
) -> tuple[list[ChangedWord], list[ChangedWord]]:
    """The rare words that quantization lost, and those it won, matched by their place in the reference.

    Args:
        full_precision, quantized: scores of two models on the same utterances, in the same order.
        threshold: Zipf score; the main one of ``full_precision`` by default.
        chosen: bool [reference words], the words to look at in place of the rare ones.

    Returns:
        (lost, won): right in full precision only, right in the quantized model only; in reading order.

    Raises:
        DataError: the two were not scored on the same utterances with the same normaliser.
    """
    if (full_precision.ids, full_precision.references) != (quantized.ids, quantized.references):
        raise DataError(
            "the two models were scored on different utterances or references "
            f"(normalizers {full_precision.normalizer.name!r} and {quantized.normalizer.name!r}): "
            "score both on the same set in the same order"
        )
    limit = full_precision.thresholds[0] if threshold is None else threshold
    positions = full_precision.positions
    lost: list[ChangedWord] = []
    won: list[ChangedWord] = []
    before, after = full_precision.outcome == HIT, quantized.outcome == HIT
    for row in np.flatnonzero(before != after):
        u = int(full_precision.utterance_of[row])
        position = int(positions[row])
        word = full_precision.references[u][position]
        if is_rare(word, limit, full_precision.language) if chosen is None else chosen[row]:
            hypotheses = (" ".join(scores.hypotheses[u]) for scores in (full_precision, quantized))
            changed = ChangedWord(full_precision.ids[u], position, word, *hypotheses)
            (lost if before[row] else won).append(changed)
    return lost, won


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
