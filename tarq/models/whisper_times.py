"""Whisper's own timestamps: long audio is sought through by them, and words are timed by cross-attention."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, WhisperTimeStampLogitsProcessor

from tarq.errors import ModelError
from tarq.models.alignment import alignment_scores, token_starts
from tarq.models.base import Ability
from tarq.models.encoder_decoder import FRAMES_SMOOTHED, EncoderDecoder
from tarq.models.generation import end_tokens
from tarq.models.types import Segment, Word
from tarq.models.words import UNSPACED, characters, grouped, words_within

#: The first timestamp's token, and what all of them look like.
FIRST, TIMESTAMP = "<|0.00|>", re.compile(r"<\|\d+\.\d\d\|>")


@dataclass
class _Recording:
    """One waveform, and how far it is transcribed.

    Attributes:
        features: [mel bins, frames of 10 ms].
        frames: how many of them are audio.
        at: the first that is not transcribed.
    """

    features: Tensor
    frames: int
    at: int = 0


@dataclass(frozen=True)
class _Piece:
    """What lies between two timestamps of a window: positions of 20 ms from the window's start, and text tokens."""

    start: int
    end: int
    tokens: list[int]


def split_at_timestamps(tokens: Sequence[int], begin: int, positions: int) -> tuple[list[_Piece], int | None]:
    """The pieces of a window's tokens, and the position at which the next window begins; None if this one is done.

    As in OpenAI's Whisper and in transformers: two timestamps side by side end a piece and begin the next. What follows
    the last such pair was cut off by the window's end and is heard again in the next one. With no pair, or a single
    timestamp at the end, the window is done. Unlike there, a piece that has a start and no end lasts to the window's.

    Args:
        tokens: without the end token.
        begin: id of ``<|0.00|>``.
        positions: of the window that are audio.
    """
    times = [token >= begin for token in tokens]
    pairs = [i + 1 for i, (one, other) in enumerate(pairwise(times)) if one and other]
    if not pairs:
        stated = [token - begin for token in tokens if token >= begin]
        start, end = (0, stated[-1]) if len(stated) > 1 else (*stated, positions) if stated else (0, positions)
        return [_Piece(start, end, [token for token in tokens if token < begin])], None
    done = times[-2:] == [False, True]
    pieces = []
    for first, last in pairwise([0, *pairs, *([len(tokens)] if done else [])]):
        inside = tokens[first:last]
        pieces.append(_Piece(inside[0] - begin, inside[-1] - begin, [token for token in inside if token < begin]))
    return pieces, None if done else max(tokens[pairs[-1] - 1] - begin, 1)


