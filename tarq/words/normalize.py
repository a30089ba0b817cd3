"""Text normalisation: one named normaliser a run, applied to references and hypotheses alike.

It sits below both its users: rarity tagging (``tarq.words.rarity``) must see the very words that the
word scores (``tarq.scoring.words``) count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from tarq.errors import DataError

NORMALIZERS = ("english", "basic", "none")


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


def get_normalizer(name: str, spelling: Mapping[str, str] | None = None) -> Normalizer:
    """The normaliser called ``name``.

    Args:
        name: ``english`` (Whisper's English one, from transformers), ``basic`` (Whisper's one for other
            languages) or ``none`` (the text as it is).
        spelling: for ``english``, a table of British to American spellings (``normalizer.json`` of a
            Whisper checkpoint). Without it no spelling is unified, and the name says nothing of one.

    Raises:
        DataError: no such normaliser, or a spelling table for another one than ``english``.
    """
    if name not in NORMALIZERS:
        raise DataError(f"unknown normalizer {name!r}: choose one of {', '.join(NORMALIZERS)}")
    if not spelling:
        return _plain(name)
    if name != "english":
        raise DataError(f"normalizer {name!r} takes no spelling table: leave it out, or choose 'english'")
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return Normalizer(f"english, {len(spelling)} spellings", EnglishTextNormalizer(dict(spelling)))


@cache
def _plain(name: str) -> Normalizer:
    # Imported here: transformers takes a second to import, and "none" has no need of it.
    if name == "english":
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

        return Normalizer(name, EnglishTextNormalizer({}))
    if name == "basic":
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer

        return Normalizer(name, BasicTextNormalizer())
    return Normalizer(name, str)
