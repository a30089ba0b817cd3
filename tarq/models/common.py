"""Shared by adapters: token sequences, spans, padding, convolutions, checks of a model's parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tarq.errors import ModelError
from tarq.models.types import Example, Positions, Prompted


def with_prompt(
    before: Sequence[int], ids: Sequence[int], spans: Sequence[tuple[int, int]], after: Sequence[int]
) -> Prompted:
    """A transcript's tokens between those of its prompt and its end, which cover no characters."""
    return Prompted(
        ids=(*before, *ids, *after),
        offsets=(*[(0, 0)] * len(before), *spans, *[(0, 0)] * len(after)),
        is_text=(*[False] * len(before), *[True] * len(ids), *[False] * len(after)),
    )


@dataclass(frozen=True)
class Forced:
    """Decoder sequences side by side; all tensors are [B, T].

    Attributes:
        inputs: tokens that are read.
        targets: next tokens, −100 on prompt and padding.
        rare, zipf, protected: of the target's word, as :class:`Batch` has them.
        positions: what the rows are.
    """

    inputs: Tensor
    targets: Tensor
    rare: Tensor
    zipf: Tensor
    protected: Tensor | None
    positions: Positions


def teacher_forced(examples: Sequence[Example], pad: int) -> Forced:
    """Decoder sequences of examples side by side, padded on the right."""

    def padded(rows: Sequence[Tensor], value: float = 0) -> Tensor:
        return pad_sequence(list(rows), batch_first=True, padding_value=value)

    ids = [torch.tensor(e.prompted.ids) for e in examples]
    is_target = [torch.tensor(e.prompted.is_text)[1:] for e in examples]
    for flags in is_target:
        flags[-1] = True  # the model predicts the end token, but not the prompt
    exists = padded([torch.ones(len(i) - 1, dtype=torch.bool) for i in ids])
    none = torch.zeros_like(exists)
    protected = [e.protected[1:] for e in examples if e.protected is not None]
    return Forced(
        inputs=padded([i[:-1] for i in ids], pad),
        targets=padded([i[1:].masked_fill(~t, -100) for i, t in zip(ids, is_target, strict=True)], -100),
        rare=padded([e.rare[1:] for e in examples]),
        zipf=padded([e.zipf[1:] for e in examples], math.nan),
        protected=padded(protected) if protected else None,
        positions=Positions(tail=padded([e.tail for e in examples]), exists=exists, padding=none, audio=none),
    )


def byte_spans(text: str, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """The character span of each token, from byte lengths; a character split between tokens belongs to all of them."""
    character_of = [i for i, character in enumerate(text) for _ in character.encode()]
    spans, place = [], 0
    for length in lengths:
        covered = character_of[place : place + length]
        spans.append((covered[0], covered[-1] + 1) if covered else (0, 0))
        place += length
    return spans


def require(model: Any, *paths: str, wanted: str) -> None:
    """Check that a model has the parts an adapter uses.

    Raises:
        ModelError: one is missing; names it and the class that has it.
    """
    for path in paths:
        part = model
        for name in path.split("."):
            part = getattr(part, name, None)
        if part is None:
            raise ModelError(f"{type(model).__name__} has no {path}: a {wanted} is needed")


def pad_waveform(waveform: np.ndarray, samples: int) -> np.ndarray:
    """A waveform, padded with silence at its end if it is too short for a model's convolutions."""
    return np.pad(waveform, (0, max(samples - len(waveform), 0)))


def conv_output_length(length: int, convolutions: Sequence[nn.Conv1d]) -> int:
    """Number of output rows of a sequence of unpadded convolutions for ``length`` inputs."""
    for conv in convolutions:
        length = (length - conv.kernel_size[0]) // conv.stride[0] + 1
    return length


def receptive_field(convolutions: Sequence[nn.Conv1d]) -> int:
    """The shortest input for which a sequence of unpadded convolutions makes a row."""
    length = 1
    for conv in reversed(convolutions):
        length = (length - 1) * conv.stride[0] + conv.kernel_size[0]
    return length
