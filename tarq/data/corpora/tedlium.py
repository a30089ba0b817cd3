"""TED-LIUM 3 (and 1, 2) as released: ``<split>/stm/*.stm`` with ``<split>/sph/*.sph``, one of each a talk.

The splits lie under ``legacy/`` in the archive of OpenSLR, and are archives of their own on the hub
(``LIUM/tedlium``, ``TEDLIUM_release3/legacy/test.tar.gz``); talks converted to WAV or FLAC, in ``wav/`` or
beside the STM files, are accepted too. A line of an STM file is a segment of a talk::

    AimeeMullins_2009P 1 AimeeMullins_2009P 17.82 28.81 <o,f0,female> i 'd like to share with you …

Text conventions, those of Kaldi's and ESB's preparations: segments marked
``ignore_time_segment_in_scoring`` are left out; ``<unk>``, fillers and noises (``<sil>``, ``{NOISE}``,
``[NOISE]``) and pronunciation marks (``for(2)``) are removed, and so is a segment with nothing else; an
apostrophe joins the word before it (``it 's`` is ``it's``).
"""

from __future__ import annotations

import re
from pathlib import Path

from tarq.data.corpora.layout import audio_exists, choose_part, first_file, number, read_text
from tarq.data.hub import HubColumns
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance
from tarq.errors import DataError

_NOT_SCORED = re.compile(r"ignore[_ ]time[_ ]segment[_ ]in[_ ]scoring", re.IGNORECASE)
_MARKS = re.compile(r"<[^<>\s]*>|\{[^{}\s]*\}|\[[^\[\]\s]*\]|\(\d+\)")
_UTTERANCE_NAME = re.compile(r"\([^()\s]*\)\s*$")  # at the end of release 1's training lines
_LEFT_OUT = "marked as not to be scored, or nothing but noise (TED-LIUM)"


def transcript(text: str) -> str | None:
    """A segment's words by the conventions above; None where it is not to be scored."""
    if _NOT_SCORED.fullmatch(text.strip()):
        return None
    words = " ".join(_MARKS.sub(" ", _UTTERANCE_NAME.sub("", text)).split())
    return re.sub(r"\s+'", "'", words) or None


#: ``LIUM/tedlium`` itself is a loading script, which ``datasets`` no longer runs. Parquet copies:
#: ``distil-whisper/tedlium-dev-test`` (splits validation, test; columns audio, text, speaker_id, gender, file,
#: id) and the configuration tedlium of ``hf-audio/esb-datasets-test-only-sorted``.
HUB = HubColumns("tedlium", needs=("id", "text", "gender", "file"), speaker="speaker_id", transcript=transcript)


def is_tedlium(source: Path) -> bool:
    """Whether ``source`` holds STM files: a split, or a release with its splits."""
    return any(any(source.glob(pattern)) for pattern in ("*.stm", "stm/*.stm", "*/stm/*.stm", "legacy/*/stm/*.stm"))


def load_tedlium(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The segments of one split, talk by talk.

    Raises:
        DataError: ``source`` holds several splits and ``part`` names none, an STM line is malformed, or too many
            talks are missing.
    """
    split = source
    if not any(source.glob("*.stm")) and not any(source.glob("stm/*.stm")):
        folders = [p.parent.parent for p in (*source.glob("*/stm/*.stm"), *source.glob("legacy/*/stm/*.stm"))]
        split = choose_part(source, "a folder of TED-LIUM splits", {f.name: f for f in folders}, part)
    elif part is not None:
        choose_part(source, "", {}, part)
    utterances: list[Utterance] = []
    for path in sorted([*split.glob("*.stm"), *split.glob("stm/*.stm")]):
        utterances += _talk(split, path, intake)
    return utterances


def _segment(start: str, end: str, where: str) -> tuple[float, float]:
    seconds = number(start, "the start", where), number(end, "the end", where)
    if seconds[1] <= seconds[0]:
        raise DataError(
            f"{where}: the segment ends at {end}, not after its start at {start}; extract the archive again"
        )
    return seconds


def _talk(split: Path, path: Path, intake: Intake) -> list[Utterance]:
    utterances = []
    there: dict[str, Path | None] = {}  # a missing talk is one broken file, however many segments it has
    for place, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip() or line.startswith(";;"):
            continue
        where = f"{path}:{place}"
        fields = line.split(maxsplit=6)
        try:
            talk, _, speaker, start, end, label = fields[:6]
            seconds = _segment(start, end, f"{where}: not an STM line")
        except ValueError as error:
            intake.broken(where, DataError(f"{where}: not an STM line ({error}); extract the archive again"))
            continue
        except DataError as error:
            intake.broken(where, error)
            continue
        text = transcript(fields[6] if len(fields) > 6 else "")
        if text is None:
            intake.left_out[_LEFT_OUT] += 1
            continue
        if talk not in there:
            audio = first_file(
                [
                    split / folder / f"{talk}{suffix}"
                    for folder in ("sph", "wav", ".")
                    for suffix in (".sph", ".wav", ".flac")
                ]
            )
            there[talk] = audio if audio_exists(audio, where, talk, intake) else None
        audio_file = there[talk]
        if audio_file is not None:
            utterances.append(
                Utterance(
                    id=f"{talk}-{start}-{end}",
                    audio=audio_file,
                    text=text,
                    speaker=speaker,
                    extra={"label": label},
                    start=seconds[0],
                    end=seconds[1],
                )
            )
    return utterances
