"""``tarq doctor``: what is installed, which backends run, what is missing and how to get it.

It guards every import of something that may be missing, since reporting that is its job.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from types import ModuleType

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tarq.files import write_json
from tarq.terminal.console import console
from tarq.terminal.options import JsonFile
from tarq.version import __version__

OPERATIONS = ("gram", "group_quantize", "w4_linear")
#: Operators whose kernels a run needs: those it calls, not only the ones that operations are named after.
OPERATORS = {"gram": ("gram", "gram_split"), "group_quantize": ("group_quantize",), "group_refine": ("group_refine",)}
#: Variables of the environment that change which code runs.
VARIABLES = ("TARQ_BACKEND", "TARQ_CPU_ISA", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
#: What tarq requires: distribution to the module it provides.
NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "compressed-tensors": "compressed_tensors",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "jiwer": "jiwer",
    "rapidfuzz": "rapidfuzz",
    "wordfreq": "wordfreq",
    "langcodes": "langcodes",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "typer": "typer",
    "rich": "rich",
}
#: What is optional: the module, what it is for, how to get it.
OPTIONAL = {
    "triton": ("triton", "only CUDA kernels need it: pip install triton"),
    "datasets": ("datasets", "only corpora of the hub need it: pip install 'tarq[hub]'"),
    "mistral-common": ("mistral_common", "only Voxtral needs it: pip install 'tarq[voxtral]'"),
    "matplotlib": ("matplotlib", "only tarq bench --plot needs it: pip install matplotlib"),
}


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        state: ``ok``; ``slow`` (it works, but slowly); ``absent`` (optional); ``missing`` (tarq requires it).
        detail: version, kind, or the fix.
    """

    name: str
    state: str
    detail: str

    @property
    def ok(self) -> bool:
        """Whether nothing needs to be done."""
        return self.state == "ok"


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(json_file: JsonFile = None) -> None:
    """Show what is installed, which backends run, and what is missing. Exit code 1 if tarq cannot run."""
    from tarq.terminal.tables import show_checks

    found = list(checks())
    if json_file:
        rows = [{"check": c.name, "ok": c.ok} | asdict(c) for c in found]
        write_json(json_file, [{k: v for k, v in row.items() if k != "name"} for row in rows])
    show_checks(console, found)
    if any(check.state == "missing" for check in found):
        raise typer.Exit(1)


def checks() -> Iterator[Check]:
    """Findings in reading order."""
    yield Check("tarq", "ok", f"{__version__}, Python {platform.python_version()}, {platform.machine()}")
    for name, module in NEEDED.items():
        yield _package(name, module, "missing", f"tarq needs it: pip install {name}")
    for name, (module, mend) in OPTIONAL.items():
        yield _package(name, module, "absent", mend)
    yield from _other_audio_formats()
    yield _compiler()
    try:
        torch = importlib.import_module("torch")
    except Exception:  # reported above; without it there are no operators either
        return
    yield Check("instruction set", "ok", torch.backends.cpu.get_cpu_capability())
    threads = f"{torch.get_num_threads()} (torch.set_num_threads or OMP_NUM_THREADS changes it)"
    yield Check("threads", "ok", threads)
    if set_here := [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]:
        yield Check("environment", "ok", ", ".join(set_here))
    yield _gpu(torch)
    yield from _operators(torch)


def _package(name: str, module: str, otherwise: str, mend: str) -> Check:
    try:
        importlib.import_module(module)
        found = version(name)
        if (wanted := _wanted(name)) and not wanted.contains(found, prereleases=True):
            mend = f"pip install '{name}{wanted}'"
            return Check(name, otherwise, f"{found} is installed, tarq needs {wanted}: {mend}")
        return Check(name, "ok", found)
    except ModuleNotFoundError as error:
        if error.name == module:
            return Check(name, otherwise, f"not installed; {mend}")
        return Check(name, otherwise, f"needs {error.name}, which is not installed: pip install {error.name}")
    except PackageNotFoundError:
        return Check(name, "ok", "version unknown")
    except Exception as error:  # a broken installation raises anything: a missing library, a wrong ABI
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return Check(name, otherwise, f"installed, but cannot be imported: {reason}")


@cache
def _requirements() -> dict[str, SpecifierSet]:
    """What this installation of tarq says it requires, by name; empty where it is not installed but on the path."""
    try:
        stated = [Requirement(text) for text in requires("tarq") or ()]
    except PackageNotFoundError:
        return {}
    return {r.name: r.specifier for r in stated if r.specifier}


def _wanted(name: str) -> SpecifierSet | None:
    return _requirements().get(name)


