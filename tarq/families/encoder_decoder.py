"""What encoder–decoders have in common: frames in one stage, tokens in the next, joined by cross-attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from .family import Batch, Example, Features, Positions, Prompted, Recognizer, Stage, forced_tokens, framed, require


class EncoderDecoder(Recognizer):
    """A transformers model with ``model.encoder`` and ``model.decoder``."""

    reasons: ClassVar = {"proj_out": "the output head, tied to the token embedding"}
    #: Attribute of the decoder that normalises the last block's output.
    decoder_norm = "layer_norm"

    def __init__(self, model: nn.Module, *parts: Any) -> None:
        super().__init__(model, *parts)
        wanted = self.model_classes[self.model.config.model_type]
        require(self.model, "model.encoder.layers", "model.decoder.layers", "proj_out", wanted=wanted)
        self.encoder, self.decoder = self.model.model.encoder, self.model.model.decoder

    @abstractmethod
    def prefix(self) -> list[int]:
        """Prompt ids, before the transcript."""

    @abstractmethod
    def frame_positions(self, frames: Sequence[int], features: Features) -> Positions:
        """The encoder's rows of a batch, given how many are within the audio."""

    def prompt(self, text: str, *, frames: int = 0, timestamps: bool = False) -> Prompted:
        ids, spans = self.tokens(text)
        return framed(self.prefix(), ids, spans, [self.model.config.eos_token_id])

    def collate(self, examples: Sequence[Example]) -> Batch:
        pad = self.model.config.pad_token_id
        inputs, targets, rare, decoder = forced_tokens(examples, pad if pad is not None else 0)
        features = self.stack([e.features for e in examples])
        return Batch(
            ids=tuple(e.id for e in examples),
            features=features,
            input_ids=inputs,
            targets=targets,
            rare_target=rare,
            positions={
                "encoder": self.frame_positions([e.frames for e in examples], features),
                "decoder": decoder,
            },
        )

    def stages(self) -> list[Stage]:
        return [
            Stage(
                "encoder",
                [(f"model.encoder.layers.{i}", layer) for i, layer in enumerate(self.encoder.layers)],
                start=lambda batch, _: self.encoder(**self.on_device(batch.features)),
                finish=self.encoder.layer_norm,
            ),
            Stage(
                "decoder",
                [(f"model.decoder.layers.{i}", layer) for i, layer in enumerate(self.decoder.layers)],
                start=lambda batch, audio: self.decoder(
                    input_ids=batch.input_ids.to(self.device), encoder_hidden_states=audio, use_cache=False
                ),
                finish=getattr(self.decoder, self.decoder_norm),
                reads="encoder",
            ),
        ]

    def encode(self, features: Features) -> Tensor:
        return self.encoder(**self.on_device(features)).last_hidden_state

    def encoded(self, audio: Tensor) -> Any:
        """The encoder's output in the form the model takes it in."""
        return BaseModelOutput(audio)

    def logits(self, batch: Batch, audio: Tensor | None = None) -> Tensor:
        heard = self.encode(batch.features) if audio is None else audio
        return self.model(
            encoder_outputs=self.encoded(heard), decoder_input_ids=batch.input_ids.to(self.device), use_cache=False
        ).logits

    def decode(self, audio: Tensor) -> list[str]:
        prompt = torch.tensor([self.prefix()] * len(audio), device=audio.device)
        # Not the model's own generate(): Whisper's seeks through long audio by the timestamps it finds in the
        # text, and wants the features again for that. What comes here is one window, without timestamps.
        ids = GenerationMixin.generate(
            self.model,
            encoder_outputs=self.encoded(audio),
            attention_mask=torch.ones(audio.shape[:2], dtype=torch.long, device=audio.device),
            decoder_input_ids=prompt,
            num_beams=1,
            do_sample=False,
            **self.limits(audio),
        )
        return [t.strip() for t in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def limits(self, audio: Tensor) -> dict[str, Any]:
        """How long a transcript may get, as arguments of ``generate``; the checkpoint's own limits by default."""
        return {}
