"""Everything that needs an NVIDIA GPU: build the CUDA extension, test, tune, benchmark, report which bars are met.

    python3 benchmarks/gpu_check.py [build] [test] [tune] [bench] [--results FOLDER] [--quick]

By default all but `tune`; `build` always runs, and takes no time if nothing changed. It uses the interpreter that runs
it, which needs torch for CUDA, Triton, nvcc and a C++ compiler. Nothing is installed or downloaded: the package is
built to `build/gpu/lib` and found there. Peers that can be imported are measured, the others named.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu"
STAGES = ("build", "test", "tune", "bench")
NEEDED = (
    *("torch", "triton", "setuptools", "ninja", "pytest", "hypothesis", "typer", "rich", "matplotlib"),
    *("numpy", "tokenizers", "transformers"),  # which tests/conftest.py imports
)
PEERS = {"gemlite": "w4_linear"}
OPERATIONS = ("gram", "group_quantize", "w4_linear")

#: Test files that run entirely on the GPU; of the others only tests marked for one.
KERNEL_TESTS = ("tests/kernels/test_gram_triton.py", "tests/kernels/test_w4_linear_triton.py")
MARKED_TESTS = tuple(
    name
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
    if "mark.gpu" in path.read_text() and (name := str(path.relative_to(ROOT))) not in KERNEL_TESTS
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="stage")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--quick", action="store_true", help="benchmark small problems only")
    options = parser.parse_args()
    stages = options.stages or [stage for stage in STAGES if stage != "tune"]
    if not set(stages) <= set(STAGES):
        parser.error(f"stages are {', '.join(STAGES)}, not {' '.join(stages)}")

    device = device_name()
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(f"gpu-check: {sys.executable} lacks {', '.join(missing)}")
    options.results.mkdir(parents=True, exist_ok=True)
    print(f"gpu-check: {device}, {sys.executable}", flush=True)
    for name, operation in PEERS.items():
        if find_spec(name) is None:
            print(f"gpu-check: {name}, a peer of {operation}, is not installed and will not be measured")

    step("build", "setup.py", "-q", "build", "--build-base", str(BUILD), "--build-lib", str(BUILD / "lib"))
    pytest = ["-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    step("extension", *pytest, "--noconftest", "tests/kernels/test_cuda_extension.py")
    failed = []
    if "test" in stages:
        pytest += ["-n", "8"] if find_spec("xdist") else []
        failed += [] if step("kernel tests", *pytest, *KERNEL_TESTS, check=False) else ["kernel tests"]
        failed += [] if step("GPU tests", *pytest, "-m", "gpu", *MARKED_TESTS, check=False) else ["GPU tests"]
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    if "tune" in stages:
        step("tune", "-P", "benchmarks/tune_w4_linear.py", "--json", str(options.results / f"tune-{slug}.json"))
        step("build", "setup.py", "-q", "build", "--build-base", str(BUILD), "--build-lib", str(BUILD / "lib"))
    if "bench" in stages:
        quick = ["--quick"] if options.quick else []
        for operation in OPERATIONS:  # one after the other, so that results are kept if a later one fails
            stem = options.results / f"{operation}-{slug}"
            files = ["--json", f"{stem}.json", "--plot", f"{stem}.png"]
            arguments = ["-P", "-m", "tarq", "bench", operation, "--device", "cuda", *quick, *files]
            failed += [] if step(f"bench {operation}", *arguments, check=False) else [f"bench {operation}"]
            if Path(f"{stem}.json").is_file():
                step("bars", "-P", "benchmarks/bars.py", f"{stem}.json", check=False)
    if failed:
        sys.exit(f"gpu-check: failed: {', '.join(failed)}")
    print("gpu-check: done; results are in", options.results)


def device_name() -> str:
    """The GPU's name; ends the program if there is none or torch cannot use it."""
    import torch

    if torch.version.cuda is None:
        sys.exit(f"gpu-check: torch {torch.__version__} of {sys.executable} is a CPU build; PYTHON=… names another")
    if not torch.cuda.is_available():
        sys.exit("gpu-check: torch finds no NVIDIA GPU; check nvidia-smi and the driver")
    return torch.cuda.get_device_name()


def step(name: str, *arguments: str, check: bool = True) -> bool:
    """Run this interpreter on the built package; returns whether it succeeded (``check``: ends the program if not)."""
    environment = os.environ | {
        "TARQ_CUDA": "1",
        "TARQ_TEST_PACKAGE": str(BUILD / "lib"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(BUILD / "lib"), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": os.environ.get("COLUMNS", "200"),  # of the tables
    }
    environment.pop("TRITON_INTERPRET", None)
    if "TORCH_CUDA_ARCH_LIST" not in environment:
        import torch

        environment["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    print(f"gpu-check: {name}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment).returncode
    outcome = "ok" if code == 0 else f"exit {code}"
    print(f"gpu-check: {name}: {outcome}, {time.perf_counter() - start:.0f} s", flush=True)
    if code and check:
        sys.exit(f"gpu-check: {name} failed")
    return code == 0


if __name__ == "__main__":
    main()
