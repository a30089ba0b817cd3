"""What the rest of tarq may ask of a speech model. One subclass a family; nothing else knows a family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tarq.errors import ModelError
from tarq.finite import not_finite
from tarq.linear import Int8Layers, QuantLinear, slow_layers, use_int8_activations
from tarq.models.types import Batch, Example, Features, Prompted, Stage


class Recognizer(ABC):
    """A speech model with the tokenizer and feature extractor it needs: one subclass a family.

    Args:
        model: the transformers model.
        tokenizer: of the transcripts.
        feature_extractor: from waveform to model input.
        stored_dtype: dtype of the weights on disk, which scales are stored in and checkpoints saved in.
        processor: what holds both, where the family's prompts are made by it.

    Raises:
        ModelError: a part does not fit the family.
    """

    #: ``config.model_type`` values this family serves, with the transformers class each is loaded as.
    model_classes: ClassVar[Mapping[str, str]] = {}
    #: Whether prompts come from the checkpoint's processor, which then must be there and is saved along.
    needs_processor: ClassVar[bool] = False
    #: Whether frames of audio are the only positions there are, and so carry the tags.
    frames_only: ClassVar[bool] = False
    #: Whether transcripts may be taught with times around them.
    has_timestamps: ClassVar[bool] = False
    #: Ends of the names of Linears whose outputs one vector may be added to without any effect: keys that softmax
    #: attention compares with queries as they are, without rotary or relative positions.
    shift_free: ClassVar[tuple[str, ...]] = ()
    #: Why layers outside the blocks stay in full precision: the end of a name to the reason.
    reasons: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        feature_extractor: Any,
        stored_dtype: torch.dtype,
        processor: Any = None,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.feature_extractor = feature_extractor
        self.stored_dtype = stored_dtype
        self.processor = processor
        self.language = "en"

    @classmethod  # noqa: B027 - most families need nothing
    def check_installed(cls) -> None:
        """See that what the family's processor needs is installed.

        Raises:
            ModelError: it is not; says what to install.
        """

    @classmethod  # noqa: B027 - most have one layout
    def check_config(cls, config: Any, source: Any) -> None:
        """See that a checkpoint is laid out as the family's transformers class reads it.

        Raises:
            ModelError: it is not.
        """

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def parts(self) -> list[Any]:
        """What a checkpoint needs beside the model, each with ``save_pretrained(folder)``."""
        return [self.tokenizer, self.feature_extractor] if self.processor is None else [self.processor]

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The tokenizer's tokens with their ids."""
        return self.tokenizer.get_vocab()

    @property
    def spelling(self) -> dict[str, str] | None:
        """British to American spellings, where the tokenizer brings them."""
        return getattr(self.tokenizer, "english_spelling_normalizer", None) or None

    @property
    def sampling_rate(self) -> int:
        """Samples per second the feature extractor expects."""
        return int(self.feature_extractor.sampling_rate)

    @property
    def window(self) -> float:
        """Seconds of audio the model takes at once: what its feature extractor makes a window of, or 30."""
        samples = getattr(self.feature_extractor, "n_samples", None)
        return samples / self.sampling_rate if samples else 30.0

    @property
    def pads(self) -> bool:
        """Whether utterances of unlike length may share a batch.

        False where a model normalises or attends over the padding too, as if it were heard: what it computes for
        an utterance would then depend on its neighbours, so each goes alone.
        """
        return True

    def own_language(self) -> str | None:
        """The language that the checkpoint itself transcribes when it is asked for none, where it says so."""
        return None

    @property
    @abstractmethod
    def max_target_tokens(self) -> int:
        """Longest sequence of tokens, prompt and end token included."""

    @abstractmethod
    def audio_inputs(self, waveform: np.ndarray) -> tuple[Features, int]:
        """The model's audio arguments for one waveform, and the encoder positions within the audio."""

    @abstractmethod
    def prompt(self, text: str, *, frames: int = 0, timestamps: bool = False, language: str | None = None) -> Prompted:
        """The token sequence that teacher-forces a transcript.

        Args:
            text: the transcript.
            frames: encoder positions within the audio, for families that write its length into the sequence.
            timestamps: with the times at which it begins and ends, for families that have them.
            language: it is in; the recognizer's own when not given.

        Raises:
            ModelError: the language is not the model's.
        """

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and the [start, end) characters each covers.

        Raises:
            ModelError: the tokenizer gives no offsets, which tagging rare words needs.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(self.tokenizer).__name__} gives no character offsets, which tagging rare words needs: "
                "load a fast tokenizer (AutoTokenizer does where tokenizer.json exists)"
            )
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]

    def check(self) -> list[str]:
        """See that tokenizer, feature extractor and generation configuration are the model's, without any audio.

        Returns:
            Notes on what is done otherwise than the checkpoint asks.

        Raises:
            ModelError: one of them does not fit.
        """
        self.check_tokenizer()
        self.check_features()
        return []

    @abstractmethod
    def check_features(self) -> None:
        """See that the feature extractor makes what the model reads.

        Raises:
            ModelError: it does not.
        """

    def check_tokenizer(self) -> None:
        """See that the tokenizer is the model's.

        Raises:
            ModelError: it gives no offsets, or other tokens than the model has.
        """
        self.tokens("")  # says so where there are no offsets
        size = self.model.config.get_text_config(decoder=True).vocab_size
        vocabulary = self.vocabulary
        # Special tokens may lie beyond: many CTC models were made without their tokenizer's <s> and </s>.
        special = set(self.tokenizer.all_special_ids)
        words = {token: i for token, i in vocabulary.items() if i not in special}
        beyond = sorted((i, token) for token, i in words.items() if i >= size)
        # For a folder without tokenizer files transformers makes up an empty tokenizer instead of failing.
        if not words or len(beyond) == len(words):
            raise ModelError(
                f"the tokenizer does not fit the model ({len(vocabulary)} tokens, the model has {size}): "
                "is tokenizer.json missing, or another model's? Pass tokenizer=… or add its files"
            )
        if beyond:
            raise ModelError(
                f"the tokenizer has {len(beyond)} tokens beyond the model's {size}, such as {beyond[0][1]!r} "
                f"(id {beyond[0][0]}): resize the model (resize_token_embeddings), or pass its own tokenizer"
            )

    def reason_to_skip(self, example: Example) -> str:
        """Why the model cannot be taught this example, or an empty string."""
        count, limit = len(example.prompted.ids), self.max_target_tokens
        return f"{count} tokens, the decoder takes {limit}" if count > limit else ""

    def stack(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Audio arguments of several utterances, of one shape here; families that pad do it here."""
        return {name: torch.stack([f[name] for f in features]) for name in features[0]}

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stack examples, on the CPU: several models on different devices may read one batch."""

    def frame_tags(self, batch: Batch) -> dict[str, Tensor]:
        """Where the model hears rare words: stage name to [B, T] bool, rows of audio within one.

        Raises:
            ModelError: the family has no way to tell.
        """
        raise ModelError(
            f"{type(self.model).__name__} has nothing that places words on frames: use --frame-tags none or auto"
        )

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The model's blocks in order of execution."""

    @abstractmethod
    def encode(self, features: Features) -> Any:
        """The encoder's output of stacked features: made once, it serves ``logits`` and ``decode``."""

    @abstractmethod
    def logits(self, batch: Batch, encoder_output: Any = None) -> Tensor:
        """Teacher-forced logits at the positions of the batch's targets.

        Args:
            batch: the examples.
            encoder_output: of the batch's features, where the caller has it.

        Returns:
            [B, T, vocabulary], on the model's device.
        """

    @abstractmethod
    def decode(self, encoder_output: Any, language: str | None = None) -> list[str]:
        """Greedy transcripts of encoded features.

        Args:
            encoder_output: what :meth:`encode` gave.
            language: they are in; the recognizer's own when not given.

        Raises:
            ModelError: the model computes NaN or infinity, or the language is not its.
        """

    def decode_forced(
        self, batch: Batch, encoder_output: Any, logits: Tensor, language: str | None = None
    ) -> list[str]:
        """:meth:`decode` of a batch that was teacher-forced: the same transcripts, for less where a family can.

        Args:
            batch: the examples.
            encoder_output: of the batch's features.
            logits: what :meth:`logits` gave.
            language: the batch is in; the recognizer's own when not given.
        """
        return self.decode(encoder_output, language)

    def transcribe(self, waveforms: Sequence[np.ndarray], language: str | None = None) -> list[str]:
        """Greedy transcripts of waveforms no longer than the window."""
        features = [self.audio_inputs(w)[0] for w in waveforms]
        batches = [features] if self.pads else [[each] for each in features]
        return [text for batch in batches for text in self.decode(self.encode(self.stack(batch)), language)]

    def on_device(self, features: Features) -> dict[str, Tensor]:
        """Arguments where the model is, in its dtype where they are real numbers."""
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for name, value in features.items()
        }

    def not_finite(self) -> Iterator[str]:
        """Names of the weights that hold NaN or infinity; reads them all."""
        for name, _ in not_finite((*self.model.named_parameters(), *self.model.named_buffers())):
            yield name

    def check_weights(self, label: str = "") -> None:
        """See that all weights are numbers.

        Args:
            label: what the model is called where there are several.

        Raises:
            ModelError: one holds NaN or infinity; names it.
        """
        for name in self.not_finite():
            raise ModelError(
                f"{label and f'{label}: '}{name} holds NaN or infinity, so nothing the model says means anything: "
                "convert or download the checkpoint again"
            )

    @property
    def is_quantized(self) -> bool:
        """Whether any layer is packed."""
        return any(isinstance(module, QuantLinear) for module in self.model.modules())

    def use_int8_activations(self) -> Int8Layers:
        """Have packed layers round their inputs to 8 bits where a kernel gains by it; how many do, and why not all."""
        return use_int8_activations(self.model)

    def slow_layers(self) -> list[str]:
        """What a user should know of packed layers that are slower than they could be, a sentence for each reason."""
        return slow_layers(self.model)

    def linear_bytes(self) -> int:
        """Bytes of the blocks' Linear weights: packed ones as they are, others in the dtype on disk."""
        modules = [m for stage in self.stages() for _, block in stage.blocks for m in block.modules()]
        packed = sum(m.packed_bytes() for m in modules if isinstance(m, QuantLinear))
        plain = sum(m.weight.numel() for m in modules if isinstance(m, nn.Linear))
        return packed + plain * self.stored_dtype.itemsize

    def left_out(self) -> dict[str, str]:
        """Matrices that stay in full precision, with the reason: Linears outside the blocks, pointwise convolutions."""
        inside = {f"{name}.{inner}" for s in self.stages() for name, b in s.blocks for inner, _ in b.named_modules()}
        inside |= {name for s in self.stages() for name, _ in s.blocks}
        left = {}
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1:
                left[name] = self._reason(
                    name, "a pointwise convolution: the checkpoint format packs Linear layers only"
                )
            elif isinstance(module, nn.Linear) and name not in inside:
                left[name] = self._reason(name, "outside the transformer blocks")
        return left

    def _reason(self, name: str, otherwise: str) -> str:
        return next((reason for end, reason in self.reasons.items() if name.endswith(end)), otherwise)
