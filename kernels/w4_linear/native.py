"""The backends of ``w4_linear`` that come with the package: C++ on a CPU, also for 8 bits, and Triton on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .. import dispatch, triton_runtime
from . import op  # noqa: F401 (declares the operators)
from .backends import Backend, Config, get, register
from .planes import Planes
from .triton import layout
from .weight import PackedWeight

_product = torch.ops.tarq.w4_linear.default
_product_int8 = torch.ops.tarq.w4_linear_int8.default
_product_k_blocks = torch.ops.tarq.w4_linear_k_blocks.default


def takes_int8(group_size: int, in_features: int) -> bool:
    """Whether the C++ kernels round activations group by group: 32, 64, a multiple of 128, or all inputs."""
    return group_size in (32, 64) or group_size % 128 == 0 or group_size >= in_features


class Cpp(Backend):
    """The compiled extension's kernels, for the best instruction set of the CPU. Codes take 4 bits each."""

    name, device = "cpp", "cpu"

    def can_run(self, config: Config) -> tuple[bool, str]:
        if not dispatch.has_native("w4_linear", "cpu"):
            return False, f"is missing{dispatch.reason('w4_linear', 'cpu')}"
        if config.bits > 4:
            return False, f"has no kernel for {config.bits} bits, only for 4 and fewer"
        if config.int8_activations and not takes_int8(config.group_size, config.in_features):
            return False, "rounds activations in groups of 32, 64, a multiple of 128, or of all inputs"
        return True, "" if config.group_size % 8 == 0 else "groups that are not a multiple of 8 are slow"

    def prepack(self, weight: PackedWeight) -> PackedWeight:
        weight.check()
        return weight.widened(4)

    def run(self, x: Tensor, weight: PackedWeight) -> Tensor:
        return _product(x, *weight[:6])

    def run_int8(self, x: Tensor, weight: PackedWeight) -> Tensor:
        return _product_int8(x, *weight[:6])


class Triton(Backend):
    """The Triton kernels, with their own weight layout (``triton/layout.py``). Codes take 4 bits each."""

    name, device = layout.K_BLOCKS, "cuda"

    def can_run(self, config: Config) -> tuple[bool, str]:
        if not triton_runtime.installed():
            return False, "is missing: Triton is not installed; pip install triton"
        if config.bits > 4:
            return False, f"has no kernel for {config.bits} bits, only for 4 and fewer"
        if config.int8_activations:
            return False, "has no kernel for int8 activations, which gain nothing on a GPU; leave them off"
        if config.capability is not None and config.capability < (8, 0):
            return True, "every call expands the weight, as the GPU's compute capability is {}.{}, below 8.0".format(
                *config.capability
            )
        if layout.groups_of(config.in_features, config.group_size) is None:
            return True, "every call expands the weight, as groups are not 32, 64, a multiple of 128 or all inputs"
        return True, ""

    def prepack(self, weight: PackedWeight) -> PackedWeight:
        weight.check()
        return layout.prepack(weight.widened(4))

    def unprepack(self, weight: PackedWeight) -> PackedWeight:
        return layout.unprepack(weight)

    def run(self, x: Tensor, weight: PackedWeight) -> Tensor:
        if torch.compiler.is_compiling() or type(x) is not Tensor or not x.is_cuda:
            return _product_k_blocks(x, *weight[:6])  # which can be traced
        return _launcher()(x, weight)  # bypasses the dispatcher, which takes as long as a small kernel


@cache
def _launcher() -> Callable[[Tensor, PackedWeight], Tensor]:
    from .triton.launch import w4_linear_triton  # Triton takes a second to import

    return w4_linear_triton


register(Triton())
register(Cpp())
register(Planes(get(Cpp.name)))
