"""The score table: several models on several sets, with paired intervals for every difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch

from tarq import distributed
from tarq.config import TarqConfig
from tarq.data.utterance import Utterance, check_ids, language_of
from tarq.errors import DataError, ModelError
from tarq.models.base import Recognizer
from tarq.models.generation import require_finite
from tarq.models.types import Batch
from tarq.report import Reporter
from tarq.scoring.bootstrap import RESAMPLES, Difference, Interval, Ratio, resample
from tarq.scoring.divergence import Divergence, divergence, joined
from tarq.scoring.entities import score_entities
from tarq.scoring.words import ChangedWord, WordScores, changed_words, hallucination_signs, score_words
from tarq.speech.calibration import batched, make_examples
from tarq.speech.transcription import transcribe_waveforms
from tarq.words.frequencies import described
from tarq.words.normalize import Normalizer

#: Figures that need the reference model's logits, then those of the words; the order tables show them in.
DIVERGENCES = ("kl_rare", "kl_common", "delta_nll_rare", "delta_nll_common")
WORD_RATES = ("wer", "rare_wer", "rare_miss_rate", "common_wer")
#: Of sets whose utterances have entities.
ENTITY_RATES = ("ne_wer", "ne_fnr")

#: Utterances whose audio is held at a time.
PIECE = 128


@dataclass
class ModelScores:
    """One model on one set.

    Attributes:
        figures: name to value with its 95 % interval.
        counts: S, D, I and N over all words and over rare ones; rare denominators at the other thresholds;
            entities mentioned and missed, where a set has some.
        signs: of hallucination.
        hypotheses: utterance id to transcript, as decoded.
        lost, regained: rare words against the reference model.
    """

    figures: dict[str, Interval] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    signs: dict[str, Any] = field(default_factory=dict)
    hypotheses: dict[str, str] = field(default_factory=dict)
    lost: list[ChangedWord] = field(default_factory=list)
    regained: list[ChangedWord] = field(default_factory=list)


@dataclass
class SetScores:
    """Every model on one set.

    Attributes:
        models: label to scores.
        differences: "B − A" to figure to paired difference, for every pair of models.
        utterances, words, rare_words, entities: how much was scored.
        language: it is spoken in, and models are prompted in.
        normalizer: of that language, by name.
        word_frequencies: which decide what is rare.
        bad: broken files that were left out, with the reason.
        left_out: utterances left out by a convention of their corpus, counted by reason.
        notes: what was left out.
    """

    utterances: int
    language: str
    normalizer: str
    word_frequencies: dict[str, Any]
    words: int = 0
    rare_words: int = 0
    entities: int = 0
    models: dict[str, ModelScores] = field(default_factory=dict)
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Evaluation:
    """The result of :func:`evaluate_models`; ``to_dict()`` is what ``--json`` writes."""

    reference: str | None
    thresholds: list[float]
    resamples: int
    sets: dict[str, SetScores] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a rate without denominator is null."""
        return _without_nan(asdict(self))


def evaluate_models(
    models: Mapping[str, Recognizer],
    data: Mapping[str, Sequence[Utterance]],
    *,
    reference: str | None,
    config: TarqConfig,
    reporter: Reporter,
    resamples: int = RESAMPLES,
    decode: bool = True,
) -> Evaluation:
    """Score models on sets of transcribed utterances.

    Args:
        models: label to recognizer.
        data: label to utterances of one language (:func:`by_language`), each with a transcript.
        reference: label of the full-precision model that damage is measured against, or None.
        config: normaliser, threshold, batch size, seed, and the language of utterances that state none.
        resamples: of the bootstrap.
        decode: also transcribe (word scores); otherwise the teacher-forced figures only.

    Raises:
        DataError: an utterance has no transcript, audio cannot be read, or a language has no word frequencies.
        ModelError: a model's tokens or features are not the reference model's.
    """
    thresholds = list(dict.fromkeys([config.tail_threshold, 3.0, 2.0, 4.0]))
    spoken = {label: replace(config, language=_language(label, some, config)) for label, some in data.items()}
    frequencies = {label: described(own.frequencies(), thresholds[0]) for label, own in spoken.items()}
    _check_comparable(models, reference)
    result = Evaluation(reference, thresholds, resamples)
    for label, utterances in data.items():
        missing = [u.id for u in utterances if u.text is None]
        if missing:
            raise DataError(f"{label}: {len(missing)} utterances have no transcript to score against: {missing[0]}, …")
        check_ids(label, utterances)
        normalizer = _normalizer(models, reference, spoken[label]).name
        scores = SetScores(len(utterances), spoken[label].language, normalizer, frequencies[label])
        reporter.phase(f"scoring {label}", len(utterances) * len(models))
        heard = _listen(models, utterances, reference, spoken[label], reporter, scores, decode)
        ratios = _divergence_ratios(models, heard)
        if decode:
            _score_words(models, utterances, reference, spoken[label], heard.texts, scores, ratios, thresholds)
        resampled = resample(
            {(name, figure): ratio for name in models for figure, ratio in ratios[name].items()}, resamples, config.seed
        )
        for name in models:
            scores.models.setdefault(name, ModelScores()).figures = {
                figure: resampled[name, figure].interval() for figure in ratios[name]
            }
        for base, other in combinations(models, 2):
            scores.differences[f"{other} − {base}"] = {
                figure: resampled[other, figure].minus(resampled[base, figure])
                for figure in ratios[other]
                if figure in ratios[base]
            }
        result.sets[label] = scores
    return result


