"""Which words, subwords and positions are rare: the tail T of the method (arXiv 2605.27808, §3).

A word is rare if its ``wordfreq`` Zipf score (log10 of its occurrences per billion words) is below a threshold,
3 in the paper: less than one in a million. Names, numerals and terms need no labels: they are in the tail because
they are infrequent.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache

import torch

from tarq.words.frequencies import Frequencies, wordfreq_zipf
from tarq.words.normalize import Normalizer, in_word

POSITION_MODES = ("input", "target", "either")

Span = tuple[int, int]

# Dashes join words that the evaluation counts separately ("arts--Gutenberg", "well-known"), so that a rare
# word does not make its neighbour rare.
_DASHES = "-‐‑‒–—―"
_PIECE = re.compile(rf"[^\s{re.escape(_DASHES)}]+")


@lru_cache(maxsize=1 << 18)
def zipf(word: str, language: Frequencies = "en") -> float:
    """Zipf score of a word: log10 of its frequency per billion words; 0.0 if it is not in the list.

    Case and punctuation around the word do not matter; ``wordfreq`` estimates numerals from their shape.

    Args:
        language: one of wordfreq's, or the user's own frequencies, which are independent of language.

    Raises:
        DataError: ``wordfreq`` has no list for the language, or lacks the tokenizer it needs for it.
    """
    return wordfreq_zipf(word, language) if isinstance(language, str) else language.zipf(word)


def is_rare(word: str, threshold: float = 3.0, language: Frequencies = "en") -> bool:
    """Whether a word's Zipf score is under ``threshold``.

    A "word" without a letter or digit (a free-standing dash under the normaliser ``none``) is never rare,
    although no frequency list has it.

    Raises:
        DataError: see ``zipf``.
    """
    return _score(word, language) < threshold


def rare_counts(
    text: str, normalizer: Normalizer, threshold: float = 3.0, language: Frequencies = "en"
) -> tuple[int, int]:
    """A transcript's normalised words, and how many of them are rare."""
    words = normalizer.words(text)
    return len(words), sum(is_rare(word, threshold, language) for word in words)


def word_spans(text: str, normalizer: Normalizer, language: Frequencies = "en") -> list[tuple[Span, float]]:
    """A transcript's words in its original text (:func:`located_words`), each with its Zipf score.

    Scores are those of the words that the evaluation counts, those of the normalised text ("nineteen eighty
    four" → 1984).

    Raises:
        DataError: see ``zipf``.
    """
    return located_words(text, normalizer, lambda words: [_score(word, language) for word in words])


def located_words(
    text: str, normalizer: Normalizer, score: Callable[[Sequence[str]], list[float]]
) -> list[tuple[Span, float]]:
    """A transcript's words in its original text, each with the score of the normalised words it stands for.

    They are located as follows: every raw word (split at white space and dashes) is normalised on its own, and that
    sequence is aligned with the whole text's. Equal words map one to one; where a run differs, all its raw words have
    the lowest score of its normalised words; a raw word of several normalised words has the lowest of these ("O'Brien"
    → 0 brien). A raw word that the whole lacks has none (a remark in parentheses; also the "one" of "one thousand" →
    1000).

    Args:
        score: from the normalised words of the whole text to a score of each; NaN for none.

    Returns:
        [start, end) character spans, ascending and disjoint, without the punctuation around the words; NaN where
        no word is counted. Dashes alone that join two words are a span, too: with the higher score of the two.
    """
    pieces = [match.span() for match in _PIECE.finditer(text)]
    alone: list[str] = []  # the pieces' normalised words …
    piece_of: list[int] = []  # … and the index of the piece that each is from
    for index, (start, end) in enumerate(pieces):
        words = _normalized_alone(normalizer, text[start:end])
        alone += words
        piece_of += [index] * len(words)
    whole = normalizer.words(text)
    of_words = score(whole)

    scores = [math.nan] * len(pieces)
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, alone, whole, autojunk=False).get_opcodes():
        counted = of_words[j1:j2]
        if kind == "equal":
            found = list(zip(piece_of[i1:i2], counted, strict=True))
        else:
            # A word that no single piece gives ("insert") belongs to the pieces around it.
            first, last = (i1 - 1, i1 + 1) if kind == "insert" else (i1, i2)
            found = [(index, _rarest(counted)) for index in piece_of[max(first, 0) : last]]
        for index, value in found:
            scores[index] = _rarest([scores[index], value])

    spans: list[tuple[Span, float]] = []
    for piece, own in zip(pieces, scores, strict=True):
        start, end = _trimmed(text, piece)
        if start == end:
            continue
        if spans:
            (_, before), other = spans[-1]
            if not text[before:start].strip(_DASHES):
                spans.append(((before, start), math.nan if math.isnan(other + own) else max(other, own)))
        spans.append(((start, end), own))
    return spans


