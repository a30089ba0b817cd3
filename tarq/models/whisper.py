"""Whisper and its relatives (``WhisperForConditionalGeneration``: tiny … large-v3-turbo, .en, distil)."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from tarq.errors import ModelError
from tarq.models.base import Ability
from tarq.models.common import with_prompt
from tarq.models.features import check_fits
from tarq.models.generation import new_tokens
from tarq.models.types import Features, Positions, Prompted
from tarq.models.whisper_decoding import Search, can_step, greedy
from tarq.models.whisper_times import TimestampedWhisper

#: Positions per encoder pass on a CPU: one window of 30 s, or several shorter ones. Activations within a block then
#: stay in cache, and there are enough rows for matrix products to run at full speed.
ENCODED_AT_ONCE = 2048

#: Size of the vocabulary of OpenAI's English models; those with one more or above are multilingual.
ENGLISH_TOKENS = 51864


class WhisperRecognizer(TimestampedWhisper):
    """Encoder–decoder over fixed windows (30 s); transcripts are forced after Whisper's prompt."""

    model_classes: ClassVar = {"whisper": "WhisperForConditionalGeneration"}
    has_timestamps = True
    shift_free = (".k_proj",)

    @property
    def max_target_tokens(self) -> int:
        return self.model.config.max_target_positions

    def check_features(self) -> None:
        config = self.model.config
        check_fits(
            self.feature_extractor, bins=config.num_mel_bins, frames=config.max_source_positions * self.frame_stride
        )

    def audio_inputs(self, waveform: np.ndarray) -> tuple[Features, int]:
        features = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt")
        samples_per_position = self.feature_extractor.hop_length * self.frame_stride
        frames = min(-(-len(waveform) // samples_per_position), self.model.config.max_source_positions)
        return {"input_features": features.input_features[0]}, frames

    def frame_positions(self, frames: Sequence[int], features: Features) -> Positions:
        return Positions.of_frames(frames, self.model.config.max_source_positions, windows=True)

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        # Whisper's transcripts begin with a space, so its decoder expects one.
        ids, spans = super().tokens(" " + text)
        return ids, [(max(start - 1, 0), max(end - 1, 0)) for start, end in spans]

    def own_language(self) -> str | None:
        """The ``language`` that generation_config.json names, or forces as the prompt's second token."""
        named = getattr(self.model.generation_config, "language", None)
        if isinstance(named, str):
            return TO_LANGUAGE_CODE.get(named.lower(), named.strip("<|>"))
        forced = self._forced_tokens()
        return next((name for name, token in self._languages().items() if forced[:1] == [token]), None)

    def prefix(self, language: str | None = None) -> list[int]:
        """Prompt ids: start, then language and task if the model is multilingual, then no-timestamps.

        The tokens that a checkpoint forces (``forced_decoder_ids``, of 2022) are used if they name the requested
        language. What generation_config.json lacks is taken from the tokenizer.
        """
        language = language or self.language
        generation, tokens = self.model.generation_config, self.vocabulary
        for start in (
            generation.decoder_start_token_id,
            self.model.config.decoder_start_token_id,
            tokens.get("<|startoftranscript|>"),
        ):
            if start is not None:
                break
        else:
            raise ModelError("nothing says which token begins a transcript: set decoder_start_token_id in config.json")
        no_timestamps = getattr(generation, "no_timestamps_token_id", None)
        forced = self._forced_tokens()
        if not self._multilingual:
            if language != "en":
                raise ModelError(f"this model transcribes English only, not {language!r}: leave --language out")
            ids = [start, *(token for token in forced if token is not None)]
        elif forced[:1] != [None] and forced and language == self.own_language():
            ids = [start, *(token for token in forced if token is not None)]
        else:
            ids = [start, *self._language_and_task(language)]
            forced = []
        if no_timestamps is None and not forced:
            no_timestamps = tokens.get("<|notimestamps|>")
        return ids if no_timestamps is None or ids[-1] == no_timestamps else [*ids, no_timestamps]

    def _language_and_task(self, language: str) -> list[int]:
        languages, tasks = self._languages(), self._tasks()
        task = getattr(self.model.generation_config, "task", None) or "transcribe"
        if not languages or task not in tasks:
            raise ModelError(
                "the model is multilingual, but generation_config.json has no lang_to_id and task_to_id, and the "
                "tokenizer no tokens <|en|> and <|transcribe|>: take that file from the original checkpoint"
            )
        if language not in languages:
            raise ModelError(f"this model has no language {language!r}; it knows {', '.join(sorted(languages))}")
        return [languages[language], tasks[task]]

    def why_not(self, ability: Ability) -> str:
        if ability == "language":
            return "" if self._multilingual else "this model transcribes English only, so it detects no language"
        return super().why_not(ability)

    def detect_language(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """As transformers' ``detect_language``: the likeliest language token after the start."""
        if reason := self.why_not("language"):
            raise ModelError(reason)
        size, languages = int(self.window * self.sampling_rate), self._languages()
        features = [self.audio_inputs(waveform[:size])[0] for waveform in waveforms]
        start = self.prefix(next(iter(languages)))[0]
        ids = self.model.detect_language(
            encoder_outputs=self.model_output(self.encode(self.stack(features))),
            generation_config=SimpleNamespace(decoder_start_token_id=start, lang_to_id=languages),
        )
        codes = {token: code for code, token in languages.items()}
        return [codes[token] for token in ids.tolist()]

    def _languages(self) -> dict[str, int]:
        """Language code to its token, by the generation configuration or else the tokenizer."""
        stated = getattr(self.model.generation_config, "lang_to_id", None)
        if isinstance(stated, dict) and stated:
            return {token.strip("<|>"): i for token, i in stated.items()}
        tokens = self.vocabulary
        found = {code: tokens[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in tokens}
        return {code: i for code, i in found.items() if i < self.model.config.vocab_size}

    def _tasks(self) -> dict[str, int]:
        stated = getattr(self.model.generation_config, "task_to_id", None)
        if isinstance(stated, dict) and stated:
            return stated
        tokens = self.vocabulary
        return {task: tokens[f"<|{task}|>"] for task in ("transcribe", "translate") if f"<|{task}|>" in tokens}

    def _forced_tokens(self) -> list[int | None]:
        """The tokens that the checkpoint forces after the start, if any; None for an open one.

        Raises:
            ModelError: transformers could not read them.
        """
        for of in (self.model.generation_config, self.model.config):
            pairs = getattr(of, "forced_decoder_ids", None)
            if pairs is None:
                continue
            try:
                places, tokens = zip(*pairs, strict=True) if pairs else ((), ())
            except (TypeError, ValueError):
                places, tokens = ("?",), ()
            size = self.model.config.vocab_size
            if list(places) != list(range(1, len(places) + 1)) or any(
                t is not None and not (isinstance(t, int) and 0 <= t < size) for t in tokens
            ):
                raise ModelError(
                    f"forced_decoder_ids must be pairs of 1, 2, … and an id below {size}, not {pairs!r}: "
                    "correct or remove it"
                )
            return list(tokens)
        return []

    def prompt(self, text: str, *, frames: int = 0, timestamps: bool = False, language: str | None = None) -> Prompted:
        if not timestamps:
            return super().prompt(text, language=language)
        begin = self.timestamp_begin
        if begin is None:
            raise ModelError("this model has no tokens for timestamps: calibrate it without")
        ids, spans = self.tokens(text)
        before = [token for token in self.prefix(language) if token != begin - 1]
        return with_prompt([*before, begin], ids, spans, [begin + frames, self.end_token])

    def search(self, encoder_output: Tensor, pad: int) -> Search | None:
        return greedy(encoder_output, pad) if can_step(self.model) else None

    def most_tokens(self, encoder_output: Tensor, prompt: int) -> int:
        # Whisper's own generate() counts max_length after the prompt.
        return new_tokens(self.model.generation_config, prompt, self.max_target_tokens, of_prompt=False)

    def encode(self, features: Features) -> Tensor:
        count = len(next(iter(features.values())))
        step = max(1, ENCODED_AT_ONCE // self.model.config.max_source_positions) if self.device.type == "cpu" else count
        parts = ({name: f[first : first + step] for name, f in features.items()} for first in range(0, count, step))
        return torch.cat([super(WhisperRecognizer, self).encode(part) for part in parts])

    @property
    def _multilingual(self) -> bool:
        """Whether prompts name a language.

        Raises:
            ModelError: no file says.
        """
        generation, size = self.model.generation_config, self.model.config.vocab_size
        stated = getattr(generation, "is_multilingual", None)
        if stated is not None:
            return bool(stated)
        languages = self._languages()
        if getattr(generation, "lang_to_id", None) or self._forced_tokens()[:1] in [[i] for i in languages.values()]:
            return True
        if not languages or size == ENGLISH_TOKENS:
            return False
        if size > ENGLISH_TOKENS:
            return True
        raise ModelError(
            "generation_config.json says neither is_multilingual nor lang_to_id, so the prompt is not known: take that "
            "file from the original checkpoint"
        )
