"""What a walk will do to each layer, told from shapes alone, before any audio is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from tarq.config import Lattice
from tarq.errors import CalibrationError, ModelError
from tarq.linear import QuantLinear
from tarq.models.base import Recognizer
from tarq.walk.walk import _matches, choose_group_size


@dataclass(frozen=True)
class LayerPlan:
    """One matrix of the model.

    Attributes:
        name: qualified name in the model.
        stage: encoder, projector or decoder; empty outside the blocks.
        shape: (out, in) features.
        group_size: it will have; None where it stays in full precision.
        reason: why it stays, or why its group size is another than asked; empty otherwise.
        bytes_before: of its weight on disk.
        bytes_after: of its packed weight with scales, or as before.
        fits: False where the walk would have to stop at it.
    """

    name: str
    stage: str
    shape: tuple[int, ...]
    group_size: int | None
    reason: str
    bytes_before: int
    bytes_after: int
    fits: bool = True


def plan(recognizer: Recognizer, config: Lattice) -> list[LayerPlan]:
    """Every Linear of the blocks in order, then what lies outside them.

    Args:
        recognizer: only shapes are looked at; its weights may be on the meta device.
        config: group size, bits, symmetry, dtype of the scales, and which layers to leave alone.

    Raises:
        ModelError: a name to ignore matches no layer.
    """
    config = config.with_scale_dtype(recognizer.stored_dtype)
    check_ignored(recognizer, config.ignore)
    size = recognizer.stored_dtype.itemsize
    plans = [_planned(stage, name, linear, config, size) for stage, name, linear in _linears(recognizer)]
    for name, reason in recognizer.left_out().items():
        weight = recognizer.model.get_submodule(name).weight
        plans.append(
            LayerPlan(name, "", tuple(weight.shape), None, reason, weight.numel() * size, weight.numel() * size)
        )
    return plans


def check_ignored(recognizer: Recognizer, ignore: tuple[str, ...]) -> None:
    """A name that matches nothing is a misspelling, and the layer it meant would be quantized.

    Raises:
        ModelError: there is such a name.
    """
    blocks = [(name, block) for stage in recognizer.stages() for name, block in stage.blocks]
    names = [f"{name}.{inner}" for name, block in blocks for inner, _ in block.named_modules()]
    for pattern in ignore:
        if not any(_matches(name, pattern) for name in names):
            raise ModelError(f"ignore: {pattern!r} matches no layer; names look like {names[1]}")


def check_fits(plans: list[LayerPlan]) -> None:
    """Refuse a model with layers the walk would have to stop at.

    Raises:
        ModelError: there are some; names them and the mend.
    """
    stuck = [layer for layer in plans if not layer.fits]
    if stuck:
        names = ", ".join([layer.name for layer in stuck[:3]] + ["…"] * (len(stuck) > 3))
        raise ModelError(f"{names}: {stuck[0].reason} (--ignore {stuck[0].name})")


def _linears(recognizer: Recognizer) -> Iterator[tuple[str, str, nn.Linear]]:
    for stage in recognizer.stages():
        for name, block in stage.blocks:
            for inner, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    yield stage.name, f"{name}.{inner}", module


def _planned(stage: str, name: str, linear: nn.Linear, config: Lattice, size: int) -> LayerPlan:
    shape, before = tuple(linear.weight.shape), linear.weight.numel() * size
    if any(_matches(name, pattern) for pattern in config.ignore):
        return LayerPlan(name, stage, shape, None, "ignored by configuration", before, before)
    try:
        group_size, note = choose_group_size(linear.in_features, config.group_size)
    except CalibrationError as error:
        return LayerPlan(name, stage, shape, None, str(error), before, before, fits=False)
    # Packed as the walk packs it, without memory for it.
    packed = QuantLinear(
        linear.in_features,
        linear.out_features,
        config.scheme(group_size),
        bias=False,
        scale_dtype=getattr(torch, config.scale_dtype),
        device="meta",
    )
    return LayerPlan(name, stage, shape, group_size, note, before, packed.packed_bytes())
