"""A word of a transcript in its context: the same place is found in every hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

#: Words shown on either side.
AROUND = 9

#: Text, and whether it is the word that changed.
Piece = tuple[str, bool]


def in_reference(words: Sequence[str], position: int) -> list[Piece]:
    """The reference around a word."""
    return _window(words, position, position + 1)


def in_hypothesis(text: str, reference: Sequence[str] | None, position: int) -> list[Piece]:
    """A transcript around the words aligned with a reference word; nothing is marked where there are none.

    Args:
        text: as the model wrote it.
        reference: normalised words; None where unknown: the transcript's beginning is shown.
        position: of the word in the reference.
    """
    words = text.split()
    if not words:
        return [("(nothing)", True)]
    if reference is None:
        return _window(words, 0, 0, AROUND * 3)
    matcher = SequenceMatcher(None, list(reference), [_bare(word) for word in words], autojunk=False)
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if i1 <= position < i2:
            if kind == "equal":
                j1 += position - i1
                j2 = j1 + 1
            return _window(words, j1, j2)
    return _window(words, 0, 0, AROUND * 3)


def _bare(word: str) -> str:
    return "".join(c for c in word.casefold() if c.isalnum() or c == "'")


def _window(words: Sequence[str], start: int, end: int, around: int = AROUND) -> list[Piece]:
    """The words from ``start`` to ``end`` marked, between their neighbours; a long stretch is cut."""
    marked = list(words[start:end])
    if len(marked) > 2 * AROUND:
        marked = [*marked[: 2 * AROUND], "…"]
    before = " ".join((["…"] if start > around else []) + list(words[max(0, start - around) : start]))
    after = " ".join(list(words[end : end + around]) + (["…"] if end + around < len(words) else []))
    pieces = [(before, False), (" ".join(marked), True), (after, False)]
    return [piece for piece in pieces if piece[0]]
