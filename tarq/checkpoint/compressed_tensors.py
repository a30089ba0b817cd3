"""The format: compressed-tensors ``pack-quantized``, its configuration and how it is loaded packed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tarq.errors import CheckpointError
from tarq.kernels.scheme import Scheme
from tarq.linear import QuantLinear

FORMAT = "pack-quantized"
#: The format's version this package writes.
FORMAT_VERSION = "0.20.0"
#: What vLLM calls Linears of one input that it fuses, and its parts.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "kv_proj": ("k_proj", "v_proj")}
FUSED |= {"gate_up_proj": ("gate_proj", "up_proj")}
#: Most repetitions in a pattern of ``targets`` or ``ignore``, of characters only: others can take forever to match.
_MOST_REPEATS = 3


def quantization_config(model: nn.Module, group_size: int | None = None) -> dict[str, Any]:
    """The ``quantization_config`` entry of config.json for a model with :class:`QuantLinear` layers.

    Layers are grouped by scheme, widest first. The last group targets ``Linear``, the others name their layers.
    ``dequantize`` makes transformers expand layers while loading. Without it, transformers expands in the first call of
    the whole model, so ``generate`` of an encoder-decoder, which calls the encoder alone first, fails; and layers with
    zero points are not loaded at all. Other readers of the format ignore the entry.

    Up to 5.22, transformers expands each layer by its own scheme; from 5.23 on, every layer by that of the first group.
    Zero points of a narrower layer are too few for the widest, so it refuses such a folder instead of misreading it.

    Args:
        model: with packed layers.
        group_size: of all layers as stored (:func:`common_group_size`); by default each layer's own.

    Raises:
        CheckpointError: no layer is quantized.
    """
    schemes: dict[Scheme, list[str]] = {}
    stored_as = _stored_as(model)
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            # How a scale was chosen is not a property of the checkpoint.
            s = module.scheme
            schemes.setdefault(Scheme(s.bits, group_size or s.group_size, s.symmetric), []).append(name)
    if not schemes:
        raise CheckpointError("the model holds no quantized layer: run tarq.quantize first")
    *special, (last, _) = sorted(schemes.items(), key=lambda item: (-item[0].bits, len(item[1])))
    groups = [(scheme, _targets(names, stored_as)) for scheme, names in special] + [(last, ["Linear"])]
    dequantize = not special or not all(scheme.symmetric for scheme in schemes)
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        **({"dequantize": True} if dequantize else {}),
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
        "ignore": [_pattern(stored_as(n)) for n, module in model.named_modules() if isinstance(module, nn.Linear)],
        "kv_cache_scheme": None,
        "version": FORMAT_VERSION,
    }


def common_group_size(model: nn.Module) -> int | None:
    """The group size in which every layer's scales can be stored, so that the checkpoint has one scheme.

    None if that is not needed (all have one size) or does not help (bits or symmetry differ).
    """
    schemes = [m.scheme for m in model.modules() if isinstance(m, QuantLinear)]
    sizes = {s.group_size for s in schemes}
    kinds = {(s.bits, s.symmetric) for s in schemes}
    return math.gcd(*sizes) if len(sizes) > 1 and len(kinds) == 1 else None


def repeat_groups(state: dict[str, torch.Tensor], model: nn.Module, group_size: int) -> None:
    """Store a state dict's scales and zero points in smaller groups by repeating them; the weights are the same."""
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear) and layer.scheme.group_size != group_size:
            groups = -(-layer.in_features // group_size)
            for part in ("weight_scale", "weight_zero_point"):
                if (key := f"{name}.{part}") in state:  # zero points are packed along the other dimension
                    repeated = state[key].repeat_interleave(layer.scheme.group_size // group_size, dim=1)
                    state[key] = repeated[:, :groups].contiguous()


def merge_groups(model: nn.Module) -> None:
    """Undo :func:`repeat_groups`: give each layer the largest groups its scales and zero points allow."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantLinear) and (times := _repeats(layer)) > 1:
            layer.unprepack()
            size, zeros = layer.scheme.group_size * times, layer.weight_zero_point
            scheme = Scheme(layer.scheme.bits, size, layer.scheme.symmetric)
            merged = QuantLinear(layer.in_features, layer.out_features, scheme, bias=False, device="meta")
            merged.weight_packed, merged.weight_shape = layer.weight_packed, layer.weight_shape
            merged.weight_scale = layer.weight_scale[:, ::times].contiguous()
            merged.weight_zero_point = None if zeros is None else zeros[:, ::times].contiguous()
            merged.bias = layer.bias
            merged.prepack()
            model.set_submodule(name, merged)


def _repeats(layer: QuantLinear) -> int:
    borders = torch.zeros(layer.weight_scale.shape[1] - 1, dtype=torch.bool, device=layer.weight_scale.device)
    for part in (layer.weight_scale, layer.weight_zero_point):
        if part is not None:
            borders |= (part[:, 1:] != part[:, :-1]).any(0)
    return math.gcd(len(borders) + 1, *(borders.nonzero().flatten() + 1).tolist())


def _stored_as(model: nn.Module) -> Callable[[str], list[str]]:
    """From a module's name to the distinct names that readers look it up by.

    transformers renames some models' tensors on the way in and back on the way out (``model.language_model`` is
    ``language_model.model`` in the files of Voxtral and Qwen2-Audio). It looks layers up by module name, vLLM by the
    name in the files.
    """

    def names(name: str) -> list[str]:
        if not isinstance(model, PreTrainedModel):
            return [name]
        tensor = torch.empty(0, device="meta")
        (stored,) = revert_weight_conversion(model, {f"{name}.weight": tensor})
        return list(dict.fromkeys([name, stored.removesuffix(".weight")]))

    return names


def _pattern(names: Sequence[str]) -> str:
    """An entry of ``targets`` or ``ignore`` that matches exactly these names."""
    return names[0] if len(names) == 1 else f"re:^(?:{'|'.join(map(re.escape, names))})$"


def _targets(layers: Sequence[str], stored_as: Callable[[str], list[str]]) -> list[str]:
    """Entries that match these layers, and what vLLM fuses them into: it would take that for any other ``Linear``."""
    found = []
    for name in layers:
        names, leaf = stored_as(name), name.rpartition(".")[2]
        for fused, (first, *rest) in FUSED.items():
            if leaf == first and all(f"{name.removesuffix(first)}{part}" in layers for part in rest):
                names += [f"{each.removesuffix(first)}{fused}" for each in names if each.endswith(f".{first}")]
        found.append(_pattern(list(dict.fromkeys(names))))
    return found


def names_layer(pattern: str, name: str) -> bool:
    """Whether an entry of ``ignore`` or ``targets`` names a layer: literally, or as an expression after ``re:``."""
    return re.match(pattern[3:], name) is not None if pattern.startswith("re:") else pattern == name


def check_config(config: Any) -> list[tuple[list[str], Scheme]]:
    """The targets and schemes of a ``quantization_config``, with every field checked.

    Raises:
        CheckpointError: tarq cannot load it, or a field is invalid; names the field.
    """
    if not isinstance(config, dict):
        raise CheckpointError(f"quantization_config must be an object, not {config!r}")
    if config.get("quant_method") != "compressed-tensors" or config.get("format") != FORMAT:
        raise CheckpointError(
            f"this checkpoint is {config.get('quant_method')!r} in format {config.get('format')!r}; "
            f"tarq loads compressed-tensors {FORMAT!r}"
        )
    if config.get("quantization_status", "compressed") != "compressed":
        raise CheckpointError(f"quantization_status is {config['quantization_status']!r}: nothing is packed here")
    if config.get("kv_cache_scheme") is not None:
        raise CheckpointError("kv_cache_scheme: quantized key-value caches are not supported")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"quantization_config is not usable: config_groups is {groups!r}")
    _check_patterns("ignore", config.get("ignore") or [])
    return [_group(key, group) for key, group in groups.items()]


def _group(key: str, group: Any) -> tuple[list[str], Scheme]:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise CheckpointError(f"quantization_config is not usable: {key} has no weights")
    _check_patterns(f"{key}.targets", group.get("targets") or None)
    other = group.get("input_activations") or group.get("output_activations")
    if weights.get("type") != "int" or weights.get("strategy") != "group" or other or weights.get("dynamic"):
        raise CheckpointError(f"{key}: only integer weights in groups are supported, not {weights}")
    if group.get("format") not in (None, FORMAT) or weights.get("actorder") not in (None, "static", "weight"):
        raise CheckpointError(f"{key}: format {group.get('format')!r}, actorder {weights.get('actorder')!r}")
    bits, size, symmetric = (weights.get(field) for field in ("num_bits", "group_size", "symmetric"))
    if type(bits) is not int or type(size) is not int or type(symmetric) is not bool:
        raise CheckpointError(
            f"quantization_config is not usable: {key} has num_bits {bits!r}, group_size {size!r}, "
            f"symmetric {symmetric!r}; they must be two whole numbers and true or false"
        )
    try:
        return group["targets"], Scheme(bits, size, symmetric)
    except ValueError as error:
        raise CheckpointError(f"quantization_config is not usable: {key}: {error}") from error


def _check_patterns(field: str, patterns: Any) -> None:
    if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
        raise CheckpointError(f"quantization_config is not usable: {field} must be a list of names, not {patterns!r}")
    for pattern in patterns:
        if pattern.startswith("re:"):
            # Escaped characters and bracket expressions count as characters.
            bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\.", "x", pattern[3:], flags=re.DOTALL))
            if re.search(r"\)[*+{]", bare) or len(re.findall(r"[*+{]", bare)) > _MOST_REPEATS:
                raise CheckpointError(
                    f"quantization_config is not usable: {field}: {pattern!r} repeats a group, or more than "
                    f"{_MOST_REPEATS} times, and could take forever to match: name the layers instead"
                )
            try:
                re.compile(pattern[3:])
            except (re.error, RecursionError, OverflowError) as error:
                raise CheckpointError(f"quantization_config is not usable: {field}: {pattern!r}: {error}") from error


def layer_schemes(config: dict[str, Any], model: nn.Module) -> dict[str, Scheme]:
    """Which Linear layers of a model a ``quantization_config`` packs, and how.

    Raises:
        CheckpointError: the configuration asks for something other than weight-only integer groups.
    """
    schemes: dict[str, Scheme] = {}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for targets, scheme in check_config(config):
        named = [name for name in linears if any(names_layer(target, name) for target in targets)]
        rest = [name for name in linears if "Linear" in targets]
        schemes |= dict.fromkeys(rest, scheme) | schemes | dict.fromkeys(named, scheme)
    ignored = config.get("ignore") or []
    return {n: scheme for n, scheme in schemes.items() if not any(names_layer(pattern, n) for pattern in ignored)}


def make_packed(model: nn.Module, config: dict[str, Any], scale_dtype: torch.dtype) -> None:
    """Replace every layer that a ``quantization_config`` packs by an empty :class:`QuantLinear`."""
    for name, scheme in layer_schemes(config, model).items():
        linear = cast(nn.Linear, model.get_submodule(name))
        packed = QuantLinear(
            linear.in_features,
            linear.out_features,
            scheme,
            bias=linear.bias is not None,
            scale_dtype=scale_dtype,
            device="meta",
        )
        model.set_submodule(name, packed)


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
        make_packed(model, config.stored, config.scale_dtype)
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False
