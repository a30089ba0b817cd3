"""The lattice of a run: bits, groups and scales of the weights, and which layers are rounded to it."""

# ruff: noqa: RUF009 - option() is dataclasses.field() with what the field says of itself

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

if TYPE_CHECKING:
    import torch

    from tarq.kernels.scheme import Scheme

from tarq.option import CHECKPOINT, METHOD, Checked, option

ScaleRule = Literal["absmax", "minmax", "mse"]
ScaleDtype = Literal["auto", "float16", "bfloat16", "float32"]

#: Bits per weight that there are kernels or a reference for.
WIDTHS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Lattice(Checked):
    """What weights are rounded to, and which weights are.

    Attributes:
        bits: 2, 3, 4 or 8 bits per weight.
        bits_for: other bits by place, ``{"encoder": 8, "model.decoder.layers.0": 8, "*.fc2": 3}``: the name of a
            stage, or a pattern (``*``, ``?``, ``[…]``) that matches a layer or a module above it. Of several places
            that match a layer, the last counts.
        group_size: input features that share a scale; a layer it does not divide gets the largest of
            64, 32, 16, 8 that does, and the report says so.
        symmetric: zero point fixed at the middle code; False for an integer zero point per group.
        scale_rule: ``absmax``, ``minmax`` (paper eq. 1) or ``mse``; see :class:`tarq.kernels.scheme.Scheme`.
        scale_dtype: dtype scales are stored in; ``auto`` is the dtype the checkpoint was stored in.
        ignore: names of Linear layers to keep in full precision; a name matches the layer or everything below it.
    """

    bits: int = option(
        4,
        METHOD,
        "Bits per weight: 2, 3, 4 or 8; others by stage, block or layer as in encoder=8,decoder=4 or 4,'*.fc2'=8.",
        "int",
        choices=WIDTHS,
    )
    bits_for: dict[str, int] = option(
        dict,
        METHOD,
        "Bits per weight by stage, block or layer; the last that matches counts.",
        "widths",
        choices=WIDTHS,
    )
    group_size: int = option(128, METHOD, "Input features that share a scale.", "int", low=1, high=1 << 20)
    symmetric: bool = option(False, METHOD, "The zero point is the middle code, or an integer of each group.", "bool")
    scale_rule: ScaleRule = option(
        "mse", METHOD, "How a group's scale is chosen: absmax, minmax (paper eq. 1) or mse.", ScaleRule
    )
    scale_dtype: ScaleDtype = option(
        "auto",
        CHECKPOINT,
        "Dtype of the stored scales: auto (the checkpoint's), float16, bfloat16 or float32.",
        ScaleDtype,
    )
    ignore: tuple[str, ...] = option(
        (), CHECKPOINT, "Keep this layer or block in full precision (repeatable).", "names"
    )

    def scheme(self, group_size: int | None = None, bits: int | None = None) -> Scheme:
        """The scheme of a layer, given the group size and the bits it actually gets."""
        from tarq.kernels.scheme import Scheme

        return Scheme(bits or self.bits, group_size or self.group_size, self.symmetric, self.scale_rule)

    def with_scale_dtype(self, stored: torch.dtype) -> Self:
        """``auto`` replaced by the dtype the checkpoint was stored in."""
        if self.scale_dtype != "auto":
            return self
        name: Any = str(stored).removeprefix("torch.")
        return replace(self, scale_dtype=name if name in get_args(ScaleDtype) else "float32")
