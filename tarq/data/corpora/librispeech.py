"""LibriSpeech, in its own folder layout: ``<subset>/<speaker>/<chapter>/*.trans.txt`` with FLAC files.

Files converted to another format are accepted too. Transcripts are in capitals without punctuation, and kept as
written.
"""

from __future__ import annotations

from pathlib import Path

from tarq.data.corpora.layout import audio_exists, choose_part, first_file, read_text
from tarq.data.hub import HubColumns
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance

#: ``openslr/librispeech_asr``: configurations clean (splits train.100, train.360, validation, test), other
#: (train.500, validation, test) and all; columns file, audio, text, speaker_id, chapter_id, id.
HUB = HubColumns("librispeech", needs=("id", "text", "chapter_id"), speaker="speaker_id")


def is_librispeech(source: Path) -> bool:
    """Whether ``source`` is one subset (``test-clean``) or a folder of subsets."""
    return any(source.glob("*/*/*.trans.txt")) or any(source.glob("*/*/*/*.trans.txt"))


def load_librispeech(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The utterances of one subset, sorted by speaker, chapter and number.

    Raises:
        DataError: ``source`` holds several subsets and ``part`` names none, a transcript file is not UTF-8, or
            too many utterances' audio is missing.
    """
    if not any(source.glob("*/*/*.trans.txt")):
        subsets = {path.parents[2].name: path.parents[2] for path in source.glob("*/*/*/*.trans.txt")}
        source = choose_part(source, "a folder of LibriSpeech subsets", subsets, part)
    elif part is not None:
        choose_part(source, "", {}, part)
    utterances = []
    for path in sorted(source.glob("*/*/*.trans.txt")):
        for number, line in enumerate(read_text(path).split("\n"), 1):
            name, _, text = line.strip().partition(" ")
            audio = first_file(
                [path.parent / f"{name}{suffix}" for suffix in (".flac", ".wav", ".ogg", ".opus", ".mp3")]
            )
            if name and audio_exists(audio, f"{path}:{number}", name, intake):
                utterances.append(Utterance(id=name, audio=audio, text=text.strip(), speaker=name.split("-")[0]))
    return utterances
