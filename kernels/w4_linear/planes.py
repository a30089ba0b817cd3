"""Eight bits on the kernels of four: a code is ``16 · high + low``, so a product is two, of one plane each.

``(code − zero) · scale = 16 · (high − zero_high) · scale + (low − zero_low) · scale``: both planes are layers of 4 bits
with the layer's own scales. Weights are read once, as by a kernel of 8 bits; there is twice the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .backends import Backend, Config
from .packing import pack, pack_zeros, packed_words, unpack, unpack_zeros
from .weight import STORED, PackedWeight


class Planes(Backend):
    """Layers of 8 bits as two of 4 bits.

    Its layout: ``packed`` int32 [2, N, ceil(K / 8)], the high plane first; ``zeros`` int32 [2, ceil(N / 8), G], or
    None: 8 for the high plane and 0 for the low one.

    Args:
        four: the backend that multiplies a plane; it reads the layout ``stored``.
    """

    name = "planes"

    def __init__(self, four: Backend) -> None:
        self.four, self.device = four, four.device

    def can_run(self, config: Config) -> tuple[bool, str]:
        if config.bits != 8:
            return False, f"is for 8 bits, not for {config.bits}"
        if config.int8_activations:
            return False, "keeps the inputs of 8-bit layers exact"
        return self.four.can_run(config._replace(bits=4, symmetric=False))

    def prepack(self, weight: PackedWeight) -> PackedWeight:
        weight.check()
        zeros = None if weight.zeros is None else unpack_zeros(weight.zeros, 8, weight.out_features)
        return weight._replace(
            packed=_planes(unpack(weight.packed, 8, weight.in_features), pack),
            zeros=None if zeros is None else _planes(zeros, pack_zeros),
            layout=self.name,
        )

    def unprepack(self, weight: PackedWeight) -> PackedWeight:
        high, low = (unpack(plane, 4, weight.in_features) for plane in weight.packed)
        zeros = None
        if weight.zeros is not None:
            zero_high, zero_low = (unpack_zeros(plane, 4, len(high)) for plane in weight.zeros)
            zeros = pack_zeros(zero_high << 4 | zero_low, 8)
        return weight._replace(packed=pack(high << 4 | low, 8), zeros=zeros, layout=STORED)

    def run(self, x: Tensor, weight: PackedWeight) -> Tensor:
        plane = weight._replace(bias=None, bits=4, layout=STORED)
        zeros = (None, _zeros_of_0(*weight.scale.shape)) if weight.zeros is None else weight.zeros
        high, low = (plane._replace(packed=codes, zeros=z) for codes, z in zip(weight.packed, zeros, strict=True))
        # In float32: otherwise each product would be rounded before the sum.
        wide = x.to(torch.float32)
        y = self.four.run(wide, low).add_(self.four.run(wide, high), alpha=16)
        return (y if weight.bias is None else y.add_(weight.bias)).to(x.dtype)


def _planes(values: Tensor, packed: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The upper and the lower four bits of each value, packed."""
    return torch.stack([packed(values >> 4, 4), packed(values & 15, 4)])


@cache  # a few shapes a model
def _zeros_of_0(rows: int, groups: int) -> Tensor:
    return torch.zeros(packed_words(rows, 4), groups, dtype=torch.int32)
