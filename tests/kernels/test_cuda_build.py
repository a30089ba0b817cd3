"""Every CUDA source compiles for every architecture we name, and keeps its values in registers."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")


def compiler() -> str | None:
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    beside = (shutil.which("nvcc", path=f"{home}/bin") for home in homes if home)
    return shutil.which("nvcc") or next(filter(None, beside), None)


def spills(report: str) -> dict[str, int]:
    """Spilled bytes of every kernel in what ``ptxas -v`` printed."""
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads", report, re.S
    )
    return {name: int(stores) + int(loads) for name, stores, loads in found}


def test_spills_are_read_from_the_report():
    report = (
        "ptxas info    : Compiling entry function 'tidy' for 'sm_90'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Compiling entry function 'greedy' for 'sm_90'\n"
        "    32 bytes stack frame, 28 bytes spill stores, 24 bytes spill loads\n"
    )
    assert spills(report) == {"tidy": 0, "greedy": 52}


@pytest.mark.skipif(compiler() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
@pytest.mark.slow
def test_compiles_without_spills(source, architecture, tmp_path):
    nvcc = compiler()
    assert nvcc
    flags = ["-O3", "-std=c++17", "--use_fast_math", f"-arch={architecture}", "-Xptxas", "-v"]
    result = subprocess.run(
        [nvcc, *flags, "-I", str(ROOT / "csrc"), "-c", str(source), "-o", str(tmp_path / "kernel.o")],
        capture_output=True,
        text=True,
    )
    report = result.stdout + result.stderr
    if "Unsupported gpu architecture" in report or "is not defined for option 'gpu-architecture'" in report:
        pytest.skip(f"this nvcc does not know {architecture}")
    assert result.returncode == 0, report
    found = spills(report)
    assert found, f"ptxas reported no kernel:\n{report}"
    assert not any(found.values()), f"spilled bytes: {found}"
