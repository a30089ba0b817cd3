"""A packed weight with its scales, zero points and bias as one value, which every ``w4_linear`` backend takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .packing import packed_words, repack

#: compressed-tensors' ``pack-quantized`` layout, that of checkpoints, from which every backend can convert.
STORED = "stored"

#: Dtypes of activations, scales and biases: for messages, and as values.
FLOATS = "float32, bfloat16 or float16", (torch.float32, torch.bfloat16, torch.float16)


class PackedWeight(NamedTuple):
    """W [N, K] and the bias of a linear layer: ``W = (code − zero) · scale``.

    Shapes are those of the layout :data:`STORED`; other layouts are described with their backends.

    - ``packed`` int32 [N, ceil(K · bits / 32)]: the code of input k is in bits ``bits·k …`` of its row
    - ``scale`` float16, bfloat16 or float32 [N, G] with G = ceil(K / group_size)
    - ``zeros`` int32 [ceil(N · bits / 32), G] packed along dimension 0, or None: zero point ``2**(bits−1)``
    - ``bias`` float [N] or None
    - ``in_features`` K
    - ``group_size``: consecutive inputs that share a scale; the last group may be shorter
    - ``bits``: 2, 3, 4 or 8
    - ``layout``: the name of the layout of the first three tensors
    """

    packed: Tensor
    scale: Tensor
    zeros: Tensor | None
    bias: Tensor | None
    in_features: int
    group_size: int
    bits: int = 4
    layout: str = STORED

    @property
    def out_features(self) -> int:
        """N, in every layout (in that of the Triton kernels ``packed`` has another dimension before it)."""
        return self.packed.shape[-2]

    def widened(self, bits: int) -> PackedWeight:
        """The same weights with codes of another width (:func:`~tarq.kernels.w4_linear.repack`); its own inverse.

        Raises:
            ValueError: the layout is not :data:`STORED`, or a code does not fit.
        """
        if bits == self.bits:
            return self
        if self.layout != STORED:
            raise ValueError(f"only the layout {STORED!r} can change its bits, not {self.layout!r}")
        packed, zeros = repack(self.packed, self.zeros, self.in_features, self.bits, bits)
        return self._replace(packed=packed, zeros=zeros, bits=bits)

    def check(self) -> None:
        """Check all tensors once: kernels would read out of bounds otherwise.

        Only :data:`STORED` is checked in full; backends derive their layouts from it.

        Raises:
            ValueError: sizes are not positive, or a tensor's shape, dtype or device does not fit; names it.
        """
        for name, value in (("in_features", self.in_features), ("group_size", self.group_size)):
            if value <= 0:
                raise ValueError(f"w4_linear: {name} must be positive, not {value}")
        if self.packed.dim() != 2:
            raise ValueError(f"w4_linear: weight_packed must have two dimensions, not shape {list(self.packed.shape)}")
        n, groups = self.packed.shape[0], -(-self.in_features // self.group_size)
        words = "int32", (torch.int32,)
        for name, tensor, shape, (wanted, dtypes) in (
            ("weight_packed", self.packed, (n, packed_words(self.in_features, self.bits)), words),
            ("weight_scale", self.scale, (n, groups), FLOATS),
            ("weight_zero_point", self.zeros, (packed_words(n, self.bits), groups), words),
            ("bias", self.bias, (n,), ("a float dtype", (*FLOATS[1], torch.float64))),
        ):
            if tensor is None:
                continue
            if tensor.dtype not in dtypes:
                raise ValueError(f"w4_linear: {name} must be {wanted}, not {tensor.dtype}")
            if tensor.device != self.packed.device:
                raise ValueError(
                    f"w4_linear: {name} is on {tensor.device} but weight_packed is on {self.packed.device}"
                )
            if tuple(tensor.shape) != shape:
                raise ValueError(f"w4_linear: {name} must have shape {list(shape)}, not {list(tensor.shape)}")


def check_input(x: Tensor, weight: PackedWeight) -> None:
    """Check the activations of a call: dtype, last dimension and device.

    Raises:
        RuntimeError: one of them does not fit; the message names it.
    """
    if x.dtype not in FLOATS[1]:
        raise RuntimeError(f"w4_linear: x must be {FLOATS[0]}, not {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != weight.in_features:
        raise RuntimeError(
            f"w4_linear: the last dimension of x must be in_features = {weight.in_features}, "
            f"but x has shape {list(x.shape)}"
        )
    if x.device != weight.packed.device:
        raise RuntimeError(f"w4_linear: x is on {x.device} but the weight on {weight.packed.device}; move one of them")
