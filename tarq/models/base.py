"""The interface of a speech model to the rest of tarq: one subclass per family; no other code depends on a family."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from tarq.errors import ModelError
from tarq.models.types import Batch, Example, Features, Prompted, Segment
from tarq.models.weights import ModelWeights

#: What only some models can do when they transcribe: write timestamps, time words, detect the language.
Ability = Literal["timestamps", "words", "language"]


class Recognizer(ModelWeights):
    """A speech model with the tokenizer and feature extractor it needs: one subclass per family.

    Args:
        model: the transformers model.
        tokenizer: of the transcripts.
        feature_extractor: from waveform to model input.
        stored_dtype: dtype of the weights on disk, which scales are stored in and checkpoints saved in.
        processor: holds both, if it makes the family's prompts.

    Raises:
        ModelError: a part does not fit the family.
    """

    #: ``config.model_type`` values this family serves, with the transformers class each is loaded as.
    model_classes: ClassVar[Mapping[str, str]] = {}
    #: Whether prompts come from the checkpoint's processor, which is then required and saved along.
    needs_processor: ClassVar[bool] = False
    #: Whether audio frames are the only positions, and so carry the tags.
    frames_only: ClassVar[bool] = False
    #: Whether transcripts may be teacher-forced with timestamps.
    has_timestamps: ClassVar[bool] = False
    #: Name suffixes of Linears to whose outputs a constant vector can be added without any effect: keys of softmax
    #: attention without rotary or relative positions.
    shift_free: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        feature_extractor: Any,
        stored_dtype: torch.dtype,
        processor: Any = None,
    ) -> None:
        super().__init__(model, stored_dtype)
        self.tokenizer = tokenizer
        self.feature_extractor = feature_extractor
        self.processor = processor
        self._language: str | None = None

    @classmethod
    def check_installed(cls) -> None:
        """Check that what the family's processor needs is installed.

        Raises:
            ModelError: it is not; says what to install.
        """

    @classmethod
    def check_config(cls, config: Any, source: Any) -> None:
        """Check that a checkpoint is laid out as the family's transformers class reads it.

        Raises:
            ModelError: it is not.
        """

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
        """British to American spellings, if the tokenizer has them."""
        return getattr(self.tokenizer, "english_spelling_normalizer", None) or None

    @property
    def sampling_rate(self) -> int:
        """Samples per second the feature extractor expects."""
        return int(self.feature_extractor.sampling_rate)

    @property
    def window(self) -> float:
        """Seconds of audio the model takes at once: its feature extractor's window, or 30."""
        samples = getattr(self.feature_extractor, "n_samples", None)
        return samples / self.sampling_rate if samples else 30.0

    @property
    def pads(self) -> bool:
        """Whether utterances of different lengths may share a batch.

        False if a model normalises or attends over padding as if it were audio: its output for an utterance would then
        depend on the others in the batch, so each is run alone.
        """
        return True

    def own_language(self) -> str | None:
        """The language that the checkpoint transcribes by default, if it states one."""
        return None

    @property
    def language(self) -> str:
        """Of speech for which a call names none: that of :meth:`with_language`, or the checkpoint's own, or English."""
        return self._language or self.own_language() or "en"

    def with_language(self, language: str) -> Self:
        """The same model, for speech in this language where a call names none."""
        other = copy(self)
        other._language = language
        return other

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
            frames: encoder positions within the audio, for families whose sequence depends on the audio's length.
            timestamps: with start and end timestamps, for families that have them.
            language: of the transcript; the recognizer's by default.

        Raises:
            ModelError: the language is not the model's.
        """

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and the [start, end) characters each covers.

        Raises:
            ModelError: the tokenizer gives no offsets, which are needed to tag rare words.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(self.tokenizer).__name__} gives no character offsets, which tagging rare words needs: "
                "load a fast tokenizer (AutoTokenizer does where tokenizer.json exists)"
            )
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]

    def check(self) -> list[str]:
        """Check that tokenizer, feature extractor and generation configuration fit the model, without any audio.

        Returns:
            Notes on settings of the checkpoint that are not followed.

        Raises:
            ModelError: one of them does not fit.
        """
        self.check_tokenizer()
        self.check_features()
        return []

    @abstractmethod
    def check_features(self) -> None:
        """Check that the feature extractor's output fits the model.

        Raises:
            ModelError: it does not.
        """

    def check_tokenizer(self) -> None:
        """Check that the tokenizer fits the model.

        Raises:
            ModelError: it gives no offsets, or other tokens than the model has.
        """
        self.tokens("")  # raises if there are no offsets
        size = self.model.config.get_text_config(decoder=True).vocab_size
        vocabulary = self.vocabulary
        # Special tokens may exceed it: many CTC models were made without their tokenizer's <s> and </s>.
        special = set(self.tokenizer.all_special_ids)
        words = {token: i for token, i in vocabulary.items() if i not in special}
        beyond = sorted((i, token) for token, i in words.items() if i >= size)
        # For a folder without tokenizer files transformers creates an empty tokenizer instead of failing.
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
        """Why this example cannot be teacher-forced, or an empty string."""
        count, limit = len(example.prompted.ids), self.max_target_tokens
        return f"{count} tokens, the decoder takes {limit}" if count > limit else ""

    def stack(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Stack the audio arguments of several utterances of one shape; families that pad override this."""
        return {name: torch.stack([f[name] for f in features]) for name in features[0]}

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stack examples on the CPU: several models on different devices may read one batch."""

    def frame_tags(self, batch: Batch) -> dict[str, Tensor]:
        """Where the model places rare words in the audio: stage name to [B, T] bool, audio rows within one.

        Raises:
            ModelError: the family cannot align words to frames.
        """
        raise ModelError(f"{type(self.model).__name__} cannot align words to frames: use --frame-tags none or auto")

    @property
    def frame_tags_note(self) -> str:
        """What makes :meth:`frame_tags` less exact for this checkpoint; empty if nothing does."""
        return ""

    @abstractmethod
    def encode(self, features: Features) -> Any:
        """The encoder's output for stacked features; ``logits`` and ``decode`` can share it."""

    @abstractmethod
    def logits(self, batch: Batch, encoder_output: Any = None) -> Tensor:
        """Teacher-forced logits at the positions of the batch's targets.

        Args:
            batch: the examples.
            encoder_output: of the batch's features, if the caller has it.

        Returns:
            [B, T, vocabulary], on the model's device.
        """

    @abstractmethod
    def decode(self, encoder_output: Any, language: str | None = None) -> list[str]:
        """Greedy transcripts of encoded features.

        Args:
            encoder_output: of :meth:`encode`.
            language: of the speech; the recognizer's by default.

        Raises:
            ModelError: the model computes NaN or infinity, or the language is not the model's.
        """

    def decode_forced(
        self, batch: Batch, encoder_output: Any, logits: Tensor, language: str | None = None
    ) -> list[str]:
        """:meth:`decode` of a batch that was teacher-forced: the same transcripts, at less cost where a family can.

        Args:
            batch: the examples.
            encoder_output: of the batch's features.
            logits: of :meth:`logits`.
            language: of the batch; the recognizer's by default.
        """
        return self.decode(encoder_output, language)

    def transcribe(self, waveforms: Sequence[np.ndarray], language: str | None = None) -> list[str]:
        """Greedy transcripts of waveforms no longer than the window."""
        features = [self.audio_inputs(w)[0] for w in waveforms]
        batches = [features] if self.pads else [[each] for each in features]
        return [text for batch in batches for text in self.decode(self.encode(self.stack(batch)), language)]

    def why_not(self, ability: Ability) -> str:
        """Why the model lacks an ability, as a sentence that begins with its name; empty if it has it."""
        lacks = {
            "timestamps": "writes no timestamps",
            "words": "gives no word times: it has neither a CTC path nor attention that is known to follow the audio",
            "language": "does not detect the language of speech",
        }
        return f"{type(self.model).__name__} {lacks[ability]}"

    @property
    def word_times_note(self) -> str:
        """What makes the times of words less exact for this checkpoint; empty if nothing does."""
        return ""

    def timed(
        self, waveforms: Sequence[np.ndarray], language: str | None = None, words: bool = False
    ) -> Iterator[list[list[Segment]]]:
        """Greedy transcripts as segments, in seconds from the start of each waveform; a whole waveform is one here.

        Args:
            waveforms: no longer than the window, or of any length where :meth:`why_not` of timestamps is empty.
            language: of the speech; the recognizer's by default.
            words: with the times of words.

        Yields:
            what each step adds: per waveform the segments that are now final, none once it is done.

        Raises:
            ModelError: the model computes NaN or infinity, has no such language or no word times.
        """
        if words:
            raise ModelError(self.why_not("words"))
        texts = self.transcribe(waveforms, language)
        rate = self.sampling_rate
        yield [[Segment(0.0, len(w) / rate, text)] for w, text in zip(waveforms, texts, strict=True)]

    def detect_language(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """The language code of each waveform, by its first window.

        Raises:
            ModelError: the model cannot.
        """
        raise ModelError(self.why_not("language"))

    def on_device(self, features: Features) -> dict[str, Tensor]:
        """Arguments on the model's device; floating ones in its dtype."""
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for name, value in features.items()
        }