def by_language(label: str, utterances: Sequence[Utterance], default: str) -> dict[str, Sequence[Utterance]]:
    """A set under its label; where its utterances state several languages, one set for each, named ``label (de)``."""
    spoken: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        spoken.setdefault(language_of(utterance, default), []).append(utterance)
    if len(spoken) <= 1:
        return {label: utterances}
    return {f"{label} ({language})": spoken[language] for language in sorted(spoken)}


def _language(label: str, utterances: Sequence[Utterance], config: TarqConfig) -> str:
    languages = {language_of(utterance, config.language) for utterance in utterances} or {config.language}
    if len(languages) > 1:
        raise DataError(f"{label} is in {', '.join(sorted(languages))}: score each language as a set of its own")
    return languages.pop()


def _normalizer(models: Mapping[str, Recognizer], reference: str | None, config: TarqConfig) -> Normalizer:
    """One normaliser for all, with the spelling table of the reference model (or the first) if it has one."""
    return config.text_normalizer(models[reference or next(iter(models))].spelling)


def _check_comparable(models: Mapping[str, Recognizer], reference: str | None) -> None:
    """Teacher forcing feeds every model the reference model's tokens and features."""
    if reference is None:
        return
    full = models[reference].model.config
    for name, recognizer in models.items():
        for field_name in ("vocab_size", "num_mel_bins"):
            ours, theirs = getattr(recognizer.model.config, field_name, None), getattr(full, field_name, None)
            if ours != theirs:
                raise ModelError(
                    f"{name} cannot be compared with {reference}: {field_name} is {ours}, there it is {theirs}; "
                    "evaluate them apart"
                )


@dataclass
class _Forced:
    """What the models made of one batch.

    Attributes:
        ids: B utterance ids.
        parts: model to kind of target to divergence.
        texts: model to B transcripts.
    """

    ids: tuple[str, ...]
    parts: dict[str, dict[str, Divergence]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class _Heard:
    """What the models made of a set.

    Attributes:
        wanted: ids of the utterances that were teacher-forced, in the set's order.
        seen: the same ids in the order of the parts' entries.
        parts: model to kind of target to one divergence a batch.
        texts: model to utterance id to transcript.
    """

    wanted: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    parts: dict[str, dict[str, list[Divergence]]] = field(default_factory=dict)
    texts: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, forced: _Forced) -> None:
        """Put a batch behind those before it."""
        self.seen += forced.ids
        for name, kinds in forced.parts.items():
            for kind, part in kinds.items():
                self.parts[name][kind].append(part)
        for name, texts in forced.texts.items():
            self.texts[name] |= zip(forced.ids, texts, strict=True)


def _listen(
    models: Mapping[str, Recognizer],
    utterances: Sequence[Utterance],
    reference: str | None,
    config: TarqConfig,
    reporter: Reporter,
    scores: SetScores,
    decode: bool,
) -> _Heard:
    """Run every model on every utterance: audio is read once, and each encoder runs once for both scores.

    Where there are several processes, each takes a share of the batches, which are those of a single one.
    """
    heard = _Heard(texts={name: {} for name in models})
    heard.parts = {name: {"rare": [], "common": []} for name in models if reference and name != reference}
    # In pieces, so that the features of a large set are never all held; batches are of similar length.
    for start in range(0, len(utterances), PIECE):
        piece = utterances[start : start + PIECE]
        forced: set[str] = set()
        if reference is not None:
            made = make_examples(models[reference], [u for u in piece if (u.text or "").strip()], config, Reporter())
            scores.notes += made.notes
            heard.wanted += [e.id for e in made.examples]
            forced = {e.id for e in made.examples}
            batches = list(batched(models[reference], made.examples, config.batch_size))
            own = [
                _force(models, reference, batch, config.language, decode, reporter)
                for batch in distributed.shard(batches)
            ]
            reporter.advance(len(models) * (len(made.examples) - sum(len(f.ids) for f in own)))  # by other processes
            for forced_batch in distributed.all_gather(own):
                heard.add(forced_batch)
        others = [u for u in piece if u.id not in forced]
        if others and decode:
            for name, recognizer in models.items():
                waveforms = [u.waveform(recognizer.sampling_rate) for u in others]
                texts = transcribe_waveforms(recognizer, waveforms, config.batch_size, reporter, config.language)
                heard.texts[name] |= zip((u.id for u in others), texts, strict=True)
    return heard


