"""From a model to the adapter of its family. A new family is one new file and one line here."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ModelError
from .family import Recognizer
from .whisper import WhisperRecognizer

FAMILIES: tuple[type[Recognizer], ...] = (WhisperRecognizer,)


def adapt(model: Any, tokenizer: Any, feature_extractor: Any, stored_dtype: torch.dtype) -> Recognizer:
    """The model behind the interface of its family.

    Raises:
        ModelError: the family is not supported, parts are missing, or the tokenizer gives no offsets.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    for family in FAMILIES:
        if model_type in family.model_types:
            break
    else:
        known = ", ".join(t for family in FAMILIES for t in family.model_types)
        raise ModelError(f"{type(model).__name__} (model_type {model_type!r}) is not supported; supported: {known}")
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets, which tagging rare words needs: "
            "load a fast tokenizer (AutoTokenizer does where tokenizer.json exists)"
        )
    # For a folder without tokenizer files transformers makes up an empty tokenizer instead of failing.
    ids = tokenizer("speech", add_special_tokens=False)["input_ids"]
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if not ids or max(ids) >= vocabulary:
        raise ModelError(
            f"the tokenizer does not fit the model ({len(tokenizer)} tokens, the model has {vocabulary}): "
            "is tokenizer.json missing, or another model's? Pass tokenizer=… or add its files"
        )
    return family(model, tokenizer, feature_extractor, stored_dtype)
