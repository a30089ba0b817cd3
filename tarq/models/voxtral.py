"""Voxtral (``VoxtralForConditionalGeneration``: Mini-3B-2507): a Whisper tower under a Llama-like decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor
from transformers.utils import is_mistral_common_available

from tarq.errors import ModelError
from tarq.models.audio_language import AudioLanguageModel
from tarq.models.common import byte_spans
from tarq.models.features import check_fits
from tarq.models.types import Example, Features, Positions


class VoxtralRecognizer(AudioLanguageModel):
    """Windows of 30 s, padded and not masked: tower and decoder both read the padding."""

    model_classes: ClassVar = {"voxtral": "VoxtralForConditionalGeneration"}

    @classmethod
    def check_installed(cls) -> None:
        if not is_mistral_common_available():
            raise ModelError("Voxtral's tokenizer (tekken.json) needs mistral-common: pip install 'tarq[voxtral]'")

    @property
    def _merged(self) -> int:
        """Number of tower frames per audio row."""
        return self.model.config.audio_config.intermediate_size // self.model.config.audio_config.hidden_size

    def check_features(self) -> None:
        stride = self.tower.conv1.stride[0] * self.tower.conv2.stride[0]
        bins, frames = self.model.config.audio_config.num_mel_bins, self.tower.max_source_positions * stride
        check_fits(self.feature_extractor, bins=bins, frames=frames)

    def request(self, waveform: np.ndarray, language: str) -> Sequence[int]:
        try:
            made = self.processor.apply_transcription_request(
                audio=[waveform],
                format=["WAV"],
                sampling_rate=self.sampling_rate,
                language=language,
                model_id=self.model.config._name_or_path or "voxtral",
            )
        except ValueError as error:  # pydantic's, for a language that has no two-letter code
            raise ModelError(f"Voxtral's processor made no prompt for language {language!r}: {error}") from error
        return made["input_ids"][0].tolist()

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        if getattr(self.tokenizer, "is_fast", False):
            return super().tokens(text)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        pieces = self.tokenizer.tokenizer.instruct_tokenizer.tokenizer
        return ids, byte_spans(text, [len(pieces.id_to_byte_piece(i)) for i in ids])

    def audio_inputs(self, waveform: np.ndarray) -> tuple[Features, int]:
        features = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt")
        rows = self.tower.max_source_positions
        samples_per_row = self.feature_extractor.n_samples // rows
        return {"input_features": features.input_features[0]}, min(-(-len(waveform) // samples_per_row), rows)

    def tokens_of_frames(self, frames: int) -> int:
        return self.tower.max_source_positions // self._merged

    def audio_tokens(self, features: Features) -> list[int]:
        return [self.tokens_of_frames(0)] * len(features["input_features"])

    def valid_audio_tokens(self, examples: Sequence[Example], features: Features) -> list[int]:
        return [-(-e.frames // self._merged) for e in examples]

    def encode_audio(self, features: Features) -> Tensor:
        return self.model.get_audio_features(**features, return_dict=True).pooler_output

    def to_projector(self, hidden: Tensor) -> Tensor:
        return self.tower.layer_norm(hidden).reshape(len(hidden), -1, self.model.config.audio_config.intermediate_size)

    def audio_positions(self, examples: Sequence[Example], features: Features) -> tuple[Positions, Positions]:
        return (
            Positions.of_frames([e.frames for e in examples], self.tower.max_source_positions, windows=True),
            Positions.of_frames(self.valid_audio_tokens(examples, features), self.tokens_of_frames(0), windows=True),
        )
