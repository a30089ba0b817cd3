"""Whisper's decoder, a token at a time: a greedy search without what ``generate`` does around each step.

transformers' ``generate`` still reads the configuration and makes the logits processors and the stopping criteria; its
loop is replaced (``custom_generate``). The keys and values of the audio are computed once, those of the text have their
place from the start, no masks are made, and rows that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoder, WhisperDecoderLayer

#: Rows that have ended leave once they are this share of the batch: the audio's keys and values are copied then.
ENDED = 0.25

#: (model, prompt [B, S], logits processors, stopping criteria, …) → tokens [B, longest], prompt included.
Search = Callable[..., Tensor]


def can_step(model: Any) -> bool:
    """Whether :class:`Steps` computes what the model's own decoder does.

    It does not where attention is not PyTorch's, or where something of a decoder layer other than its Linears was
    replaced or has hooks.
    """
    decoder = model.model.decoder
    parts = [decoder, *(part for layer in decoder.layers for part in (layer, layer.self_attn, layer.encoder_attn))]
    return (
        model.config._attn_implementation == "sdpa"
        and not decoder.training
        and all(type(part) in (WhisperDecoder, WhisperDecoderLayer, WhisperAttention) for part in parts)
        and not any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in parts)
    )


class Steps:
    """The decoder over one batch of audio, with what its attentions keep.

    Args:
        model: a ``WhisperForConditionalGeneration`` that :func:`can_step`.
        encoder_output: [B, T, width].
        longest: number of tokens, prompt included, that there is room for.
    """

    def __init__(self, model: Any, encoder_output: Tensor, longest: int) -> None:
        self.decoder, self.head = model.model.decoder, model.proj_out
        self.audio = [
            (_heads(a.k_proj(encoder_output), a), _heads(a.v_proj(encoder_output), a))
            for a in (layer.encoder_attn for layer in self.decoder.layers)
        ]
        rows, _, heads, width = self.audio[0][0].transpose(1, 2).shape
        empty = encoder_output.new_empty
        self.text = [tuple(empty(rows, heads, longest, width) for _ in "kv") for _ in self.audio]
        self.length = 0

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits [B, vocabulary] of the token that follows ``ids`` [B, S], the tokens since the last call."""
        begin, self.length = self.length, self.length + ids.shape[1]
        x = self.decoder.embed_tokens(ids) + self.decoder.embed_positions.weight[begin : self.length]
        for layer, text, audio in zip(self.decoder.layers, self.text, self.audio, strict=True):
            own, cross = layer.self_attn, layer.encoder_attn
            normed = layer.self_attn_layer_norm(x)
            for kept, project in zip(text, (own.k_proj, own.v_proj), strict=True):
                kept[:, :, begin : self.length] = _heads(project(normed), own, contiguous=False)
            before = [kept[:, :, : self.length] for kept in text]
            x = x + _attend(own, normed, *before, causal=begin == 0 and ids.shape[1] > 1)
            x = x + _attend(cross, layer.encoder_attn_layer_norm(x), *audio)
            x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
        return self.head(self.decoder.layer_norm(x[:, -1]))

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of the batch but these."""
        self.audio = [(k[rows], v[rows]) for k, v in self.audio]
        self.text = [tuple(kept[rows] for kept in text) for text in self.text]


def greedy(encoder_output: Tensor, pad: int) -> Search:
    """A greedy search over one batch of audio, as ``custom_generate`` of :func:`tarq.models.generation.generate`.

    Args:
        encoder_output: [B, T, width].
        pad: token that fills shorter rows.
    """

    def search(model: Any, prompt: Tensor, logits_processor: Any, stopping_criteria: Any, **_: Any) -> Tensor:
        steps = Steps(model, encoder_output, min(stopping_criteria.max_length, model.config.max_target_positions))
        done = prompt.new_full((len(prompt), stopping_criteria.max_length), pad)
        place = torch.arange(len(prompt), device=prompt.device)  # of each row that is left, among all
        ended = torch.zeros_like(place, dtype=torch.bool)
        ids, fresh = prompt, prompt
        while True:
            scores = logits_processor(ids, steps(fresh).to(torch.float32, copy=True))
            fresh = scores.argmax(-1).masked_fill(ended, pad)[:, None]
            ids = torch.cat([ids, fresh], dim=1)
            now = stopping_criteria(ids, scores).bool() & ~ended
            if now.any():
                done[place[now], : ids.shape[1]] = ids[now]
                ended |= now
                if ended.all():
                    return done[:, : ids.shape[1]]
                if ended.float().mean() >= ENDED:
                    left = (~ended).nonzero().flatten()
                    steps.keep(left)
                    ids, fresh, place, ended = ids[left], fresh[left], place[left], ended[left]

    return search


def _heads(x: Tensor, attention: Any, *, contiguous: bool = True) -> Tensor:
    """[B, S, width] as [B, heads, S, width of a head]."""
    split = x.view(*x.shape[:2], attention.num_heads, attention.head_dim).transpose(1, 2)
    return split.contiguous() if contiguous else split


def _attend(attention: Any, x: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False) -> Tensor:
    # Queries are scaled before the product, in the model's order: elsewhere it rounds otherwise.
    queries = _heads(attention.q_proj(x) * attention.scaling, attention)
    mixed = scaled_dot_product_attention(queries, keys, values, is_causal=causal, scale=1.0)
    return attention.out_proj(mixed.transpose(1, 2).reshape(x.shape))
