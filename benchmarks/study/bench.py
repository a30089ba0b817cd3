"""One model on one set of speech: quantized copies of it are scored against it.

Layers are scored as Linears with the dequantized weights: the codes are measured, not the kernels.
Full precision and its copies compute in one dtype, the grid's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

import tarq
from benchmarks.study.timestamps import Timed, with_timestamps
from tarq.data.speech import Data
from tarq.data.utterance import Utterance
from tarq.errors import ConfigError
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.report import Reporter
from tarq.scoring.breakdown import by_kind, reference_names
from tarq.scoring.divergence import Divergence, divergence, joined, kinds_of_targets
from tarq.scoring.entities import score_entities
from tarq.scoring.words import Counts, biased_counts, hallucination_signs, rare_reference_words, score_words
from tarq.speech.calibration import batched, make_examples
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

KINDS = ("rare", "common")
#: Decimals of nats summed over an utterance, and of a layer's figures.
DECIMALS = 6


class CachingFeatureExtractor:
    """A feature extractor that computes the features of each waveform once.

    Attributes:
        plain: the extractor itself.
    """

    def __init__(self, extractor: Any) -> None:
        self.plain, self._made = extractor, {}

    def __call__(self, waveform: Any, **options: Any) -> Any:
        key = id(waveform), repr(sorted(options.items()))
        if key not in self._made:
            # The waveform stays with its features: another one could come to lie at the same place.
            self._made[key] = waveform, self.plain(waveform, **options)
        return self._made[key][1]

    def __getattr__(self, name: str) -> Any:
        if name == "plain":  # a copy asks before it has one
            raise AttributeError(name)
        return getattr(self.plain, name)


def full_precision(source: str, device: str, dtype: torch.dtype) -> Recognizer:
    """The full-precision model that copies are quantized from."""
    recognizer = tarq.load_recognizer(source, dtype=dtype, device=device)
    recognizer.feature_extractor = CachingFeatureExtractor(recognizer.feature_extractor)
    return recognizer


def quantized(
    full: Recognizer, calibration: Data | Mapping[str, Data], config: tarq.TarqConfig
) -> tuple[Recognizer, tarq.Report]:
    """A copy of a model, quantized, its layers expanded."""
    shared = ("tokenizer", "feature_extractor", "processor")
    memo = {id(part): part for name in shared if (part := getattr(full, name)) is not None}
    recognizer = copy.deepcopy(full, memo)
    report = tarq.quantize(recognizer, calibration, config)
    expand(recognizer.model, full.model.dtype)
    return recognizer, report


def expand(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Replace packed layers by Linears with the dequantized weights, in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, tarq.QuantLinear):
            weight = layer.dequantize(torch.float32).to(dtype)
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device=weight.device)
            linear.weight.data = weight
            if layer.bias is not None:
                linear.bias.data = layer.bias.to(dtype)
            model.set_submodule(name, linear.eval())


@dataclass
class Bench:
    """A set that a model's copies are scored on.

    Attributes:
        utterances: those that could be teacher-forced.
        batches: of them.
        expected: full precision's logits (:func:`_half_precision`), one tensor a batch.
        errors: what holding them so does to ΔNLL.
        notes: what was left out.
        timed: the batches with timestamps, where the model has them.
        ends: utterance id to the second at which full precision then says that it ends.
    """

    utterances: list[Utterance]
    batches: list[Batch]
    expected: list[torch.Tensor]
    errors: list[dict[str, Divergence]]
    notes: list[str]
    timed: list[Timed]
    ends: dict[str, float]

    @classmethod
    def make(cls, full: Recognizer, scored: Sequence[Utterance], batch_size: int) -> Bench:
        """Read a set's audio, and run full precision on it."""
        words = Words()
        rarity = Rarity(words, full.spelling)
        once, full.feature_extractor = full.feature_extractor, full.feature_extractor.plain  # batches hold features
        try:
            made = make_examples(full, scored, rarity, Reporter(), batch_size=batch_size)
        finally:
            full.feature_extractor = once
        if not made.examples:
            raise ConfigError(f"no utterance to score could be teacher-forced: {'; '.join(made.notes)}")
        with torch.no_grad():
            batches = list(batched(full, made.examples, batch_size))
            timed = with_timestamps(full, made, batches, words.language)
            bench = cls(made.utterances, batches, [], [], made.notes, timed, {})
            keep = _logits_device(full, bench.batches)
            for i, batch in enumerate(bench.batches):
                audio = full.encode(batch.features)
                logits = full.logits(batch, audio)
                bench.expected.append(_half_precision(logits).to(keep))
                bench.errors.append(_damage(bench.expected[-1], logits, batch))
                for one in timed[i : i + 1]:
                    bench.ends |= zip(batch.ids, one.ends(full, audio), strict=True)
        return bench

    @property
    def positions(self) -> dict[str, list[int]]:
        """Targets of every kind, by utterance: rare and common ones, and those of each band of frequency."""
        counts: dict[str, dict[str, int]] = {}
        for batch in self.batches:
            for kind, mask in kinds_of_targets(batch.targets, batch.rare_target, batch.target_zipf).items():
                counts.setdefault(kind, {}).update(zip(batch.ids, mask.sum(-1).tolist(), strict=True))
        return {kind: [known[u.id] for u in self.utterances] for kind, known in counts.items()}

    @torch.no_grad()
    def measure(self, recognizer: Recognizer, decode: bool) -> dict[str, Any]:
        """Sums on rare and common targets and on those of each band, by utterance; transcripts and word errors."""
        parts, seen, hypotheses = [], [], Hypotheses()
        for i, (batch, expected) in enumerate(zip(self.batches, self.expected, strict=True)):
            audio = recognizer.encode(batch.features)
            logits = recognizer.logits(batch, audio)
            parts.append(_damage(expected.to(logits.device), logits, batch))
            seen += batch.ids
            if decode:
                hypotheses.add(recognizer, batch, audio, logits, self.timed[i : i + 1])
        place = {name: i for i, name in enumerate(seen)}
        order = [place[u.id] for u in self.utterances]
        measured: dict[str, Any] = {"kl": {}, "delta_nll": {}}
        for kind in parts[0]:
            sums, errors = (joined([part[kind] for part in some], order) for some in (parts, self.errors))
            measured["kl"][kind] = [round(float(x), DECIMALS) for x in sums.kl]
            measured["delta_nll"][kind] = [round(float(x), DECIMALS) for x in sums.delta_nll - errors.delta_nll]
        if decode:
            measured |= self._words(recognizer, hypotheses)
        return measured

    @torch.no_grad()
    def transcribed(self, full: Recognizer) -> dict[str, Any]:
        """Full precision's transcripts and word errors."""
        hypotheses = Hypotheses()
        for i, batch in enumerate(self.batches):
            audio = full.encode(batch.features)
            hypotheses.add(full, batch, audio, full.logits(batch, audio), self.timed[i : i + 1])
        return self._words(full, hypotheses)

    def _words(self, recognizer: Recognizer, hypotheses: Hypotheses) -> dict[str, Any]:
        found = word_figures(self.utterances, [hypotheses.texts[u.id] for u in self.utterances], recognizer)
        if hypotheses.ends:
            found["words"]["times"] = {
                "end": [hypotheses.ends[u.id] for u in self.utterances],
                "shift": [round(abs(hypotheses.ends[u.id] - self.ends[u.id]), DECIMALS) for u in self.utterances],
                "utterances": [1] * len(self.utterances),
            }
        return found


