"""From a folder, a hub id or a model to a recognizer: the model with the parts its family needs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoProcessor,
    AutoTokenizer,
    FeatureExtractionMixin,
    GenerationConfig,
    PreTrainedModel,
)

from tarq.arguments import Device, checked_arguments
from tarq.checkpoint.load import computing_dtype, load_model
from tarq.checkpoint.source import check_named, check_no_adapter, expand_home, first_line, locate
from tarq.errors import ModelError, TarqError
from tarq.head import pack_head
from tarq.models.base import Recognizer
from tarq.models.features import check_settings
from tarq.models.registry import adapt, family_of, model_class
from tarq.models.wrappers import unwrapped
from tarq.torch_defaults import torch_defaults


@checked_arguments()
@torch_defaults()
def load(source: str | Path, *, dtype: torch.dtype | None = None, device: Device = "cpu") -> PreTrainedModel:
    """A model from a folder or the hub, ready to run; a tarq checkpoint's weights stay packed.

    Args:
        source: folder or hub id of a full-precision or a compressed-tensors ``pack-quantized`` checkpoint.
        dtype: of the computation; by default float32 on a CPU and the stored dtype elsewhere.
        device: where the model goes.

    Raises:
        ModelError: there is no usable model.
        CheckpointError: the checkpoint is damaged or of another format.
    """
    return load_model(expand_home(source), model_class, dtype=dtype, device=device)[0]


@checked_arguments()
def load_recognizer(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: Device = "cpu",
    language: str | None = None,
    int8_activations: bool = False,
    packed_head: bool = False,
    offload: bool = False,
) -> Recognizer:
    """A model with its tokenizer and feature extractor, or with its processor where its prompts need one.

    Args:
        source: folder or hub id, full precision or packed.
        dtype: of the computation; see :func:`load`.
        device: where the model goes.
        language: of the speech; by default the one that the checkpoint names, or English.
        int8_activations: round the inputs of layers of at most 4 bits to 8 bits, group by group: faster on a CPU, less
            exact.
        packed_head: round the output head to 8 bits in memory (:mod:`tarq.head`): faster on a CPU at few rows a step.
            Such a model is for transcribing; it cannot be saved.
        offload: keep the model in RAM, in the dtype it would have on ``device``; for :func:`quantize` with ``offload``.

    Raises:
        ModelError: parts are missing, the family is not supported, no layer can round its inputs, or
            the head cannot be packed.
        CheckpointError: the checkpoint is damaged.
    """
    source = expand_home(source)
    if offload and dtype is None:
        dtype = computing_dtype(source, device)
    recognizer = as_recognizer(source, language=language, dtype=dtype, device="cpu" if offload else device)
    if int8_activations and not (rounding := recognizer.use_int8_activations()):
        raise ModelError(f"{source}: int8_activations has no effect here: {rounding.note()}")
    if packed_head:
        pack_head(recognizer.model)
    return recognizer


@checked_arguments("model")
@torch_defaults()
def as_recognizer(
    model: PreTrainedModel | Recognizer | str | Path,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    *,
    processor: Any = None,
    language: str | None = None,
    dtype: torch.dtype | None = None,
    device: Device = "cpu",
) -> Recognizer:
    """A recognizer from a model, a folder or a hub id, behind the interface of its family.

    Args:
        model: a recognizer, a transformers model, a folder or a hub id.
        tokenizer: found where the model comes from when not given.
        feature_extractor: likewise.
        processor: likewise; only audio-language models need one, and it holds the other two.
        language: of speech for which a later call names none; by default a recognizer's own, and for other models the
            one that the checkpoint names, or English. A recognizer that is given keeps its own.
        dtype: computation dtype, if the model is loaded here.
        device: device, if the model is loaded here.

    Raises:
        ModelError: parts are missing or the family is not supported.
        CheckpointError: the checkpoint is damaged.
    """
    if isinstance(model, Recognizer):
        recognizer = model
    else:
        if isinstance(model, str | Path):
            source = expand_home(model)
            loaded, stored_dtype = load_model(source, model_class, dtype=dtype, device=device)
        else:
            loaded = unwrapped(model)
            source, stored_dtype = loaded.config._name_or_path or "", loaded.dtype
        recognizer = _with_parts(loaded, source, stored_dtype, tokenizer, feature_extractor, processor)
        if not isinstance(model, str | Path):  # weights that are loaded are looked at as they are
            recognizer.check_weights()
    if language is not None:
        own = recognizer.own_language()
        if language == "en" and own not in (None, "en"):  # "en" is the default and may not have been asked for
            raise ModelError(
                f"the model's generation_config.json says that it transcribes {own!r}, not 'en': pass language={own!r} "
                f"(--language {own}), or remove forced_decoder_ids and language from that file"
            )
        recognizer = recognizer.with_language(language)
    return recognizer


def _with_parts(
    loaded: PreTrainedModel,
    source: str | Path,
    stored_dtype: torch.dtype,
    tokenizer: Any,
    feature_extractor: Any,
    processor: Any,
    weights: bool = True,
) -> Recognizer:
    """A model with the parts its family needs: those given, or those beside it.

    Args:
        source: where they lie; empty for a model that was not loaded from anywhere.
    """
    name = source or type(loaded).__name__
    family = family_of(loaded.config.model_type, type(loaded).__name__)
    if family.needs_processor:
        family.check_installed()
        processor = _part(source, "processor", processor, AutoProcessor)
        tokenizer, feature_extractor = processor.tokenizer, processor.feature_extractor
    else:
        tokenizer = _part(source, "tokenizer", tokenizer, AutoTokenizer)
        feature_extractor = _part(source, "feature_extractor", feature_extractor, AutoFeatureExtractor)
        processor = None
    try:
        return adapt(loaded, tokenizer, feature_extractor, stored_dtype, processor, weights=weights)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{name}: the model's files do not fit together ({type(error).__name__}: {first_line(error)}); "
            "take config.json, generation_config.json and the tokenizer from the original model"
        ) from error


def shapes_of(
    source: str | Path, tokenizer: Any = None, feature_extractor: Any = None, processor: Any = None
) -> Recognizer:
    """A recognizer whose model has no weights: on the meta device, in the dtype it is stored in.

    Args:
        source: folder or hub id of a full-precision model; no weights need be there.
        tokenizer: found where the model comes from when not given.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.

    Raises:
        ModelError: there is no model that tarq takes, it is quantized already, or parts are missing or do not fit.
    """
    source = expand_home(source)
    check_named(source)
    place = Path(source) if Path(source).is_dir() else source
    check_no_adapter(place)
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{place}: no model there that transformers can read: {first_line(error)}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{place}: the model is quantized already: name the full-precision one")
    kind = model_class(config, place)
    with torch.device("meta"):
        model = kind(config)
    model.to(config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32)
    with suppress(OSError):  # most CTC models have none
        model.generation_config = GenerationConfig.from_pretrained(place)
    model.config._name_or_path = str(place)
    return _with_parts(model.eval(), source, model.dtype, tokenizer, feature_extractor, processor, weights=False)


#: Parts of a recognizer to what they are known by.
_METHODS = {
    "tokenizer": ("decode", "get_vocab"),
    "feature_extractor": ("sampling_rate",),
    "processor": ("tokenizer", "feature_extractor"),
}


def _part(source: str | Path, name: str, given: Any, auto: Any) -> Any:
    """The given tokenizer, feature extractor or processor, or the one beside the model."""
    if given is not None:
        lacking = [method for method in _METHODS[name] if not hasattr(given, method)]
        if isinstance(given, type) or lacking:
            raise ModelError(
                f"{name} is {given!r:.80}, which has no {(lacking or ['values'])[0]}: give an object, such as "
                f"{auto.__name__}.from_pretrained(FOLDER)"
            )
        return given
    if not source:  # an empty path would stand for the current folder
        raise ModelError(f"the model does not say where it was loaded from, so its {name} is unknown: pass {name}=…")
    try:
        folder = locate(source)
        if auto is not AutoTokenizer:
            check_settings(FeatureExtractionMixin.get_feature_extractor_dict(folder)[0], source)
        return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except TarqError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, TypeError … for a missing file
        reason = first_line(error)
        raise ModelError(f"{source}: no usable {name} there ({reason}); pass {name}=… or add its files") from error
