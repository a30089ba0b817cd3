"""The rare words of a run's transcripts, each in its own language."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache

from tarq.words.frequencies import Frequencies
from tarq.words.normalize import Normalizer
from tarq.words.protect import Protected, ProtectedList
from tarq.words.rarity import rare_counts
from tarq.words.settings import Words


class Rarity:
    """Which words of a run's transcripts are rare. A text is normalised once, and counted once.

    Args:
        words: normaliser, threshold, word frequencies, and the language of transcripts that state none.
        spelling: British to American spellings; see :meth:`Words.text_normalizer`.
    """

    def __init__(self, words: Words, spelling: Mapping[str, str] | None = None) -> None:
        self.words = words
        self.spelling = spelling
        self._languages: dict[str, tuple[Normalizer, Frequencies]] = {}
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}
        self._protected: dict[str, Protected] = {}

    @cached_property
    def _listed(self) -> ProtectedList | None:
        return self.words.protected()  # reads the file, once a run: it may be edited between two

    def of_language(self, language: str | None = None) -> tuple[Normalizer, Frequencies]:
        """The normaliser and the word frequencies of a language; by default the settings'.

        Raises:
            DataError: there are no word frequencies for the language.
        """
        language = language or self.words.language
        if language not in self._languages:
            plain = self.words.text_normalizer(self.spelling, language)
            normalizer = Normalizer(plain.name, lru_cache(maxsize=None)(plain.apply))
            self._languages[language] = normalizer, self.words.frequencies(language)
        return self._languages[language]

    def counts(self, text: str | None, language: str | None = None) -> tuple[int, int]:
        """Words of a transcript, and how many of them are rare.

        Args:
            language: of the transcript; the settings' by default.

        Raises:
            DataError: there are no word frequencies for the language.
        """
        key = text or "", language or self.words.language
        if key not in self._counts:
            normalizer, frequencies = self.of_language(language)
            self._counts[key] = rare_counts(key[0], normalizer, self.words.tail_threshold, frequencies)
        return self._counts[key]

    def protected(self, language: str | None = None) -> Protected | None:
        """Where the words to protect are in transcripts of a language; None where no list of them is given.

        Raises:
            DataError: the list is not usable, or there are no word frequencies for the language.
        """
        if (given := self._listed) is None:
            return None
        language = language or self.words.language
        if language not in self._protected:
            self._protected[language] = Protected(given, self.of_language(language)[0])
        return self._protected[language]
