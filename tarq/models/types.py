"""The types passed between utterances, models and the walk: prompts, examples, batches, positions, stages, segments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

#: The model's audio arguments by name: of one utterance without, of a batch with a batch dimension.
Features = Mapping[str, Tensor]


@dataclass(frozen=True)
class Prompted:
    """A transcript as it is teacher-forced: prompt, text tokens, end token (for CTC the text tokens alone).

    Attributes:
        ids: S token ids.
        offsets: character span of each token in the transcript; (0, 0) for prompt and special tokens.
        is_text: S flags, False for prompt and special tokens.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    is_text: tuple[bool, ...]


@dataclass(frozen=True)
class Example:
    """One utterance prepared for teacher forcing.

    Attributes:
        id: the utterance's.
        features: the model's audio arguments, without a batch dimension.
        frames: encoder positions that lie within the audio.
        prompted: the transcript's tokens.
        rare: [S] bool, tokens that belong to a rare word.
        tail: [S − 1] bool, decoder input positions tagged as rare or protected.
        zipf: [S] float64, Zipf score of the word that each token belongs to; NaN where it belongs to none.
        protected: [S] bool, tokens of words that the run is to protect; None where it is given no list of them.
    """

    id: str
    features: Features
    frames: int
    prompted: Prompted
    rare: Tensor
    tail: Tensor
    zipf: Tensor
    protected: Tensor | None = None


@dataclass(frozen=True)
class Positions:
    """What each row of a stage's hidden states is; every field is [B, T].

    Attributes:
        tail: tagged as rare.
        exists: False on rows that only pad a batch to a rectangle.
        padding: beyond the end of the audio; such rows exist at inference too.
        audio: audio frames; the other rows are tokens. A stage may have both.
        packed: the hidden states hold only the rows that exist, one after another, without a batch dimension.
        band: int, the band of the tail that a row is in, from 0 for the most frequent one; None where it has one band.
    """

    tail: Tensor
    exists: Tensor
    padding: Tensor
    audio: Tensor
    packed: bool = False
    band: Tensor | None = None

    @classmethod
    def of_frames(cls, frames: Sequence[int], rows: int, *, windows: bool = False, packed: bool = False) -> Positions:
        """Encoder rows, none of them tagged.

        Args:
            frames: [B] number of rows within the audio.
            rows: T.
            windows: whether the model takes windows of one length, so that rows beyond the audio exist as padding.
            packed: see the class.
        """
        valid = torch.arange(rows)[None, :] < torch.tensor(list(frames))[:, None]
        every = torch.ones_like(valid)
        return cls(
            tail=~every,
            exists=every if windows else valid,
            padding=~valid if windows else ~every,
            audio=every,
            packed=packed,
        )

    @classmethod
    def of_distances(cls, frames: Sequence[int], rows: int) -> Positions:
        """Rows of relative position embeddings: distances T − 1 … 1 − T; an utterance uses those it spans.

        Args:
            frames: [B] number of rows within the audio.
            rows: T, of the hidden states.
        """
        far = torch.arange(rows - 1, -rows, -1).abs()
        exists = far[None, :] < torch.tensor(list(frames))[:, None]
        none = torch.zeros_like(exists)
        return cls(tail=none, exists=exists, padding=none, audio=none)


@dataclass(frozen=True)
class Batch:
    """Examples stacked.

    Attributes:
        ids: B utterance ids.
        features: the model's audio arguments, stacked.
        input_ids: [B, T] decoder input tokens; for CTC, [B, S] the transcripts' tokens.
        targets: [B, T] the token each row of :meth:`Recognizer.logits` should predict; −100 if there is none
            or it belongs to the prompt.
        rare_target: [B, T] bool, the target belongs to a rare word.
        positions: name to :class:`Positions`: of each stage, and of whatever else Linears read.
        scored: [B, T] columns of ``input_ids`` that ``logits`` returns rows for, if it returns only some.
        target_zipf: [B, T] float64, Zipf score of the word that the target belongs to; NaN where it belongs to none.
            None if damage is not reported by word frequency.
        protected_target: [B, T] bool, the target belongs to a protected word; None where no list of them is given.
    """

    ids: tuple[str, ...]
    features: Features
    input_ids: Tensor
    targets: Tensor
    rare_target: Tensor
    positions: dict[str, Positions] = field(default_factory=dict)
    scored: Tensor | None = None
    target_zipf: Tensor | None = None
    protected_target: Tensor | None = None

    @property
    def tail_target(self) -> Tensor:
        """[B, T] bool, the target belongs to a word of the tail: a rare or a protected one."""
        return self.rare_target if self.protected_target is None else self.rare_target | self.protected_target

    def first(self) -> Batch:
        """The first example alone, as it is padded here."""

        def cut(of: Any) -> dict[str, Any]:
            values = {f.name: getattr(of, f.name) for f in fields(of)}
            return {name: value[:1] for name, value in values.items() if isinstance(value, Tensor)}

        return replace(
            self,
            **cut(self),
            ids=self.ids[:1],
            features={name: value[:1] for name, value in self.features.items()},
            positions={name: replace(rows, **cut(rows)) for name, rows in self.positions.items()},
        )


@dataclass(frozen=True)
class Stage:
    """A run of blocks with the same kind of positions: an encoder, a decoder.

    Attributes:
        name: key of :attr:`Batch.positions`.
        blocks: qualified name and module of each block, in order of execution. A block maps hidden states
            (its first positional argument) to hidden states (its output, or the output's first element).
        start: runs the model on a batch up to and into the first block, given the output of the
            stage before (None for the first stage).
        finish: from the last block's hidden states to the next stage's input.
        reads: key of :attr:`Batch.positions` for the further tensor that the blocks' Linears read: the encoder's
            output (cross-attention), relative positions; None where there is none.
    """

    name: str
    blocks: Sequence[tuple[str, nn.Module]]
    start: Callable[[Batch, Any], Any]
    finish: Callable[[Tensor], Tensor]
    reads: str | None = None


@dataclass(frozen=True)
class Word:
    """A word as it was heard.

    Attributes:
        start, end: seconds.
        text: with its punctuation, without spaces around it.
    """

    start: float
    end: float
    text: str

    def moved(self, seconds: float) -> Word:
        """The same word, so much later."""
        return Word(self.start + seconds, self.end + seconds, self.text)


@dataclass(frozen=True)
class Segment:
    """A stretch of speech with its text.

    Attributes:
        start, end: seconds.
        text: of the segment. What a model writes keeps the space that separates it from what came before.
        words: with their times; None if they were not asked for.
    """

    start: float
    end: float
    text: str
    words: tuple[Word, ...] | None = None
