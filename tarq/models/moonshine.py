"""Moonshine tiny and base (``MoonshineForConditionalGeneration``): raw waveform in, no fixed window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from tarq.errors import ModelError
from tarq.models.common import conv_output_length, pad_waveform, receptive_field
from tarq.models.encoder_decoder import EncoderDecoder
from tarq.models.features import check_fits
from tarq.models.types import Features, Positions

#: Its authors' bound on transcript length, against endless repetition: tokens per second of audio.
TOKENS_A_SECOND = 6.5


class MoonshineRecognizer(EncoderDecoder):
    """Encoder–decoder over utterances of any length; three strided convolutions make frames of 24 ms.

    A GroupNorm after the first convolution takes its mean over time, padding included, so utterances of
    different lengths never share a batch.
    """

    model_classes: ClassVar = {"moonshine": "MoonshineForConditionalGeneration"}
    decoder_norm = "norm"
    shift_free = (".encoder_attn.k_proj",)  # self-attention keys have rotary positions

    def __init__(self, model: nn.Module, *parts: Any) -> None:
        super().__init__(model, *parts)
        self.stem = (self.encoder.conv1, self.encoder.conv2, self.encoder.conv3)

    @property
    def pads(self) -> bool:
        return False

    @property
    def max_target_tokens(self) -> int:
        return self.model.config.max_position_embeddings

    def check_features(self) -> None:
        check_fits(self.feature_extractor, bins=1)

    def audio_inputs(self, waveform: np.ndarray) -> tuple[Features, int]:
        waveform = pad_waveform(waveform, receptive_field(self.stem))
        values = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt").input_values[0]
        return {"input_values": values}, conv_output_length(len(values), self.stem)

    def frame_positions(self, frames: Sequence[int], features: Features) -> Positions:
        return Positions.of_frames(frames, max(frames))

    def prefix(self, language: str | None = None) -> list[int]:
        language = language or self.language
        if language != "en":
            raise ModelError(f"this model has no language {language!r}; it knows en")
        config, generation = self.model.config, self.model.generation_config
        for start in (generation.decoder_start_token_id, config.decoder_start_token_id, self.tokenizer.bos_token_id):
            if start is not None:
                return [start]
        raise ModelError("nothing says which token begins a transcript: set decoder_start_token_id in config.json")

    def model_output(self, encoder_output: Tensor) -> Any:
        from transformers.models.moonshine.modeling_moonshine import MoonshineEncoderModelOutput

        return MoonshineEncoderModelOutput(last_hidden_state=encoder_output)

    def most_tokens(self, encoder_output: Tensor, prompt: int) -> int:
        stride = math.prod(conv.stride[0] for conv in self.stem)
        seconds = encoder_output.shape[1] * stride / self.sampling_rate
        return min(max(math.ceil(TOKENS_A_SECOND * seconds), 1), super().most_tokens(encoder_output, prompt))
