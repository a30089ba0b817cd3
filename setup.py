"""Build of the C++ (and, with an NVIDIA GPU and nvcc, CUDA) extension ``tarq._C``.

Everything declarative is in ``pyproject.toml``. What needs code is here: which packages there are
(``kernels/`` installs as ``tarq.kernels``), what the extension is built from, and the requirements, since an
extension runs only with the minor version of torch that it was built with.

Environment:
    TARQ_SKIP_EXTENSION=1  leave the extension out; the slow PyTorch references run instead, and say so
    TARQ_CUDA=0|1          leave the CUDA part out, or build it even where no GPU is visible (else fail)
    TARQ_SANITIZE=1        build with AddressSanitizer and UndefinedBehaviorSanitizer (`make sanitize`)
"""

import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
REQUIREMENTS = [
    "transformers>=5.17",
    "compressed-tensors>=0.20",
    "safetensors>=0.5",
    "numpy>=2.0",
    "jiwer>=4.0",
    "rapidfuzz>=3.9",
    "wordfreq>=3.1",
    "langcodes>=3",
    "soundfile>=0.13",
    "soxr>=0.5",
    "typer>=0.16",
    "rich>=13",
]


def packages() -> dict[str, str]:
    """Package name -> folder, with ``kernels`` and its subpackages placed under ``tarq``."""
    here = {name: name.replace(".", "/") for name in find_packages(include=["tarq", "tarq.*"])}
    kernels = {f"tarq.{name}": name.replace(".", "/") for name in find_packages(include=["kernels", "kernels.*"])}
    return here | kernels


def find_toolkit() -> None:
    """Point torch to a CUDA toolkit with headers: by itself it looks around the first nvcc, which may be a wrapper."""
    if os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    nvcc = shutil.which("nvcc")
    homes = [Path(nvcc).resolve().parents[1]] if nvcc else []
    for home in (*homes, Path("/usr/local/cuda")):
        if (home / "include" / "cuda_runtime.h").is_file():
            os.environ["CUDA_HOME"] = str(home)
            return


def with_cuda() -> bool:
    """Whether to build the CUDA part; says in one line why not."""
    find_toolkit()
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    wanted = os.environ.get("TARQ_CUDA")
    if wanted == "0":
        reason = "TARQ_CUDA=0"
    elif torch.version.cuda is None:
        reason = "this torch is a CPU build"
    elif CUDA_HOME is None:
        reason = "no nvcc found (set CUDA_HOME)"
    elif wanted != "1" and not torch.cuda.is_available():
        reason = "no NVIDIA GPU is visible (TARQ_CUDA=1 builds it all the same)"
    else:
        return True
    if wanted == "1":
        raise SystemExit(f"tarq: TARQ_CUDA=1 asks for the CUDA part, but {reason}")
    print(f"tarq: CUDA part left out: {reason}")
    return False


def files(pattern: str) -> list[str]:
    """Sources by pattern, relative to the root as setuptools wants them."""
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def extension() -> dict:
    """``setup()`` arguments that build ``tarq._C``, and what the result requires: without it any torch does."""
    if os.environ.get("TARQ_SKIP_EXTENSION") == "1":
        print("tarq: extension left out: TARQ_SKIP_EXTENSION=1")
        return {"install_requires": ["torch>=2.11", *REQUIREMENTS]}
    cuda = with_cuda()
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class Build(BuildExtension):
        """Refuses in one line where there is no compiler: of a build pip shows what it printed only if it fails."""

        def run(self) -> None:
            compiler = (os.environ.get("CXX") or "c++").split()[0]
            if shutil.which(compiler) is None:
                raise SystemExit(
                    f"tarq: there is no C++ compiler ({compiler}) to build the extension with: install one (apt "
                    "install g++), or leave the extension out with TARQ_SKIP_EXTENSION=1: tarq then runs on its "
                    "PyTorch references, which are slow"
                )
            in_place = self.inplace or getattr(self, "editable_mode", False)
            super().run()
            made = Path(self.get_ext_filename("tarq._C")).name
            if in_place and (ROOT / "tarq" / made).exists():
                for earlier in ROOT.glob("tarq/_C*.so"):  # under another name it would be loaded in place of this one
                    if earlier.name != made:
                        earlier.unlink()

    sources = files("csrc/cpu/**/*.cpp") + [f for f in files("csrc/bindings/*.cpp") if not f.endswith("_cuda.cpp")]
    # -g0: a third of the compile time. No -march: each instruction set is its own file, chosen at run time.
    cxx = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    link = ["-fopenmp"]
    if os.environ.get("TARQ_SANITIZE") == "1":
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        cxx += ["-O1", "-g1", "-fno-omit-frame-pointer", *sanitize]
        link += sanitize
    flags = {"cxx": cxx}
    kind = CppExtension
    if cuda:
        kind = CUDAExtension
        sources += files("csrc/cuda/*.cu") + files("csrc/bindings/*_cuda.cpp")
        flags["nvcc"] = ["-O3", "-std=c++17", "--use_fast_math", "-lineinfo"]
    include = [str(ROOT / "csrc")]
    # Of Python it needs its stable interface alone: one build serves every Python from 3.11 on.
    stable = {"py_limited_api": True}
    ext = kind("tarq._C", sources, include_dirs=include, extra_compile_args=flags, extra_link_args=link, **stable)
    release = ".".join(torch.__version__.split(".")[:2])
    requires = [f"torch=={release}.*", *REQUIREMENTS]
    return {
        "ext_modules": [ext],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
        "install_requires": requires,
    }


setup(packages=sorted(packages()), package_dir=packages(), **extension())
