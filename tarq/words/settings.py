"""Settings of words: their language, how text is split into them, how frequent they are, and which are rare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tarq.errors import ConfigError
from tarq.option import CALIBRATION, Checked, option
from tarq.words.normalize import Normalizer, get_normalizer, primary_language

if TYPE_CHECKING:
    from tarq.words.frequencies import Frequencies
    from tarq.words.protect import ProtectedList

Normalization = Literal["auto", "english", "basic", "none"]


@dataclass(frozen=True)
class Words(Checked):
    """Which words are rare.

    Attributes:
        tail_threshold: a word is rare below this Zipf frequency (3 is one per million words).
        tail_bands: bands of one Zipf unit in the tail, the last with all below; for the metric ``rarebal-bands``.
        language: of the word frequencies and of the prompt of a multilingual model; an utterance whose manifest
            line has a ``language`` keeps its own.
        word_frequencies: a file of words and counts used in place of ``wordfreq``'s lists, in every language.
        protect: words and names whose positions are in the tail whatever their frequency: a file with one a line, or
            a list of them (:mod:`tarq.words.protect`). A metric that weighs the tail must be chosen with it.
        normalizer: text normaliser that splits transcripts into words: ``english``, ``basic`` or ``none``;
            ``auto`` is ``english`` for English and ``basic`` for other languages.
    """

    tail_threshold: float = option(
        3.0, CALIBRATION, "A word is rare below this Zipf frequency.", "float", low=0, high=12
    )
    tail_bands: int = option(
        1, CALIBRATION, "Bands of one Zipf unit within the tail, for the metric rarebal-bands.", "int", low=1, high=12
    )
    language: str = option(
        "en",
        CALIBRATION,
        "Language of the speech: selects word frequencies and a multilingual model's prompt.",
        "language",
    )
    word_frequencies: str | None = option(
        None,
        CALIBRATION,
        "File of words and counts to use in place of wordfreq's list.",
        "path",
        optional=True,
    )
    protect: str | tuple[str, ...] | None = option(
        None,
        CALIBRATION,
        "File of words and names, one a line, in the tail whatever their frequency; needs a metric such as rarebal.",
        "entries",
        optional=True,
    )
    normalizer: str = option(
        "auto",
        CALIBRATION,
        "Text normaliser for splitting transcripts into words: auto (by language), english, basic or none.",
        Normalization,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tail_bands > 1 and self.tail_threshold <= self.tail_bands - 1:
            raise ConfigError(f"tail_bands: {self.tail_bands} bands below Zipf {self.tail_threshold:g} reach below 0")

    @property
    def band_thresholds(self) -> tuple[float, ...]:
        """The Zipf frequencies below which each band of the tail begins; the first is that of the tail itself."""
        return tuple(self.tail_threshold - depth for depth in range(self.tail_bands))

    def text_normalizer(self, spelling: Mapping[str, str] | None = None, language: str | None = None) -> Normalizer:
        """The normaliser these settings name, resolved by language.

        Args:
            spelling: British to American spellings, which Whisper's tokenizers carry; English only.
            language: of the text; the settings' own by default.
        """
        name = self.normalizer
        if name == "auto":
            name = "english" if primary_language(language or self.language) == "en" else "basic"
        return get_normalizer(name, spelling if name == "english" else None, language or self.language)

    def frequencies(self, language: str | None = None) -> Frequencies:
        """The source of the Zipf scores, checked.

        Args:
            language: of the words; the settings' own by default.

        Raises:
            DataError: the file of word frequencies is not usable, or wordfreq has no list for the language.
        """
        from tarq.words.frequencies import frequencies  # wordfreq takes a while to import

        return frequencies(language or self.language, self.word_frequencies)

    def protected(self) -> ProtectedList | None:
        """The list of words to protect, read; None where none is given.

        Raises:
            DataError: the list is not usable.
        """
        from tarq.words.protect import protected_list

        return None if self.protect is None else protected_list(self.protect)
