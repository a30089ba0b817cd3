"""Checks on weights before loading and saving: finite, complete, of the dtypes and widths they claim."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tarq.checkpoint.folder import CHECKSUMS
from tarq.errors import CheckpointError, TarqError
from tarq.finite import is_finite, not_finite
from tarq.head import has_packed_head
from tarq.linear import QuantLinear

#: Last part of a tensor's name to its dtypes, by safetensors' names; other tensors are floating point.
_DTYPES = {"weight_packed": ("I32",), "weight_zero_point": ("I32",), "weight_shape": ("I64",)}
_REAL = ("F64", "F32", "F16", "BF16")
_COUNTERS = ("num_batches_tracked", "position_ids")


def check_dtypes(stored: dict[str, tuple[str, list[int]]], source: Any) -> None:
    """Check that stored tensors have the dtypes that their names imply.

    Raises:
        CheckpointError: one does not; names it.
    """
    for name, (dtype, _) in stored.items():
        part = name.rpartition(".")[2]
        wanted = _DTYPES.get(part, _REAL)
        if dtype not in wanted and part not in _COUNTERS:
            raise CheckpointError(
                f"{source}: {name} is stored as {dtype}, not as {' or '.join(wanted)}: the weights are damaged, or "
                "quantized by another tool"
            )


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Check that floating-point tensors are finite.

    Raises:
        CheckpointError: a tensor holds NaN or infinity; names it.
    """
    for name, tensor in not_finite(tensors):
        count = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(f"{where}: {name} holds {count} values that are NaN or infinite, of {tensor.numel()}")


def check_apart(model: nn.Module, error: type[TarqError] = CheckpointError) -> None:
    """Check that no tensor is used under two names, unless transformers itself ties them (the head and the embedding).

    A checkpoint holds a shared tensor once, under one name, and so could not be loaded: ``k_proj is v_proj``, a block
    that is used twice, two Linears with one weight.

    Raises:
        error: one is; names both places.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    declared = {*tied, *tied.values()}
    first: dict[tuple[int, ...], str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        place = (id(tensor),) if tensor.is_meta or not tensor.numel() else (tensor.data_ptr(), *tensor.shape)
        known = first.setdefault(place, name)
        if known != name and name not in declared:
            raise error(
                f"{known} and {name} are one tensor, of a layer that is used in two places: a checkpoint cannot hold "
                "it. Give each place a layer of its own (copy.deepcopy)"
            )


def check_head(model: nn.Module) -> None:
    """Check that the output head is the model's own.

    Raises:
        CheckpointError: it was packed for transcribing.
    """
    if has_packed_head(model):
        raise CheckpointError("not saved: the output head was packed for transcribing; load it without packed_head")


def check_layers(model: nn.Module, source: Any) -> None:
    """Check that packed layers have the widths they were saved with, which padding hides, and that their weights are
    finite in the scales' dtype.

    Raises:
        CheckpointError: one is not; names it.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantLinear):
            continue
        expected = [layer.out_features, layer.in_features]
        if layer.weight_shape.tolist() != expected:
            raise CheckpointError(
                f"{source}: {name}.weight_shape is {layer.weight_shape.tolist()}, but the layer is {expected}"
            )
        largest = float(layer.weight_scale.abs().max()) * 2 ** (layer.scheme.bits - layer.scheme.symmetric)
        if largest > torch.finfo(layer.weight_scale.dtype).max and not is_finite(layer.dequantize()):
            dtype = str(layer.weight_scale.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{source}: {name} stands for weights beyond {dtype}'s range: quantize with scale_dtype='bfloat16' or "
                "'float32', or leave the layer out (ignore)"
            )


def checksums(files: Iterable[Path]) -> str:
    """SHA-256 of files of one folder, one per line, as ``sha256sum`` writes them."""
    return "".join(f"{_digest(file)}  {file.name}\n" for file in sorted(files))


def verify_checksums(folder: Path, files: Iterable[Path]) -> None:
    """Check that weights match the folder's checksums, if it has any.

    Raises:
        CheckpointError: a file differs; names it.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file():
        return
    try:
        rows = [line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{sums} cannot be read: copy it again, or delete it to load unchecked") from error
    known = {row[1].lstrip("*"): row[0] for row in rows if len(row) == 2 and re.fullmatch("[0-9a-f]{64}", row[0])}
    if len(known) != len(rows):
        raise CheckpointError(f"{sums} is damaged: copy it again, or delete it to load unchecked")
    for file in files:
        if file.name in known and _digest(file) != known[file.name]:
            raise CheckpointError(
                f"{file} is not the file that was saved (see {sums.name}): copy it again; if it was changed on "
                f"purpose, delete {sums.name}"
            )


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
