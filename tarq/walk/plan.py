"""What a run will do to each Linear, planned from shapes and weights before any audio is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate

import torch
from torch import nn

from tarq.checkpoint.checks import check_apart
from tarq.errors import CalibrationError, ModelError
from tarq.lattice import Lattice
from tarq.linear import QuantLinear
from tarq.models.base import Recognizer
from tarq.models.types import Stage

#: Group sizes to try, largest first, if the configured one does not divide a layer.
FALLBACK_GROUPS = (64, 32, 16, 8)


@dataclass(frozen=True)
class PlannedLayer:
    """One matrix of the model.

    Attributes:
        name: qualified name in the model.
        stage: encoder, projector, decoder; empty outside the blocks.
        shape: of its weight, (out, in) features for a Linear.
        group_size: inputs that will share a scale; None if it stays in full precision.
        reason: why it stays in full precision, or empty.
        note: what is degraded (another group size than the configured one), or empty.
        fits: False if the walk would have to stop at it.
        bits: per weight; 0 if it stays in full precision.
        bytes_before: of its weight, in the dtype the checkpoint is stored in.
        bytes_after: of codes, scales and zero points; ``bytes_before`` if it stays.
    """

    name: str
    stage: str
    shape: tuple[int, ...]
    group_size: int | None
    reason: str
    note: str
    bytes_before: int
    bytes_after: int
    fits: bool = True
    bits: int = 0


def plan(recognizer: Recognizer, config: Lattice) -> list[PlannedLayer]:
    """What a run will do to every matrix of the model. Reads no audio and no weights.

    A layer that the model never calls on the calibration speech stays as well; only the walk can find that out.

    Args:
        recognizer: of a full-precision model.
        config: of the run.

    Returns:
        The blocks' Linears in the model's order, then the matrices outside the blocks.

    Raises:
        ModelError: a name to ignore or a place with bits of its own matches no layer, or a layer is used in two places.
    """
    config = config.with_scale_dtype(recognizer.stored_dtype)
    check_apart(recognizer.model, ModelError)
    stages = recognizer.stages()
    check_ignored(stages, config.ignore)
    check_places(stages, config)
    layers = []
    for stage in stages:
        for block_name, block in stage.blocks:
            for name, linear in linears_of(block_name, block):
                shape = tuple(linear.weight.shape)
                before = linear.weight.numel() * recognizer.stored_dtype.itemsize
                if ignored(name, config.ignore):
                    reason = "ignored by configuration"
                    layers.append(PlannedLayer(name, stage.name, shape, None, reason, "", before, before))
                    continue
                try:
                    group_size, note = choose_group_size(linear.in_features, config.group_size)
                except CalibrationError as error:
                    layers.append(PlannedLayer(name, stage.name, shape, None, str(error), "", before, before, False))
                    continue
                bits = bits_of(stage.name, name, config)
                after = packed_bytes(linear, config, group_size, bits)
                layers.append(PlannedLayer(name, stage.name, shape, group_size, "", note, before, after, bits=bits))
    for name, reason in recognizer.left_out().items():
        weight = recognizer.model.get_submodule(name).weight
        stored = weight.numel() * recognizer.stored_dtype.itemsize
        layers.append(PlannedLayer(name, "", tuple(weight.shape), None, reason, "", stored, stored))
    return layers


def check_fits(layers: Sequence[PlannedLayer]) -> None:
    """Check that there is something to quantize, and that the walk will not have to stop at a layer.

    Raises:
        CalibrationError: there is nothing, or it will; names the layers and the fix.
    """
    impossible = [f"{layer.name} ({layer.reason})" for layer in layers if not layer.fits]
    if impossible:
        raise CalibrationError(
            f"{', '.join(impossible)}: set group_size to a divisor of their inputs, "
            "or keep them in full precision with ignore"
        )
    if not any(layer.group_size for layer in layers):
        ignored_all = any(layer.stage for layer in layers)
        raise CalibrationError(
            "no layer is left to quantize: "
            + ("ignore names them all" if ignored_all else "the model has no Linear layers in its blocks")
        )


def check_weights(recognizer: Recognizer, config: Lattice) -> None:
    """Check that the weights to be quantized are finite.

    Raises:
        CalibrationError: some are NaN or infinite; names the layers.
    """
    to_quantize = {
        name
        for stage in recognizer.stages()
        for block_name, block in stage.blocks
        for name, _ in linears_of(block_name, block)
        if not ignored(name, config.ignore)
    }
    holders = dict.fromkeys(name.rpartition(".")[0] for name in recognizer.not_finite())
    bad = [name for name in holders if name in to_quantize]
    if bad:
        raise CalibrationError(
            f"{', '.join(bad)}: its weights contain NaN or infinite values; load another copy of the checkpoint, in "
            "the dtype it was stored in, or keep the layer in full precision with ignore"
        )


def choose_group_size(in_features: int, group_size: int) -> tuple[int, str]:
    """The configured group size, or the largest smaller one that divides the layer, and a note on it.

    Raises:
        CalibrationError: the width is not even a multiple of eight.
    """
    if in_features % group_size == 0:
        return group_size, ""
    for smaller in FALLBACK_GROUPS:
        if smaller < group_size and in_features % smaller == 0:
            return smaller, f"group size {smaller}: {group_size} does not divide {in_features} inputs"
    tried = (group_size, *(size for size in FALLBACK_GROUPS if size < group_size))
    raise CalibrationError(f"no group size of {', '.join(map(str, tried))} divides its {in_features} inputs")


def packed_bytes(linear: nn.Linear, config: Lattice, group_size: int, bits: int) -> int:
    """Bytes of a Linear's weight in the checkpoint."""
    scheme, scale_dtype = config.scheme(group_size, bits), getattr(torch, config.scale_dtype)
    shape = linear.in_features, linear.out_features
    return QuantLinear(*shape, scheme, bias=False, scale_dtype=scale_dtype, device="meta").packed_bytes()


