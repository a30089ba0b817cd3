"""Text normalisation: one named normaliser a run, applied to references and hypotheses alike.

It sits below both its users: rarity tagging (``tarq.words.rarity``) must see the very words that the
word scores (``tarq.scoring.words``) count.

``basic`` does what Whisper's normaliser of that name does, but for marks. Whisper's puts a space in place of every
combining mark, and so cuts Hindi, Tamil, Thai, pointed Hebrew or Turkish İ into fragments that are counted as words
(openai/whisper#2849). Here a mark stays with its letter, in composed form (NFKC), with two exceptions. Points of Arabic
and Hebrew that say how a word is read, and that most writers leave out, are dropped, as wordfreq's lists drop them:
the word with and without them is one word. And what only changes how a character looks (variation selectors, enclosing
marks, tatweel, marks of direction) is dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

from tarq.errors import DataError

NORMALIZERS = ("english", "basic", "none")
#: Languages whose I is the capital of ı, and İ that of i.
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


def get_normalizer(name: str, spelling: Mapping[str, str] | None = None, language: str | None = None) -> Normalizer:
    """The normaliser called ``name``.

    Args:
        name: ``english`` (Whisper's English one, from transformers), ``basic`` (for other languages, see above) or
            ``none`` (the text as it is).
        spelling: for ``english``, a table of British to American spellings (``normalizer.json`` of a
            Whisper checkpoint). Without it no spelling is unified, and the name says nothing of one.
        language: of the text, for ``basic``: Turkish and Azerbaijani have a lower case of their own.

    Raises:
        DataError: no such normaliser, or a spelling table for another one than ``english``.
    """
    if name not in NORMALIZERS:
        raise DataError(f"unknown normalizer {name!r}: choose one of {', '.join(NORMALIZERS)}")
    if not spelling:
        return _plain(name, name == "basic" and (language or "").split("-")[0].lower() in DOTLESS)
    if name != "english":
        raise DataError(f"normalizer {name!r} takes no spelling table: leave it out, or choose 'english'")
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return Normalizer(f"english, {len(spelling)} spellings", EnglishTextNormalizer(dict(spelling)))


@cache
def _plain(name: str, dotless: bool) -> Normalizer:
    # Imported here: transformers takes a second to import, and the others have no need of it.
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
    """Text without what does not tell a word from another: optional points, invisible characters, the dot of i̇."""
    return _POINTS.sub("", _INVISIBLE.sub("", text)).replace("i\u0307", "i")


def in_word(character: str) -> bool:
    """Whether a character is part of a word: a letter, a digit, or a mark on one."""
    return character.isalnum() or unicodedata.category(character) in ("Mn", "Mc")