def _force(
    models: Mapping[str, Recognizer], reference: str, batch: Batch, language: str, decode: bool, reporter: Reporter
) -> _Forced:
    """One batch through every model: divergence from the reference's logits, and transcripts."""
    forced = _Forced(batch.ids)
    ordered = [reference, *(name for name in models if name != reference)]
    with torch.no_grad():
        for name in ordered:
            audio = models[name].encode(batch.features)
            logits = require_finite(models[name].logits(batch, audio))
            if name == reference:
                expected = logits
            else:
                forced.parts[name] = divergence(expected, logits, batch.targets, batch.rare_target)
            if decode:
                forced.texts[name] = models[name].decode_forced(batch, audio, logits, language)
    reporter.advance(len(batch.ids) * len(models))
    return forced


def _divergence_ratios(models: Mapping[str, Recognizer], heard: _Heard) -> dict[str, dict[str, Ratio]]:
    """Model to figure to its sums, one entry an utterance in the set's order."""
    ratios: dict[str, dict[str, Ratio]] = {name: {} for name in models}
    if not heard.seen:
        return ratios
    place = {name: i for i, name in enumerate(heard.seen)}
    order = [place[name] for name in heard.wanted]
    for name, kinds in heard.parts.items():
        sums = {kind: joined(parts, order) for kind, parts in kinds.items()}
        ratios[name] |= {f"kl_{kind}": Ratio(s.kl, s.positions) for kind, s in sums.items()}
        ratios[name] |= {f"delta_nll_{kind}": Ratio(s.delta_nll, s.positions) for kind, s in sums.items()}
    return ratios


def _score_words(
    models: Mapping[str, Recognizer],
    utterances: Sequence[Utterance],
    reference: str | None,
    config: TarqConfig,
    transcripts: Mapping[str, Mapping[str, str]],
    scores: SetScores,
    ratios: dict[str, dict[str, Ratio]],
    thresholds: Sequence[float],
) -> None:
    words: dict[str, WordScores] = {}
    normalizer = _normalizer(models, reference, config)
    for name in models:
        texts = [transcripts[name][u.id] for u in utterances]
        words[name] = score_words(
            [u.text or "" for u in utterances],
            texts,
            normalizer=normalizer,
            thresholds=thresholds,
            language=config.frequencies(),
            ids=[u.id for u in utterances],
        )
        w = words[name]
        rare, common = w.rare[thresholds[0]], w.common[thresholds[0]]
        ratios[name] |= {
            "wer": Ratio(w.plain.errors, w.plain.words),
            "rare_wer": Ratio(rare.errors, rare.words),
            "rare_miss_rate": Ratio(rare.misses, rare.words),
            "common_wer": Ratio(common.errors, common.words),
        }
        ratios[name] |= {f"rare_wer_zipf_{t:g}": Ratio(w.rare[t].errors, w.rare[t].words) for t in thresholds[1:]}
        scores.models[name] = ModelScores(
            counts={
                "all": _totals(w.plain),
                "rare": _totals(rare),
                "common": _totals(common),
                "rare_words_by_threshold": {f"{t:g}": int(w.rare[t].words.sum()) for t in thresholds},
            },
            signs=asdict(hallucination_signs(w)),
            hypotheses=dict(zip(w.ids, texts, strict=True)),
        )
        scores.words, scores.rare_words = int(w.plain.words.sum()), int(rare.words.sum())
        _score_entities(utterances, texts, normalizer, scores, name, ratios)
    if reference is not None:
        for name in models:
            if name != reference:
                lost, regained = changed_words(words[reference], words[name])
                scores.models[name].lost, scores.models[name].regained = lost, regained


def _score_entities(
    utterances: Sequence[Utterance],
    texts: Sequence[str],
    normalizer: Normalizer,
    scores: SetScores,
    name: str,
    ratios: dict[str, dict[str, Ratio]],
) -> None:
    """NE-WER and NE-FNR of one model, where the set has entities."""
    if not any(u.entities for u in utterances):
        return
    e = score_entities(
        [u.text or "" for u in utterances], texts, [u.entities for u in utterances], normalizer=normalizer
    )
    ratios[name] |= {"ne_wer": Ratio(e.errors, e.words), "ne_fnr": Ratio(e.missed, e.mentions)}
    sums = {key: int(getattr(e, key).sum()) for key in ("mentions", "missed", "words", "errors")}
    scores.models[name].counts["entities"] = sums
    scores.entities = sums["mentions"]
    if e.unspoken and name == next(iter(ratios)):  # the same for every model
        first, entity = e.unspoken[0]
        scores.notes.append(
            f"{len(e.unspoken)} entities are not in their transcript, such as {entity!r} in {utterances[first].id}: "
            "not scored"
        )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _totals(counts: Any) -> dict[str, int]:
    return {name: int(np.sum(getattr(counts, name))) for name in ("substitutions", "deletions", "insertions", "words")}
