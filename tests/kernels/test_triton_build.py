"""Every Triton kernel compiles for every architecture we name, keeps its values in registers and fits shared memory.

Run as a script with the name of an architecture it compiles for it and prints the figures as JSON; with "every"
behind it, it compiles all that a call can ask for, says what does not fit and fails with it ("make triton-build").
"""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

VARIANTS = Path(__file__).parents[2] / "benchmarks" / "triton_variants.py"

#: Compute capability and KiB of shared memory that one program may use: 8.6 and 8.9 take the tiles of 8.0 but have 99.
ARCHITECTURES = {"sm_80": ((8, 0), 99), "sm_90": ((9, 0), 227), "sm_100": ((10, 0), 227), "sm_120": ((12, 0), 99)}

#: The tensor-core instruction of each architecture.
DOT = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "sm_120": "mma.sync"}


def ptxas(architecture: str) -> Path | None:
    """The assembler that comes with Triton, or None where it does not."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        return None
    name = "ptxas-blackwell" if ARCHITECTURES[architecture][0] >= (10, 0) else "ptxas"
    path = Path(found.origin).parent / "backends" / "nvidia" / "bin" / name
    return path if path.is_file() else None


def figures(report: str) -> dict:
    """Registers, spilled bytes and serialized tensor-core instructions in what ``ptxas -v`` printed of one kernel."""
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = re.search(r"Used (\d+) registers", report)
    if spills is None or registers is None:
        raise ValueError(f"not a report of ptxas -v:\n{report}")
    return {
        "registers": int(registers[1]),
        "spilled": int(spills[1]) + int(spills[2]),
        "serialized": "wgmma.mma_async instructions are serialized" in report,
    }


def build(architecture: str, every: bool = False) -> list[dict]:
    """Compile a few variants of every tile, or all that there are; name, instructions and figures of each kernel."""
    capability, _ = ARCHITECTURES[architecture]
    variants = runpy.run_path(str(VARIANTS))
    chosen = {"variants": variants["ALL_VARIANTS"]} if every else {}
    results = []
    refine = variants["of_group_refine"]()
    for one in (*variants["of_gram"](capability), *refine, *variants["of_w4_linear"](capability, **chosen)):
        with redirect_stdout(StringIO()) as report:  # TRITON_DUMP_PTXAS_LOG has it printed
            compiled = variants["compiled"](one, capability)
        dots = sorted(set(re.findall(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync", compiled.asm["ptx"])))
        shared = compiled.metadata.shared
        results.append({"name": one.name, "shared": shared, "dots": dots, **figures(report.getvalue())})
    return results


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What :func:`build` says of each architecture that can be compiled for, from processes of their own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def report(architecture: str) -> list[dict]:
        # A kernel found in a cache would be reported on by no ptxas.
        cache = tmp_path_factory.mktemp(architecture)
        own = {"TRITON_CACHE_DIR": str(cache), "TRITON_DUMP_PTXAS_LOG": "1"}
        command = [sys.executable, "-P", __file__, architecture]
        result = subprocess.run(command, capture_output=True, text=True, env=environment | own)
        assert result.returncode == 0, result.stderr[-4000:]
        return json.loads(result.stdout)

    able = [architecture for architecture in ARCHITECTURES if ptxas(architecture)]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(able, pool.map(report, able), strict=True))


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    if ptxas(request.param) is None:
        pytest.skip("Triton or the assembler that comes with it is not installed")
    return request.param


def test_figures_are_read_from_the_report():
    report = (
        "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ...\n"
        "ptxas info    : Compiling entry function 'greedy' for 'sm_90a'\n"
        "    32 bytes stack frame, 28 bytes spill stores, 24 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers\n"
    )
    assert figures(report) == {"registers": 255, "spilled": 52, "serialized": True}
    tidy = report[report.index("\n") :].replace("28", "0").replace("24", "0").replace("255", "64")
    assert figures(tidy) == {"registers": 64, "spilled": 0, "serialized": False}
    with pytest.raises(ValueError, match="not a report"):
        figures("")


@pytest.mark.parametrize("trait", [{"spilled": 4}, {"shared": 100 * 1024}, {"serialized": True}])
def test_what_does_not_fit_is_found(trait):
    fits = {"name": "", "spilled": 0, "shared": 99 * 1024, "serialized": False}
    assert misfits("sm_80", [fits, fits | trait]) == [fits | trait]


@pytest.mark.slow
def test_every_kernel_fits_registers_and_shared_memory(built, architecture):
    assert built[architecture]
    assert not misfits(architecture, built[architecture])


@pytest.mark.slow
def test_gram_uses_the_tensor_cores(built, architecture):
    dots = {kernel["name"]: kernel["dots"] for kernel in built[architecture] if kernel["name"].startswith("gram_")}
    assert {f"gram_{dtype}_128{kind}" for dtype in ("bf16", "fp16") for kind in ("", "_routed", "_pair")} <= set(dots)
    assert set(map(tuple, dots.values())) == {(DOT[architecture],)}


@pytest.mark.slow
def test_w4_linear_uses_the_tensor_cores(built, architecture):
    """wgmma and tcgen05 for tiles of 64 rows and 16 tokens and more, mma.sync for those that they do not take."""
    dots = {kernel["name"]: kernel["dots"] for kernel in built[architecture] if kernel["name"].startswith("gem")}
    large = {name: found for name, found in dots.items() if re.match(r"gemm (64|128)x", name)}
    assert large
    assert set(map(tuple, large.values())) == {(DOT[architecture],)}
    assert all(found in (["mma.sync"], [DOT[architecture]]) for found in dots.values())


def misfits(architecture: str, kernels: list[dict]) -> list[dict]:
    """Those of :func:`build` that spill, want more shared memory than there is or have tensor cores wait."""
    limit = ARCHITECTURES[architecture][1] * 1024
    return [k for k in kernels if k["spilled"] or k["shared"] > limit or k["serialized"]]


def build_every(architecture: str) -> None:
    """Compile all that a call can ask for and say what does not fit.

    Raises:
        SystemExit: something does not.
    """
    kernels = build(architecture, every=True)
    bad = misfits(architecture, kernels)
    most = max(kernels, key=lambda kernel: kernel["registers"])
    print(f"{architecture}: {len(kernels)} kernels, {most['registers']} registers at most ({most['name']})")
    for kernel in bad:
        print(f"  {kernel}")
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    if sys.argv[2:] == ["every"]:
        build_every(sys.argv[1])
    else:
        print(json.dumps(build(sys.argv[1])))
