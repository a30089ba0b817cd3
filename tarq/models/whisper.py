"""Whisper and its relatives (``WhisperForConditionalGeneration``: tiny … large-v3-turbo, .en, distil)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tarq.errors import ModelError
from tarq.models.base import framed
from tarq.models.encoder_decoder import EncoderDecoder
from tarq.models.types import Features, Positions, Prompted

#: Positions that go through the encoder together on a CPU: one window of 30 s, some shorter ones. What they become
#: within a block stays in the cache then, and they are enough for the products to run at full speed.
ENCODED_AT_ONCE = 2048


class WhisperRecognizer(EncoderDecoder):
    """Encoder–decoder over fixed windows (30 s); transcripts are forced behind Whisper's own prompt."""

    model_classes: ClassVar = {"whisper": "WhisperForConditionalGeneration"}
    has_timestamps = True

    def __init__(self, model: nn.Module, *parts: Any) -> None:
        super().__init__(model, *parts)
        self.frame_stride = self.encoder.conv1.stride[0] * self.encoder.conv2.stride[0]

    @property
    def max_target_tokens(self) -> int:
        return self.model.config.max_target_positions

    def audio_inputs(self, waveform: np.ndarray) -> tuple[Features, int]:
        features = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt")
        samples_per_position = self.feature_extractor.hop_length * self.frame_stride
        frames = min(-(-len(waveform) // samples_per_position), self.model.config.max_source_positions)
        return {"input_features": features.input_features[0]}, frames

    def frame_positions(self, frames: Sequence[int], features: Features) -> Positions:
        return Positions.of_frames(frames, self.model.config.max_source_positions, windows=True)

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        # Whisper's own transcripts begin with a space, so that is what its decoder expects to be fed.
        ids, spans = super().tokens(" " + text)
        return ids, [(max(start - 1, 0), max(end - 1, 0)) for start, end in spans]

    def prefix(self) -> list[int]:
        """Prompt ids: start, then language and task where the model is multilingual, then no-timestamps."""
        generation = self.model.generation_config
        if self.language != "en" and not self._multilingual:
            raise ModelError(f"this model transcribes English only, not {self.language!r}: leave --language out")
        start = self.model.config.decoder_start_token_id
        ids = [start if start is not None else generation.decoder_start_token_id]
        if self._multilingual:
            token = f"<|{self.language}|>"
            if not getattr(generation, "lang_to_id", None) or not getattr(generation, "task_to_id", None):
                raise ModelError(
                    "generation_config.json says the model is multilingual but has no lang_to_id and task_to_id: "
                    "take that file from the original checkpoint"
                )
            if token not in generation.lang_to_id:
                known = ", ".join(sorted(t.strip("<|>") for t in generation.lang_to_id))
                raise ModelError(f"this model has no language {self.language!r}; it knows {known}")
            ids += [generation.lang_to_id[token], generation.task_to_id["transcribe"]]
        no_timestamps = getattr(generation, "no_timestamps_token_id", None)
        return ids if no_timestamps is None else [*ids, no_timestamps]

    def prompt(self, text: str, *, frames: int = 0, timestamps: bool = False) -> Prompted:
        if not timestamps:
            return super().prompt(text)
        plain = getattr(self.model.generation_config, "no_timestamps_token_id", None)
        if plain is None or plain + 1 + frames >= self.model.config.vocab_size:
            raise ModelError("this model has no tokens for timestamps: calibrate it without")
        ids, spans = self.tokens(text)
        begin = plain + 1  # <|0.00|>; the next ones are a frame of 20 ms apart
        end = self.model.config.eos_token_id
        return framed([*self.prefix()[:-1], begin], ids, spans, [begin + frames, end])

    def encode(self, features: Features) -> Tensor:
        count = len(next(iter(features.values())))
        step = max(1, ENCODED_AT_ONCE // self.model.config.max_source_positions) if self.device.type == "cpu" else count
        parts = ({name: f[first : first + step] for name, f in features.items()} for first in range(0, count, step))
        return torch.cat([super(WhisperRecognizer, self).encode(part) for part in parts])

    @property
    def _multilingual(self) -> bool:
        return bool(getattr(self.model.generation_config, "is_multilingual", False))
