"""Which backend runs an operation, and why.

Every operation is a torch custom operator ``tarq::<name>``: its schema and fake implementation are
declared in Python (``kernels/<name>/op.py``), its CPU implementation is registered by the compiled
extension ``tarq._C``, its CUDA implementation by the extension or, with Triton installed, by ``op.py``. On a
device for which an operator has no kernel the reference runs, and one warning says why.

``backend="reference"`` (argument) or ``TARQ_BACKEND=reference`` (environment) forces the reference. ``w4_linear`` has
several named backends (``kernels/w4_linear/backends.py``); the other operations ignore such a name.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch

from ..errors import TarqError
from . import extension

#: Names valid for every operation: the best available, plain PyTorch, anything but plain PyTorch.
BACKENDS = ("auto", "reference", "native")

#: Names of backends that registered themselves for one operation.
OWN_NAMES: list[str] = []

#: The environment variable that replaces the argument ``backend`` if it is not given.
VARIABLE = "TARQ_BACKEND"


class BackendError(TarqError):
    """A backend is unknown, or cannot run the operation."""


class BackendArgumentError(BackendError, ValueError):
    """A :class:`BackendError` for a backend named by an argument: a wrong call, hence also a ``ValueError``."""


def refused(text: str, argument: str | None) -> BackendError:
    """The error class for a backend named by an argument, or otherwise by the environment."""
    return BackendArgumentError(text) if argument else BackendError(text)


#: Why the compiled extension is missing or not used, or None.
EXTENSION_ERROR: str | None = extension.load()

#: Operators with CUDA kernels in Triton, and in the extension; others have none.
TRITON = ("gram", "gram_split", "group_refine", "w4_linear", "w4_linear_k_blocks")
EXTENSION = ("group_quantize",)


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


@cache  # cached: asking takes 25 µs, and kernels are registered before an operator is first called
def has_native(name: str, device: str) -> bool:
    """Whether ``tarq::name`` has a native kernel on ``device`` (``"cpu"``, ``"cuda"``)."""
    key = torch._C._dispatch_key_for_device(device)
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"tarq::{name}", key)


def choice(backend: str | None) -> str:
    """The requested backend: the argument, or else ``TARQ_BACKEND``, or else ``auto``.

    Raises:
        BackendError: it is unknown; the message names its source and the known ones.
    """
    named = backend or os.environ.get(VARIABLE) or "auto"
    choices = dict.fromkeys((*BACKENDS, *OWN_NAMES))
    if named not in choices:
        source = f"backend={named!r}" if backend else f"the environment variable {VARIABLE}={named}"
        raise refused(f"{source} is not a backend: choose one of {', '.join(choices)}", backend)
    return named


def use_reference(backend: str | None, name: str, device: str) -> bool:
    """Resolve the ``backend`` argument (or ``TARQ_BACKEND``) of ``tarq::name`` on ``device``.

    Without a native kernel, the first call warns that the reference runs, unless it was requested.

    Raises:
        BackendError: the backend is unknown, or ``native`` is requested and missing.
    """
    wanted = choice(backend)
    if wanted == "reference":
        return True
    # A traced call is left to the dispatcher, which also finds the reference: has_native() cannot be traced.
    if torch.compiler.is_compiling() or has_native(name, device):
        return False
    if wanted == "native":
        text = f"backend 'native': tarq::{name} has no native kernel on {device}{reason(name, device)}"
        raise refused(text, backend)
    warn_reference(name, device)
    return True


@cache
def warn_reference(name: str, device: str) -> None:
    """Warn, once per operator and device, that the reference runs instead of a kernel."""
    warnings.warn(
        f"tarq::{name} has no native kernel on {device}, where the slow reference runs instead{reason(name, device)}",
        RuntimeWarning,
        stacklevel=4,  # the caller of the operation
    )


def reason(name: str, device: str) -> str:
    """Why there is no kernel, and the fix, as the end of a sentence; empty if there cannot be one."""
    if device == "cuda" and name in TRITON:
        return "" if find_spec("triton") else ": Triton is not installed; pip install triton"
    if device != "cpu" and (device != "cuda" or name not in EXTENSION):
        return ""
    if EXTENSION_ERROR is None:
        return ": the compiled extension was built without CUDA"
    return f": the compiled extension is not available ({EXTENSION_ERROR}); build it with: {extension.build_command()}"
