"""The words of transcripts: how often each occurs, how frequent it is, and why it is in the tail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tarq.words.rarity import is_rare, zipf
from tarq.words.transcripts import Rarity

#: Why a word is in the tail, or stands out.
RARE, UNKNOWN, NUMERAL, PROTECTED = "rare", "not in the list", "numeral", "protected"


@dataclass(frozen=True)
class ListedWord:
    """One word of transcripts in a language.

    Attributes:
        word: as the normaliser writes it.
        count: how often it occurs.
        zipf: its Zipf score; 0 where the word frequencies lack it.
        rare: whether that is below the threshold.
        protected: how often it occurs as part of an entry that is protected.
        reasons: ``not in the list`` or ``rare``, ``numeral`` (with a digit: its score is estimated from its shape),
            ``protected``.
    """

    word: str
    language: str
    count: int
    zipf: float
    rare: bool
    protected: int
    reasons: tuple[str, ...]

    @property
    def in_tail(self) -> bool:
        """Whether any of its positions is in the tail."""
        return self.rare or self.protected > 0


def list_words(transcripts: Iterable[tuple[str, str | None]], rarity: Rarity) -> list[ListedWord]:
    """Every word of some transcripts, rarest first; of those alike the one that occurs more often.

    Args:
        transcripts: text and language of each; None for the run's.

    Raises:
        DataError: a language has no word frequencies, or a list of words is not usable.
    """
    counts: Counter[tuple[str, str]] = Counter()
    listed: Counter[tuple[str, str]] = Counter()
    for text, stated in transcripts:
        language = stated or rarity.words.language
        normalizer, _ = rarity.of_language(language)
        words = normalizer.words(text)
        counts.update((word, language) for word in words)
        if (protected := rarity.protected(language)) is not None:
            listed.update((word, language) for word, mark in zip(words, protected.marks(words), strict=True) if mark)
    found = [_listed(word, language, counts, listed, rarity) for word, language in counts]
    return sorted(found, key=lambda w: (w.zipf, -w.count, w.word, w.language))


def _listed(
    word: str, language: str, counts: Counter[tuple[str, str]], listed: Counter[tuple[str, str]], rarity: Rarity
) -> ListedWord:
    _, frequencies = rarity.of_language(language)
    score = zipf(word, frequencies)
    rare = is_rare(word, rarity.words.tail_threshold, frequencies)
    protected = listed[word, language]
    reasons = (
        *((UNKNOWN if score == 0 else RARE,) if rare else ()),
        *((NUMERAL,) if any(map(str.isdigit, word)) else ()),
        *((PROTECTED,) if protected else ()),
    )
    return ListedWord(word, language, counts[word, language], score, rare, protected, reasons)
