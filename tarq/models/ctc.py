"""CTC models: wav2vec 2.0, HuBERT (``…ForCTC``) and Parakeet-CTC. All positions are frames and carry the tags."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tarq.errors import ModelError
from tarq.models.alignment import forced_path, frame_zipf, rare_frames
from tarq.models.base import Ability, Recognizer
from tarq.models.common import pad_waveform, require
from tarq.models.features import check_fits
from tarq.models.generation import require_finite
from tarq.models.types import Batch, Example, Features, Positions, Prompted, Segment, Stage
from tarq.models.words import words_within

#: Attribute of each model that holds its encoder.
ENCODERS = {"wav2vec2": "wav2vec2.encoder", "hubert": "hubert.encoder", "parakeet_ctc": "encoder"}

#: Seconds; shorter audio is padded with silence, so that every stem makes at least one frame.
SHORTEST = 0.2


class CTCRecognizer(Recognizer):
    """An encoder whose every frame predicts a token or a blank.

    A transcript is aligned to the frames by the model itself: the best path through its log-probabilities that spells
    the transcript (Viterbi; CTC of Graves et al. 2006). A frame is rare where that path is within a rare word, and
    its target is the path's token, blanks included, so damage can be measured frame by frame.

    Batches: wav2vec 2.0 and HuBERT models with ``feat_extract_norm = "group"`` normalise over time without a mask,
    and were trained without one, so utterances of different lengths never share a batch. The others are padded and
    masked.
    """

    model_classes: ClassVar = {
        "wav2vec2": "Wav2Vec2ForCTC",
        "hubert": "HubertForCTC",
        "parakeet_ctc": "ParakeetForCTC",
    }
    frames_only = True
    reasons: ClassVar = {
        "lm_head": "the output head",
        "ctc_head": "the output head, a pointwise convolution: the checkpoint format packs Linear layers only",
        "feature_projection.projection": "the stem: it reads convolution features, before the first block",
        "subsampling.linear": "the stem: it reads convolution features, before the first block",
    }

    def __init__(self, model: nn.Module, *parts: Any) -> None:
        super().__init__(model, *parts)
        config = self.model.config
        self.path = ENCODERS[config.model_type]
        require(self.model, f"{self.path}.layers", wanted=self.model_classes[config.model_type])
        if getattr(config, "add_adapter", False):
            raise ModelError(
                "wav2vec2 with a convolutional adapter (add_adapter) is not supported: its frames are merged"
            )
        self.encoder = self.model.get_submodule(self.path)
        self.blank = self._blank()

    def _blank(self) -> int:
        """The blank's id: the padding token of the model, or of the tokenizer if the model names none.

        Raises:
            ModelError: neither names one that the model has.
        """
        vocabulary = self.model.config.vocab_size
        for padding in (self.model.config.pad_token_id, self.tokenizer.pad_token_id):
            if padding is not None:
                break
        if not isinstance(padding, int) or not 0 <= padding < vocabulary:
            raise ModelError(
                f"config.json: pad_token_id is {padding!r}; it must be the CTC blank's id, below {vocabulary}"
            )
        return padding

    @property
    def pads(self) -> bool:
        return getattr(self.model.config, "feat_extract_norm", "layer") == "layer"

    @property
    def max_target_tokens(self) -> int:
        return 1 << 30  # bounded by the frames instead, see reason_to_skip()

    def check_features(self) -> None:
        encoder = getattr(self.model.config, "encoder_config", None)
        check_fits(self.feature_extractor, bins=encoder.num_mel_bins if encoder is not None else 1)

    def audio_inputs(self, waveform: np.ndarray) -> tuple[Features, int]:
        waveform = pad_waveform(waveform, round(SHORTEST * self.sampling_rate))
        options = {"return_attention_mask": True} if self.pads else {}
        inputs = self.feature_extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt", **options)
        names = [self.model.main_input_name, *(["attention_mask"] if self.pads else [])]
        features = {name: inputs[name][0] for name in names}
        return features, int(self._frames(self.stack([features]))[0])

    def _frames(self, features: Features) -> Tensor:
        """Encoder rows within the audio of each utterance of a batch."""
        values = features[self.model.main_input_name]
        mask = features.get("attention_mask")
        lengths = torch.full((len(values),), values.shape[1]) if mask is None else mask.sum(1)
        of_input = getattr(self.model, "_get_feat_extract_output_lengths", None)
        of_input = of_input or self.model._get_subsampling_output_length
        return of_input(lengths).long()

    def stack(self, features: Sequence[Features]) -> dict[str, Tensor]:
        if not self.pads:
            return super().stack(features)
        return {name: pad_sequence([f[name] for f in features], batch_first=True) for name in features[0]}

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        if getattr(self.tokenizer, "is_fast", False):
            return super().tokens(text)
        vocabulary = getattr(self.tokenizer, "encoder", None)
        if not isinstance(vocabulary, dict):
            raise ModelError(
                f"{type(self.tokenizer).__name__} is neither a fast tokenizer nor one of characters: "
                "only those give the character offsets that tagging rare words needs"
            )
        delimiter = vocabulary.get(getattr(self.tokenizer, "word_delimiter_token", None))
        upper = getattr(self.tokenizer, "do_lower_case", False)  # such a tokenizer's own vocabulary is upper case
        letters = [
            (letter, i) for i, character in enumerate(text) for letter in (character.upper() if upper else character)
        ]
        spelled = "".join(letter for letter, _ in letters)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        start = 0
        while start < len(spelled):
            token, end = self._longest_token(spelled, start, vocabulary)
            if spelled[start].isspace():
                token = delimiter
            # The model never writes what it has no token for, nor two delimiters in a row.
            if token is not None and (token != delimiter or (ids and ids[-1] != token)):
                ids.append(token)
                spans.append((letters[start][1], letters[end - 1][1] + 1))
            start = end
        if ids and ids[-1] == delimiter:
            ids, spans = ids[:-1], spans[:-1]
        return ids, spans

    def _longest_token(self, text: str, start: int, vocabulary: Mapping[str, int]) -> tuple[int | None, int]:
        """The longest token of the vocabulary that a text continues with (None if there is none), and where it ends.

        Vocabularies may hold tokens of several characters (digraphs, syllables), which are written as one.
        """
        special = set(self.tokenizer.all_special_tokens)
        longest = max(map(len, vocabulary))
        for end in range(min(start + longest, len(text)), start, -1):
            if text[start:end] in vocabulary and text[start:end] not in special:
                return vocabulary[text[start:end]], end
        return None, start + 1

    def prompt(self, text: str, *, frames: int = 0, timestamps: bool = False, language: str | None = None) -> Prompted:
        ids, spans = self.tokens(text)
        return Prompted(tuple(ids), tuple(spans), (True,) * len(ids))

    def reason_to_skip(self, example: Example) -> str:
        ids = example.prompted.ids
        if not ids:
            return "the model has no token for any character of its transcript"
        needed = len(ids) + sum(a == b for a, b in pairwise(ids))
        return (
            f"{needed} frames are needed for its transcript, it has {example.frames}" if needed > example.frames else ""
        )

    def collate(self, examples: Sequence[Example]) -> Batch:
        features = self.stack([e.features for e in examples])
        with torch.no_grad():
            scores = require_finite(self.encode(features)[0])
        rows = scores.shape[1]
        targets = torch.full((len(examples), rows), -100)
        rare = torch.zeros(len(examples), rows, dtype=torch.bool)
        zipf = torch.full((len(examples), rows), math.nan, dtype=torch.float64)
        protected = None if examples[0].protected is None else torch.zeros_like(rare)
        for i, example in enumerate(examples):
            valid = scores[i, : example.frames].float().log_softmax(-1).cpu().numpy()
            tokens, states = forced_path(valid, example.prompted.ids, self.blank)
            targets[i, : example.frames] = torch.from_numpy(tokens)
            rare[i, : example.frames] = rare_frames(states, example.rare)
            zipf[i, : example.frames] = frame_zipf(states, example.zipf)
            if protected is not None and example.protected is not None:
                protected[i, : example.frames] = rare_frames(states, example.protected)
        frames = [e.frames for e in examples]
        positions = {"encoder": Positions.of_frames(frames, rows)}
        if self.model.config.model_type == "parakeet_ctc":
            positions["distances"] = Positions.of_distances(frames, rows)
        return Batch(
            ids=tuple(e.id for e in examples),
            features=features,
            input_ids=pad_sequence(
                [torch.tensor(e.prompted.ids) for e in examples], batch_first=True, padding_value=self.blank
            ),
            targets=targets,
            rare_target=rare,
            target_zipf=zipf,
            protected_target=protected,
            positions=positions,
        )

    def frame_tags(self, batch: Batch) -> dict[str, Tensor]:
        return {"encoder": batch.tail_target}

    def stages(self) -> list[Stage]:
        norm = getattr(self.encoder, "layer_norm", None)
        after = (
            norm if getattr(self.model.config, "do_stable_layer_norm", False) and norm is not None else nn.Identity()
        )
        return [
            Stage(
                "encoder",
                [(f"{self.path}.layers.{i}", layer) for i, layer in enumerate(self.encoder.layers)],
                start=lambda batch, _: self.model(**self.on_device(batch.features)),
                finish=after,
                reads="distances" if self.model.config.model_type == "parakeet_ctc" else None,
            )
        ]

    def encode(self, features: Features) -> tuple[Tensor, Tensor]:
        """Scores [B, T, vocabulary], and the number of rows within the audio of each utterance [B]."""
        return self.model(**self.on_device(features)).logits, self._frames(features)

    def logits(self, batch: Batch, encoder_output: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return (self.encode(batch.features) if encoder_output is None else encoder_output)[0]

    def decode(self, encoder_output: tuple[Tensor, Tensor], language: str | None = None) -> list[str]:
        return [self._text([token for token, _, _ in path]) for path in self._paths(encoder_output)]

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, group_tokens=False, skip_special_tokens=True).strip()

    def _paths(self, encoder_output: tuple[Tensor, Tensor]) -> list[list[tuple[int, int, int]]]:
        """The tokens of each utterance's best path without blanks, each with its first frame and the one after its
        last."""
        scores, frames = encoder_output
        paths = []
        for row, count in zip(require_finite(scores).argmax(-1).tolist(), frames.tolist(), strict=True):
            first, path = 0, []
            for token, run in groupby(row[:count]):
                end = first + len(list(run))
                path += [(token, first, end)] if token != self.blank else []
                first = end
            paths.append(path)
        return paths

    def why_not(self, ability: Ability) -> str:
        return "" if ability == "words" else super().why_not(ability)

    def timed(
        self, waveforms: Sequence[np.ndarray], language: str | None = None, words: bool = False
    ) -> Iterator[list[list[Segment]]]:
        """A word lasts from the first frame of its first token to the last frame of its last one, on the best path."""
        if not words:
            yield from super().timed(waveforms, language)
            return
        rate = self.sampling_rate
        found = []
        for waveform in waveforms if not self.pads else [None]:
            batch = list(waveforms) if waveform is None else [waveform]
            inputs = self.stack([self.audio_inputs(each)[0] for each in batch])
            for path, each in zip(self._paths(self.encode(inputs)), batch, strict=True):
                seconds = len(each) / rate
                text = self._text([token for token, _, _ in path])
                found.append([Segment(0.0, seconds, text, words_within(self._words(path), 0.0, seconds))])
        yield found

    def _words(self, path: Sequence[tuple[int, int, int]]) -> list[tuple[str, float, float]]:
        """Words of a path, each with start and end in seconds."""
        delimiter = getattr(self.tokenizer, "word_delimiter_token_id", None)
        special = set(self.tokenizer.all_special_ids)
        runs: list[list[tuple[int, int, int]]] = [[]]
        for token, first, end in path:
            if token == delimiter or str(self.tokenizer.convert_ids_to_tokens(token)).startswith("\u2581"):
                runs.append([])
            if token != delimiter and token not in special:
                runs[-1].append((token, first, end))
        step = self._frame_seconds
        spelled = [(self._text([token for token, _, _ in run]), run) for run in runs if run]
        return [(text, run[0][1] * step, run[-1][2] * step) for text, run in spelled if text]

    @property
    def _frame_seconds(self) -> float:
        encoder = getattr(self.model.config, "encoder_config", None)
        if encoder is None:
            return self.model.config.inputs_to_logits_ratio / self.sampling_rate
        return encoder.subsampling_factor * self.feature_extractor.hop_length / self.sampling_rate
