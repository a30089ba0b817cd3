"""What audio-language models have in common: an audio tower, a projector, a language model that reads both.

The decoder's sequence is ``prompt … audio … prompt, transcript, end``: the projected frames replace the
prompt's audio placeholders. So its rows are of two kinds; :attr:`Positions.audio` says which are audio.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tarq.errors import ModelError
from tarq.models.alignment import alignment_scores
from tarq.models.base import Recognizer
from tarq.models.common import require, teacher_forced, with_prompt
from tarq.models.generation import check_generation, end_tokens, generate, new_tokens, transcripts_of
from tarq.models.types import Batch, Example, Features, Positions, Prompted, Stage

#: Longest transcript of a window, in tokens, if generation_config.json does not say.
MAX_NEW_TOKENS = 448

#: Width of the median filter over attention, in audio rows of 40 or 80 ms.
ROWS_SMOOTHED = 3


class AudioLanguageModel(Recognizer):
    """A transformers model with ``model.audio_tower``, ``model.multi_modal_projector`` and ``model.language_model``.

    Prompts are those of the checkpoint's own processor.
    """

    needs_processor = True
    reasons: ClassVar = {"lm_head": "the output head"}

    def __init__(self, model: nn.Module, *parts: Any) -> None:
        super().__init__(model, *parts)
        wanted = self.model_classes[self.model.config.model_type]
        paths = ("audio_tower.layers", "multi_modal_projector", "language_model.layers")
        require(self.model, *(f"model.{path}" for path in paths), "lm_head", wanted=wanted)
        body = self.model.model
        self.tower, self.projector, self.language_model = (
            body.audio_tower,
            body.multi_modal_projector,
            body.language_model,
        )
        self.audio_token = self.model.config.audio_token_id
        self._requests: dict[str, tuple[list[int], list[int]]] = {}

    # Defined by each family.

    @abstractmethod
    def request(self, waveform: np.ndarray, language: str) -> Sequence[int]:
        """The processor's prompt for transcribing some audio in a language, as token ids.

        Raises:
            ModelError: the language is not the model's.
        """

    @abstractmethod
    def audio_tokens(self, features: Features) -> list[int]:
        """Number of rows of the decoder's sequence that the audio of each utterance of a batch takes."""

    @abstractmethod
    def encode_audio(self, features: Features) -> Tensor:
        """The projector's output for a batch: [B, n, width], or the audio rows of all utterances concatenated."""

    @abstractmethod
    def to_projector(self, hidden: Tensor) -> Tensor:
        """From the last tower block's output to the projector's input."""

    @abstractmethod
    def audio_positions(self, examples: Sequence[Example], features: Features) -> tuple[Positions, Positions]:
        """The rows of the tower and of the projector."""

    def valid_audio_tokens(self, examples: Sequence[Example], features: Features) -> list[int]:
        """Number of audio rows within the audio, if the model takes windows of one length."""
        return self.audio_tokens(features)

    # Derived from the above.

    @property
    def max_target_tokens(self) -> int:
        return self.language_model.config.max_position_embeddings

    def check(self) -> list[str]:
        size = self.language_model.config.vocab_size
        return super().check() + check_generation(self.model.generation_config, size)

    def prefix(self, audio_tokens: int, language: str | None = None) -> list[int]:
        """The prompt around so many audio rows, for a language (by default the recognizer's)."""
        language = language or self.language
        if language not in self._requests:
            ids = list(self.request(np.zeros(self.sampling_rate, dtype=np.float32), language))
            if self.audio_token not in ids:
                raise ModelError(
                    f"the processor's prompt holds no audio token ({self.audio_token}): does it belong to this model?"
                )
            first = ids.index(self.audio_token)
            last = len(ids) - ids[::-1].index(self.audio_token)
            self._requests[language] = ids[:first], ids[last:]
        before, after = self._requests[language]
        return [*before, *[self.audio_token] * audio_tokens, *after]

    @property
    def end_token(self) -> int:
        """What follows a transcript: the tokenizer's end token, if the model ends transcripts with it."""
        ends, own = end_tokens(self.model, self.tokenizer), self.tokenizer.eos_token_id
        return own if own in ends else ends[0]

    def prompt(self, text: str, *, frames: int = 0, timestamps: bool = False, language: str | None = None) -> Prompted:
        ids, spans = self.tokens(text)
        return with_prompt(self.prefix(self.tokens_of_frames(frames), language), ids, spans, [self.end_token])

    @abstractmethod
    def tokens_of_frames(self, frames: int) -> int:
        """Number of audio rows of an utterance of so many tower frames."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        features = self.stack([e.features for e in examples])
        forced = teacher_forced(examples, self.end_token)
        audio = forced.inputs == self.audio_token
        valid = torch.tensor(self.valid_audio_tokens(examples, features))
        tower, projector = self.audio_positions(examples, features)
        # Only the transcript's rows are ever scored: logits of hundreds of audio rows would fill the memory.
        first = [e.prompted.is_text.index(True) - 1 for e in examples]
        scored = pad_sequence(
            [torch.arange(f, len(e.prompted.ids) - 1) for f, e in zip(first, examples, strict=True)],
            batch_first=True,
            padding_value=-1,
        )
        there = scored >= 0
        column = scored.clamp_min(0)
        return Batch(
            ids=tuple(e.id for e in examples),
            features=features,
            input_ids=forced.inputs,
            targets=forced.targets.gather(1, column).masked_fill(~there, -100),
            rare_target=forced.rare.gather(1, column) & there,
            target_zipf=forced.zipf.gather(1, column).masked_fill(~there, math.nan),
            protected_target=None if forced.protected is None else forced.protected.gather(1, column) & there,
            scored=column,
            positions={
                "encoder": tower,
                "projector": projector,
                "decoder": replace(forced.positions, audio=audio, padding=audio & (audio.cumsum(1) > valid[:, None])),
            },
        )

    def frame_tags(self, batch: Batch) -> dict[str, Tensor]:
        """Audio rows whose best token belongs to a rare word, by the attention of the rows that predict tokens.

        A tower frame follows the audio row it is merged into.
        """
        encoder, projector, decoder = (batch.positions[name] for name in ("encoder", "projector", "decoder"))
        valid = projector.exists & ~projector.padding
        places = decoder.audio & ~decoder.padding
        tags = {"projector": torch.zeros_like(valid), "decoder": torch.zeros_like(places)}
        for b, scores in enumerate(self._alignment_scores(batch, places)):
            rare = batch.tail_target[b, batch.targets[b] != -100][scores.argmax(0)]
            tags["projector"][b, valid[b]] = rare
            tags["decoder"][b, places[b]] = rare
        merged = encoder.tail.shape[1] // valid.shape[1]
        return tags | {
            "encoder": tags["projector"].repeat_interleave(merged, dim=1) & encoder.exists & ~encoder.padding
        }

    def _alignment_scores(self, batch: Batch, places: Tensor) -> list[Tensor]:
        """:func:`alignment_scores`, summed over all layers, of each utterance's rows at the given [B, T] places."""
        assert batch.scored is not None
        scored, is_target = batch.scored, batch.targets != -100
        scores: list[Tensor] = [torch.zeros(())] * len(batch.ids)

        def record(module: nn.Module, args: tuple, out: tuple[Tensor, Tensor]) -> None:
            for b, weights in enumerate(out[1]):  # [heads, T, T]: layer by layer, since all would not fit
                rows = scored[b, is_target[b]].to(weights.device)
                chosen = weights[:, rows][..., places[b].to(weights.device)]
                scores[b] = scores[b] + alignment_scores(chosen.float().cpu(), ROWS_SMOOTHED)

        encoder_output = self.encode(batch.features)
        before = self.language_model.config._attn_implementation
        self.language_model.set_attn_implementation("eager")  # other implementations do not return attention weights
        handles = [layer.self_attn.register_forward_hook(record) for layer in self.language_model.layers]
        try:
            self._read(batch, encoder_output)
        finally:
            for handle in handles:
                handle.remove()
            self.language_model.set_attn_implementation(before)
        return scores

    def stages(self) -> list[Stage]:
        return [
            Stage(
                "encoder",
                [(f"model.audio_tower.layers.{i}", layer) for i, layer in enumerate(self.tower.layers)],
                start=lambda batch, _: self.encode_audio(self.on_device(batch.features)),
                finish=self.to_projector,
            ),
            Stage(
                "projector",
                [("model.multi_modal_projector", self.projector)],
                start=lambda _, hidden: self.projector(hidden),
                finish=lambda hidden: hidden,
            ),
            Stage(
                "decoder",
                [(f"model.language_model.layers.{i}", layer) for i, layer in enumerate(self.language_model.layers)],
                start=lambda batch, rows: self._read(batch, self._split(rows, self.audio_tokens(batch.features))),
                finish=self.language_model.norm,
            ),
        ]

    def encode(self, features: Features) -> list[Tensor]:
        """The audio rows of each utterance of a batch, as the language model reads them."""
        return self._split(self.encode_audio(self.on_device(features)), self.audio_tokens(features))

    def logits(self, batch: Batch, encoder_output: list[Tensor] | None = None) -> Tensor:
        hidden = self._read(batch, self.encode(batch.features) if encoder_output is None else encoder_output)
        assert batch.scored is not None
        column = batch.scored.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1])
        return self.model.lm_head(hidden.gather(1, column))

    def decode(self, encoder_output: list[Tensor], language: str | None = None) -> list[str]:
        prompts = [torch.tensor(self.prefix(len(rows), language)) for rows in encoder_output]
        ends = end_tokens(self.model, self.tokenizer)
        # Padded on the left, so that generated tokens follow the prompt directly.
        ids = pad_sequence(prompts, batch_first=True, padding_value=self.end_token, padding_side="left").to(self.device)
        mask = pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left")
        generation, prompt = self.model.generation_config, ids.shape[1]
        written = generate(
            self.model,
            self.tokenizer,
            most=new_tokens(generation, prompt, self.max_target_tokens, default=MAX_NEW_TOKENS),
            ends=ends,
            pad=self.end_token,
            input_ids=ids,  # used by repetition penalties only; the model computes with the embeddings
            inputs_embeds=self._embedded(ids, encoder_output),
            attention_mask=mask.to(self.device),
        )
        return transcripts_of(self.tokenizer, written[:, prompt:].tolist(), ends)

    def _split(self, rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Audio rows by utterance, of a batch with or without a batch dimension."""
        if rows.dim() == 2:
            return list(rows.split(list(counts)))
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    def _embedded(self, ids: Tensor, audio: Sequence[Tensor]) -> Tensor:
        """Token embeddings [B, T, width] with the audio rows in place of their tokens."""
        place = ids == self.audio_token
        embeds = self.language_model.embed_tokens(ids.masked_fill(place, 0))
        return embeds.masked_scatter(place[..., None], torch.cat(list(audio)).to(embeds.dtype))

    def _read(self, batch: Batch, audio: Sequence[Tensor]) -> Tensor:
        """The language model's last hidden states [B, T, width] of a batch."""
        return self.language_model(
            inputs_embeds=self._embedded(batch.input_ids.to(self.device), audio),
            attention_mask=batch.positions["decoder"].exists.long().to(self.device),
            use_cache=False,
        ).last_hidden_state
