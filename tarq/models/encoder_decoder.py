"""Common parts of encoder–decoder models: frames in one stage, tokens in the next, joined by cross-attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from tarq.models.alignment import alignment_scores
from tarq.models.base import Recognizer
from tarq.models.common import require, teacher_forced, with_prompt
from tarq.models.generation import check_generation, end_tokens, generate, new_tokens, transcripts_of
from tarq.models.types import Batch, Example, Features, Positions, Prompted, Stage

#: Width of the median filter over attention, in frames.
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
    def prefix(self, language: str | None = None) -> list[int]:
        """Prompt ids, before a transcript in a language (by default the recognizer's).

        Raises:
            ModelError: the language is not the model's.
        """

    @abstractmethod
    def frame_positions(self, frames: Sequence[int], features: Features) -> Positions:
        """The encoder's rows of a batch, given how many are within the audio."""

    def check(self) -> list[str]:
        notes = super().check() + check_generation(self.model.generation_config, self.model.config.vocab_size)
        prompt = self.prefix(self.own_language() or "en")
        new_tokens(self.model.generation_config, len(prompt), self.max_target_tokens)
        return notes

    def prompt(self, text: str, *, frames: int = 0, timestamps: bool = False, language: str | None = None) -> Prompted:
        ids, spans = self.tokens(text)
        return with_prompt(self.prefix(language), ids, spans, [self.end_token])

    @property
    def end_token(self) -> int:
        """What follows a transcript."""
        return end_tokens(self.model, self.tokenizer)[0]

    def collate(self, examples: Sequence[Example]) -> Batch:
        forced = teacher_forced(examples, self.end_token)
        features = self.stack([e.features for e in examples])
        return Batch(
            ids=tuple(e.id for e in examples),
            features=features,
            input_ids=forced.inputs,
            targets=forced.targets,
            rare_target=forced.rare,
            target_zipf=forced.zipf,
            protected_target=forced.protected,
            positions={
                "encoder": self.frame_positions([e.frames for e in examples], features),
                "decoder": forced.positions,
            },
        )

    def frame_tags(self, batch: Batch) -> dict[str, Tensor]:
        """Frames whose best token, by cross-attention, belongs to a rare word (:func:`alignment_scores`).

        The row that predicts a token is the one that attends to its audio, so rows are tagged by their targets.
        """
        weights = self.alignment_attention(self.encode(batch.features), batch.input_ids)
        rows = batch.positions["encoder"]
        tags = torch.zeros_like(rows.tail)
        for b, (targets, valid) in enumerate(zip(batch.targets, rows.exists & ~rows.padding, strict=True)):
            places = (targets != -100).nonzero().flatten()
            frames = int(valid.sum())
            token = alignment_scores(weights[b][:, places, :frames], FRAMES_SMOOTHED).argmax(0)
            tags[b, :frames] = batch.tail_target[b, places][token]
        return {"encoder": tags}

    def alignment_attention(self, encoder_output: Tensor, input_ids: Tensor) -> Tensor:
        """The cross-attention of the heads that follow the audio, or of all if the checkpoint names none.

        Args:
            encoder_output: [B, T, width].
            input_ids: [B, S] teacher-forced tokens.

        Returns:
            [B, heads, S, T] float32 weights, on the CPU.
        """
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # other implementations do not return attention weights
        try:
            attention = self.model(
                encoder_outputs=self.model_output(encoder_output),
                decoder_input_ids=input_ids.to(self.device),
                use_cache=False,
                output_attentions=True,
            ).cross_attentions
        finally:
            self.model.set_attn_implementation(before)
        every = [(layer, head) for layer, a in enumerate(attention) for head in range(a.shape[1])]
        named = self._alignment_heads()
        heads = [pair for pair in every if pair in named] or every
        return torch.stack([attention[layer][:, head] for layer, head in heads], dim=1).float().cpu()

    @property
    def frame_tags_note(self) -> str:
        if self._alignment_heads():
            return ""
        return "the generation config names no alignment heads of this decoder: frames are tagged by all its heads"

    def _alignment_heads(self) -> set[tuple[int, int]]:
        """Layer and head of the cross-attentions that are known to follow the audio, as the checkpoint names them."""
        named = getattr(self.model.generation_config, "alignment_heads", None) or ()
        # A distilled checkpoint may still list those of its teacher's layers.
        return {(layer, head) for layer, head in named if layer < len(self.decoder.layers)}

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

    def model_output(self, encoder_output: Tensor) -> Any:
        """The encoder's output in the form the model expects."""
        return BaseModelOutput(encoder_output)

    def logits(self, batch: Batch, encoder_output: Tensor | None = None) -> Tensor:
        states = self.encode(batch.features) if encoder_output is None else encoder_output
        return self.model(
            encoder_outputs=self.model_output(states),
            decoder_input_ids=batch.input_ids.to(self.device),
            use_cache=False,
        ).logits

    def decode(self, encoder_output: Tensor, language: str | None = None) -> list[str]:
        prompt = self.prefix(language)
        written = self._generate(encoder_output, prompt)[:, len(prompt) :].tolist()
        return transcripts_of(self.tokenizer, written, end_tokens(self.model, self.tokenizer))

    def decode_forced(
        self, batch: Batch, encoder_output: Tensor, logits: Tensor, language: str | None = None
    ) -> list[str]:
        """Rows whose greedy tokens equal the forced ones need no decoding; only the others are decoded."""
        if self.model.generation_config.stop_strings is not None:
            return self.decode(encoder_output, language)  # generate() does not pass a tokenizer on to a custom loop

        ids, targets = batch.input_ids.to(logits.device), batch.targets.to(logits.device)

        def follow(model: Any, prompt: Tensor, logits_processor: Any, stopping_criteria: Any, **_: Any) -> Tensor:
            agreed = (ids[:, : prompt.shape[1]] == prompt).all(1)
            for t in range(prompt.shape[1] - 1, ids.shape[1]):
                wanted, before = targets[:, t], ids[:, : t + 1]
                scores = logits_processor(before, logits[:, t].to(torch.float32, copy=True))
                stops = stopping_criteria(torch.cat([before, wanted.clamp_min(0)[:, None]], dim=1), scores)
                last = targets[:, t + 1] == -100 if t + 1 < ids.shape[1] else torch.ones_like(agreed)
                agreed &= (wanted == -100) | (scores.argmax(-1) == wanted) & (stops == last)
                if not agreed.any():
                    break
            return agreed

        agreed = self._generate(encoder_output, self.prefix(language), custom_generate=follow)
        decoded = iter(self.decode(encoder_output[~agreed], language) if not agreed.all() else [])
        rows = [row[row != -100].tolist() for row in targets]
        followed = transcripts_of(self.tokenizer, rows, end_tokens(self.model, self.tokenizer))
        return [text if yes else next(decoded) for text, yes in zip(followed, agreed.tolist(), strict=True)]

    def _generate(self, encoder_output: Tensor, prompt: Sequence[int], **options: Any) -> Tensor:
        """Greedy tokens after the prompt."""
        ends = end_tokens(self.model, self.tokenizer)
        pad = self.model.generation_config.pad_token_id
        pad = ends[0] if pad is None else pad
        # generate() does not pass a tokenizer on to a search of our own.
        if self.model.generation_config.stop_strings is None and (own := self.search(encoder_output, pad)):
            options.setdefault("custom_generate", own)
        return generate(
            self.model,
            self.tokenizer,
            most=self.most_tokens(encoder_output, len(prompt)),
            ends=ends,
            pad=pad,
            encoder_outputs=self.model_output(encoder_output),
            attention_mask=torch.ones(encoder_output.shape[:2], dtype=torch.long, device=encoder_output.device),
            decoder_input_ids=torch.tensor([list(prompt)] * len(encoder_output), device=encoder_output.device),
            **options,
        )

    def search(self, encoder_output: Tensor, pad: int) -> Callable[..., Tensor] | None:
        """A greedy search that finds the same tokens as ``generate``'s, faster; None if the model has none."""
        return None

    def most_tokens(self, encoder_output: Tensor, prompt: int) -> int:
        """Longest transcript, in tokens, after a prompt of so many tokens."""
        return new_tokens(self.model.generation_config, prompt, self.max_target_tokens)