class TimestampedWhisper(EncoderDecoder):
    """The part of Whisper that has to do with time."""

    def __init__(self, model: nn.Module, *parts: Any) -> None:
        super().__init__(model, *parts)
        self.frame_stride = self.encoder.conv1.stride[0] * self.encoder.conv2.stride[0]

    @property
    def timestamp_begin(self) -> int | None:
        """Id of ``<|0.00|>``, the first of the timestamps, which are a position apart; None if the model has none."""
        plain = getattr(self.model.generation_config, "no_timestamps_token_id", None)
        last_id = (plain or 0) + 1 + self.model.config.max_source_positions
        if plain is None or last_id >= self.model.config.vocab_size:
            return None
        # Tokenizers of 2022 do not know the timestamps; a model without any has other tokens in their place.
        first = self._tokens_of_ids.get(plain + 1, FIRST)
        last = self._tokens_of_ids.get(last_id, FIRST)
        return plain + 1 if first == FIRST and TIMESTAMP.fullmatch(last) else None

    @cached_property
    def _tokens_of_ids(self) -> dict[int, str]:
        return {i: token for token, i in self.vocabulary.items()}

    def why_not(self, ability: Ability) -> str:
        if ability not in ("timestamps", "words"):
            return super().why_not(ability)
        return "" if self.timestamp_begin is not None else "this checkpoint of Whisper has no tokens for timestamps"

    @property
    def word_times_note(self) -> str:
        if self._alignment_heads():
            return ""
        return "the generation config names no alignment heads of this decoder: words are timed by all its heads"

    def timed(
        self, waveforms: Sequence[np.ndarray], language: str | None = None, words: bool = False
    ) -> Iterator[list[list[Segment]]]:
        """Sequential long-form transcription (Radford et al. 2022, §3.8), greedy, each window without what came before.

        Each step decodes the next window of every waveform that is not done. Audio longer than the window gives the
        segments of transformers' ``generate(…, return_timestamps=True)``.
        """
        begin = self.timestamp_begin
        if begin is None:
            if words:
                raise ModelError(self.why_not("words"))
            yield from super().timed(waveforms, language)
            return
        recordings = [self._recording(waveform) for waveform in waveforms]
        prompt = [token for token in self.prefix(language) if token != begin - 1]
        window, seconds = self.model.config.max_source_positions, self._position_seconds
        while active := [recording for recording in recordings if recording.at < recording.frames]:
            states = self.encode({"input_features": torch.stack([self._window(recording) for recording in active])})
            found: dict[int, list[Segment]] = {}
            for recording, state, tokens in zip(active, states, self._tokens(states, prompt, begin), strict=True):
                positions = min((recording.frames - recording.at) // self.frame_stride, window)
                pieces, done = split_at_timestamps(tokens, begin, positions)
                timed = self._word_times(pieces, state, positions, language) if words else [None] * len(pieces)
                offset = recording.at / self.frame_stride
                found[id(recording)] = [
                    Segment(
                        (offset + piece.start) * seconds,
                        (offset + piece.end) * seconds,
                        self.tokenizer.decode(piece.tokens, skip_special_tokens=True),
                        of_piece and tuple(word.moved(offset * seconds) for word in of_piece),
                    )
                    for piece, of_piece in zip(pieces, timed, strict=True)
                ]
                recording.at += self.frame_stride * (window if done is None else done)
            yield [found.get(id(recording), []) for recording in recordings]

    @property
    def _position_seconds(self) -> float:
        return self.feature_extractor.hop_length * self.frame_stride / self.sampling_rate

    def _recording(self, waveform: np.ndarray) -> _Recording:
        """Features of a whole waveform; a short one is padded to the window, with silence."""
        if len(waveform) <= self.window * self.sampling_rate:
            frames = -(-len(waveform) // self.feature_extractor.hop_length)
            return _Recording(self.audio_inputs(waveform)[0]["input_features"], frames)
        features = self.feature_extractor(
            waveform, sampling_rate=self.sampling_rate, return_tensors="pt", truncation=False, padding="longest"
        ).input_features[0]
        return _Recording(features, features.shape[1])

    def _window(self, recording: _Recording) -> Tensor:
        """The next window of a recording, [mel bins, frames of a window]."""
        size = self.model.config.max_source_positions * self.frame_stride
        part = recording.features[:, recording.at : recording.at + size]
        return F.pad(part, (0, size - part.shape[1]))

    def _tokens(self, states: Tensor, prompt: Sequence[int], begin: int) -> list[list[int]]:
        """Greedy tokens of windows with timestamps, without prompt and end token."""
        ends, generation = end_tokens(self.model, self.tokenizer), self.model.generation_config
        rules = GenerationConfig(
            no_timestamps_token_id=begin - 1,
            eos_token_id=ends[0],
            bos_token_id=ends[0],  # which is taken where the end is token 0
            max_initial_timestamp_index=getattr(generation, "max_initial_timestamp_index", None),
        )
        processors = [WhisperTimeStampLogitsProcessor(rules, begin_index=len(prompt))]
        rows = self._generate(states, prompt, processors=processors)[:, len(prompt) :].tolist()
        return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]

    def _word_times(
        self, pieces: Sequence[_Piece], state: Tensor, positions: int, language: str | None
    ) -> list[tuple[Word, ...]]:
        """Words of the pieces of a window, in seconds from its start.

        Cross-attention of the teacher-forced transcript, aligned by dynamic time warping (OpenAI's Whisper, timing.py).
        A word lasts until the next one begins.

        Args:
            state: [T, width] the encoder's output.
            positions: of it that are audio.
        """
        prefix, text = self.prefix(language), [token for piece in pieces for token in piece.tokens]
        if not text:
            return [() for _ in pieces]
        weights = self.alignment_attention(state[None], torch.tensor([[*prefix, *text]]))[0]
        rows = weights[:, len(prefix) - 1 :, : max(positions, 1)]  # each attends to the token that it predicts
        starts = token_starts(alignment_scores(rows, FRAMES_SMOOTHED).double().numpy()) * self._position_seconds
        spaced = (language or self.language) not in UNSPACED
        timed, first = [], 0
        for piece in pieces:
            words = grouped(characters(piece.tokens, self._spelled), spaced)
            places = [first + place for _, place in words] + [first + len(piece.tokens)]
            spans = [(text, starts[a], starts[b]) for (text, _), (a, b) in zip(words, pairwise(places), strict=True)]
            timed.append(words_within(spans, piece.start * self._position_seconds, piece.end * self._position_seconds))
            first += len(piece.tokens)
        return timed

    def _spelled(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
