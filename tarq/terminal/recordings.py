"""The recordings that a command line names, and the files their transcripts go to, checked before any work."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tarq.errors import DataError, OutputError
from tarq.files import check_file, expanded

if TYPE_CHECKING:
    from tarq.data.audio import Encoded

#: The name of standard input on the command line, and of its transcript's file.
STANDARD_INPUT, STDIN = "-", "stdin"


@dataclass(frozen=True)
class Recording:
    """A recording that was named, or found in a folder.

    Attributes:
        name: as it is shown.
        file: where it lies.
        place: the path of its transcript within an output folder, without a suffix: subfolders are kept.
    """

    name: str
    file: Path | Encoded
    place: Path


def recordings(given: Sequence[str]) -> list[Recording]:
    """Files as given, files in folders and files that match a pattern in sorted order, standard input; each once.

    Raises:
        DataError: a folder holds no audio, nothing matches a pattern, or it is an address.
    """
    found: dict[str, Recording] = {}
    for name in given:
        for recording in _named(name):
            file = recording.file
            found.setdefault(os.path.realpath(file) if isinstance(file, Path) else STANDARD_INPUT, recording)
    return list(found.values())


def _named(name: str) -> Iterator[Recording]:
    from tarq.data.audio import EXTERNAL_SUFFIXES, SUFFIXES, Encoded
    from tarq.speech.transcription import audio_files

    suffixes = (*SUFFIXES, *EXTERNAL_SUFFIXES)
    path = expanded(name)
    if name == STANDARD_INPUT:
        yield Recording(name, Encoded("standard input", sys.stdin.buffer.read()), Path(STDIN))
    elif os.path.isdir(path):  # False too where it may not be looked at
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        if not files:
            raise DataError(f"{path}: no audio in this folder; audio is found by its suffix: {' '.join(suffixes)}")
        yield from (Recording(str(file), file, file.relative_to(path).with_suffix("")) for file in files)
    elif glob.has_magic(name) and not os.path.lexists(path):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise DataError(f"{name}: no file matches this pattern")
        for match in matches:
            yield from _named(match)
    else:
        audio_files(name)  # refuses an address
        yield Recording(name, path, Path(path.stem))


def output_files(
    named: Sequence[Recording], folder: Path, suffix: str, *, overwrite: bool, json_file: Path | None = None
) -> list[Path]:
    """The file that each recording's transcript goes to, in a folder that need not exist yet.

    Args:
        named: the recordings.
        folder: where to.
        suffix: of the files.
        overwrite: whether existing files may be replaced.
        json_file: what ``--json`` writes to.

    Raises:
        OutputError: two would be one file, one exists or cannot be written, or one is a recording itself.
    """
    folder = expanded(folder)
    files = [folder / recording.place.with_name(recording.place.name + suffix) for recording in named]
    taken = {} if json_file is None else {os.path.realpath(expanded(json_file)): "--json"}
    sources = {os.path.realpath(recording.file) for recording in named if isinstance(recording.file, Path)}
    for recording, file in zip(named, files, strict=True):
        place = os.path.realpath(file)
        if place in taken:
            raise OutputError(f"{file} would be written for both {taken[place]} and {recording.name}: rename one, or "
                              "transcribe them into folders of their own")  # fmt: skip
        if place in sources:
            raise OutputError(f"{file} is a recording itself: name another --output")
        taken[place] = recording.name
    if existing := [file for file in files if os.path.lexists(file)]:
        if not overwrite:
            more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
            raise OutputError(f"{existing[0]}{more} exists already: --overwrite replaces it, or name another --output")
        for file in existing:
            check_file(file)
    for parent in {file.parent for file in files}:
        check_file(_first_existing(parent) / files[0].name)
    return files


def _first_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder
