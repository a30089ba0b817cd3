"""Qwen2-Audio (``Qwen2AudioForConditionalGeneration``: 7B, 7B-Instruct)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from tarq.errors import ModelError
from tarq.models.audio_language import AudioLanguageModel
from tarq.models.features import check_fits
from tarq.models.types import Example, Features, Positions

#: The base model's transcription prompt, as in its training.
TASK = "{audio}Detect the language and recognize the speech: {tag}"


class Qwen2AudioRecognizer(AudioLanguageModel):
    """A Whisper tower over windows of 30 s that masks frames beyond the audio and halves the frame rate."""

    model_classes: ClassVar = {"qwen2_audio": "Qwen2AudioForConditionalGeneration"}

    def check_features(self) -> None:
        stride = self.tower.conv1.stride[0] * self.tower.conv2.stride[0]
        bins, frames = self.model.config.audio_config.num_mel_bins, self.tower.max_source_positions * stride
        check_fits(self.feature_extractor, bins=bins, frames=frames)

    def request(self, waveform: np.ndarray, language: str) -> Sequence[int]:
        p = self.processor
        tag, vocabulary = f"<|{language}|>", self.tokenizer.get_vocab()
        if tag not in vocabulary and "<|en|>" in vocabulary:  # without a token for any tag they would be spelled out
            raise ModelError(f"the tokenizer has no token {tag}: language {language!r} is none of the model's")
        audio = f"{p.audio_bos_token}{p.audio_token}{p.audio_eos_token}"
        text = TASK.format(audio=audio, tag=tag)
        return p(text=text, audio=[waveform], sampling_rate=self.sampling_rate, return_tensors="pt")["input_ids"][
            0
        ].tolist()

    def audio_inputs(self, waveform: np.ndarray) -> tuple[Features, int]:
        made = self.feature_extractor(
            waveform,
            sampling_rate=self.sampling_rate,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        features = {"input_features": made.input_features[0], "feature_attention_mask": made.attention_mask[0]}
        return features, self._lengths(self.stack([features]))[0].tolist()[0]

    def _lengths(self, features: Features) -> tuple[Tensor, Tensor]:
        """Tower frames and audio rows of each utterance of a batch."""
        return self.tower._get_feat_extract_output_lengths(features["feature_attention_mask"].sum(-1))

    def tokens_of_frames(self, frames: int) -> int:
        return (frames - 2) // 2 + 1

    def audio_tokens(self, features: Features) -> list[int]:
        return self._lengths(features)[1].tolist()

    def encode_audio(self, features: Features) -> Tensor:
        # As Qwen2AudioModel.forward does between its arguments and the language model.
        values = features["input_features"]
        frames, _ = self._lengths(features)
        rows = torch.arange(self.tower.max_source_positions, device=values.device)
        mask = create_bidirectional_mask(
            config=self.tower.config,
            inputs_embeds=values.new_zeros(len(values), len(rows), 1),
            attention_mask=(rows[None, :] < frames[:, None]).long(),
        )
        return self.projector(self.tower(values, attention_mask=mask).last_hidden_state)

    def to_projector(self, hidden: Tensor) -> Tensor:
        return self.tower.layer_norm(self.tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2))

    def audio_positions(self, examples: Sequence[Example], features: Features) -> tuple[Positions, Positions]:
        rows = self.tower.max_source_positions
        return (
            Positions.of_frames([e.frames for e in examples], rows),
            Positions.of_frames(self.audio_tokens(features), rows // 2),
        )
