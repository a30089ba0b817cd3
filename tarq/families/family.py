"""What the rest of tarq may ask of a speech model. One subclass a family; nothing else knows a family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..linear import QuantLinear


@dataclass(frozen=True)
class Prompted:
    """A transcript as the decoder sees it: prompt, text tokens, end token.

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
    """One utterance made ready for teacher forcing.

    Attributes:
        id: the utterance's.
        features: the model's audio input, without a batch dimension.
        frames: encoder positions that lie within the audio.
        prompted: the transcript's tokens.
        tail: [S − 1] bool, decoder input positions tagged as rare.
        rare_target: [S − 1] bool, positions whose target token belongs to a rare word.
    """

    id: str
    features: Tensor
    frames: int
    prompted: Prompted
    tail: Tensor
    rare_target: Tensor


@dataclass(frozen=True)
class Positions:
    """What each row of a stage's hidden states is; every field is [B, T].

    Attributes:
        tail: tagged as rare.
        exists: False on rows that only make a batch rectangular.
        padding: beyond the end of the audio: such rows exist at inference too.
    """

    tail: Tensor
    exists: Tensor
    padding: Tensor


@dataclass(frozen=True)
class Batch:
    """Examples stacked.

    Attributes:
        ids: B utterance ids.
        features: [B, …] audio input.
        input_ids: [B, T] decoder input tokens.
        targets: [B, T] next tokens, −100 where there is none or it belongs to the prompt.
        rare_target: [B, T] bool, the target belongs to a rare word.
        positions: stage name to what its rows are.
    """

    ids: tuple[str, ...]
    features: Tensor
    input_ids: Tensor
    targets: Tensor
    rare_target: Tensor
    positions: dict[str, Positions] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A run of blocks with the same kind of positions: an encoder, a decoder.

    Attributes:
        name: key of :attr:`Batch.positions`.
        blocks: qualified name and module of each block, in order of execution. A block maps hidden states
            (its first positional argument) to hidden states (its output, or the output's first element).
        start: runs the model on a batch up to and into the first block, given what the stage before it
            handed over (None for the first stage).
        finish: from the last block's hidden states to what the next stage reads.
        reads: name of the stage whose output the blocks also read (cross-attention), or None.
    """

    name: str
    blocks: Sequence[tuple[str, nn.Module]]
    start: Callable[[Batch, Any], Any]
    finish: Callable[[Tensor], Tensor]
    reads: str | None = None


class Recognizer(ABC):
    """A speech model with the tokenizer and feature extractor it needs: one subclass a family.

    Args:
        model: the transformers model.
        tokenizer: a fast tokenizer (character offsets are needed to tag rare words).
        feature_extractor: from waveform to model input.
        stored_dtype: dtype of the weights on disk, which scales are stored in and checkpoints saved in.
    """

    #: ``config.model_type`` values this family serves.
    model_types: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: nn.Module, tokenizer: Any, feature_extractor: Any, stored_dtype: torch.dtype) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.feature_extractor = feature_extractor
        self.stored_dtype = stored_dtype
        self.language = "en"

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def spelling(self) -> dict[str, str] | None:
        """British to American spellings, where the tokenizer brings them."""
        return getattr(self.tokenizer, "english_spelling_normalizer", None) or None

    @property
    def sampling_rate(self) -> int:
        """Samples per second the feature extractor expects."""
        return int(self.feature_extractor.sampling_rate)

    @property
    @abstractmethod
    def window(self) -> float:
        """Seconds of audio the model takes at once."""

    @property
    @abstractmethod
    def max_target_tokens(self) -> int:
        """Longest decoder sequence, prompt and end token included."""

    @abstractmethod
    def audio_inputs(self, waveform: np.ndarray) -> tuple[Tensor, int]:
        """Features of one waveform (no batch dimension) and the encoder positions within the audio."""

    @abstractmethod
    def prompt(self, text: str) -> Prompted:
        """The token sequence that teacher-forces a transcript."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stack examples, on the CPU: several models on different devices may read one batch."""

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The model's blocks in order of execution."""

    @abstractmethod
    def encode(self, features: Tensor) -> Any:
        """What the decoder listens to, of stacked features: made once, it serves ``logits`` and ``decode``."""

    @abstractmethod
    def logits(self, batch: Batch, audio: Any = None) -> Tensor:
        """Teacher-forced logits at the decoder input positions.

        Args:
            batch: what is said.
            audio: the batch's encoded features, where the caller has them.

        Returns:
            [B, T, vocabulary], on the model's device.
        """

    @abstractmethod
    def decode(self, audio: Any) -> list[str]:
        """Greedy transcripts of encoded features."""

    def decode_forced(self, batch: Batch, audio: Any, logits: Tensor) -> list[str]:
        """:meth:`decode` of a batch that was teacher-forced: the same transcripts, for less where a family can.

        Args:
            batch: what is said.
            audio: the batch's encoded features.
            logits: what :meth:`logits` gave.
        """
        return self.decode(audio)

    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Greedy transcripts of waveforms no longer than the window."""
        return self.decode(self.encode(torch.stack([self.audio_inputs(w)[0] for w in waveforms])))

    @property
    def is_quantized(self) -> bool:
        """Whether any layer is packed."""
        return any(isinstance(module, QuantLinear) for module in self.model.modules())

    def linear_bytes(self) -> int:
        """Bytes of the blocks' Linear weights: packed ones as they are, others in the dtype on disk."""
        modules = [m for stage in self.stages() for _, block in stage.blocks for m in block.modules()]
        packed = sum(m.packed_bytes() for m in modules if isinstance(m, QuantLinear))
        plain = sum(m.weight.numel() for m in modules if isinstance(m, nn.Linear))
        return packed + plain * self.stored_dtype.itemsize

    def left_out(self) -> dict[str, str]:
        """Linear layers outside the blocks, with the reason they stay in full precision."""
        inside = {f"{name}.{inner}" for s in self.stages() for name, b in s.blocks for inner, _ in b.named_modules()}
        return {
            name: "outside the transformer blocks"
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and name not in inside
        }
