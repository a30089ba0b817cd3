"""Finds weights that hold NaN or infinity; the caller reports them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Those that hold NaN or infinity, by name; whole numbers and tensors without values (``meta``) never do."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and not is_finite(tensor):
            yield name, tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether every number of a tensor is finite."""
    # A sum is NaN or infinite if a term is, and takes one pass and no memory. It may overflow: then check all elements.
    return math.isfinite(tensor.detach().sum(dtype=torch.float32).item()) or bool(torch.isfinite(tensor).all())
