"""Loads the compiled extension ``tarq._C``, if it was built for the torch that is installed.

torch's C++ interface changes between its minor versions: an extension built for another one may fail to load, or load
and crash. So the file says which torch it was built with (``csrc/bindings/module.cpp``), and this is read before it is
loaded.
"""

from __future__ import annotations

import importlib
import mmap
import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch

NAME = "tarq._C"
#: What the file says of itself, a version behind it.
MARK = b"tarq._C built with torch "


def load() -> str | None:
    """Import ``tarq._C``, whose import registers the native kernels; return why that is not possible, else None.

    An extension of another torch is not loaded, and a warning says so at once.
    """
    try:
        found = find_spec(NAME)
        if found is None or found.origin is None:
            return "tarq was installed without it"
        built = built_with(Path(found.origin))
        if built is not None and release(built) != release(torch.__version__):
            reason = f"it was built for torch {release(built)}, and this is torch {torch.__version__}"
            warnings.warn(
                f"tarq's compiled extension is not used: {reason}. The slow PyTorch references run instead. Mend: "
                f"pip install 'torch=={release(built)}.*', or {build_command()}",
                RuntimeWarning,
                stacklevel=2,
            )
            return reason
        importlib.import_module(NAME)
    except ImportError as error:
        return str(error)
    return None


def built_with(path: Path) -> str | None:
    """The torch version that an extension says it was built with, None if it says nothing."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.find(MARK)
        text = b"" if found < 0 else content[found + len(MARK) : found + len(MARK) + 40]
    stated = re.match(rb"[0-9][\w.+]*", text)
    return stated.group().decode() if stated else None


def release(version: str) -> str:
    """``2.13`` of ``2.13.0+cpu``: what has to agree."""
    return ".".join(version.split(".")[:2])


def build_command() -> str:
    """How the extension is built for the torch that is installed: in a checkout, or from the package's sources."""
    if (Path(__file__).resolve().parents[1] / "setup.py").is_file():
        return "pip install --no-build-isolation -e ."
    return "pip install --no-build-isolation --no-deps --force-reinstall --no-binary tarq tarq"
