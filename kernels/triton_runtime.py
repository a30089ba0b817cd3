"""Shared by the Triton kernels of all operations: chip properties, alignment for vector loads, compile signatures.

Nothing here imports Triton, which would take a second.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

#: Bytes of a vector load or store, to which its address must be aligned.
ALIGNMENT = 16

#: An H200's compute capability and number of SMs, assumed for interpreted kernels.
INTERPRETED = (9, 0), 132


def installed() -> bool:
    """Whether Triton can be imported; asks without importing it."""
    return find_spec("triton") is not None


@lru_cache(maxsize=64)
def chip(device: torch.device) -> tuple[tuple[int, int], int]:
    """Compute capability and number of SMs; those of :data:`INTERPRETED` on a CPU."""
    if device.type != "cuda":
        return INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Launch on the tensor's GPU within the block; costs nothing if that is the current one, as it usually is."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def aligned(tensor: Tensor) -> Tensor:
    """The tensor if it is contiguous and aligned for vector loads, otherwise such a copy."""
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def aligned_rows(x: Tensor, unit: int) -> Tensor:
    """A matrix whose rows vector loads can read: ``x`` itself, or a copy with zeros behind its columns.

    Copying reads and writes each value once. Unaligned loads would be slower every time a tile reads them.

    Args:
        x: [rows, columns], any strides.
        unit: elements that the width and the distance of two rows must be multiples of.
    """
    (rows, columns), (stride, step) = x.shape, x.stride()
    if step == 1 and columns % unit == 0 and stride % unit == 0 and x.data_ptr() % ALIGNMENT == 0:
        return x
    copy = x.new_zeros((rows, columns + -columns % unit))
    copy[:, :columns] = x
    return copy


def specialization(
    kernel: Any,
    types: Mapping[str, str | None],
    constants: Mapping[str, int],
    *,
    multiples: Collection[str] = (),
    unaligned: Collection[str] = (),
) -> tuple[dict[str, str], dict[tuple[int], int | None], dict[tuple[int], list]]:
    """The signature that Triton compiles a launch for, for ahead-of-time compilation.

    Args:
        kernel: a ``triton.JITFunction``.
        types: of its pointers (``"*fp16"``; None: not given) and of scalars other than ``i32``.
        constants: its constant arguments by name.
        multiples: integers that are multiples of 16.
        unaligned: pointers that may not be.

    Returns:
        signature, constexprs, attrs, as ``triton.compiler.ASTSource`` takes them.
    """
    names = list(kernel.arg_names)
    values: dict[str, int | None] = {**{name: None for name, kind in types.items() if kind is None}, **constants}
    signature = {name: "constexpr" if name in values else types.get(name) or "i32" for name in names}
    pointers = [name for name, kind in types.items() if kind and kind.startswith("*") and name not in unaligned]
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in (*pointers, *multiples)}
    return signature, {(names.index(name),): value for name, value in values.items()}, attrs
