"""Lists of words and names to protect: their positions are in the tail whatever their frequency.

What a clinic or a call centre must not get wrong is a list: products, places, names of its staff. Some of these words
are rare, others are not, and a threshold of frequency cannot tell which matter.

An entry is matched by its words as the run's normaliser splits them, one after another, so that ``Mr. Okonkwo`` is
found in "mister okonkwo"; case and punctuation do not matter. Inflected forms are entries of their own. An entry with
characters of a script that is written without spaces (Han, kana, Thai, Lao, Tibetan, Burmese, Khmer) is matched
as a run of characters, wherever words begin.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tarq.errors import DataError
from tarq.files import expanded
from tarq.words.frequencies import look_up_form
from tarq.words.normalize import Normalizer
from tarq.words.rarity import Span, located_words

#: Scripts without spaces: Thai, Lao, Tibetan; Burmese; Khmer; kana; Han.
_SPACELESS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
#: From here to the end of the line nothing is read: "# …" at its start, or after white space.
_COMMENT = re.compile(r"^\s*#.*$|\s#\s.*$")
_LINE_END = re.compile(r"\r\n|[\r\n]")


@dataclass(frozen=True)
class ProtectedList:
    """Words and names to protect, as they were given.

    Attributes:
        file: its name, without folders; empty where they were not read from a file.
        sha256: of its content, or of the entries one a line.
        entries: each once, in order.
    """

    file: str
    sha256: str
    entries: tuple[str, ...] = field(repr=False)


def protected_list(given: str | Sequence[str]) -> ProtectedList:
    """The list at a path, or of the entries themselves.

    Raises:
        DataError: the file is not usable, or there is no entry.
    """
    if isinstance(given, str):
        return load_protected(given)
    entries = tuple(dict.fromkeys(" ".join(entry.split()) for entry in given))
    if not entries:
        raise DataError("protect is an empty list: give the words and names to protect, or leave it out")
    return ProtectedList("", hashlib.sha256("\n".join(entries).encode()).hexdigest(), entries)


def load_protected(path: str | Path) -> ProtectedList:
    """Words and names to protect from a text file: one word, or one name of several words, per line.

    Blank lines, lines that begin with # and what follows " # " are left out. The text is UTF-8, or UTF-16 with its
    byte-order mark.

    Raises:
        DataError: the file is missing, of another encoding, a table, or empty; names file and line.
    """
    try:
        data = expanded(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: no list of words there ({error.strerror}); give a text file with one word or name a line"
        ) from error
    name = Path(path).name
    entries: dict[str, None] = {}
    for number, line in enumerate(_LINE_END.split(_decoded(name, data)), 1):
        if "\t" in line.strip():
            raise DataError(
                f"{name}:{number}: {line.strip()!r:.60} has a tab: write one word or name a line, without counts"
            )
        if strange := next((c for c in line if ord(c) < 32 and c not in "\t\f\v"), None):
            raise DataError(f"{name}:{number}: {strange!r} in it: this is no text file; give one in UTF-8")
        if entry := " ".join(_COMMENT.sub("", line).split()):
            entries[entry] = None
    if not entries:
        raise DataError(f"{name}: it has no entries; write one word or name a line")
    return ProtectedList(name, hashlib.sha256(data).hexdigest(), tuple(entries))


def _decoded(name: str, data: bytes) -> str:
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 if wide else len(re.split(rb"\r\n|[\r\n]", data[: error.start]))
        raise DataError(
            f"{name}:{line}: not {'UTF-16' if wide else 'UTF-8'} ({error.reason}); save it as UTF-8, for example with: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {name}"
        ) from error


class Protected:
    """Where the entries of a list are in transcripts.

    Args:
        given: the list.
        normalizer: of the transcripts.

    Attributes:
        lost: entries of which the normaliser leaves no word; they are found nowhere.
    """

    def __init__(self, given: ProtectedList, normalizer: Normalizer) -> None:
        self.given, self.normalizer = given, normalizer
        self._sequences: dict[tuple[str, ...], str] = {}
        self._runs: dict[str, str] = {}
        self.lost: list[str] = []
        for entry in given.entries:
            words = tuple(form for word in normalizer.words(entry) if (form := look_up_form(word)))
            if not words:
                self.lost.append(entry)
            elif _SPACELESS.search(entry):
                self._runs.setdefault("".join(words), entry)
            else:
                self._sequences.setdefault(words, entry)
        self._lengths = sorted({len(words) for words in self._sequences})
        self._cluster = lru_cache(maxsize=None)(lambda text: "".join(map(look_up_form, normalizer.words(text))))

    @property
    def entries(self) -> list[str]:
        """Those that can be found: of several that the normaliser makes alike the first."""
        return [*self._sequences.values(), *self._runs.values()]

    def marks(self, words: Sequence[str]) -> list[bool]:
        """Which of a transcript's normalised words belong to an entry."""
        found = [False] * len(words)
        for _, first, last in self._matches(words):
            found[first:last] = [True] * (last - first)
        return found

    def counts(self, text: str) -> Counter[str]:
        """Entry to how often it occurs in a transcript; those that do not are absent."""
        return Counter(entry for entry, _, _ in self._matches(self.normalizer.words(text)))

    def spans(self, text: str) -> list[Span]:
        """Character spans of the entries in a transcript as it is written; of the words that each is part of."""

        def belongs(words: Sequence[str]) -> list[float]:
            return [0.0 if found else 1.0 for found in self._sequence_marks(words)]

        spans = [span for span, apart in located_words(text, self.normalizer, belongs) if apart == 0.0]
        if self._runs:
            clusters = _clusters(text)
            forms = [self._cluster(text[start:end]) for start, end in clusters]
            spans += [(clusters[i][0], clusters[j - 1][1]) for _, i, j in self._run_matches(forms)]
        return spans

    def _sequence_marks(self, words: Sequence[str]) -> list[bool]:
        found = [False] * len(words)
        for _, first, last in self._sequence_matches(words):
            found[first:last] = [True] * (last - first)
        return found

    def _matches(self, words: Sequence[str]) -> Iterator[tuple[str, int, int]]:
        """Entry, first and one past the last of its words."""
        yield from self._sequence_matches(words)
        if self._runs:
            yield from self._run_matches([look_up_form(word) for word in words])

    def _sequence_matches(self, words: Sequence[str]) -> Iterator[tuple[str, int, int]]:
        # A "word" without a letter or digit between two others does not part them.
        forms = [(form, place) for place, word in enumerate(words) if (form := look_up_form(word))]
        for first in range(len(forms)):
            for length in self._lengths:
                some = forms[first : first + length]
                entry = self._sequences.get(tuple(form for form, _ in some))
                if entry is not None and len(some) == length:
                    yield entry, some[0][1], some[-1][1] + 1

    def _run_matches(self, forms: Sequence[str]) -> Iterator[tuple[str, int, int]]:
        """Entry, and the pieces of text that its characters are in: the first, and one past the last."""
        owner = [piece for piece, form in enumerate(forms) for _ in form]
        text = "".join(forms)
        for run, entry in self._runs.items():
            start = text.find(run)
            while start >= 0:
                yield entry, owner[start], owner[start + len(run) - 1] + 1
                start = text.find(run, start + 1)


