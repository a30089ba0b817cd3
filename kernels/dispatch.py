"""Which backend runs an operation, and why.

Every operation is a torch custom operator ``tarq::<name>``: its schema and fake implementation are
declared in Python (``kernels/<name>/op.py``), its CPU implementation is registered by the compiled
extension ``tarq._C``. Where the extension is missing, the reference is registered in its place and one
warning says so.

``backend="reference"`` (argument) or ``TARQ_BACKEND=reference`` (environment) forces the reference.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable

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

if EXTENSION_ERROR is not None:
    warnings.warn(
        f"tarq's compiled extension is not available ({EXTENSION_ERROR}); the slow reference backends run "
        "instead. Build it with: pip install --no-build-isolation -e .",
        RuntimeWarning,
        stacklevel=2,
    )


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


def has_native(name: str, device: str) -> bool:
    """Whether ``tarq::name`` has a kernel of its own on ``device`` (``"cpu"``, ``"cuda"``)."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"tarq::{name}", device.upper())


def use_reference(backend: str | None) -> bool:
    """Resolve the ``backend`` argument (or ``TARQ_BACKEND``) of an operation.

    Raises:
        ValueError: the name is none of ``auto | reference | native``, or ``native`` is asked for and absent.
    """
    backend = backend or os.environ.get("TARQ_BACKEND") or "auto"
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "native" and EXTENSION_ERROR is not None:
        raise ValueError(f"backend 'native' is not available: {EXTENSION_ERROR}")
    return backend == "reference"
