"""Qwen3-ASR (``Qwen3ASRForConditionalGeneration``: the ``-hf`` checkpoints of 0.6B and 1.7B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from tarq.errors import ModelError
from tarq.models.audio_language import AudioLanguageModel
from tarq.models.features import check_fits
from tarq.models.types import Example, Features, Positions


class Qwen3ASRRecognizer(AudioLanguageModel):
    """A tower that concatenates the frames of a batch and attends in windows, under a Qwen3 decoder."""

    model_classes: ClassVar = {"qwen3_asr": "Qwen3ASRForConditionalGeneration"}
    reasons: ClassVar = {
        "lm_head": "the output head, tied to the token embedding",
        "conv_out": "the stem: it reads convolution features, before the first block",
    }

    @classmethod
    def check_config(cls, config: Any, source: Any) -> None:
        if hasattr(config, "thinker_config"):
            raise ModelError(
                f"{source}: this is the qwen-asr package's own format, not transformers'; "
                "take the checkpoint whose name ends in -hf (Qwen/Qwen3-ASR-0.6B-hf, Qwen/Qwen3-ASR-1.7B-hf)"
            )

    def check_features(self) -> None:
        check_fits(self.feature_extractor, bins=self.model.config.audio_config.num_mel_bins)

    def request(self, waveform: np.ndarray, language: str) -> Sequence[int]:
        try:
            made = self.processor.apply_transcription_request(audio=waveform, language=language)
        except ValueError as error:
            raise ModelError(f"Qwen3-ASR's processor made no prompt for language {language!r}: {error}") from error
        return made["input_ids"][0].tolist()

    def audio_inputs(self, waveform: np.ndarray) -> tuple[Features, int]:
        made = self.feature_extractor(
            waveform,
            sampling_rate=self.sampling_rate,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        features = {"input_features": made.input_features[0], "input_features_mask": made.attention_mask[0]}
        return features, self.audio_tokens(self.stack([features]))[0]

    def stack(self, features: Sequence[Features]) -> dict[str, Tensor]:
        longest = max(f["input_features"].shape[-1] for f in features)
        padded = [{name: F.pad(value, (0, longest - value.shape[-1])) for name, value in f.items()} for f in features]
        return super().stack(padded)

    def tokens_of_frames(self, frames: int) -> int:
        return frames

    def audio_tokens(self, features: Features) -> list[int]:
        # imported here: older transformers lack the module, which other families do not need
        from transformers.models.qwen3_asr.modeling_qwen3_asr import _get_feat_extract_output_lengths

        lengths = features["input_features_mask"].sum(-1)
        return _get_feat_extract_output_lengths(lengths, self.tower.n_window).tolist()

    def encode_audio(self, features: Features) -> Tensor:
        return self.model.get_audio_features(**features, return_dict=True).pooler_output

    def to_projector(self, hidden: Tensor) -> Tensor:
        return self.tower.ln_post(hidden)

    def audio_positions(self, examples: Sequence[Example], features: Features) -> tuple[Positions, Positions]:
        frames = [e.frames for e in examples]
        rows = Positions.of_frames(frames, max(frames), packed=True)
        return rows, rows
