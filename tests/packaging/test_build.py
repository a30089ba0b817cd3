"""Building: what is said without a compiler, or without an extension, and what an extension says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from tarq.kernels import dispatch, extension

from tarq.terminal.doctor import NEEDED

ROOT = Path(__file__).parents[2]


def setup(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip


def test_without_a_compiler_the_build_says_what_to_do(tmp_path):
    done = setup(
        "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path, CXX="no-such-compiler -O2", TARQ_CUDA="0"
    )
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("tarq:"))
    assert "no C++ compiler (no-such-compiler)" in line
    assert "apt install g++" in line
    assert "TARQ_SKIP_EXTENSION=1" in line
    assert not list(tmp_path.iterdir())


def test_left_out_it_makes_a_package_that_says_what_is_slow(tmp_path):
    assert setup("build_py", "--build-lib", tmp_path, TARQ_SKIP_EXTENSION="1").returncode == 0
    # The finder of an editable installation would find the checkout's extension.
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'ditable' not in repr(f)]\n"
    code += "import torch; from tarq.kernels.gram import gram; gram(torch.ones(3, 2)); gram(torch.ones(3, 2))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.stderr.count("tarq::gram has no native kernel on cpu, where the slow reference runs instead") == 1
    assert "tarq was installed without it" in done.stderr
    assert "--no-binary tarq tarq" in done.stderr
    assert (tmp_path / "tarq" / "py.typed").is_file()


def test_an_extension_says_which_torch_it_was_built_with(tmp_path):
    path = tmp_path / "_C.abi3.so"
    path.write_bytes(b"\x7fELF" + bytes(5000) + extension.MARK + b"2.13.0+cu129\0more")
    assert extension.built_with(path) == "2.13.0+cu129"
    path.write_bytes(bytes(100))
    assert extension.built_with(path) is None


@pytest.mark.skipif(dispatch.EXTENSION_ERROR is not None, reason="the extension is not built")
@pytest.mark.parametrize(("version", "used"), [(torch.__version__, True), ("2.10.0", False), ("3.0.0+cu130", False)])
def test_an_extension_of_another_torch_is_not_loaded(monkeypatch, recwarn, version, used):
    monkeypatch.setattr(torch, "__version__", version)
    reason = extension.load()
    assert (reason is None) == used
    assert len(recwarn) == (not used)
    if reason:
        assert reason.endswith(f"and this is torch {version}")
        assert f"pip install 'torch=={extension.release(torch.version.__version__)}.*'" in str(recwarn[0].message)


def test_the_requirements_are_those_that_doctor_looks_for(tmp_path):
    done = setup("egg_info", "--egg-base", tmp_path, TARQ_SKIP_EXTENSION="1")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "tarq.egg-info" / "requires.txt").read_text().split("\n\n")[0].splitlines()
    required = {line.split(">")[0].split("=")[0] for line in lines}
    assert required == set(NEEDED)
    assert all(">=" in line for line in lines)


def test_the_projects_own_pins_cover_what_it_requires():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for name in ("dev", "docs"):
        wanted = {requirement.split("[")[0].split(">")[0] for requirement in extras[name]} - {"tarq"}
        assert wanted <= pinned, wanted - pinned
