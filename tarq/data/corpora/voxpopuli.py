"""VoxPopuli's transcribed part, as its own preparation writes it: ``asr_<split>.tsv`` with one Ogg a segment.

``<root>/transcribed_data/<language>/`` holds ``asr_train.tsv``, ``asr_dev.tsv`` and ``asr_test.tsv`` with the
columns id, raw_text, normalized_text, speaker_id, split and gender (the hub's tables add is_gold_transcript and
accent), and the audio as ``<year>/<id>.ogg``, the year being the id's first four digits; the hub's archives,
unpacked beside the tables, hold ``<split>_part_<n>/<id>.wav``. The tables do not say the language; the folder's name
does (``en_accented`` is English).

The transcript is ``normalized_text`` (lower case, numerals written out), as in ESB and the Open ASR
Leaderboard; a segment without one is left out.
"""

from __future__ import annotations

from pathlib import Path

from tarq.data.corpora.layout import audio_exists, choose_part, first_file, header, read_table, stated_value
from tarq.data.hub import HubColumns
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance

LANGUAGES = ("cs", "de", "en", "es", "et", "fi", "fr", "hr", "hu", "it", "lt", "nl", "pl", "ro", "sk", "sl")
COLUMNS = ("id", "raw_text", "normalized_text", "speaker_id", "split", "gender")
_LEFT_OUT = "no normalized transcript (VoxPopuli)"


def transcript(text: str) -> str | None:
    """The transcript as written; None where it is blank."""
    return text.strip() or None


#: ``facebook/voxpopuli``: a configuration a language (en, de, …, en_accented); splits train, validation and test
#: (en_accented: test); columns audio_id, language, audio, raw_text, normalized_text, gender, speaker_id,
#: is_gold_transcript, accent.
HUB = HubColumns(
    "voxpopuli",
    needs=("audio_id", "normalized_text"),
    id="audio_id",
    text="normalized_text",
    speaker="speaker_id",
    transcript=transcript,
)


def _tables(source: Path) -> dict[str, Path]:
    files = [source] if source.is_file() else sorted(source.glob("asr_*.tsv"))
    found = [p for p in files if p.suffix == ".tsv" and {"id", "normalized_text"} <= set(header(p, "\t"))]
    return {p.stem.removeprefix("asr_"): p for p in found}


def is_voxpopuli(source: Path) -> bool:
    """Whether ``source`` is one of its tables or a language's folder."""
    return bool(_tables(source))


def load_voxpopuli(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The segments of one split, in the table's order.

    Raises:
        DataError: several tables and ``part`` names none, or too many rows are malformed or files missing.
    """
    path = choose_part(source, "a folder of VoxPopuli splits", _tables(source), part)
    split = path.stem.removeprefix("asr_")
    archives = sorted(
        {p.parent for pattern in ("", f"{split}/") for p in path.parent.glob(f"{pattern}{split}_part_*/*.wav")}
    )
    language = path.absolute().parent.name.partition("_")[0]
    stated = {"language": language} if language in LANGUAGES else {}
    utterances = []
    for where, row in read_table(path, "\t", COLUMNS, intake):
        name = row["id"]
        text = transcript(row["normalized_text"])
        if text is None:
            intake.left_out[_LEFT_OUT] += 1
            continue
        audio = first_file([path.parent / name[:4] / f"{name}.ogg", *(folder / f"{name}.wav" for folder in archives)])
        if audio_exists(audio, where, name, intake):
            extra = {key: value for key, value in row.items() if key not in ("id", "normalized_text", "speaker_id")}
            extra |= stated
            speaker = stated_value(row["speaker_id"], "None")
            utterances.append(Utterance(id=name, audio=audio, text=text, speaker=speaker, extra=extra))
    return utterances