def linears_of(block_name: str, block: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The Linears of a block by their names in the model."""
    return [(f"{block_name}.{name}", m) for name, m in block.named_modules() if isinstance(m, nn.Linear)]


def ignored(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern names the layer or a module that contains it."""
    return any(name == pattern or name.startswith(f"{pattern}.") for pattern in patterns)


def check_ignored(stages: Sequence[Stage], patterns: Sequence[str]) -> None:
    """Check that every pattern matches: a misspelt one would let its layer be quantized.

    Raises:
        ModelError: one matches no layer.
    """
    names = [f"{name}.{inner}" for s in stages for name, block in s.blocks for inner, _ in block.named_modules()]
    for pattern in patterns:
        if not any(ignored(name, [pattern]) for name in names):
            raise ModelError(f"ignore: {pattern!r} matches no layer; names look like {names[1]}")


def bits_of(stage: str, name: str, config: Lattice) -> int:
    """Bits per weight of a layer: those of the last place that matches it, otherwise the configuration's for all."""
    matching = [bits for place, bits in config.bits_for.items() if is_at(place, stage, name)]
    return matching[-1] if matching else config.bits


def has_place(layer: PlannedLayer, config: Lattice) -> bool:
    """Whether a place with bits of its own matches the layer."""
    return any(is_at(place, layer.stage, layer.name) for place in config.bits_for)


def is_at(place: str, stage: str, name: str) -> bool:
    """Whether a place is the layer's stage, or a pattern for its name or for that of a module that contains it."""
    containing = accumulate(name.split("."), "{}.{}".format)
    return place == stage or any(fnmatchcase(module, place) for module in containing)


def check_places(stages: Sequence[Stage], config: Lattice) -> None:
    """Check that every place with bits of its own has a layer to quantize: a misspelt one would change nothing.

    Raises:
        ModelError: one has none.
    """
    layers = [(s.name, name) for s in stages for block in s.blocks for name, _ in linears_of(*block)]
    for place in config.bits_for:
        if not any(is_at(place, *layer) and not ignored(layer[1], config.ignore) for layer in layers):
            known = ", ".join(dict.fromkeys(stage for stage, _ in layers))
            raise ModelError(
                f"bits: {place!r} matches no layer that is quantized; stages are {known}, and names look like "
                f"{layers[0][1] if layers else 'model.layers.0'}"
            )
