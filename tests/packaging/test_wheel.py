"""The wheel in a fresh environment without a compiler: what it holds, ``tarq demo``, what is said where it is slow.

``make wheel-check`` builds the wheels and names their folder in TARQ_WHEELS; what they require is installed by pip.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

WHEELS = os.environ.get("TARQ_WHEELS")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not WHEELS, reason="make wheel-check builds the wheels and runs this"),
]
#: What a user's program reads of tarq's types.
TYPED = """
import tarq
report = tarq.quantize(tarq.load("model"), "speech.jsonl", tarq.TarqConfig(bits=4))
name: str = report.layers[0].name
texts: list[str] = tarq.transcribe("model", ["a.wav"])
wrong: int = tarq.transcribe("model", ["a.wav"])
"""


def wheel(name: str) -> Path:
    (found,) = Path(str(WHEELS)).resolve().glob(f"{name}-*.whl")
    return found


class Environment:
    """A virtual environment with the wheel, and its programs alone on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=True)
        self.programs = folder / "venv" / "bin"

    def run(self, *command: str | Path, code: int = 0, **more: str) -> str:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CXX", "CC", "CUDA"))
        }
        environment = kept | {"PATH": str(self.programs), "OMP_NUM_THREADS": "1"} | more
        program, *rest = map(str, command)
        done = subprocess.run(
            [str(self.programs / program), *rest], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def python(self, code: str, **more: str) -> str:
        return self.run("python", "-c", code, **more)

    def doctor(self, **more: str) -> dict[str, dict[str, str]]:
        self.run("tarq", "doctor", "--json", "doctor.json", **more)
        return {check["check"]: check for check in json.loads((self.folder / "doctor.json").read_text())}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("fresh"))
    assert not any(shutil.which(tool, path=str(made.programs)) for tool in ("cc", "c++", "g++", "gcc", "clang", "nvcc"))
    made.run("pip", "install", "-q", "--no-cache-dir", wheel("tarq"), wheel("tarq_testbed"))
    return made


def test_the_wheel_is_small_and_whole():
    path = wheel("tarq")
    names = zipfile.ZipFile(path).namelist()
    assert path.stat().st_size < 3e6
    assert re.fullmatch(r"tarq-[\d.]+-cp311-abi3-\w+\.whl", path.name)
    assert [name for name in names if name.endswith(".so")] == ["tarq/_C.abi3.so"]
    assert {"tarq/py.typed", "tarq/reports/page.css", "tarq/kernels/w4_linear/regimes.json"} <= set(names)
    assert [name for name in names if "testbed" in name] == ["tarq/testbed/__init__.py"]
    assert not [name for name in names if not name.startswith(("tarq/", "tarq-"))]


def test_the_wheel_requires_the_torch_it_was_built_with(fresh):
    (metadata,) = (n for n in zipfile.ZipFile(wheel("tarq")).namelist() if n.endswith(".dist-info/METADATA"))
    fields = Parser().parsestr(zipfile.ZipFile(wheel("tarq")).read(metadata).decode())
    (torch,) = (line for line in fields.get_all("Requires-Dist", []) if re.match(r"torch\b", line))
    built = fresh.python(
        "from tarq.kernels import extension as e; from importlib.util import find_spec; from pathlib import Path\n"
        "print(e.built_with(Path(find_spec('tarq._C').origin)))"
    )
    assert torch == f"torch=={'.'.join(built.split('.')[:2])}.*"


def test_the_demo_runs_without_a_compiler(fresh):
    shown = fresh.run("tarq", "demo", "--quick", "--score", "24", "--samples", "8")
    assert "default W4" in shown
    assert "next, on your own model: tarq quantize" in shown
    assert "slow reference" not in shown
    assert fresh.run("python", "-m", "tarq", "--version").startswith("tarq ")


@pytest.mark.parametrize("instructions", ["avx2", None])
def test_every_operation_has_its_kernel(fresh, instructions):
    checks = fresh.doctor(**{"TARQ_CPU_ISA": instructions} if instructions else {})
    assert checks["compiled extension"]["state"] == "ok"
    for name in ("gram", "group_quantize", "group_refine"):
        assert checks[f"{name} on the CPU"]["detail"] == "its own kernel"


def test_another_torch_is_told_at_import_and_runs_on_the_references(fresh):
    code = (
        "import torch; torch.__version__ = '2.99.0+cpu'\nfrom tarq.kernels.gram import gram\n"
        "print(gram(torch.ones(3, 2)).tolist())"
    )
    shown = fresh.python(code)
    assert "[[3.0, 3.0], [3.0, 3.0]]" in shown
    assert re.search(r"extension is not used: it was built for torch 2\.\d+, and this is torch 2\.99\.0\+cpu", shown)
    assert "pip install --no-build-isolation --no-deps --force-reinstall --no-binary tarq tarq" in shown
    assert shown.count("RuntimeWarning") == 2  # at import, and at the operation


def test_a_users_program_is_checked_against_our_types(fresh):
    (fresh.folder / "program.py").write_text(TYPED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", fresh.programs / "python", "program.py"],
        cwd=fresh.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert re.findall(r"program.py:(\d+): error", done.stdout) == ["6"], done.stdout + done.stderr


def test_without_the_testbed_the_demo_says_how_to_get_it(fresh):
    fresh.run("pip", "uninstall", "-q", "-y", "tarq-testbed")
    shown = fresh.run("tarq", "demo", "--quick", code=1)
    assert "the testbed is not installed: pip install 'tarq[testbed]'" in " ".join(shown.split())
