"""Backends of packed linear layers: they register themselves, and each layer is assigned one.

A backend declares which layers it runs (``can_run``), converts their weights to its layout once (``prepack``) and
multiplies (``run``). :func:`register` adds one of your own, which is preferred to those registered before.
``examples/own_backend.py`` does it in a few lines. The built-in ones are in ``native.py``.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import dispatch, triton_runtime
from .reference import w4_linear as reference
from .reference import w4_linear_int8 as int8_reference
from .weight import STORED, PackedWeight


class Config(NamedTuple):
    """All that decides which backend runs a layer.

    - ``device``: its type, ``cpu`` or ``cuda``
    - ``bits``, ``group_size``, ``in_features``, ``out_features``, ``symmetric``: of the weight
    - ``int8_activations``: whether activations are rounded to 8 bits
    - ``capability``: compute capability of the GPU, if there is one
    """

    device: str
    bits: int
    group_size: int
    in_features: int
    out_features: int
    symmetric: bool = True
    int8_activations: bool = False
    capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, weight: PackedWeight, device: torch.device, int8_activations: bool = False) -> Config:
        """The configuration of a weight as stored, on a device."""
        here = device.type == "cuda" and torch.cuda.is_available()
        return cls(
            device=device.type,
            bits=weight.bits,
            group_size=weight.group_size,
            in_features=weight.in_features,
            out_features=weight.out_features,
            symmetric=weight.zeros is None,
            int8_activations=int8_activations,
            capability=triton_runtime.chip(device)[0] if here else None,
        )

    def __str__(self) -> str:
        rounded = " with int8 activations" if self.int8_activations else ""
        return f"{self.bits} bits in groups of {self.group_size}{rounded} on {self.device}"


class Backend:
    """One way to compute ``y = x · Wᵀ + bias``; subclass it, set ``name`` and define ``can_run`` and ``run``."""

    #: Its name in ``TARQ_BACKEND`` and the argument ``backend``, and of its own layout if it has one.
    name: str

    #: The only device type it runs on, or None for any.
    device: str | None = None

    def can_run(self, config: Config) -> tuple[bool, str]:
        """Whether it runs such layers; and why not, or if it does, why it is slow (empty if it is not).

        It is only called for its own device type.
        """
        raise NotImplementedError

    def prepack(self, weight: PackedWeight) -> PackedWeight:
        """The weight in the layout that :meth:`run` reads; called once, when a layer is loaded.

        Args:
            weight: in the layout ``stored``.

        Returns:
            The weight itself, or one whose ``layout`` is this backend's name.

        Raises:
            ValueError: the weight is invalid; :meth:`run` need not check it again.
        """
        weight.check()
        return weight

    def unprepack(self, weight: PackedWeight) -> PackedWeight:
        """Undo :meth:`prepack`, including any change of code width: back to the layout ``stored``."""
        return weight

    def run(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """``x`` [..., K] to [..., N] in its dtype, with a weight from :meth:`prepack`.

        The caller handles gradients and float64.

        Args:
            x: float32, bfloat16 or float16, any strides.

        Raises:
            RuntimeError: the dtype, last dimension or device of ``x`` does not fit.
        """
        raise NotImplementedError

    def run_int8(self, x: Tensor, weight: PackedWeight) -> Tensor:
        """:meth:`run` with activations rounded to 8 bits, for backends that can run such a configuration."""
        raise NotImplementedError


class Reference(Backend):
    """Plain PyTorch, for every device and bit width: the specification."""

    name = "reference"

    def can_run(self, config: Config) -> tuple[bool, str]:
        return True, "every call expands the weight"

    def run(self, x: Tensor, weight: PackedWeight) -> Tensor:
        return reference(x, weight)

    def run_int8(self, x: Tensor, weight: PackedWeight) -> Tensor:
        return int8_reference(x, weight)


_backends: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Add a backend. Of the backends that can run a layer, the one registered last is used.

    Raises:
        ValueError: its name is taken.
    """
    if backend.name in {*_backends, *dispatch.BACKENDS, STORED} - {Reference.name} or backend.name in _backends:
        raise ValueError(f"the name {backend.name!r} of a w4_linear backend is taken")
    _backends[backend.name] = backend
    dispatch.OWN_NAMES.append(backend.name)


def unregister(name: str) -> None:
    """Remove a backend; layers in its layout cannot run without it."""
    get(name)
    del _backends[name]
    dispatch.OWN_NAMES.remove(name)


def get(name: str) -> Backend:
    """The backend of this name.

    Raises:
        BackendError: there is none.
    """
    try:
        return _backends[name]
    except KeyError:
        raise dispatch.BackendError(
            f"no w4_linear backend is named {name!r} (there are {', '.join(_backends)}); import the module that "
            "registers it"
        ) from None


def as_stored(weight: PackedWeight) -> PackedWeight:
    """The weight in the checkpoint's layout, whatever its current one."""
    return weight if weight.layout == STORED else get(weight.layout).unprepack(weight)


def survey(config: Config) -> list[tuple[str, bool, str]]:
    """Every backend in order of preference: name, whether it runs such layers, and why not or why it is slow."""
    return [(backend.name, *can_run_config(backend, config)) for backend in reversed(_backends.values())]


def can_run_config(backend: Backend, config: Config) -> tuple[bool, str]:
    """``can_run`` of a backend, including the check of the device."""
    if backend.device not in (None, config.device):
        return False, f"runs on {backend.device}"
    return backend.can_run(config)


def select(config: Config, name: str | None = None) -> tuple[Backend, str]:
    """The backend that runs such layers, and why it is slow if it is, with one warning unless it was requested.

    Args:
        config: of the layers.
        name: ``auto``, ``native`` (any but the reference) or a backend's name; by default that of ``TARQ_BACKEND``.

    Raises:
        BackendError: the name is unknown, or that backend cannot run them; the message says why.
    """
    wanted = dispatch.choice(name)
    found = survey(config)
    if wanted == "native":
        found = [entry for entry in found if entry[0] != Reference.name]
    elif wanted != "auto":
        found = [entry for entry in found if entry[0] == wanted]
    chosen = next((entry for entry in found if entry[1]), None)
    reasons = [f"{other} {reason}" for other, able, reason in found if not able]
    if chosen is None:
        raise dispatch.refused(f"backend {wanted!r} cannot run {config}: {'; '.join(reasons)}", name)
    remark = chosen[2]
    if wanted == "auto" and remark:
        if chosen[0] == Reference.name:
            here = [
                f"{other} {reason}" for other, able, reason in found if not able and get(other).device == config.device
            ]
            remark = "; ".join([f"the slow reference runs them, and {remark}", *here])
        if not dispatch.has_native("w4_linear", config.device):
            dispatch.warn_reference("w4_linear", config.device)
        else:
            _warn(f"w4_linear layers of {config}: {remark}")
    return _backends[chosen[0]], remark


@cache
def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


register(Reference())
