"""Kaldi data folders: ``wav.scp``, and where they are there ``text``, ``segments``, ``utt2spk`` and ``utt2lang``.

A line is a name and its value, separated by white space::

    wav.scp    recording path/to/recording.wav
    segments   utterance recording 1.25 4.75
    text       utterance what is said
    utt2spk    utterance speaker

Paths are relative to the folder or to one of those above it (a recipe's). A ``wav.scp`` may hold commands
(``sph2pipe … |``): they are never run, but refused.
"""

from __future__ import annotations

from pathlib import Path

from tarq.data.corpora.layout import audio_exists, choose_part, first_file, number, read_text
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance
from tarq.errors import DataError

FILE_NAME = "wav.scp"


def _folders(source: Path) -> dict[str, Path]:
    if source.name == FILE_NAME and source.is_file():
        return {source.parent.name: source.parent}
    if (source / FILE_NAME).is_file():
        return {source.name: source}
    return {path.parent.name: path.parent for path in sorted(source.glob(f"*/{FILE_NAME}"))}


def is_kaldi(source: Path) -> bool:
    """Whether ``source`` is a data folder (or its ``wav.scp``), or a folder of such folders."""
    return bool(_folders(source))


def load_kaldi(source: Path, part: str | None, intake: Intake) -> list[Utterance]:
    """The utterances of one data folder, in the order of ``segments``, or of ``wav.scp`` without it.

    Raises:
        DataError: several folders and ``part`` names none, a file is not UTF-8, or too many lines are malformed, hold
            a command or name a missing file.
    """
    folder = choose_part(source, "a folder of Kaldi data folders", _folders(source), part)
    recordings = _recordings(folder, intake)
    texts, speakers, languages = (_table(folder / name) for name in ("text", "utt2spk", "utt2lang"))
    utterances = []
    for name, audio, start, end in _segments(folder, recordings, intake):
        utterances.append(
            Utterance(
                id=name,
                audio=audio,
                text=texts.get(name) if texts else None,
                speaker=speakers.get(name),
                extra={"language": languages[name]} if name in languages else {},
                start=start,
                end=end,
            )
        )
    return utterances


def _recordings(folder: Path, intake: Intake) -> dict[str, Path]:
    recordings: dict[str, Path] = {}
    for where, line in _lines(folder / FILE_NAME):
        name, _, path = line.partition(" ")
        path = path.strip()
        if path.endswith("|") or path.startswith("|"):
            error = f"{where}: {path[:60]!r} is a command, and commands are not run; convert its audio to files"
        elif not path:
            error = f"{where}: {name!r} has no path"
        elif ".ark:" in path:
            error = f"{where}: {path[:60]!r} is in an archive of Kaldi's; extract it (wav-copy)"
        else:
            audio = first_file([place / path for place in (folder, *folder.absolute().parents[:4])])
            if audio_exists(audio, where, name, intake):
                recordings[name] = audio
            continue
        intake.broken(name, DataError(error))
    return recordings


def _segments(folder: Path, recordings: dict[str, Path], intake: Intake) -> list[tuple[str, Path, float, float | None]]:
    path = folder / "segments"
    if not path.is_file():
        return [(name, audio, 0.0, None) for name, audio in recordings.items()]
    segments = []
    for where, line in _lines(path):
        fields = line.split()
        try:
            if len(fields) not in (4, 5):
                raise DataError(f"{where}: {len(fields)} values; give utterance, recording, start and end")
            name, recording, start = fields[0], fields[1], number(fields[2], "the start", where)
            end = None if fields[3] == "-1" else number(fields[3], "the end", where)
            if end is not None and end <= start:
                raise DataError(f"{where}: the segment ends at {end:g}, not after its start at {start:g}; correct it")
            if recording not in recordings:
                if recording in intake.bad:
                    continue
                raise DataError(f"{where}: recording {recording!r} is not in {FILE_NAME}; add it")
        except DataError as error:
            intake.broken(where, error)
            continue
        segments.append((name, recordings[recording], start, end))
    return segments


def _table(path: Path) -> dict[str, str]:
    """Name to value; nothing where the file is absent."""
    if not path.is_file():
        return {}
    return {line.split(maxsplit=1)[0]: line.partition(" ")[2].strip() for _, line in _lines(path)}


def _lines(path: Path) -> list[tuple[str, str]]:
    """Where each line is, and the line, with a space after its name."""
    lines = enumerate(read_text(path).split("\n"), 1)
    return [(f"{path}:{n}", " ".join(line.strip().split(maxsplit=1))) for n, line in lines if line.strip()]