@dataclass
class Hypotheses:
    """A model's transcripts of utterances, by id.

    Attributes:
        texts: transcripts.
        ends: when each utterance ends, in seconds, where the model has timestamps.
    """

    texts: dict[str, str] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)

    def add(
        self, recognizer: Recognizer, batch: Batch, audio: Any, logits: torch.Tensor, timed: Sequence[Timed]
    ) -> None:
        """Transcribe a batch, given what was computed of it already."""
        self.texts |= zip(batch.ids, recognizer.decode_forced(batch, audio, logits), strict=True)
        for one in timed:
            self.ends |= zip(batch.ids, one.ends(recognizer, audio), strict=True)


def word_figures(utterances: Sequence[Utterance], hypotheses: list[str], recognizer: Recognizer) -> dict[str, Any]:
    """Word errors by utterance: of all words, rare ones, the list of rare ones (B-WER) and that of those with a digit;
    names where capitals or the set mark them, entities where the set marks them; signs of hallucination."""
    config = tarq.TarqConfig()
    normalizer = config.text_normalizer(recognizer.spelling)
    references = [u.text or "" for u in utterances]
    scores = score_words(references, hypotheses, normalizer=normalizer, ids=[u.id for u in utterances])
    numerals = {word for reference in scores.references for word in reference if any(map(str.isdigit, word))}
    words = {
        "all": _counts(scores.plain),
        "rare": _counts(scores.rare[scores.thresholds[0]]),
        "biased": _counts(biased_counts(scores, rare_reference_words(scores))[0]),
        "numerals": _counts(biased_counts(scores, numerals)[0]),
    }
    names = reference_names(references, normalizer, config.language, [u.entities for u in utterances])
    if names is not None and (named := by_kind(scores, names).get("names")) is not None:
        words["names"] = _counts(named)
    if any(u.entities for u in utterances):
        entities = score_entities(references, hypotheses, [u.entities for u in utterances], normalizer=normalizer)
        words["entities"] = {n: getattr(entities, n).tolist() for n in ("mentions", "missed", "words", "errors")}
    signs = asdict(hallucination_signs(scores))
    words["signs"] = {sign: [int(name in signs[sign]) for name in scores.ids] for sign in ("empty", "looping")}
    words["signs"]["utterances"] = [1] * len(utterances)
    return {"words": words, "signs": signs, "hypotheses": hypotheses}


