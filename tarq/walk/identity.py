"""What decides the result of a run to the bit: a run that goes on where another stopped must have the same."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarq import distributed
from tarq.config import TarqConfig
from tarq.kernels.dispatch import VARIABLE
from tarq.method.allocation import Sensitivity
from tarq.models.base import Recognizer
from tarq.models.types import Batch, Positions
from tarq.report import versions

#: Settings that change no code, or only by the calibration set, which is compared itself.
_FREE = ("activation_memory", "max_bad", "ids", "protect")
#: Files of a package that decide what it computes.
_SOURCES = (".py", ".so", ".pyd", ".json")


def identity(
    recognizer: Recognizer,
    batches: Sequence[Batch],
    config: TarqConfig,
    device: torch.device,
    sensitivities: Sequence[Sensitivity] | None = None,
) -> dict[str, Any]:
    """What decides the result, as JSON holds it, contents by their SHA-256.

    Args:
        recognizer: of the full-precision model, before anything in it changes.
        batches: the calibration set: audio, transcripts and tags as the walk reads them.
        config: of the run.
        device: where blocks are quantized.
        sensitivities: given by the caller.
    """
    model = recognizer.model
    settings = model.config.to_dict() | {"attention": getattr(model.config, "_attn_implementation", None)}
    settings.pop("_name_or_path", None)
    everywhere = distributed.all_gather([_environment(recognizer.device, device)])
    alike = all(other == everywhere[0] for other in everywhere)
    return {
        "version of": versions(),
        "tarq's own files": own_files(),
        "processes": distributed.world_size(),
        "environment": everywhere[0] if alike else {f"of process {i}": each for i, each in enumerate(everywhere)},
        "setting": {name: value for name, value in config.to_dict().items() if name not in _FREE},
        "sensitivities": sensitivities
        and _digest((r.names, r.weights, sorted(r.damage.items())) for r in sensitivities),
        "model": {
            "class": type(model).__name__,
            "config.json": _digest([settings]),
            "dtype": str(recognizer.dtype),
            "stored dtype": str(recognizer.stored_dtype),
            "weights": digest_of([*model.named_parameters(), *model.named_buffers()]),
        },
        "utterances": {", ".join(batch.ids): _batch(batch) for batch in batches},
    }


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of named tensors: names, dtypes, shapes and contents."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


@cache
def own_files() -> str:
    """SHA-256 of the package's code, compiled parts included: a version alone does not say what a checkout holds."""
    found = hashlib.sha256()
    for package in ("tarq", "tarq.kernels"):
        folder = Path(str(files(package)))
        names = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.suffix in _SOURCES}
        for name in sorted(name for name in names if not name.startswith(("testbed", "kernels"))):
            found.update(f"{package} {name}\n".encode() + hashlib.sha256(names[name].read_bytes()).digest())
    return found.hexdigest()


def _batch(batch: Batch) -> dict[str, str]:
    """Digests of a batch's audio, of its transcripts, and of how its rows are tagged."""
    tokens = {"input_ids": batch.input_ids, "targets": batch.targets}
    tags = {"rare": batch.rare_target, "protected": batch.protected_target, "scored": batch.scored}
    return {
        "audio": digest_of(sorted(batch.features.items())),
        "transcript": digest_of(tokens.items()),
        "tags": digest_of([*((n, t) for n, t in tags.items() if t is not None), *_rows(batch.positions)]),
    }


def _rows(positions: dict[str, Positions]) -> Iterator[tuple[str, Tensor]]:
    for name, rows in sorted(positions.items()):
        for each in fields(rows):
            value = getattr(rows, each.name)
            if value is not None:
                yield f"{name} {each.name}", torch.as_tensor(value)


def _digest(values: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(values), sort_keys=True, default=str).encode()).hexdigest()


def _environment(model_device: torch.device, device: torch.device) -> dict[str, Any]:
    """What libraries choose their code by: the order of summation, and so the last bits, depend on it."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "number of threads (OMP_NUM_THREADS)": torch.get_num_threads(),
        "precision of matrix products": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        VARIABLE: os.environ.get(VARIABLE),
        "device": device.type,
        "device of the model": model_device.type,
    }
    if device.type == "cuda":
        found |= {
            "GPU": torch.cuda.get_device_name(device),
            "CUDA": torch.version.cuda,
            "TF32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        }
    return found
