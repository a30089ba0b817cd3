"""Which backend runs an operation, and why.

Every operation is a torch custom operator ``tarq::<name>``: its schema and fake implementation are
declared in Python (``kernels/<name>/op.py``), its CPU implementation is registered by the compiled
extension ``tarq._C``, its CUDA implementation by the extension or by ``op.py`` where Triton is there. On a
device for which an operator has no kernel the reference runs, and one warning says so and why.

``backend="reference"`` (argument) or ``TARQ_BACKEND=reference`` (environment) forces the reference.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch

BACKENDS = ("auto", "reference", "native")


def _load_extension() -> str | None:
    """Import ``tarq._C``, whose import registers the native kernels; return why it is missing, else None."""
    try:
        importlib.import_module("tarq._C")
    except ImportError as error:
        return str(error)
    return None


#: Why the compiled extension is not there (the import error's text), or None when it is.
EXTENSION_ERROR: str | None = _load_extension()

#: Operators whose CUDA kernels are Triton's, and those whose are the extension's; others have none.
TRITON, EXTENSION = ("gram", "gram_sides", "w4_linear"), ("group_quantize",)


def define(name: str, schema: str, reference: Callable, fake: Callable) -> None:
    """Declare operator ``tarq::name``; the reference serves every device that has no native kernel.

    Args:
        name: operator name without namespace.
        schema: torch schema from the opening parenthesis on, ``"(Tensor x) -> Tensor"``.
        reference: plain PyTorch implementation with the schema's signature.
        fake: shape and dtype propagation for ``torch.compile`` and meta tensors.
    """
    qualified = f"tarq::{name}"
    torch.library.define(qualified, schema)
    torch.library.register_fake(qualified, fake)
    # CompositeExplicitAutograd is the fallback of every device without a kernel of its own, so a
    # native CPU or CUDA registration wins over it and a missing one falls back to it.
    torch.library.impl(qualified, "CompositeExplicitAutograd", reference)


@cache  # as asking takes 25 µs; kernels are registered before an operator is first called
def has_native(name: str, device: str) -> bool:
    """Whether ``tarq::name`` has a kernel of its own on ``device`` (``"cpu"``, ``"cuda"``)."""
    key = torch._C._dispatch_key_for_device(device)
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"tarq::{name}", key)


def use_reference(backend: str | None, name: str, device: str) -> bool:
    """Resolve the ``backend`` argument (or ``TARQ_BACKEND``) of ``tarq::name`` on ``device``.

    Where there is no native kernel and none is asked for, the first call warns that the reference runs.

    Raises:
        ValueError: the backend is none of ``auto | reference | native``, or ``native`` is asked for and absent.
    """
    backend = backend or os.environ.get("TARQ_BACKEND") or "auto"
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return True
    # A traced call is left to the dispatcher, which finds the reference as well: the question cannot be traced.
    if torch.compiler.is_compiling() or has_native(name, device):
        return False
    if backend == "native":
        raise ValueError(f"backend 'native': tarq::{name} has no native kernel on {device}{_reason(name, device)}")
    _warn(name, device)
    return True


@cache
def _warn(name: str, device: str) -> None:
    warnings.warn(
        f"tarq::{name} has no native kernel on {device}, where the slow reference runs instead{_reason(name, device)}",
        RuntimeWarning,
        stacklevel=4,  # who called the operation
    )


def _reason(name: str, device: str) -> str:
    """Why there is no kernel and the mend, to end a sentence; nothing where there could not be one."""
    if device == "cuda" and name in TRITON:
        return "" if find_spec("triton") else ": Triton is not installed; pip install triton"
    if device != "cpu" and (device != "cuda" or name not in EXTENSION):
        return ""
    if EXTENSION_ERROR is None:
        return ": the compiled extension was built without CUDA"
    build = "pip install --no-build-isolation -e ."
    return f": the compiled extension is not available ({EXTENSION_ERROR}); build it with: {build}"
