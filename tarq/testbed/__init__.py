"""The testbed: a small recognizer and its synthetic speech.

Its files are a package of their own, ``tarq_testbed``, so that tarq's wheel is small: ``pip install 'tarq[testbed]'``.
A checkout has them in ``testbed/``. ``benchmarks/testbed/`` has the recipe that made them, and their description.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tarq.data.manifests import load_manifest
from tarq.data.utterance import Utterance
from tarq.errors import DataError

#: Every packaged file with its SHA-256, in sha256sum's format.
CHECKSUMS = "SHA256SUMS"
#: The package that holds them.
PACKAGE = "tarq_testbed"


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
    """The folder the packaged files are in: in a checkout the one beside ``tarq/``, else the installed package.

    Raises:
        DataError: neither is there.
    """
    beside = Path(__file__).resolve().parents[2] / "testbed" / PACKAGE
    if (beside / CHECKSUMS).is_file():
        return beside
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise DataError("the testbed is not installed: pip install 'tarq[testbed]'")
    return Path(found.origin).parent


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
