"""Text normalisation: one named normaliser per run, applied to references and hypotheses alike.

Rarity tagging (``tarq.words.rarity``) and word scores (``tarq.scoring.words``) use the same one, so that they count the
same words.

``basic`` does what Whisper's normaliser of that name does, except for combining marks. Whisper's replaces every
combining mark by a space, and so splits Hindi, Tamil, Thai, pointed Hebrew or Turkish İ into fragments that are counted
as words (openai/whisper#2849). Here a mark stays with its letter, in composed form (NFKC), with two exceptions. Arabic
and Hebrew vowel points, which most writers omit, are dropped, as in wordfreq's lists, so that a word with and without
them is the same word. Marks that only change a character's appearance (variation selectors, enclosing marks, tatweel,
marks of direction) are dropped too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

from tarq.errors import DataError

NORMALIZERS = ("english", "basic", "none")
#: Languages in which I is the capital of ı, and İ of i.
DOTLESS = ("tr", "az")
_ASIDE = re.compile(r"[<\[][^>\]]*[>\]]|\(([^)]+?)\)")  # Whisper's: remarks in brackets and in parentheses
#: Arabic: signs of honour, short vowels and their like (not madda and hamza, which make another letter), Koranic marks;
#: Hebrew: accents and points.
_POINTS = re.compile(
    "[\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]|[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
#: Tatweel, soft hyphen, marks of direction, byte-order mark, variation selectors.
_INVISIBLE = re.compile(
    "[\u0640\u00ad\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ufeff\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)


@dataclass(frozen=True)
class Normalizer:
    """A text normaliser and the name a report gives it.

    Attributes:
        name: what a report prints.
        apply: text to normalised text.
    """

    name: str
    apply: Callable[[str], str]

    def words(self, text: str) -> list[str]:
        """The words the evaluation counts: the normalised text, split at white space."""
        return self.apply(text).split()

    def __call__(self, text: str) -> str:
        """The normalised text, its words joined by single spaces."""
        return " ".join(self.words(text))


def primary_language(tag: str) -> str:
    """``pt`` of ``pt-BR`` or ``pt_BR``."""
    return re.split("[-_]", tag)[0].lower()


def get_normalizer(name: str, spelling: Mapping[str, str] | None = None, language: str | None = None) -> Normalizer:
    """The normaliser called ``name``.

    Args:
        name: ``english`` (Whisper's English one, from transformers), ``basic`` (for other languages, see above) or
            ``none`` (the text as it is).
        spelling: for ``english``, a table of British to American spellings (``normalizer.json`` of a
            Whisper checkpoint). Without it spellings are not unified, and the name mentions no table.
        language: of the text, for ``basic``: Turkish and Azerbaijani have their own lower case.

    Raises:
        DataError: no such normaliser, or a spelling table for one other than ``english``.
    """
    if name not in NORMALIZERS:
        raise DataError(f"unknown normalizer {name!r}: choose one of {', '.join(NORMALIZERS)}")
    if not spelling:
        return _plain(name, name == "basic" and primary_language(language or "") in DOTLESS)
    if name != "english":
        raise DataError(f"normalizer {name!r} takes no spelling table: leave it out, or choose 'english'")
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return Normalizer(f"english, {len(spelling)} spellings", EnglishTextNormalizer(dict(spelling)))


@cache
def _plain(name: str, dotless: bool) -> Normalizer:
    # Imported here: transformers takes a second to import, and other normalisers do not need it.
    if name == "english":
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

        return Normalizer(name, EnglishTextNormalizer({}))
    return Normalizer(name, partial(_basic, dotless) if name == "basic" else str)


def _basic(dotless: bool, text: str) -> str:
    """Lower case without remarks, punctuation and symbols; marks stay with their letters."""
    if dotless:
        text = text.replace("I\u0307", "i").replace("İ", "i").replace("I", "ı")
    text = unicodedata.normalize("NFKC", _ASIDE.sub("", text.lower()))
    characters: list[str] = []
    within = False  # a word, to which a mark belongs
    for character in bare(text):
        kind = unicodedata.category(character)
        if kind[0] == "M":
            if within and kind != "Me":
                characters.append(character)
        elif kind[0] in "SP" or character == "\u200b":  # a space of no width, which divides words
            characters.append(" ")
            within = False
        else:
            characters.append(character)
            within = character.isalnum() or kind == "Cf"
    return " ".join(unicodedata.normalize("NFC", "".join(characters)).lower().split())


def bare(text: str) -> str:
    """Text without characters that do not distinguish words: optional points, invisible characters, the dot of i̇."""
    return _POINTS.sub("", _INVISIBLE.sub("", text)).replace("i\u0307", "i")


def in_word(character: str) -> bool:
    """Whether a character is part of a word: a letter, a digit, or a mark on one."""
    return character.isalnum() or unicodedata.category(character) in ("Mn", "Mc")
