"""Checkpoints: compressed-tensors ``pack-quantized`` out, and in again without expanding it (formats.md)."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tarq.errors import CheckpointError, ModelError
from tarq.kernels.scheme import Scheme
from tarq.linear import QuantLinear

FORMAT = "pack-quantized"
#: Tensors that only training reads and that published checkpoints lack (SpecAugment's, in wav2vec 2.0 and HuBERT).
TRAINING_ONLY = ("masked_spec_embed",)
#: The format's version this package writes.
FORMAT_VERSION = "0.20.0"


def save(model: PreTrainedModel, path: str | Path, *, extras: list[Any], overwrite: bool) -> None:
    """Write a compressed-tensors checkpoint, which transformers loads as it is.

    Everything is written into a temporary folder beside ``path`` which is renamed at the end, so a crash, a
    full disk or an interrupt leaves no half checkpoint and an overwritten one is intact until then.

    Args:
        model: with :class:`QuantLinear` layers. Whatever is not quantized is stored in their scales' dtype,
            since the format knows one dtype a model.
        path: folder to write.
        extras: whatever else belongs into the folder, each with ``save_pretrained(folder)``.
        overwrite: replace an existing folder.

    Raises:
        CheckpointError: the folder exists, the model holds no quantized layer, or writing failed.
    """
    path = Path(path)
    check_writable(path, overwrite)
    quantization = quantization_config(model)
    dtype = next(m.weight_scale.dtype for m in model.modules() if isinstance(m, QuantLinear))
    cast_once: dict[int, torch.Tensor] = {}

    def stored(tensor: torch.Tensor) -> torch.Tensor:
        # Tied weights share storage, and must still share it once cast, or they are written twice.
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        return cast_once.setdefault(tensor.data_ptr(), tensor.to(dtype))

    state = {name: stored(tensor) for name, tensor in model.state_dict().items()}
    with replacing(path) as folder:
        model.save_pretrained(folder, state_dict=state)
        config_file = folder / "config.json"
        config = json.loads(config_file.read_text())
        config |= {"dtype": str(dtype).removeprefix("torch."), "quantization_config": quantization}
        config_file.write_text(json.dumps(config, indent=2) + "\n")
        for extra in extras:
            extra.save_pretrained(folder)


def check_writable(path: Path, overwrite: bool) -> None:
    """Refuse an existing path early, before any work is done.

    Raises:
        CheckpointError: ``path`` exists and ``overwrite`` is off, or is no folder.
    """
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists already: choose another folder or pass --overwrite")
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file, not a folder: choose another path")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        CheckpointError: the operating system refused to write (full disk, no permission).
    """
    path = path.resolve()  # a link is followed: what it points to is replaced
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        _make_readable(new)
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"could not write {path}: {reason}; what was there before is unchanged") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Undo the private modes of mkdtemp and safetensors: a checkpoint is an ordinary folder of ordinary files."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~umask)


def quantization_config(model: nn.Module) -> dict[str, Any]:
    """The ``quantization_config`` entry of config.json for a model with :class:`QuantLinear` layers.

    Layers are grouped by scheme; the commonest one targets ``Linear``, the others name their layers.

    Raises:
        CheckpointError: no layer is quantized.
    """
    schemes: dict[Scheme, list[str]] = {}
    named = _named(model)
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            # How a scale was chosen is no property of the checkpoint.
            s = module.scheme
            schemes.setdefault(Scheme(s.bits, s.group_size, s.symmetric), []).append(named(name))
    if not schemes:
        raise CheckpointError("the model holds no quantized layer: run tarq.quantize first")
    ordered = sorted(schemes.items(), key=lambda item: len(item[1]))
    *special, (commonest, _) = ordered
    groups = [(scheme, names) for scheme, names in special] + [(commonest, ["Linear"])]
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {
                "targets": targets,
                "format": FORMAT,
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": scheme.bits,
                    "type": "int",
                    "strategy": "group",
                    "group_size": scheme.group_size,
                    "symmetric": scheme.symmetric,
                    "dynamic": False,
                },
            }
            for i, (scheme, targets) in enumerate(groups)
        },
        "ignore": [named(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)],
        "kv_cache_scheme": None,
        "version": FORMAT_VERSION,
    }


def _named(model: nn.Module) -> Callable[[str], str]:
    """How a configuration names a layer: by its module's name, or by an expression where it is stored under another.

    transformers renames some models' tensors on the way in and back on the way out (``model.language_model`` is
    ``language_model.model`` in the files of Voxtral and Qwen2-Audio). It looks layers up by module, vLLM by what
    the files call them.
    """

    def named(name: str) -> str:
        if not isinstance(model, PreTrainedModel):
            return name
        tensor = torch.empty(0, device="meta")
        (stored,) = revert_weight_conversion(model, {f"{name}.weight": tensor})
        stored = stored.removesuffix(".weight")
        return name if stored == name else f"re:^(?:{re.escape(name)}|{re.escape(stored)})$"

    return named


def names_layer(pattern: str, name: str) -> bool:
    """Whether an entry of ``ignore`` or ``targets`` names a layer: as it stands, or as an expression after ``re:``."""
    return re.match(pattern[3:], name) is not None if pattern.startswith("re:") else pattern == name