def _score(word: str, language: Frequencies) -> float:
    """Zipf score of a word; NaN of a "word" without a letter or digit."""
    return zipf(word, language) if any(map(str.isalnum, word)) else math.nan


def _rarest(scores: Iterable[float]) -> float:
    """The lowest of some scores; NaN where there is none."""
    return min((score for score in scores if not math.isnan(score)), default=math.nan)


@lru_cache(maxsize=1 << 16)
def _normalized_alone(normalizer: Normalizer, piece: str) -> tuple[str, ...]:
    return tuple(normalizer.words(piece))


def _trimmed(text: str, span: Span) -> Span:
    """The span without the punctuation at its ends; currency and percent signs belong to their number."""
    start, end = span
    while start < end and not _in_word(text[start]):
        start += 1
    while start < end and not _in_word(text[end - 1]):
        end -= 1
    return start, end


def _in_word(character: str) -> bool:
    return in_word(character) or character == "%" or unicodedata.category(character) == "Sc"


def token_scores(offsets: Iterable[Sequence[int]], words: Sequence[tuple[Span, float]]) -> list[float]:
    """Zipf scores of subwords: of the word whose span each overlaps, of the rarest where there are several.

    Offsets may include the white space before a word (byte-level BPE); spans never do, so such a token does
    not touch the word before, and a token of white space alone is of no word. Tokens that share a character
    (the bytes of "é") share its word. A token that covers no character, (0, 0) for the special ones, is of
    no word.

    Args:
        offsets: a fast tokenizer's [start, end) character offsets, one pair per token.
        words: of the same text, from ``word_spans``.

    Returns:
        one score per token, NaN where it is of no word.
    """
    return [
        _rarest(score for (begin, stop), score in words if start < end and start < stop and begin < end)
        for start, end in offsets
    ]


def position_tags(token_tags: torch.Tensor, mode: str = "target") -> torch.Tensor:
    """Which decoder positions are rare, given which tokens are.

    Position t of the decoder reads token t and predicts token t + 1, so a sequence of S tokens (prompt,
    text, end) has the S − 1 input positions 0 … S − 2: the end is only ever predicted.

    Args:
        token_tags: bool [..., S], over the whole decoder sequence; prompt, special and timestamp tokens
            are common (False).
        mode: ``input`` (the token read: ``token_tags[..., :-1]``), ``target`` (the token predicted:
            ``token_tags[..., 1:]``) or ``either``.

    Returns:
        bool [..., S − 1], aligned with the decoder's input positions.

    Raises:
        ValueError: no such mode, another dtype than bool, or an empty sequence.
    """
    if mode not in POSITION_MODES:
        raise ValueError(f"unknown position tag mode {mode!r}: choose one of {', '.join(POSITION_MODES)}")
    if token_tags.dtype != torch.bool:
        raise ValueError(f"token_tags must be bool, not {token_tags.dtype}")
    if token_tags.ndim == 0 or token_tags.shape[-1] == 0:
        raise ValueError(f"token_tags must hold at least one token, not shape {tuple(token_tags.shape)}")
    read, predicted = token_tags[..., :-1], token_tags[..., 1:]
    if mode == "input":
        return read
    return predicted if mode == "target" else read | predicted
