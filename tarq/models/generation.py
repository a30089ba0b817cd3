"""The fields of a checkpoint's generation_config.json that decide a greedy transcript; every field is listed here.

``generate`` reads the file whenever it is called. Fields that change which token is chosen, or where a transcript ends,
are honoured as in transformers (:data:`HONOURED`, checked before any audio is read). Fields of other search methods,
of what is returned and of speed are ignored (:data:`NEUTRAL`). Fields that change transcripts and are not supported are
refused (:data:`REFUSED`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList

from tarq.errors import ModelError

FILE = "generation_config.json"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _count(value: Any, _: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any, _: int) -> bool:
    return _number(value) and 0 < value < float("inf")


def _token(value: Any, size: int) -> bool:
    return _count(value, size) and value < size


def _tokens(value: Any, size: int) -> bool:
    return isinstance(value, list | tuple) and all(_token(v, size) for v in value)


def _token_or_tokens(value: Any, size: int) -> bool:
    return _token(value, size) or (_tokens(value, size) and len(value) > 0)


def _sequences(value: Any, size: int) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(v and _tokens(v, size) for v in value)


def _biases(value: Any, size: int) -> bool:
    if isinstance(value, dict):
        value = list(value.items())
    return isinstance(value, list | tuple) and all(
        isinstance(v, list | tuple) and len(v) == 2 and _tokens(v[0], size) and _number(v[1]) for v in value
    )


def _decay(value: Any, _: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and _count(value[0], 0) and _positive(value[1], 0)


def _strings(value: Any, _: int) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) and v for v in value))


def _anything(value: Any, _: int) -> bool:
    return True


#: Fields that decide a greedy transcript: name to a check of the value, given the size of the vocabulary, and a
#: description of valid values.
HONOURED: dict[str, tuple[Callable[[Any, int], bool], str]] = {
    "max_length": (_positive, "a number of tokens"),
    "max_new_tokens": (_positive, "a number of tokens"),
    "min_length": (_count, "a number of tokens"),
    "min_new_tokens": (_count, "a number of tokens"),
    "stop_strings": (_strings, "a string or a list of strings"),
    "repetition_penalty": (_positive, "a positive number"),
    "no_repeat_ngram_size": (_count, "a number of tokens"),
    "bad_words_ids": (_sequences, "lists of ids within the vocabulary"),
    "sequence_bias": (_biases, "pairs of a list of ids within the vocabulary and a number"),
    "exponential_decay_length_penalty": (_decay, "a pair of a number of tokens and a positive factor"),
    "suppress_tokens": (_tokens, "a list of ids within the vocabulary"),
    "begin_suppress_tokens": (_tokens, "a list of ids within the vocabulary"),
    "forced_bos_token_id": (_token, "an id within the vocabulary"),
    "forced_eos_token_id": (_token_or_tokens, "an id within the vocabulary, or several"),
    "decoder_start_token_id": (_token, "an id within the vocabulary"),
    "bos_token_id": (_token, "an id within the vocabulary"),
    "eos_token_id": (_token_or_tokens, "an id within the vocabulary, or several"),
    "pad_token_id": (_token, "an id within the vocabulary"),
    "watermarking_config": (_anything, ""),
}

#: Fields of other search methods, of what is returned, of speed and memory: greedy search gives the same transcript
#: without them.
NEUTRAL = frozenset({
    # beams and samples
    "num_beams", "num_beam_groups", "num_return_sequences", "diversity_penalty", "early_stopping", "length_penalty",
    "renormalize_logits",
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    # apply to an encoder's input ids, which audio does not have
    "encoder_repetition_penalty", "encoder_no_repeat_ngram_size",
    # NaN is an error here (FiniteLogits), not replaced
    "remove_invalid_values",
    # assisted, contrastive and other searches
    "use_mtp", "penalty_alpha", "dola_layers", "prompt_lookup_num_tokens", "max_matching_ngram_size", "is_assistant",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_early_exit",
    "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "speculation_type",
    # what is returned
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    # speed and memory
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile",
    "continuous_batching_config", "low_memory", "prefill_chunk_size",
})  # fmt: skip

#: Fields that change transcripts and are not supported, with the reason.
REFUSED = {
    "constraints": "constrained beam search is not greedy",
    "force_words_ids": "constrained beam search is not greedy",
    "guidance_scale": "guidance runs the model a second time without its prompt",
    "token_healing": "it rewrites the end of the prompt",
    "max_time": "what is transcribed would depend on how fast the machine is",
    "no_speech_threshold": "windows are not skipped by the probability of silence",
}


def check_generation(generation: GenerationConfig, size: int) -> list[str]:
    """Check that a generation configuration is supported.

    Args:
        generation: the model's.
        size: of its vocabulary.

    Returns:
        Notes on fields that ask for another search than the greedy one.

    Raises:
        ModelError: a field has an invalid value or is not supported; names it.
    """
    for name, (usable, wanted) in HONOURED.items():
        value = getattr(generation, name, None)
        if value is not None and not usable(value, size):
            raise ModelError(
                f"{FILE}: {name} must be {wanted} ({size} tokens), not {_short(value)}: correct or remove it"
            )
    for name, reason in REFUSED.items():
        value = getattr(generation, name, None)
        if value not in (None, False) and not (name == "guidance_scale" and value == 1):
            raise ModelError(f"{FILE}: {name} is not supported: {reason}; remove it")
    searches = {"num_beams": generation.num_beams not in (None, 1), "do_sample": bool(generation.do_sample)}
    asked = [f"{name}={getattr(generation, name)}" for name, other in searches.items() if other]
    return [f"{FILE} asks for {' and '.join(asked)}: transcripts are greedy"] if asked else []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + " …"


def generate(
    model: Any,
    tokenizer: Any,
    *,
    most: int,
    ends: Sequence[int],
    pad: int,
    processors: Sequence[LogitsProcessor] = (),
    **inputs: Any,
) -> Any:
    """``generate`` as a greedy search that follows only the fields that decide a transcript.

    This is not the model's own ``generate``: Whisper's seeks through long audio by the timestamps in the text and needs
    the features for that. The input here is one window a row.

    Args:
        model: the model, whose generation configuration is read.
        tokenizer: for ``stop_strings``.
        most: largest number of tokens after the prompt.
        ends: tokens that end a transcript.
        pad: token that fills shorter rows.
        processors: of the logits, after those of the configuration.
        inputs: of the model.

    Raises:
        ModelError: the model computes NaN or infinity.
    """
    before = model.generation_config
    fields = {name: getattr(before, name, None) for name in HONOURED}
    if "decoder_input_ids" in inputs and fields["decoder_start_token_id"] is None:
        fields["decoder_start_token_id"] = int(inputs["decoder_input_ids"][0, 0])
    fields |= {"max_length": None, "max_new_tokens": most, "eos_token_id": list(ends), "pad_token_id": pad}
    if fields["stop_strings"] is not None:
        inputs["tokenizer"] = tokenizer
    # Arguments would not suffice: they are merged with the model's own configuration, which is checked as a whole.
    model.generation_config = GenerationConfig(**{name: value for name, value in fields.items() if value is not None})
    try:
        every = LogitsProcessorList([FiniteLogits(), *processors])
        return GenerationMixin.generate(model, logits_processor=every, **inputs)
    finally:
        model.generation_config = before


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a transcript, from the first of generation configuration, model and tokenizer to name any.

    Raises:
        ModelError: none does.
    """
    text = model.config.get_text_config(decoder=True)
    for of in (model.generation_config, model.config, text, tokenizer):
        ids = getattr(of, "eos_token_id", None)
        if ids is not None:
            return list(ids) if isinstance(ids, list | tuple) else [ids]
    raise ModelError(f"nothing says which token ends a transcript: set eos_token_id in {FILE}")


