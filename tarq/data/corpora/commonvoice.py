"""Common Voice as downloaded: ``<release>/<language>/<split>.tsv`` with MP3 clips in ``clips/``.

Splits are train, dev, test, validated, other and so on; columns client_id, path, sentence and more, which differ
from release to release (up_votes, down_votes, age, gender, accents, variant, locale, segment). Where the
release has ``clip_durations.tsv`` (columns clip, ``duration[ms]``), durations come from it.

Text conventions, those of ESB's preparation: a pair of quotation marks around the whole sentence is removed and
doubled ones within are single; everything else is as written.
"""

from __future__ import annotations

from pathlib import Path

from tarq.data.corpora.layout import audio_exists, choose_part, header, number, read_table, stated_value
from tarq.data.hub import HubColumns
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance
from tarq.errors import DataError

COLUMNS = ("client_id", "path", "sentence")
DURATIONS = ("clip", "duration[ms]")


def transcript(text: str) -> str:
    """A sentence by the conventions above."""
    text = text.strip()
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        text = text[1:-1]
    return text.replace('""', '"').strip()


#: ``fixie-ai/common_voice_17_0`` and other Parquet copies: a configuration a language; splits train, validation
#: and test; columns client_id, path, audio, sentence, up_votes, down_votes, age, gender, accent, locale, segment,
#: variant.
HUB = HubColumns(
    "common_voice",
    needs=("client_id", "path", "sentence"),
    id="path",
    text="sentence",
    speaker="client_id",
    languages=("locale",),
    transcript=transcript,
)


def _tables(source: Path) -> dict[str, Path]:
    files = [source] if source.is_file() else sorted(source.glob("*.tsv"))
    return {p.stem: p for p in files if p.suffix == ".tsv" and set(COLUMNS) <= set(header(p, "\t"))}


def is_commonvoice(source: Path) -> bool:
    """Whether ``source`` is one of its tables or a language's folder."""
    return bool(_tables(source))


def load_commonvoice(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The clips of one split, in the table's order.

    Raises:
        DataError: several tables and ``part`` names none, or too many rows are malformed or clips missing.
    """
    path = choose_part(source, "a folder of Common Voice splits", _tables(source), part)
    durations = _durations(path.parent / "clip_durations.tsv", intake)
    utterances = []
    for where, row in read_table(path, "\t", COLUMNS, intake):
        clip = row["path"]
        name = clip.removesuffix(".mp3")
        audio = path.parent / "clips" / (clip if "." in clip else f"{clip}.mp3")  # the first releases leave .mp3 out
        if audio_exists(audio, where, name, intake):
            utterances.append(
                Utterance(
                    id=name,
                    audio=audio,
                    text=transcript(row["sentence"]),
                    duration=durations.get(clip),
                    speaker=stated_value(row["client_id"]),
                    extra={key: value for key, value in row.items() if key not in COLUMNS}
                    | ({"language": row["locale"]} if row.get("locale") else {}),
                )
            )
    return utterances


def _durations(path: Path, intake: Intake) -> dict[str, float]:
    """Clip to seconds; nothing where the release has no such table."""
    if not path.is_file():
        return {}
    durations = {}
    for where, row in read_table(path, "\t", DURATIONS, intake):
        try:
            durations[row["clip"]] = number(row["duration[ms]"], "duration[ms]", where) / 1000
        except DataError as error:
            intake.broken(where, error)
    return durations
