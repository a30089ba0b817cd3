"""From a model to the adapter of its family. A new family is one new file and one line here."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tarq.errors import ModelError
from tarq.models.base import Recognizer
from tarq.models.ctc import CTCRecognizer
from tarq.models.moonshine import MoonshineRecognizer
from tarq.models.qwen2_audio import Qwen2AudioRecognizer
from tarq.models.qwen3_asr import Qwen3ASRRecognizer
from tarq.models.voxtral import VoxtralRecognizer
from tarq.models.whisper import WhisperRecognizer
from tarq.models.wrappers import unwrapped

FAMILIES: tuple[type[Recognizer], ...] = (
    WhisperRecognizer,
    MoonshineRecognizer,
    CTCRecognizer,
    VoxtralRecognizer,
    Qwen3ASRRecognizer,
    Qwen2AudioRecognizer,
)

#: Well-known models that the walk does not support, and why.
BEYOND = {
    "granite_speech": "its language model needs LoRA weights merged first, and the rows of its Q-Former are neither "
    "frames nor tokens",
    "parakeet_tdt": "a transducer, whose LSTM prediction network no block holds; Parakeet-CTC is supported",
    "parakeet_rnnt": "a transducer, whose LSTM prediction network no block holds; Parakeet-CTC is supported",
}


def family_of(model_type: str | None, what: str = "this model") -> type[Recognizer]:
    """The family of a ``config.model_type``.

    Raises:
        ModelError: there is none; names the supported ones.
    """
    for family in FAMILIES:
        if model_type in family.model_classes:
            return family
    known = ", ".join(t for family in FAMILIES for t in family.model_classes)
    reason = f" ({BEYOND[model_type]})" if model_type in BEYOND else ""
    raise ModelError(f"{what} (model_type {model_type!r}) is not supported{reason}; supported: {known}")


def model_class(config: Any, source: Any) -> Any:
    """The transformers class a checkpoint is loaded as.

    Raises:
        ModelError: no family supports it, the checkpoint holds another model of the family (one without a
            transcription head), or the installed transformers lacks the class.
    """
    family = family_of(config.model_type, str(source))
    family.check_config(config, source)
    wanted = family.model_classes[config.model_type]
    held = (getattr(config, "architectures", None) or [wanted])[0]
    if held != wanted:
        raise ModelError(f"{source}: config.json names the architecture {held!r}; of this family tarq takes {wanted}")
    found = getattr(transformers, wanted, None)
    if found is None:
        raise ModelError(f"{source}: transformers {transformers.__version__} lacks {wanted}; install a newer one")
    return found


def adapt(
    model: Any,
    tokenizer: Any,
    feature_extractor: Any,
    stored_dtype: torch.dtype,
    processor: Any = None,
    *,
    weights: bool = True,
) -> Recognizer:
    """The model behind the interface of its family, checked (:meth:`Recognizer.check`) and in evaluation mode.

    Args:
        weights: False for a model with shapes alone, on the meta device.

    Raises:
        ModelError: the family is not supported, parts are missing or do not fit the model, or the model is wrapped in
            something that would be lost by quantizing (:func:`tarq.models.wrappers.unwrapped`).
    """
    model = unwrapped(model) if weights else model
    family = family_of(getattr(getattr(model, "config", None), "model_type", None), type(model).__name__)
    recognizer = family(model, tokenizer, feature_extractor, stored_dtype, processor)
    recognizer.model.eval()
    recognizer.check()
    return recognizer
