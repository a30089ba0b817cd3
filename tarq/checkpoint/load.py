"""Loading models: full precision, or packed without expanding them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig
from transformers.core_model_loading import revert_weight_conversion

from tarq.arguments import Device
from tarq.checkpoint import checks
from tarq.checkpoint.compressed_tensors import check_config, make_packed, merge_groups
from tarq.checkpoint.source import check_folder, dominant_dtype, first_line, headers, locate, read_json, weight_files
from tarq.errors import CheckpointError, ModelError, TarqError

#: Tensors that only training reads and that published checkpoints lack (SpecAugment's, in wav2vec 2.0 and HuBERT).
TRAINING_ONLY = ("masked_spec_embed",)
_TORCH = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MOST_LAYERS = 4096


def computing_dtype(source: str | Path, device: Device) -> torch.dtype:
    """The default computation dtype on a device: float32 on a CPU, elsewhere as stored.

    Args:
        source: folder or hub id.
        device: where it computes.

    Raises:
        ModelError: there is no model.
        CheckpointError: its weights cannot be read.
    """
    if torch.device(device).type == "cpu":
        return torch.float32
    folder = locate(source)
    return _stored_dtype(headers(weight_files(folder, source)))


def load_model(
    source: str | Path,
    model_class: Callable[[Any, Any], Any],
    *,
    dtype: torch.dtype | None = None,
    device: Device = "cpu",
):
    """A full-precision or packed model from a local folder or the hub; packed weights stay packed.

    Only safetensors are read, and no code of the folder is ever run.

    Args:
        source: folder or hub id.
        model_class: from the configuration and the source to the transformers class.
        dtype: of the computation; by default float32 on a CPU and the stored dtype elsewhere.
        device: where the model goes.

    Returns:
        (model, the dtype most of it is stored in; for a packed one that of its scales).

    Raises:
        ModelError: it is not a model, or not of a supported class.
        CheckpointError: weights are damaged, or packed in another format.
    """
    if torch.device(device).type == "meta":
        raise ModelError("the meta device holds no weights: load the model on cpu or cuda")
    folder = locate(source)
    fields = check_folder(folder, source)
    config = _config(folder, source, fields)
    loaded_as = model_class(config, source)
    files = weight_files(folder, source)
    stored_tensors = headers(files)
    checks.check_dtypes(stored_tensors, source)
    checks.verify_checksums(folder, files)
    stored_dtype = _stored_dtype(stored_tensors)
    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else stored_dtype
    quantization = fields.get("quantization_config")
    if quantization is not None:
        try:
            check_config(quantization)
        except CheckpointError as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
        config.quantization_config = {
            "quant_method": "tarq-packed",
            "stored": quantization,
            "scale_dtype": stored_dtype,
        }
    # from_pretrained casts every float tensor, scales too: a packed checkpoint is loaded in the dtype it is
    # stored in and cast afterwards, which leaves the scales of QuantLinear as they are.
    first = dtype if quantization is None else stored_dtype
    try:
        model, info = loaded_as.from_pretrained(
            folder, config=config, dtype=first, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    except TarqError:
        raise
    except Exception as error:  # safetensors, transformers and the file system raise anything for a damaged file
        _check_shapes(loaded_as, config, quantization, stored_dtype, stored_tensors, source)
        raise CheckpointError(f"{source}: could not load the weights: {first_line(error)}") from error
    _check_keys(info, quantization is not None, source)
    model.config._name_or_path = model.name_or_path = str(source)
    if quantization is not None:
        # From here on it is an ordinary model whose Linears happen to be packed.
        model.config.quantization_config = quantization
        for attribute in ("hf_quantizer", "quantization_method"):
            if hasattr(model, attribute):
                delattr(model, attribute)
        model.is_quantized = False
        checks.check_layers(model, source)
        merge_groups(model)
    checks.check_finite([*model.named_parameters(), *model.named_buffers()], str(source))
    model = model.to(device=device)
    if first != dtype:  # otherwise, parts the model keeps in float32 stay so
        _cast(model, dtype)
    return model.eval(), stored_dtype


def _config(folder: Path, source: str | Path, fields: dict[str, Any]) -> Any:
    for key, value in fields.items():
        if key.endswith("layers") and isinstance(value, int) and value > _MOST_LAYERS:
            raise ModelError(f"{folder / 'config.json'}: {key} is {value}; more than {_MOST_LAYERS} are implausible")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a field of the wrong type raises various errors
        raise ModelError(f"{source}: no model there that transformers can read: {first_line(error)}") from error
    if (folder / "generation_config.json").exists():
        read_json(folder / "generation_config.json")
        try:
            GenerationConfig.from_pretrained(folder)
        except Exception as error:
            raise ModelError(
                f"{folder / 'generation_config.json'} cannot be used ({first_line(error)}): take it from the original"
            ) from error
    return config


def _stored_dtype(stored: dict[str, tuple[str, list[int]]]) -> torch.dtype:
    """The dtype of the scales if there are any, otherwise of most weights: config.json may omit it or be wrong."""
    return _TORCH.get(dominant_dtype(stored, ".weight_scale") or dominant_dtype(stored) or "F32", torch.float32)


def _check_keys(info: dict[str, Any], packed: bool, source: Any) -> None:
    missing = {k for k in info["missing_keys"] if not k.endswith(TRAINING_ONLY)}
    info = info | {"missing_keys": missing} | ({} if packed else {"unexpected_keys": ()})
    problems = {kind: sorted(map(str, names))[:3] for kind, names in info.items() if names}
    if problems:
        raise CheckpointError(f"{source}: the weights do not fit config.json: {problems}")


def _check_shapes(
    loaded_as: Any, config: Any, quantization: Any, scale_dtype: torch.dtype, stored: dict[str, Any], source: Any
) -> None:
    """After a failure: name a tensor whose shape is not what config.json says, if that is what happened."""
    try:
        config.quantization_config = None
        with torch.device("meta"):
            model = loaded_as(config)
        if quantization is not None:
            make_packed(model, quantization, scale_dtype)
        expected = revert_weight_conversion(model, dict(model.state_dict()))
    except Exception:  # config.json itself is wrong, and the first error says so
        return
    for name, tensor in expected.items():
        shape = stored[name][1] if name in stored else None
        if shape is not None and shape != list(tensor.shape):
            raise CheckpointError(
                f"{source}: the weights do not fit config.json: {name} is stored as {shape}, the model it describes "
                f"has {list(tensor.shape)}"
            )


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast to the dtype; buffers that are not stored (rotary frequencies, positions) stay exact, as in transformers."""
    stored = model.state_dict().keys()
    computed = {name: b for name, b in model.named_buffers(remove_duplicate=False) if name not in stored}
    model.to(dtype=dtype)
    for name, buffer in computed.items():
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, buffer)
