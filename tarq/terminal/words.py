"""``tarq words``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tarq.config import TarqConfig
from tarq.errors import DataError
from tarq.files import expanded, write_json
from tarq.terminal.console import console, progress_console
from tarq.terminal.options import OUTPUT, JsonFile, configured, number
from tarq.words.settings import Words

if TYPE_CHECKING:
    from tarq.words.listing import ListedWord

#: Endings that mean a file, not a text, though there is no such file.
FILES = (".txt", ".jsonl", ".json", ".tsv", ".csv", ".parquet", ".arrow", ".md")


def register(app: typer.Typer) -> None:
    app.command()(words)


@configured(
    "language", "tail_threshold", "word_frequencies", "protect", "normalizer",
    language="Language of the text, unless the file states it: selects word frequencies.",
    protect="File of words and names, one a line, that are in the tail whatever their frequency.",
    normalizer="How a text is split into words: auto (by language), english, basic or none.",
)  # fmt: skip
def words(
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT",
            help="Files of text or transcripts, corpora, - for standard input, or the text itself in quotation marks.",
        ),
    ],
    *,
    chosen: dict,
    every: Annotated[bool, typer.Option("--all", rich_help_panel=OUTPUT, help="List common words too.")] = False,
    rows: Annotated[
        int,
        typer.Option(
            metavar="N",
            parser=number("int", 0, 10**9),
            rich_help_panel=OUTPUT,
            show_default=False,
            help="Words shown at most; 0 for all. Default: 40.",
        ),
    ] = 40,
    json_file: JsonFile = None,
) -> None:
    """Show which words of a text are rare and why: Zipf score, unknown word, numeral, protected."""
    config = TarqConfig(**chosen)
    with progress_console.status("reading"):
        from tarq.words.listing import list_words
        from tarq.words.protect import notes_on, occurrences
        from tarq.words.transcripts import Rarity

        settings = config.part(Words)
        settings.frequencies()
        rarity = Rarity(settings)
        read = [pair for text in texts for pair in _texts(text)]
        found = list_words(read, rarity)
        if not found:
            raise DataError("no words in it: give a text with some")
        matched = [(rarity.protected(language), text) for text, language in read]
        protected = occurrences([(m, text) for m, text in matched if m is not None]) if settings.protect else {}
        figures = _figures(found, rarity, protected)
        if json_file:
            write_json(json_file, figures | {"words": [asdict(word) for word in found if every or word.in_tail]})
    _show(found if every else [word for word in found if word.in_tail], figures, rows)
    if protected:
        from tarq.terminal.tables import note

        for text in notes_on(protected, "do not occur"):
            note(console, text)


def _texts(given: str) -> Iterator[tuple[str, str | None]]:
    """Texts, each with its language if that is stated."""
    from tarq.data.transcripts import read_transcripts

    if given == "-":
        yield from ((line, None) for line in sys.stdin.read().splitlines())
        return
    try:
        there = expanded(given).exists() or expanded(given.partition(":")[0]).exists()
    except OSError:  # too long for a name
        there = False
    if not (there or given.startswith("hub:")):
        if given.lower().endswith(FILES) or (" " not in given and "/" in given):
            raise DataError(f"{given}: no such file; give a file, or a text")
        yield given, None
        return
    yield from ((one.text, one.language) for one in read_transcripts(given, "text"))


def _figures(found: list[ListedWord], rarity: Any, protected: dict[str, Any]) -> dict[str, Any]:
    """Totals, and what rare means."""
    from tarq.words.frequencies import described

    settings = rarity.words
    languages = sorted({word.language for word in found})
    return {
        "languages": languages,
        "tail_threshold": settings.tail_threshold,
        "normalizer": ", ".join(dict.fromkeys(rarity.of_language(code)[0].name for code in languages)),
        "word_frequencies": {
            code: described(rarity.of_language(code)[1], settings.tail_threshold) for code in languages
        },
        "running_words": sum(word.count for word in found),
        "rare_words": sum(word.count for word in found if word.rare),
        "protected_words": sum(word.protected for word in found),
        "different_words": len(found),
        "different_rare_words": sum(word.rare for word in found),
        **({"protected": protected} if protected else {}),
    }


def _show(shown: list[ListedWord], figures: dict[str, Any], rows: int) -> None:
    from rich.markup import escape

    from tarq.terminal.tables import frequencies_text, table

    several = len(figures["languages"]) > 1
    listed = table("word", *(("language",) if several else ()), "times", "Zipf", "why")
    for word in shown[: rows or None]:
        score = f"{word.zipf:.2f}"
        language = (word.language,) if several else ()
        listed.add_row(escape(word.word), *language, str(word.count), score, ", ".join(word.reasons))
    if shown:
        console.print(listed)
    if 0 < rows < len(shown):
        console.print(f"… and {len(shown) - rows} more (--rows 0 shows all)", highlight=False)
    total, rare = figures["running_words"], figures["rare_words"]
    sources = ", ".join(dict.fromkeys(frequencies_text(known) for known in figures["word_frequencies"].values()))
    protected = f", {figures['protected_words']} protected" if "protected" in figures else ""
    console.print(
        f"{rare} of {total} words are rare ({rare / total:.1%}), {figures['different_rare_words']} different ones"
        f"{protected}. Rare: Zipf < {figures['tail_threshold']:g}, the base-10 logarithm of occurrences per billion "
        f"words; normalizer {escape(figures['normalizer'])}; word frequencies {escape(sources)}",
        highlight=False,
    )
