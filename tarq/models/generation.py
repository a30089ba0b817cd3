"""What of a checkpoint's generation_config.json decides a greedy transcript; every field of it has its place here.

``generate`` reads the file whenever it is called. Fields that change which token is taken, or where a transcript ends,
are honoured as transformers does (:data:`HONOURED`, checked before any audio is read). Fields of other ways to search,
of what is returned and of how fast it goes are set to what greedy search needs (:data:`NEUTRAL`). What cannot be
carried out is refused (:data:`REFUSED`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

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


#: Fields that decide a greedy transcript: name to whether a value is one, given the size of the vocabulary; and what it
#: should be.
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

#: Fields of other searches, of what is returned and of speed: greedy search comes to the same transcript without them.
NEUTRAL: dict[str, Any] = {
    # beams and samples: tarq decodes greedily
    "num_beams": 1,
    "num_beam_groups": None,
    "num_return_sequences": 1,
    "diversity_penalty": None,
    "early_stopping": False,
    "length_penalty": 1.0,
    "renormalize_logits": False,
    "do_sample": False,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "top_h": None,
    "typical_p": None,
    "epsilon_cutoff": None,
    "eta_cutoff": None,
    # of an encoder's input ids: audio is none
    "encoder_repetition_penalty": None,
    "encoder_no_repeat_ngram_size": None,
    # NaN is an error here (FiniteLogits), not a zero
    "remove_invalid_values": False,
    # assisted, contrastive and other searches
    "use_mtp": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
    "max_matching_ngram_size": None,
    "is_assistant": False,
    "num_assistant_tokens": None,
    "num_assistant_tokens_schedule": None,
    "assistant_confidence_threshold": None,
    "assistant_early_exit": None,
    "assistant_lookbehind": None,
    "target_lookbehind": None,
    "assistant_ensemble_weight": None,
    "speculation_type": None,
    # what is returned
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": False,
    "return_dict_in_generate": False,
    # speed and memory
    "use_cache": True,
    "cache_implementation": None,
    "cache_config": None,
    "max_cache_len": None,
    "compile_config": None,
    "disable_compile": True,
    "continuous_batching_config": None,
    "low_memory": None,
    "prefill_chunk_size": None,
}

#: Fields that change transcripts and are not carried out, with the reason.
REFUSED = {
    "constraints": "constrained beam search is not greedy",
    "force_words_ids": "constrained beam search is not greedy",
    "guidance_scale": "guidance runs the model a second time without its prompt",
    "token_healing": "it rewrites the end of the prompt",
    "max_time": "what is transcribed would depend on how fast the machine is",
    "no_speech_threshold": "windows are not skipped by how likely silence is",
}


def check_generation(generation: GenerationConfig, size: int) -> list[str]:
    """See that a generation configuration can be carried out.

    Args:
        generation: the model's.
        size: of its vocabulary.

    Returns:
        Notes on fields that ask for another search than the greedy one.

    Raises:
        ModelError: a field has no usable value or is not carried out; names it.
    """
    for name, (usable, wanted) in HONOURED.items():
        value = getattr(generation, name, None)
        if value is not None and not usable(value, size):
            raise ModelError(f"{FILE}: {name} must be {wanted} ({size} tokens), not {_short(value)}: mend or remove it")
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


def greedy_options(generation: GenerationConfig, tokenizer: Any) -> dict[str, Any]:
    """Arguments that make ``generate`` search greedily whatever the generation configuration asks for."""
    options = {name: value for name, value in NEUTRAL.items() if hasattr(generation, name)}
    if generation.stop_strings is not None:
        options["tokenizer"] = tokenizer
    return options


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a transcript, of the first that names some: generation configuration, model, tokenizer.

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
    """How many tokens may follow a prompt: what the configuration says, never beyond the model's positions.

    Args:
        generation: the model's.
        prompt: tokens of it.
        positions: the model's.
        default: where the configuration says nothing; otherwise all positions there are.
        of_prompt: its ``max_length`` counts the prompt's tokens too.

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
    """Ends generation where the model computes no numbers; otherwise it would write an empty line."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return require_finite(scores)


def require_finite(logits: Tensor) -> Tensor:
    """The logits, which are numbers (−∞ forbids a token).

    Raises:
        ModelError: NaN or ∞ is among them.
    """
    if not bool((logits < torch.inf).all()):  # false of NaN too
        raise ModelError(
            "the model computes NaN or infinity: its weights hold some, or overflow in this dtype (try --dtype float32)"
        )
    return logits


def transcripts_of(tokenizer: Any, rows: Sequence[Sequence[int]], ends: Sequence[int]) -> list[str]:
    """The transcripts of token rows, each up to its first end token."""
    ends_at = [next((i for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    cut = [list(row[:end]) for row, end in zip(rows, ends_at, strict=True)]
    return [text.strip() for text in tokenizer.batch_decode(cut, skip_special_tokens=True)]
