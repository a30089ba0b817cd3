"""Whisper and its relatives (``WhisperForConditionalGeneration``: tiny … large-v3-turbo, .en, distil)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from ..errors import ModelError
from .family import Batch, Example, Positions, Prompted, Recognizer, Stage

#: Positions that go through the encoder together on a CPU: one window of 30 s, some shorter ones. What they become
#: within a block stays in the cache then, and they are enough for the products to run at full speed.
ENCODED_AT_ONCE = 2048


class WhisperRecognizer(Recognizer):
    """Encoder–decoder over fixed windows (30 s); transcripts are forced behind Whisper's own prompt."""

    model_types = ("whisper",)

    def __init__(self, model: nn.Module, tokenizer, feature_extractor, stored_dtype: torch.dtype) -> None:
        super().__init__(model, tokenizer, feature_extractor, stored_dtype)
        body: Any = getattr(model, "model", None)
        for part in ("encoder", "decoder"):
            if not hasattr(getattr(body, part, None), "layers"):
                raise ModelError(
                    f"{type(model).__name__} has no model.{part}.layers: a WhisperForConditionalGeneration is needed"
                )
        self.encoder, self.decoder = body.encoder, body.decoder
        self.frame_stride = self.encoder.conv1.stride[0] * self.encoder.conv2.stride[0]

    @property
    def window(self) -> float:
        return self.feature_extractor.n_samples / self.sampling_rate

    @property
    def max_target_tokens(self) -> int:
        return self.model.config.max_target_positions

    def audio_inputs(self, waveform: np.ndarray) -> tuple[Tensor, int]:
        features = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt")
        samples_per_position = self.feature_extractor.hop_length * self.frame_stride
        frames = min(-(-len(waveform) // samples_per_position), self.model.config.max_source_positions)
        return features.input_features[0], frames

    def _prefix(self) -> list[int]:
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

    def prompt(self, text: str) -> Prompted:
        # Whisper's own transcripts begin with a space, so that is what its decoder expects to be fed.
        encoded = self.tokenizer(" " + text, add_special_tokens=False, return_offsets_mapping=True)
        prefix, eos = self._prefix(), self.model.config.eos_token_id
        spans = [(max(start - 1, 0), max(end - 1, 0)) for start, end in encoded["offset_mapping"]]
        count = len(spans)
        return Prompted(
            ids=(*prefix, *encoded["input_ids"], eos),
            offsets=(*[(0, 0)] * len(prefix), *spans, (0, 0)),
            is_text=(*[False] * len(prefix), *[True] * count, False),
        )

    def collate(self, examples: Sequence[Example]) -> Batch:
        ids = [torch.tensor(e.prompted.ids) for e in examples]
        pad = self.model.config.pad_token_id
        inputs = pad_sequence([i[:-1] for i in ids], batch_first=True, padding_value=pad if pad is not None else 0)
        said = [torch.tensor(e.prompted.is_text)[1:] for e in examples]
        for flags in said:
            flags[-1] = True  # the end token is the model's to predict; the prompt is not
        targets = pad_sequence(
            [i[1:].masked_fill(~s, -100) for i, s in zip(ids, said, strict=True)],
            batch_first=True,
            padding_value=-100,
        )
        exists = pad_sequence([torch.ones(len(i) - 1, dtype=torch.bool) for i in ids], batch_first=True)
        tail = pad_sequence([e.tail for e in examples], batch_first=True)
        rare = pad_sequence([e.rare_target for e in examples], batch_first=True)
        frame = torch.arange(self.model.config.max_source_positions)
        padding = frame[None, :] >= torch.tensor([e.frames for e in examples])[:, None]
        none = torch.zeros_like(padding)
        return Batch(
            ids=tuple(e.id for e in examples),
            features=torch.stack([e.features for e in examples]),
            input_ids=inputs,
            targets=targets,
            rare_target=rare,
            positions={
                # No token belongs to a frame: every frame is common, as in the paper.
                "encoder": Positions(tail=none, exists=~none, padding=padding),
                "decoder": Positions(tail=tail, exists=exists, padding=torch.zeros_like(tail)),
            },
        )

    def stages(self) -> list[Stage]:
        return [
            Stage(
                "encoder",
                [(f"model.encoder.layers.{i}", layer) for i, layer in enumerate(self.encoder.layers)],
                start=lambda batch, _: self.encoder(batch.features.to(self.device, self.dtype)),
                finish=self.encoder.layer_norm,
            ),
            Stage(
                "decoder",
                [(f"model.decoder.layers.{i}", layer) for i, layer in enumerate(self.decoder.layers)],
                start=lambda batch, audio: self.decoder(
                    input_ids=batch.input_ids.to(self.device), encoder_hidden_states=audio, use_cache=False
                ),
                finish=self.decoder.layer_norm,
                reads="encoder",
            ),
        ]

    def encode(self, features: Tensor) -> Tensor:
        features = features.to(self.device, self.dtype)
        step = len(features)
        if self.device.type == "cpu":
            step = max(1, ENCODED_AT_ONCE // self.model.config.max_source_positions)
        return torch.cat([self.encoder(part).last_hidden_state for part in features.split(step)])

    def logits(self, batch: Batch, audio: Tensor | None = None) -> Tensor:
        heard = self.encode(batch.features) if audio is None else audio
        return self.model(
            encoder_outputs=BaseModelOutput(heard), decoder_input_ids=batch.input_ids.to(self.device), use_cache=False
        ).logits

    def decode(self, audio: Tensor) -> list[str]:
        return self._texts(self._generate(audio))

    def decode_forced(self, batch: Batch, audio: Tensor, logits: Tensor) -> list[str]:
        """Rows whose forced tokens are the ones greedy decoding takes are decoded thereby; the others are decoded."""
        ids, targets = batch.input_ids.to(logits.device), batch.targets.to(logits.device)

        def follow(model: Any, prompt: Tensor, logits_processor: Any, stopping_criteria: Any, **_: Any) -> Tensor:
            agreed = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
            for t in range(prompt.shape[1] - 1, ids.shape[1]):
                wanted, before = targets[:, t], ids[:, : t + 1]
                scores = logits_processor(before, logits[:, t].to(torch.float32, copy=True))
                stops = stopping_criteria(torch.cat([before, wanted[:, None]], dim=1), scores)
                last = targets[:, t + 1] == -100 if t + 1 < ids.shape[1] else torch.ones_like(agreed)
                agreed &= (wanted == -100) | (scores.argmax(-1) == wanted) & (stops == last)
                if not agreed.any():
                    break
            return agreed

        agreed = self._generate(audio, custom_generate=follow)
        decoded = iter(self.decode(audio[~agreed]) if not agreed.all() else [])
        followed = self._texts([row[row != -100] for row in targets])
        return [text if yes else next(decoded) for text, yes in zip(followed, agreed.tolist(), strict=True)]

    def _generate(self, audio: Tensor, **options: Any) -> Tensor:
        """Greedy tokens, behind the prompt."""
        prompt = torch.tensor([self._prefix()] * len(audio), device=audio.device)
        # Not Whisper's own generate(): it seeks through long audio by the timestamps it finds in the text,
        # and wants the features again for that. What comes here is one window, without timestamps.
        ids: Any = GenerationMixin.generate(
            self.model,
            encoder_outputs=BaseModelOutput(audio),
            attention_mask=torch.ones(audio.shape[:2], dtype=torch.long, device=audio.device),
            decoder_input_ids=prompt,
            num_beams=1,
            do_sample=False,
            **options,
        )
        return ids

    def _texts(self, ids: Any) -> list[str]:
        return [t.strip() for t in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @property
    def _multilingual(self) -> bool:
        return bool(getattr(self.model.generation_config, "is_multilingual", False))