def _clusters(text: str) -> list[Span]:
    """Spans of a text's characters, each with the marks upon it, since marks alone are normalised otherwise."""
    starts = [i for i, character in enumerate(text) if not _is_mark(character)]
    ends = [*starts[1:], len(text)]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if not text[start].isspace()]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or character in "\uff9e\uff9f"  # those of halfwidth kana


def occurrences(protected: Sequence[tuple[Protected, str]]) -> dict[str, Any]:
    """What a report says of a list: where it is from, and how often each entry occurs in transcripts.

    Args:
        protected: at least one transcript, each with the matcher of its language; all of one list.

    Returns:
        ``file``, ``sha256``, ``entries`` (entry to how often it occurs) and ``unusable``: those of which no normaliser
        leaves a word.
    """
    given = protected[0][0].given
    found: Counter[str] = Counter()
    for matcher, text in protected:
        found.update(matcher.counts(text))
    usable = {entry for matcher, _ in protected for entry in matcher.entries}
    lost = [entry for entry in given.entries if all(entry in matcher.lost for matcher, _ in protected)]
    entries = {entry: found[entry] for entry in given.entries if entry in usable}
    return {"file": given.file, "sha256": given.sha256, "entries": entries, "unusable": lost}


def notes_on(found: Mapping[str, Any], where: str) -> list[str]:
    """Notes that name the entries that occur nowhere, and those that cannot.

    Args:
        found: of :func:`occurrences`.
        where: the speech that was looked through, and what follows.
    """
    name = found["file"] or "the protected words"
    absent = [entry for entry, times in found["entries"].items() if not times]
    notes = []
    if absent:
        notes.append(f"{len(absent)} of the {len(found['entries'])} entries of {name} {where}: {', '.join(absent)}")
    if found["unusable"]:
        notes.append(f"the normalizer leaves no word of these entries of {name}: {', '.join(found['unusable'])}")
    return notes
