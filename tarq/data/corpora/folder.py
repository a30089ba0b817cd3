"""A plain folder of audio files, at any depth, each with its transcript in a text file beside it.

``talks/a.flac`` and ``talks/a.txt`` (or ``.lab``): the whole text file is the transcript, its lines joined. A file
without one has no transcript. Utterances are called by their path below the folder, less the suffix.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tarq.data.audio import EXTERNAL_SUFFIXES, SUFFIXES
from tarq.data.corpora.layout import choose_part, read_text
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance

TRANSCRIPTS = (".txt", ".normalized.txt", ".original.txt", ".lab")
#: Suffixes of other files beside audio.
_OTHER = (".txt", ".lab", ".md", ".json", ".jsonl", ".csv", ".tsv", ".html", ".pdf", ".py", ".sh", ".yaml", ".yml", "")


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in (*SUFFIXES, *EXTERNAL_SUFFIXES) and path.is_file()


def is_folder(source: Path) -> bool:
    """Whether ``source`` is a folder with an audio file somewhere in it."""
    return source.is_dir() and any(map(_is_audio, source.rglob("*")))


def load_folder(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The audio files below a folder, in the order of their paths.

    Raises:
        DataError: a transcript is not UTF-8.
    """
    if part is not None:
        choose_part(source, "", {}, part)
    utterances = []
    skipped: Counter[str] = Counter()
    for path in sorted(source.rglob("*")):
        if not _is_audio(path):
            skipped[path.suffix.lower()] += path.is_file() and path.suffix.lower() not in _OTHER
            continue
        texts = (path.with_suffix(ending) for ending in TRANSCRIPTS)
        beside = next((text for text in texts if text.is_file()), None)
        text = None if beside is None else " ".join(read_text(beside).split())
        utterances.append(Utterance(id=path.relative_to(source).with_suffix("").as_posix(), audio=path, text=text))
    if +skipped:
        found = ", ".join(f"{count} {ending}" for ending, count in (+skipped).most_common(5))
        intake.remark(f"{source}: files that are no audio by their names are not read: {found}")
    if not any(utterance.text is not None for utterance in utterances):
        intake.remark(
            f"{source}: no transcripts; they are looked for beside each audio file ({', '.join(TRANSCRIPTS)}) and in "
            "a table that names the audio files (metadata.csv, manifest.jsonl …)"
        )
    return utterances
