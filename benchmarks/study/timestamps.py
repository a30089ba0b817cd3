"""When a model says that an utterance ends, teacher-forced: what quantization shifts timestamps by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tarq.data.utterance import language_of
from tarq.errors import ModelError
from tarq.models.base import Recognizer
from tarq.models.types import Batch, Example, Prompted
from tarq.speech.calibration import Examples

#: Seconds between two tokens of timestamps.
STEP = 0.02
DECIMALS = 4


@dataclass(frozen=True)
class Timed:
    """A batch teacher-forced with timestamps.

    Attributes:
        rows: [B] of the logits, which predict the end of each utterance, given all of its text.
        first: id of the token of 0 s; those of later times follow it.
    """

    batch: Batch
    rows: torch.Tensor
    first: int

    def ends(self, recognizer: Recognizer, audio: object) -> list[float]:
        """Of each utterance the second at which a model says it ends.

        Args:
            audio: what the model encoded of the batch.
        """
        logits = recognizer.logits(self.batch, audio)
        rows = logits[torch.arange(len(self.rows)), self.rows, self.first :]
        return [round(STEP * step, DECIMALS) for step in rows.argmax(-1).tolist()]


def with_timestamps(full: Recognizer, made: Examples, batches: Sequence[Batch], language: str) -> list[Timed]:
    """The batches with their utterances' transcripts between timestamps; empty where the model has no tokens for them,
    or a transcript is too long for two more.

    Args:
        language: of utterances that state none.
    """
    if not full.has_timestamps:
        return []
    timed: dict[str, Example] = {}
    for example, text, utterance in zip(made.examples, made.texts, made.utterances, strict=True):
        try:
            prompted = full.prompt(
                text, frames=example.frames, timestamps=True, language=language_of(utterance, language)
            )
        except ModelError:
            return []
        timed[example.id] = _untagged(example, prompted)
    if any(full.reason_to_skip(example) for example in timed.values()):
        return []
    return [_timed(full, batch, [timed[name] for name in batch.ids]) for batch in batches]


def _untagged(example: Example, prompted: Prompted) -> Example:
    """The example with another prompt, without tags or scores of its words."""
    count = len(prompted.ids)
    none = torch.zeros(count, dtype=torch.bool)
    return replace(example, prompted=prompted, rare=none, tail=none[1:], zipf=torch.full((count,), math.nan))


def _timed(full: Recognizer, batch: Batch, examples: Sequence[Example]) -> Timed:
    collated = replace(full.collate(examples), features=batch.features)
    # The end's time is the last token but one; the row before it predicts it.
    rows = torch.tensor([len(example.prompted.ids) - 3 for example in examples])
    return Timed(collated, rows, examples[0].prompted.ids[-2] - examples[0].frames)
