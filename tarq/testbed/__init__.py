"""The testbed that comes with the package: a small recognizer and its synthetic speech.

``benchmarks/testbed/`` has the recipe that made it, and its description.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

from tarq.data.manifests import load_manifest
from tarq.data.utterance import Utterance
from tarq.errors import DataError

#: Every packaged file with its SHA-256, in sha256sum's format.
CHECKSUMS = "SHA256SUMS"


def model() -> Path:
    """Folder of the full-precision recognizer: Whisper's architecture, float16.

    Raises:
        DataError: a packaged file is missing or damaged.
    """
    return _verified(root(), "model")


def calibration_pool() -> list[Utterance]:
    """The calibration pool.

    Raises:
        DataError: a packaged file is missing or damaged.
    """
    return load_manifest(_verified(root(), "calibration"))


def test_set() -> list[Utterance]:
    """The test set; ``extra["voices"]`` says whether the voice was in the training data: "seen" or "unseen".

    Raises:
        DataError: a packaged file is missing or damaged.
    """
    return load_manifest(_verified(root(), "test"))


def root() -> Path:
    """The folder the packaged files are in."""
    return Path(str(files(__name__)))


@cache
def _verified(folder: Path, part: str) -> Path:
    """A part's folder, after a check that its files are those packaged."""
    mend = "reinstall the package, or rebuild the testbed from a checkout: make testbed"
    if not (folder / CHECKSUMS).is_file():
        raise DataError(f"{folder / CHECKSUMS} is missing: the testbed was not installed; {mend}")
    rows = [line.split("  ", 1) for line in (folder / CHECKSUMS).read_text().splitlines()]
    listed = [(digest, name) for digest, name in rows if name.startswith(f"{part}/")]
    if not listed:
        raise DataError(f"{folder / CHECKSUMS} lists no file of {part}/; {mend}")
    for digest, name in listed:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; {mend}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise DataError(f"{path} is damaged: it is not the file that was packaged; {mend}")
    return folder / part
