"""From tokens with times to words with times."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from tarq.models.types import Word

#: Codes of languages that are written without spaces between words; each character is then one, as in Whisper.
UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
#: Most tokens of one byte that a character has in UTF-8.
BYTES = 4


def characters(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[tuple[str, int]]:
    """The smallest runs of tokens that spell whole characters: their text, and the index of their first token.

    Byte-level tokenizers split rare characters; half of one decodes to U+FFFD.
    """
    found, first = [], 0
    for i in range(len(tokens)):
        text = decode(tokens[first : i + 1])
        if not text.endswith("\ufffd") or i + 1 - first == BYTES or i + 1 == len(tokens):
            found.append((text, first))
            first = i + 1
    return found


def grouped(parts: Sequence[tuple[str, int]], spaced: bool) -> list[tuple[str, int]]:
    """Words of runs of tokens: from a space to the next, or each run of an unspaced language; punctuation belongs
    to the word it follows.

    Args:
        parts: text, with the space before it, and index of the first token.
        spaced: whether words are written with spaces between them.
    """
    words: list[tuple[str, int]] = []
    for text, first in parts:
        alone = text[:1].isspace() or (not spaced and not _is_punctuation(text))
        if not words or (alone and words[-1][0].strip()):
            words.append((text, first))
        else:
            words[-1] = (words[-1][0] + text, words[-1][1])
    return [(text.strip(), first) for text, first in words if text.strip()]


def words_within(words: Sequence[tuple[str, float, float]], start: float, end: float) -> tuple[Word, ...]:
    """Words of a segment, given as text, start and end; none begins before the segment or ends after it."""

    def inside(seconds: float) -> float:
        return min(max(seconds, start), end)

    return tuple(Word(inside(float(first)), inside(float(last)), text) for text, first, last in words)


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(character)[0] in "PZ" for character in text)