def layer_schemes(config: dict[str, Any], model: nn.Module) -> dict[str, Scheme]:
    """Which Linear layers of a model a ``quantization_config`` packs, and how.

    Raises:
        CheckpointError: the configuration asks for something other than weight-only integer groups.
    """
    if config.get("quant_method") != "compressed-tensors" or config.get("format") != FORMAT:
        raise CheckpointError(
            f"this checkpoint is {config.get('quant_method')!r} in format {config.get('format')!r}; "
            f"tarq loads compressed-tensors {FORMAT!r}"
        )
    schemes: dict[str, Scheme] = {}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for key, group in config["config_groups"].items():
        weights = group["weights"]
        if weights.get("type") != "int" or weights.get("strategy") != "group" or group.get("input_activations"):
            raise CheckpointError(f"{key}: only integer weights in groups are supported, not {weights}")
        scheme = Scheme(weights["num_bits"], weights["group_size"], weights["symmetric"])
        named = [name for name in linears if any(names_layer(target, name) for target in group["targets"])]
        rest = [name for name in linears if "Linear" in group["targets"]]
        schemes |= dict.fromkeys(rest, scheme) | schemes | dict.fromkeys(named, scheme)
    ignored = config.get("ignore") or []
    return {n: scheme for n, scheme in schemes.items() if not any(names_layer(pattern, n) for pattern in ignored)}


@register_quantization_config("tarq-packed")
class _PackedConfig(QuantizationConfigMixin):
    """In memory only, never written: routes ``from_pretrained`` to :class:`_PackedLoader`."""

    def __init__(self, stored: dict[str, Any], scale_dtype: torch.dtype, **_: Any) -> None:
        self.quant_method: Any = "tarq-packed"
        self.stored, self.scale_dtype = stored, scale_dtype


@register_quantizer("tarq-packed")
class _PackedLoader(HfQuantizer):
    """Lets transformers load a packed checkpoint into :class:`QuantLinear` layers, never expanding it."""

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        config: Any = self.quantization_config
        for name, scheme in layer_schemes(config.stored, model).items():
            linear = cast(nn.Linear, model.get_submodule(name))
            packed = QuantLinear(
                linear.in_features,
                linear.out_features,
                scheme,
                bias=linear.bias is not None,
                scale_dtype=config.scale_dtype,
                device="meta",
            )
            model.set_submodule(name, packed)
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def _config(source: str | Path) -> Any:
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: no model there that transformers can read: {_first_line(error)}") from error


def _stored_dtype(config: Any) -> torch.dtype:
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def computing_dtype(source: Any, device: str | torch.device) -> torch.dtype:
    """The dtype a model computes in on a device when none is asked: float32 on a CPU, elsewhere as stored.

    Args:
        source: folder or hub id, or the configuration read from there.
        device: where it computes.

    Raises:
        ModelError: there is no model.
    """
    if torch.device(device).type == "cpu":
        return torch.float32
    return _stored_dtype(_config(source) if isinstance(source, str | Path) else source)


def load_model(
    source: str | Path,
    model_class: Callable[[Any, Any], Any],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
):
    """A full-precision or packed model from a local folder or the hub; packed weights stay packed.

    Args:
        source: folder or hub id.
        model_class: from the configuration and the source to the transformers class.
        dtype: of the computation; on a CPU float32, elsewhere the stored dtype, when not given.
        device: where the model goes.

    Returns:
        (model, dtype it was stored in).

    Raises:
        ModelError: not a model, or of no class that is supported.
        CheckpointError: a packed checkpoint is damaged or of another format.
    """
    config = _config(source)
    loaded_as = model_class(config, source)
    stored_dtype = _stored_dtype(config)
    dtype = dtype or computing_dtype(config, device)
    stored = getattr(config, "quantization_config", None)
    if stored is not None:
        stored = stored if isinstance(stored, dict) else stored.to_dict()
        _check_packed(source, stored)
        config.quantization_config = {
            "quant_method": "tarq-packed",
            "stored": stored,
            "scale_dtype": stored_dtype,
        }
    try:
        # from_pretrained casts every float tensor, scales too: a packed checkpoint is loaded in the dtype it is
        # stored in and cast afterwards, which leaves the scales of QuantLinear as they are.
        first = dtype if stored is None else stored_dtype
        model, info = loaded_as.from_pretrained(source, config=config, dtype=first, output_loading_info=True)
    except CheckpointError:
        raise
    except Exception as error:  # whatever safetensors, transformers or the file system make of a damaged file
        raise CheckpointError(f"{source}: could not load the weights: {_first_line(error)}") from error
    info["missing_keys"] = {k for k in info["missing_keys"] if not k.endswith(TRAINING_ONLY)}
    problems = {k: sorted(map(str, v))[:3] for k, v in info.items() if v and k != "unexpected_keys"}
    if stored is not None and info.get("unexpected_keys"):
        problems["unexpected_keys"] = sorted(info["unexpected_keys"])[:3]
    if problems:
        raise CheckpointError(f"{source}: the weights do not fit config.json: {problems}")
    if stored is not None:
        # From here on it is an ordinary model whose Linears happen to be packed.
        model.config.quantization_config = stored
        for attribute in ("hf_quantizer", "quantization_method"):
            if hasattr(model, attribute):
                delattr(model, attribute)
        model.is_quantized = False
    model = model.to(device=device)
    if first != dtype:  # otherwise what the model keeps in float32 stays so
        _cast(model, dtype)
    return model.eval(), stored_dtype


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Compute in the dtype; what is not stored (rotary frequencies, positions) stays exact, as in transformers."""
    stored = model.state_dict().keys()
    computed = {name: b for name, b in model.named_buffers(remove_duplicate=False) if name not in stored}
    model.to(dtype=dtype)
    for name, buffer in computed.items():
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, buffer)


def _check_packed(source: str | Path, stored: dict[str, Any]) -> None:
    try:
        layer_schemes(stored, nn.Module())
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source}: quantization_config in config.json is not usable: {error}") from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
