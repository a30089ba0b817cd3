"""How frequent words are: ``wordfreq``'s lists, or the user's own counts from a file."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import langcodes
import wordfreq

from tarq.errors import DataError
from tarq.files import expanded
from tarq.words.normalize import bare, in_word

#: wordfreq can segment these languages; a normaliser that splits at white space cannot.
SPACELESS = ("zh", "ja")
_SEPARATOR = re.compile(r"[\t,; ]+")


@dataclass(frozen=True)
class WordFrequencies:
    """Zipf scores from a file.

    Attributes:
        file: its name, without folders.
        sha256: of its content.
        total: sum of its counts; None if it gives Zipf scores.
        scores: word, lower case, to Zipf score.
    """

    file: str
    sha256: str
    total: float | None = field(compare=False)
    scores: Mapping[str, float] = field(compare=False, repr=False)

    def zipf(self, word: str) -> float:
        """Zipf score of a word; 0.0 if the file lacks it. Case and punctuation around it do not matter."""
        return self.scores.get(look_up_form(word), 0.0)


#: Source of Zipf scores: a language of wordfreq, or a file.
Frequencies = str | WordFrequencies


def frequencies(language: str, file: str | None = None) -> Frequencies:
    """The word frequencies of a run: those of ``file`` or, without one, wordfreq's for ``language``.

    Raises:
        DataError: the file is not usable, or wordfreq has no list for the language.
    """
    if file is not None:
        return load_frequencies(file)
    wordfreq_zipf("a", language)
    return language


def described(given: Frequencies, threshold: float) -> dict[str, Any]:
    """Which frequencies a run used, for its report, so that it can be redone.

    Args:
        threshold: a word is rare below this Zipf score.

    Raises:
        DataError: the threshold is not finite, or wordfreq has no list for the language.
    """
    if not math.isfinite(threshold):
        raise DataError(
            f"the threshold of rare words (tail_threshold) is {threshold}: give a finite Zipf score, such as 3"
        )
    if isinstance(given, str):
        return {"wordfreq": known_language(given)}
    about: dict[str, Any] = {"file": given.file, "sha256": given.sha256, "words": len(given.scores)}
    if given.total is not None:
        about |= {"running_words": given.total}
        if (once := math.log10(1e9 / given.total)) >= threshold:
            about["note"] = (
                f"{given.file} counts {given.total:g} running words, so a word seen once has Zipf {once:.2f}: only "
                f"words it lacks are rare at Zipf < {threshold:g}"
            )
    return about


def wordfreq_zipf(word: str, language: str) -> float:
    """wordfreq's Zipf score of a word; 0.0 where it is not in the list.

    Raises:
        DataError: wordfreq has no list for the language or lacks the tokenizer it needs for it, or the language is
            written without spaces.
    """
    try:
        return wordfreq.zipf_frequency(word, known_language(language))
    except ModuleNotFoundError as error:
        raise DataError(
            f"word frequencies for language {language!r} need {error.name}: pip install 'wordfreq[cjk]'"
        ) from error


@cache
def known_language(language: str) -> str:
    """wordfreq's name for a language.

    Raises:
        DataError: wordfreq has no list for it, or it is written without spaces.
    """
    lists = sorted(wordfreq.available_languages())
    try:
        # wordfreq itself accepts distant matches: English for Swahili.
        found, _ = langcodes.closest_match(language, lists, max_distance=10)
    except langcodes.LanguageTagError:
        found = "und"
    if found == "und":
        choices = ", ".join(name for name in lists if name not in SPACELESS)
        raise DataError(
            f"no word frequencies for language {language!r}: choose one of {choices}, or give your own counts with "
            "--word-frequencies FILE"
        )
    if found in SPACELESS:
        raise DataError(
            f"language {language!r} is written without spaces, and rare words are delimited by spaces: give "
            "transcripts with spaces between the words, and their counts with --word-frequencies FILE"
        )
    return found


@cache
def load_frequencies(path: str | Path) -> WordFrequencies:
    """Word frequencies from a text file: one word and its count per line.

    They are separated by tab, comma, semicolon or spaces; lines that begin with # are comments, a first line
    ``word count`` is a header. With the header ``word zipf`` the numbers are Zipf scores themselves. Words are looked
    up as the run's normaliser writes them. A file is read once.

    Raises:
        DataError: the file is missing, not UTF-8, empty, or a line is malformed; names file and line.
    """
    try:
        data = expanded(path).read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: no word frequencies there ({error}); give a UTF-8 file of words and counts"
        ) from error
    return _parsed(Path(path).name, hashlib.sha256(data).hexdigest(), text)


def _parsed(name: str, digest: str, text: str) -> WordFrequencies:
    numbers: dict[str, float] = {}
    are_scores, first = False, True
    for place, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = _SEPARATOR.split(line.strip())
        heading = fields[-1].casefold() if first and len(fields) == 2 else ""
        first = False
        if heading in ("count", "counts", "frequency", "zipf"):
            are_scores = heading == "zipf"
            continue
        try:
            word, number = fields[0], float(fields[1])
        except (IndexError, ValueError):
            word, number = "", math.nan
        if len(fields) != 2 or not (math.isfinite(number) and number >= 0):
            raise DataError(
                f"{name}:{place}: {line.strip()!r} is not a word and its count; write them with a tab between"
            )
        if key := look_up_form(word):
            numbers[key] = max(numbers.get(key, 0.0), number) if are_scores else numbers.get(key, 0.0) + number
    total = sum(numbers.values())
    if not total:
        raise DataError(f"{name}: it has no words; give a file of words and counts")
    if are_scores:
        return WordFrequencies(name, digest, None, numbers)
    scores = {word: math.log10(count / total * 1e9) for word, count in numbers.items() if count}
    return WordFrequencies(name, digest, total, scores)


def look_up_form(word: str) -> str:
    """A word as lists are looked up: lower case, without surrounding punctuation; empty if nothing else is left."""
    characters = bare(unicodedata.normalize("NFC", word).casefold()).replace("’", "'")
    inside = [i for i, character in enumerate(characters) if in_word(character)]
    return characters[inside[0] : inside[-1] + 1] if inside else ""