def new_tokens(
    generation: GenerationConfig, prompt: int, positions: int, *, default: int | None = None, of_prompt: bool = True
) -> int:
    """Largest number of tokens after a prompt, by the configuration and within the model's positions.

    Args:
        generation: the model's.
        prompt: number of its tokens.
        positions: the model's number of positions.
        default: if the configuration says nothing; None for all positions.
        of_prompt: whether its ``max_length`` counts the prompt's tokens too.

    Raises:
        ModelError: no token may follow.
    """
    asked = positions if default is None else default
    if generation.max_new_tokens is not None:
        asked = int(generation.max_new_tokens)
    elif generation.max_length is not None:
        asked = int(generation.max_length) - (prompt if of_prompt else 0)
    allowed = min(asked, positions - prompt)
    if allowed < 1:
        raise ModelError(
            f"no token may follow a prompt of {prompt}: {FILE} has max_length {generation.max_length}, the model "
            f"{positions} positions"
        )
    return allowed


class FiniteLogits(LogitsProcessor):
    """Ends generation with an error at NaN or infinity; the transcript would otherwise be empty."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return require_finite(scores)


def are_numbers(logits: Tensor) -> Tensor:
    """Whether the logits [..., vocabulary] of each row are valid numbers, [...] bool.

    −∞ is valid: it forbids a token. NaN and +∞ are not: the weights are damaged or overflow.
    """
    return (logits < torch.inf).all(-1)  # False for NaN too


def require_finite(logits: Tensor) -> Tensor:
    """The logits, after a check that they are valid numbers.

    Raises:
        ModelError: they are not; see :func:`are_numbers`.
    """
    if not bool(are_numbers(logits).all()):
        raise ModelError(
            "the model computes NaN or infinity: its weights have some or overflow in this dtype (try --dtype float32)"
        )
    return logits


def transcripts_of(tokenizer: Any, rows: Sequence[Sequence[int]], ends: Sequence[int]) -> list[str]:
    """The transcripts of token rows, each up to its first end token."""
    ends_at = [next((i for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    cut = [list(row[:end]) for row, end in zip(rows, ends_at, strict=True)]
    return [text.strip() for text in tokenizer.batch_decode(cut, skip_special_tokens=True)]