def _damage(expected: torch.Tensor, logits: torch.Tensor, batch: Batch) -> dict[str, Divergence]:
    return divergence(expected, logits, batch.targets, batch.rare_target, batch.target_zipf)


def _counts(counts: Counts) -> dict[str, list[int]]:
    return {name: getattr(counts, name).tolist() for name in ("substitutions", "deletions", "insertions", "words")}


def _half_precision(logits: torch.Tensor) -> torch.Tensor:
    """Logits in half the memory: float16, with the largest of each position at 0, where float16 is fine enough.

    It changes the KL of a position by some 5e-6 nats, on average by 1e-7. What it changes the likelihood of true tokens
    by is measured, and taken off again.
    """
    logits = logits.float()
    return (logits - logits.amax(-1, keepdim=True)).half()


def _logits_device(full: Recognizer, batches: Sequence[Batch]) -> torch.device:
    """Where full precision's logits are kept: on a GPU that has plenty of memory, or in RAM."""
    if full.device.type != "cuda":
        return full.device
    size = 2 * full.model.config.vocab_size * sum(batch.targets.numel() for batch in batches)
    free, _ = torch.cuda.mem_get_info(full.device)
    return full.device if free > 8 * size else torch.device("cpu")


def halves(name: str, utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """``choose`` and ``report``: the utterances of the first half of the speakers, by sorted id, and of the others;
    and ``all``.

    Raises:
        ConfigError: the corpus, named in the message, does not have two speakers.
    """
    speakers = sorted({str(u.speaker) for u in utterances})
    if len(speakers) < 2:
        raise ConfigError(f"{name} has no two speakers to make halves of: score all of it (half: all)")
    first = set(speakers[: len(speakers) // 2])
    return {
        "choose": [u for u in utterances if str(u.speaker) in first],
        "report": [u for u in utterances if str(u.speaker) not in first],
    }
