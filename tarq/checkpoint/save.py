"""Saving checkpoints: packed weights, and all that a model needs beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tarq.checkpoint import checks
from tarq.checkpoint.compressed_tensors import common_group_size, quantization_config, repeat_groups
from tarq.checkpoint.folder import CHECKSUMS, SIDE_FILES, check_writable, replacing
from tarq.checkpoint.source import cached
from tarq.files import write_json, write_whole
from tarq.linear import QuantLinear
from tarq.report import FILE_NAME, Report

#: Files that list tokens with their ids: copied only if the saved tokenizer agrees with them.
_VOCABULARIES = {"vocab.json": ("vocab.json", "merges.txt"), "added_tokens.json": ("added_tokens.json",)}


def save(
    model: PreTrainedModel,
    path: str | Path,
    *,
    parts: list[Any],
    tokenizer: Any = None,
    report: Report | None = None,
    overwrite: bool,
) -> None:
    """Write a compressed-tensors checkpoint, which transformers loads as it is.

    Everything is written into a temporary folder beside ``path`` that is renamed at the end, so a crash, a full disk
    or an interrupt leaves no incomplete checkpoint, and an existing one stays intact until then.

    Args:
        model: with :class:`QuantLinear` layers. Whatever is not quantized is stored in their scales' dtype,
            since the format has one dtype per model.
        path: folder to write.
        parts: tokenizer, feature extractor or processor, each with ``save_pretrained(folder)``.
        tokenizer: its files beside the full-precision model are copied.
        report: written along, with the checkpoint's size and notes on how it was stored.
        overwrite: replace an existing checkpoint.

    Raises:
        CheckpointError: the folder may not be written, the model holds no quantized layer or numbers that are not
            finite in the checkpoint's dtype, or writing failed.
    """
    path, source = Path(path), str(getattr(model.config, "_name_or_path", "") or "")
    check_writable(path, overwrite, source or None)
    group_size = common_group_size(model)
    quantization = quantization_config(model, group_size)
    checks.check_head(model)
    checks.check_layers(model, "not saved")
    checks.check_apart(model)
    dtype = next(m.weight_scale.dtype for m in model.modules() if isinstance(m, QuantLinear))
    state = _state(model, dtype)
    if group_size is not None:
        repeat_groups(state, model, group_size)
        if report is not None:
            note = (
                f"scales are stored in groups of {group_size}, repeated where a layer's groups are larger: "
                "transformers expands all layers by one scheme"
            )
            report.notes += [] if note in report.notes else [note]
    if report is not None and len({m.scheme.bits for m in model.modules() if isinstance(m, QuantLinear)}) > 1:
        note = "layers differ in bits: tarq loads this folder; transformers without tarq does so up to 5.22 only"
        report.notes += [] if note in report.notes else [note]
    with replacing(path) as folder:
        model.save_pretrained(folder, state_dict=state)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {"dtype": str(dtype).removeprefix("torch."), "quantization_config": quantization}
        write_json(folder / "config.json", config, indent=2)
        _state_decoding(folder / "generation_config.json", config)
        for part in parts:
            part.save_pretrained(folder)
        _copy_side_files(folder, source, tokenizer)
        weights = list(folder.glob("*.safetensors"))
        write_whole(folder / CHECKSUMS, checks.checksums(weights))
        if report is not None:
            report.sizes["checkpoint_bytes"] = sum(file.stat().st_size for file in weights)
            write_whole(folder / FILE_NAME, report.to_json())


def _state(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    cast_once: dict[int, torch.Tensor] = {}

    def stored(tensor: torch.Tensor) -> torch.Tensor:
        # Tied weights share storage and must still share it after the cast, or they would be written twice.
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        return cast_once.setdefault(tensor.data_ptr(), tensor.to(dtype))

    plain = model.state_dict()
    checks.check_finite(plain.items(), "not saved")
    state = {name: stored(tensor) for name, tensor in plain.items()}
    cast = ((name, tensor) for name, tensor in state.items() if tensor is not plain[name])
    name = str(dtype).removeprefix("torch.")
    checks.check_finite(cast, f"not saved: beyond the range of {name}, in which scales are stored (scale_dtype)")
    return state


def _state_decoding(file: Path, config: dict[str, Any]) -> None:
    """State in generation_config.json the settings whose defaults in transformers differ from tarq's.

    The task: without task and language, transformers prompts a multilingual Whisper with the language it detects and no
    task. It then drops words and loops, in full precision too, in float32 and float16. Files of 2022 state the task in
    ``forced_decoder_ids``, which a task here would override: they are left as they are.

    The number of beams: transformers' pipeline uses five by default, which is slower; tarq's transcripts are greedy.

    Args:
        file: generation_config.json; models without one decode no text.
        config: of the model, which may force tokens too.
    """
    if not file.is_file():
        return
    fields = json.loads(file.read_text(encoding="utf-8"))
    stated = dict(fields)
    if stated.get("num_beams") is None:
        stated["num_beams"] = 1
    tasks, forced = stated.get("task_to_id") or {}, (of.get("forced_decoder_ids") for of in (stated, config))
    unasked = all(stated.get(field) is None for field in ("task", "language")) and not any(forced)
    if "transcribe" in tasks and stated.get("is_multilingual") is not False and unasked:
        stated["task"] = "transcribe"
    if stated != fields:
        write_json(file, stated, indent=2)


def _copy_side_files(folder: Path, source: str, tokenizer: Any) -> None:
    """Copy tokenizer, processor and normaliser files beside the full-precision model that were not written yet."""
    origin = Path(source) if source else None
    if origin is not None and not origin.is_dir():
        origin = cached(source)
    if origin is not None:
        # A different tokenizer has another vocabulary than the one beside the model.
        vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        left = {n for f, names in _VOCABULARIES.items() if not _agrees(origin / f, vocabulary) for n in names}
        for file in sorted({f for pattern in SIDE_FILES for f in origin.glob(pattern)}):
            if file.name not in left and file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
    spelling = getattr(tokenizer, "english_spelling_normalizer", None)
    if spelling and not (folder / "normalizer.json").exists():
        write_json(folder / "normalizer.json", spelling)


def _agrees(file: Path, vocabulary: dict[str, int]) -> bool:
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        return all(vocabulary.get(token) == number for token, number in listed.items())
    except (OSError, ValueError, AttributeError):
        return False
