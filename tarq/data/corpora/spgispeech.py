"""SPGISpeech as distributed: ``train.csv`` and ``val.csv``, separated by ``|``, with a tree of WAV files.

Columns ``wav_filename|wav_filesize|transcript``, for example
``13aa6c0669adb5544a0d62beef677189/12.wav|333164|Daniel, how do we think about …``; the audio is under
``<split>/`` or ``spgispeech/<split>/`` beside the table. The first part of a file's name is the earnings call.

Transcripts are fully formatted (capitals, punctuation, numerals) and kept as written.
"""

from __future__ import annotations

from pathlib import Path

from tarq.data.corpora.layout import audio_exists, choose_part, first_file, header, read_table
from tarq.data.hub import HubColumns
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance

COLUMNS = ("wav_filename", "wav_filesize", "transcript")

#: ``kensho/spgispeech`` (gated: accept its terms first): configurations S, M, L, dev and test; splits train,
#: validation and test; columns wav_filename, wav_filesize, audio, transcript.
HUB = HubColumns("spgispeech", needs=("wav_filename", "transcript"), id="wav_filename", text="transcript")


def _tables(source: Path) -> dict[str, Path]:
    files = [source] if source.is_file() else sorted(source.glob("*.csv"))
    return {p.stem: p for p in files if p.suffix == ".csv" and header(p, "|") == list(COLUMNS)}


def is_spgispeech(source: Path) -> bool:
    """Whether ``source`` is one of its tables or a folder with some."""
    return bool(_tables(source))


def load_spgispeech(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The utterances of one split, in the table's order.

    Raises:
        DataError: several tables and ``part`` names none, or too many rows are malformed or files missing.
    """
    path = choose_part(source, "a folder of SPGISpeech splits", _tables(source), part)
    utterances = []
    for where, row in read_table(path, "|", COLUMNS, intake):
        name = row["wav_filename"]
        audio = first_file([path.parent / path.stem / name, path.parent / "spgispeech" / path.stem / name])
        utterance = name.removesuffix(".wav")
        if audio_exists(audio, where, utterance, intake):
            call = {"call": name.split("/")[0]}
            utterances.append(Utterance(id=utterance, audio=audio, text=row["transcript"].strip(), extra=call))
    return utterances
