"""What is installed, which backends run, what is missing and how to get it."""

from __future__ import annotations

import importlib
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import torch

from tarq.kernels import dispatch
from tarq.version import __version__

OPERATIONS = ("gram", "group_quantize", "w4_linear")
PACKAGES = ("torch", "transformers", "compressed-tensors", "jiwer", "wordfreq", "soundfile", "soxr")
#: Packages some do without, and how to get them.
OPTIONAL = {
    "triton": "only CUDA kernels need it: pip install triton",
    "datasets": "only corpora of the hub need it: pip install 'tarq[hub]'",
}

Check = tuple[str, bool, str]


def checks() -> list[Check]:
    """(what, whether it is there, detail or the mend), in reading order."""
    found: list[Check] = [
        ("tarq", True, f"{__version__}, Python {platform.python_version()}, {platform.machine()}"),
        *(_package(name) for name in (*PACKAGES, *OPTIONAL)),
        _extension(),
        ("instruction set", True, torch.backends.cpu.get_cpu_capability()),
        ("threads", True, f"{torch.get_num_threads()} (torch.set_num_threads or OMP_NUM_THREADS changes it)"),
        _gpu(),
        _compiler(),
    ]
    for name in OPERATIONS:
        importlib.import_module(f"tarq.kernels.{name}")  # declares the operator
        native = dispatch.has_native(name, "cpu")
        found.append((f"{name} on the CPU", True, "C++" if native else "PyTorch"))
        if torch.cuda.is_available():
            native = dispatch.has_native(name, "cuda")
            found.append((f"{name} on CUDA", True, "native" if native else "PyTorch"))
    return found


def _package(name: str) -> Check:
    try:
        return (name, True, version(name))
    except PackageNotFoundError:
        return (name, False, f"not installed; {OPTIONAL.get(name, f'tarq needs it: pip install {name}')}")


def _extension() -> Check:
    if dispatch.EXTENSION_ERROR is None:
        return ("compiled extension", True, "tarq._C")
    return (
        "compiled extension",
        False,
        f"{dispatch.EXTENSION_ERROR}; build it with: pip install --no-build-isolation -e .",
    )


def _gpu() -> Check:
    if torch.cuda.is_available():
        return ("GPU", True, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    why = "this torch is a CPU build" if torch.version.cuda is None else "torch sees none; check the driver"
    return ("GPU", False, f"{why}; everything runs on the CPU")


def _compiler() -> Check:
    found = [tool for tool in ("g++", "nvcc") if shutil.which(tool)]
    missing = [] if "g++" in found else ["a C++ compiler is needed to build the extension (apt install g++)"]
    return ("compilers", not missing, ", ".join(found + missing))
