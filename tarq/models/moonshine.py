"""Moonshine tiny and base (``MoonshineForConditionalGeneration``): raw waveform in, no fixed window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from tarq.models.base import convolved, lengthened, receptive_field
from tarq.models.encoder_decoder import EncoderDecoder
from tarq.models.types import Features, Positions

#: Its authors' bound on the length of a transcript, against endless repetition: tokens a second of audio.
TOKENS_A_SECOND = 6.5


class MoonshineRecognizer(EncoderDecoder):
    """Encoder–decoder over utterances of any length; three strided convolutions make frames of 24 ms.

    A GroupNorm after the first convolution takes its mean over time, padding included, so utterances of unlike
    length never share a batch.
    """

    model_classes: ClassVar = {"moonshine": "MoonshineForConditionalGeneration"}
    decoder_norm = "norm"

    def __init__(self, model: nn.Module, *parts: Any) -> None:
        super().__init__(model, *parts)
        self.stem = (self.encoder.conv1, self.encoder.conv2, self.encoder.conv3)

    @property
    def pads(self) -> bool:
        return False

    @property
    def max_target_tokens(self) -> int:
        return self.model.config.max_position_embeddings

    def audio_inputs(self, waveform: np.ndarray) -> tuple[Features, int]:
        waveform = lengthened(waveform, receptive_field(self.stem))
        values = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt").input_values[0]
        return {"input_values": values}, convolved(len(values), self.stem)

    def frame_positions(self, frames: Sequence[int], features: Features) -> Positions:
        return Positions.of_frames(frames, max(frames))

    def prefix(self) -> list[int]:
        self.check_language("en")
        return [self.model.config.decoder_start_token_id]

    def encoded(self, audio: Tensor) -> Any:
        from transformers.models.moonshine.modeling_moonshine import MoonshineEncoderModelOutput

        return MoonshineEncoderModelOutput(last_hidden_state=audio)

    def limits(self, audio: Tensor) -> dict[str, Any]:
        stride = math.prod(conv.stride[0] for conv in self.stem)
        seconds = audio.shape[1] * stride / self.sampling_rate
        longest = self.max_target_tokens - len(self.prefix())
        return {"max_new_tokens": min(max(math.ceil(TOKENS_A_SECOND * seconds), 1), longest)}