def _other_audio_formats() -> list[Check]:
    """What reads the formats that libsndfile does not: either will do, so one that is not there is not lacking."""
    mend = "m4a, mp4 and webm audio need it or ffmpeg: pip install torchcodec"
    found = [_package("torchcodec", "torchcodec", "absent", mend), _ffmpeg()]
    able = next((check.name for check in found if check.ok), None)
    covered = f"optional, and not needed: {able} reads m4a, mp4 and webm audio"
    return [check if check.ok or able is None else replace(check, state="ok", detail=covered) for check in found]


def _ffmpeg() -> Check:
    if not (path := shutil.which("ffmpeg")):
        return Check("ffmpeg", "absent", "m4a, mp4 and webm audio need it or torchcodec: apt install ffmpeg")
    try:
        printed = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check("ffmpeg", "absent", f"{path} does not run: {error}")
    return Check("ffmpeg", "ok", " ".join(printed.split()[:3]))


def _compiler() -> Check:
    found = [tool for tool in ("g++", "nvcc") if shutil.which(tool)]
    missing = [] if "g++" in found else ["a C++ compiler is needed to build the extension (apt install g++)"]
    return Check("compilers", "absent" if missing else "ok", ", ".join(found + missing))


def _gpu(torch: ModuleType) -> Check:
    if torch.cuda.is_available():
        return Check("GPU", "ok", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    why = "this torch is a CPU build" if torch.version.cuda is None else "torch finds no GPU; check the driver"
    return Check("GPU", "absent", f"{why}; everything runs on the CPU")


def _operators(torch: ModuleType) -> Iterator[Check]:
    """The compiled extension, and for each operation and device whether a native kernel runs or the slow reference."""
    try:
        dispatch = importlib.import_module("tarq.kernels.dispatch")
        for name in OPERATIONS:
            importlib.import_module(f"tarq.kernels.{name}")  # declares the operator
    except Exception as error:
        yield Check("operators", "missing", f"cannot be imported: {error}; reinstall tarq")
        return
    if dispatch.EXTENSION_ERROR is None:
        refused = torch.ops.tarq.cpu_isa_refusal()
        found = f"tarq._C, for {', '.join(torch.ops.tarq.cpu_isas())}"
        yield Check("compiled extension", "slow" if refused else "ok", f"{found}; {refused}" if refused else found)
    else:
        mend = f"build it with: {dispatch.extension.build_command()}"
        yield Check("compiled extension", "slow", f"not used: {dispatch.EXTENSION_ERROR}; {mend}")
    try:
        named = dispatch.choice(None)
    except Exception as error:  # an unknown name, which every operation will refuse
        yield Check("operators", "missing", f"{error}; unset TARQ_BACKEND")
        return
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        place = "the CPU" if device == "cpu" else "CUDA"
        for name, operators in OPERATORS.items():
            absent = next((operator for operator in operators if not dispatch.has_native(operator, device)), None)
            if named == "reference":
                yield Check(f"{name} on {place}", "slow", "the PyTorch reference: TARQ_BACKEND asks for it; unset it")
            elif absent is None:
                yield Check(f"{name} on {place}", "ok", "its own kernel")
            else:
                why = dispatch.reason(absent, device).removeprefix(": ") or "there is no kernel for it"
                yield Check(f"{name} on {place}", "slow", f"the PyTorch reference: {why}")
        yield _w4_linear(device, place, named)


def _w4_linear(device: str, place: str, named: str) -> Check:
    """The backend that 4-bit layers with groups of 128 get, by name or by preference; why the others cannot run."""
    backends = importlib.import_module("tarq.kernels.w4_linear.backends")
    triton_runtime = importlib.import_module("tarq.kernels.triton_runtime")
    torch = importlib.import_module("torch")
    capability = triton_runtime.chip(torch.device(device))[0] if device == "cuda" else None
    layers = backends.Config(device, 4, 128, 1024, 1024, capability=capability)
    found = backends.survey(layers)
    able = [entry for entry in found if entry[1] and named in (entry[0], "auto", "native")]
    able = [entry for entry in able if named != "native" or entry[0] != "reference"]
    if not able:
        return Check(f"w4_linear on {place}", "missing", f"TARQ_BACKEND={named} cannot run here; unset it")
    chosen, _, drawback = able[0]
    others = [f"{name} {why}" for name, able, why in found if not able]
    detail = "; ".join([f"{chosen}, {drawback}" if drawback else chosen, *others])
    return Check(f"w4_linear on {place}", "slow" if drawback else "ok", detail)
