"""What encoder–decoders have in common: frames in one stage, tokens in the next, joined by cross-attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from tarq.models.alignment import listening
from tarq.models.base import Recognizer, forced_tokens, framed, require
from tarq.models.types import Batch, Example, Features, Positions, Prompted, Stage

#: Frames that a median is taken over where attention is smoothed.
FRAMES_SMOOTHED = 7


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

    def frame_tags(self, batch: Batch) -> dict[str, Tensor]:
        """Frames whose likeliest token, by cross-attention, belongs to a rare word (:func:`listening`).

        The row that predicts a token is the one that listens to it, so rows go by their targets.
        """
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # the others do not give their weights
        try:
            attention = self.model(
                encoder_outputs=self.encoded(self.encode(batch.features)),
                decoder_input_ids=batch.input_ids.to(self.device),
                use_cache=False,
                output_attentions=True,
            ).cross_attentions
        finally:
            self.model.set_attn_implementation(before)
        every = [(layer, head) for layer, a in enumerate(attention) for head in range(a.shape[1])]
        # A distilled checkpoint may still name heads of its teacher's layers.
        named = {tuple(pair) for pair in getattr(self.model.generation_config, "alignment_heads", None) or ()}
        heads = [pair for pair in every if pair in named] or every
        weights = torch.stack([attention[layer][:, head] for layer, head in heads], dim=1).float().cpu()
        rows = batch.positions["encoder"]
        tags = torch.zeros_like(rows.tail)
        for b, (targets, heard) in enumerate(zip(batch.targets, rows.exists & ~rows.padding, strict=True)):
            said = (targets != -100).nonzero().flatten()
            frames = int(heard.sum())
            owner = listening(weights[b][:, said, :frames], FRAMES_SMOOTHED).argmax(0)
            tags[b, :frames] = batch.rare_target[b, said][owner]
        return {"encoder": tags}

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
        prompt = torch.tensor([self.prefix()] * len(audio), device=audio.device)
        # Not the model's own generate(): Whisper's seeks through long audio by the timestamps it finds in the
        # text, and wants the features again for that. What comes here is one window, without timestamps.
        ids: Any = GenerationMixin.generate(
            self.model,
            encoder_outputs=self.encoded(audio),
            attention_mask=torch.ones(audio.shape[:2], dtype=torch.long, device=audio.device),
            decoder_input_ids=prompt,
            num_beams=1,
            do_sample=False,
            **self.limits(audio),
            **options,
        )
        return ids

    def _texts(self, ids: Any) -> list[str]:
        return [t.strip() for t in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def limits(self, audio: Tensor) -> dict[str, Any]:
        """How long a transcript may get, as arguments of ``generate``; the checkpoint's own limits by default."""
        return {}
