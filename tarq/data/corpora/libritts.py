"""LibriTTS and LibriTTS-R: ``<subset>/<speaker>/<chapter>/<id>.wav`` with ``<id>.normalized.txt`` beside each.

The transcript is the normalized one (numerals written out, capitals and punctuation kept). Files without it (it has
some that were not aligned) are left out.
"""

from __future__ import annotations

from pathlib import Path

from tarq.data.corpora.layout import audio_exists, choose_part, first_file, read_text
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance

ENDING = ".normalized.txt"


def is_libritts(source: Path) -> bool:
    """Whether ``source`` is one subset or a folder of subsets."""
    return source.is_dir() and any(any(source.glob(f"{depth}*{ENDING}")) for depth in ("*/*/", "*/*/*/"))


def load_libritts(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The utterances of one subset, sorted by speaker, chapter and number.

    Raises:
        DataError: ``source`` holds several subsets and ``part`` names none, a transcript is not UTF-8, or too many
            files are missing.
    """
    if not any(source.glob(f"*/*/*{ENDING}")):
        subsets = {path.parents[2].name: path.parents[2] for path in source.glob(f"*/*/*/*{ENDING}")}
        source = choose_part(source, "a folder of LibriTTS subsets", subsets, part)
    elif part is not None:
        choose_part(source, "", {}, part)
    utterances = []
    for path in sorted(source.glob(f"*/*/*{ENDING}")):
        name = path.name.removesuffix(ENDING)
        audio = first_file([path.parent / f"{name}{suffix}" for suffix in (".wav", ".flac", ".ogg", ".opus", ".mp3")])
        if audio_exists(audio, str(path), name, intake):
            text = " ".join(read_text(path).split())
            utterances.append(Utterance(id=name, audio=audio, text=text, speaker=name.split("_")[0]))
    return utterances
