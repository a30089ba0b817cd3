"""The case in which transcripts are given to a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tarq.models.base import Recognizer


def transcript_styles(recognizer: Recognizer, texts: Sequence[str]) -> dict[bool, str]:
    """The case in which to tokenize all-capitals transcripts (True) and others (False), for the kinds present:
    ``as written``, ``lower case`` or ``upper case``.

    Most recognizers never write in capitals throughout, as LibriSpeech's transcripts do, and a tokenizer with a single
    case drops or masks the other: the case in which most characters have tokens is chosen. A pool of several corpora
    can have both kinds. One or two words in capitals among other transcripts are an abbreviation.
    """
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for text in texts:
        if any(c.isalpha() for c in text):
            kinds[text.isupper()].append(text)
    if len(kinds[True]) < len(kinds[False]) and all(len(t.split()) < 3 for t in kinds[True]):
        kinds[True] = []

    def best(sample: Sequence[str], styles: Sequence[str]) -> str:
        return max(styles, key=lambda style: _survivors(recognizer, [_cased(text, style) for text in sample]))

    orders = {True: ("lower case", "upper case"), False: ("as written", "lower case", "upper case")}
    return {capitals: best(sample[:64], orders[capitals]) for capitals, sample in kinds.items() if sample}


def in_style(text: str, styles: Mapping[bool, str]) -> str:
    """A transcript in the case chosen by :func:`transcript_styles`."""
    return _cased(text, styles.get(text.isupper(), styles.get(False, "as written")))


def _cased(text: str, style: str) -> str:
    return {"lower case": text.lower(), "upper case": text.upper()}.get(style, text)


def _survivors(recognizer: Recognizer, texts: Sequence[str]) -> int:
    """Number of characters that the tokenizer has tokens for."""
    unknown = getattr(recognizer.tokenizer, "unk_token_id", None)
    count = 0
    for text in texts:
        kept = {c for i, span in zip(*recognizer.tokens(text), strict=True) if i != unknown for c in range(*span)}
        count += sum(not text[c].isspace() for c in kept)
    return count
