"""The score table: several models on several sets, with paired intervals for every difference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from tarq.data.utterance import Utterance
from tarq.errors import ModelError
from tarq.files import to_json
from tarq.models.base import Recognizer
from tarq.report import Reporter
from tarq.scoring.bootstrap import RESAMPLES, Difference, Interval, resample
from tarq.scoring.breakdown import break_down, protected_mask, reference_names
from tarq.scoring.entities import EntityScores, score_entities
from tarq.scoring.figures import Measured, ratios
from tarq.scoring.outputs import SetOutputs, run_models
from tarq.scoring.sets import ScoredSet, check_set
from tarq.scoring.utterances import sums_by_utterance
from tarq.scoring.words import ChangedWord, changed_words, hallucination_signs, score_words
from tarq.words.frequencies import Frequencies, described
from tarq.words.normalize import Normalizer
from tarq.words.protect import Protected, notes_on, occurrences
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

#: Sets whose rare words occur in fewer utterances than this get a note: a bootstrap over so few is unreliable.
FEW = 10


@dataclass(frozen=True)
class ModelScores:
    """One model on one set.

    Attributes:
        figures: name to value with its 95 % interval.
        counts: S, D, I and N over all words and over rare ones; rare denominators at the other thresholds;
            entities mentioned and missed, where a set has some.
        signs: of hallucination.
        hypotheses: utterance id to transcript, as decoded.
        lost, regained: rare words against the reference model.
        protected_lost, protected_regained: protected words likewise.
        breakdown: errors by kind of word and by band of frequency (:func:`tarq.scoring.breakdown.break_down`).
        utterances: utterance id to its sums (:func:`tarq.scoring.utterances.sums_by_utterance`).
    """

    figures: dict[str, Interval] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    signs: dict[str, Any] = field(default_factory=dict)
    hypotheses: dict[str, str] = field(default_factory=dict)
    lost: list[ChangedWord] = field(default_factory=list)
    regained: list[ChangedWord] = field(default_factory=list)
    protected_lost: list[ChangedWord] = field(default_factory=list)
    protected_regained: list[ChangedWord] = field(default_factory=list)
    breakdown: dict[str, Any] = field(default_factory=dict)
    utterances: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SetScores:
    """Every model on one set.

    Attributes:
        models: label to scores.
        differences: "B − A" to figure to paired difference, for every pair of models.
        utterances, words, rare_words, entities: how many were scored.
        targets: kind of target (rare, common, band of frequency) to how many were teacher-forced.
        language: of the speech and of the models' prompts.
        normalizer: name of the normaliser.
        word_frequencies: that define rare words.
        bad: broken files that were left out while loading, with the reason.
        left_out: utterances left out while loading by a convention of their corpus, counted by reason.
        notes: what was left out or is unreliable.
        references: utterance id to transcript, normalised; of a set that was transcribed.
        protected: of a list of words to protect, how often each entry occurs (:func:`tarq.words.protect.occurrences`).
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
    references: dict[str, str] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    protected: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate_models`; ``to_dict()`` is what ``--json`` writes."""

    reference: str | None
    thresholds: list[float]
    resamples: int
    sets: dict[str, SetScores] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a rate without denominator is null."""
        return json.loads(to_json(asdict(self)))


def evaluate_models(
    models: Mapping[str, Recognizer],
    sets: Mapping[str, ScoredSet],
    *,
    reference: str | None,
    words: Words,
    batch_size: int,
    reporter: Reporter,
    seed: int = 0,
    resamples: int = RESAMPLES,
    decode: bool = True,
) -> Evaluation:
    """Score models on sets of transcribed utterances.

    Args:
        models: label to recognizer.
        sets: name to set (:func:`tarq.scoring.sets.read_sets`).
        reference: label of the full-precision model that damage is measured against, or None.
        words: normaliser, threshold and word frequencies.
        batch_size: utterances per forward pass.
        reporter: receives progress.
        seed: of the bootstrap.
        resamples: number of bootstrap resamples.
        decode: also transcribe (word scores); otherwise the teacher-forced figures only.

    Raises:
        DataError: a set is empty, an utterance has no transcript, two have one id, audio cannot be read, or a
            language has no word frequencies.
        ModelError: there is no model, one has weights or logits that are not finite, or its tokens or features are
            not the reference model's.
    """
    if not models:
        raise ModelError("no models to score: give at least one")
    for label, scored in sets.items():
        check_set(label, scored.utterances)
        words.frequencies(scored.language)  # fails now, not after the work is done
    words.protected()
    _check_comparable(models, reference)
    for name, recognizer in models.items():
        recognizer.check_weights(name)
    rarity = Rarity(words, models[reference or next(iter(models))].spelling)
    results = {}
    for label, scored in sets.items():
        reporter.phase(f"scoring {label}", len(scored.utterances) * len(models))
        outputs = run_models(
            models,
            scored.utterances,
            scored.language,
            reference=reference,
            rarity=rarity,
            batch_size=batch_size,
            decode=decode,
            reporter=reporter,
        )
        results[label] = _scores(list(models), scored, outputs, reference, rarity, resamples, seed)
    return Evaluation(reference, _thresholds(words), resamples, results)


def _thresholds(words: Words) -> list[float]:
    """Zipf scores that rare words are counted at; the first is the run's own."""
    return list(dict.fromkeys([words.tail_threshold, 3.0, 2.0, 4.0]))


def _check_comparable(models: Mapping[str, Recognizer], reference: str | None) -> None:
    """Check that models fit the reference: teacher forcing feeds them its tokens and features."""
    if reference is None:
        return
    full = models[reference].model.config
    for name, recognizer in models.items():
        for field_name in ("vocab_size", "num_mel_bins"):
            ours, theirs = getattr(recognizer.model.config, field_name, None), getattr(full, field_name, None)
            if ours != theirs:
                raise ModelError(
                    f"{name} cannot be compared with {reference}: {field_name} is {ours}, there it is {theirs}; "
                    "evaluate them separately"
                )


def _scores(
    models: Sequence[str],
    scored: ScoredSet,
    outputs: SetOutputs,
    reference: str | None,
    rarity: Rarity,
    resamples: int,
    seed: int,
) -> SetScores:
    """Figures, differences and words of one set, from the models' outputs."""
    normalizer, frequencies = rarity.of_language(scored.language)
    thresholds = _thresholds(rarity.words)
    utterances = scored.utterances
    texts = [u.text or "" for u in utterances]
    protected = rarity.protected(scored.language)
    measured = {
        name: _measured(name, utterances, outputs, normalizer, frequencies, thresholds, protected) for name in models
    }
    sums = {name: ratios(measured[name], thresholds) for name in models}
    resampled = resample(
        {(name, figure): ratio for name in models for figure, ratio in sums[name].items()}, resamples, seed
    )
    counts = [rarity.counts(text, scored.language) for text in texts]
    rare = [count for _, count in counts]
    entities = next((m.entities for m in measured.values() if m.entities is not None), None)
    words = {name: m.words for name, m in measured.items() if m.words is not None}
    names = reference_names(texts, normalizer, scored.language, [u.entities for u in utterances])
    breakdown = break_down(words, reference, names, resamples, seed, protected) if words else {}
    listed = occurrences([(protected, text) for text in texts]) if protected is not None else {}
    scores = next(iter(words.values()), None)
    unreliable = _few_rare_words(rare) + _entities_left_out(utterances, entities)
    unreliable += notes_on(listed, "do not occur in this set") if listed else []
    forced = next((m.divergence for m in measured.values() if m.divergence is not None), {})
    return SetScores(
        utterances=len(texts),
        language=scored.language,
        normalizer=normalizer.name,
        word_frequencies=described(frequencies, thresholds[0]),
        words=sum(words for words, _ in counts),
        rare_words=sum(rare),
        entities=int(entities.mentions.sum()) if entities is not None else 0,
        models={
            name: _model_scores(
                {figure: resampled[name, figure].interval() for figure in sums[name]},
                measured[name],
                measured[reference] if reference is not None and name != reference else None,
                breakdown.get(name, {}),
                protected,
                sums_by_utterance(measured[name], outputs.forced),
            )
            for name in models
        },
        differences={
            f"{other} − {base}": {
                figure: resampled[other, figure].minus(resampled[base, figure])
                for figure in sums[other]
                if figure in sums[base]
            }
            for base, other in combinations(models, 2)
        },
        bad=dict(scored.intake.bad),
        left_out=dict(scored.intake.left_out),
        notes=[*scored.notes, *scored.intake.notes(), *outputs.notes, *unreliable],
        references=dict(zip(scores.ids, map(" ".join, scores.references), strict=True)) if scores else {},
        targets={kind: int(sums.positions.sum()) for kind, sums in forced.items()},
        protected=listed,
    )


def _measured(
    name: str,
    utterances: Sequence[Utterance],
    outputs: SetOutputs,
    normalizer: Normalizer,
    frequencies: Frequencies,
    thresholds: Sequence[float],
    protected: Protected | None,
) -> Measured:
    """Words, entities and divergence of one model, as far as requested."""
    divergence = outputs.divergence.get(name)
    if name not in outputs.transcripts:
        return Measured(divergence=divergence)
    references = [u.text or "" for u in utterances]
    texts = [outputs.transcripts[name][u.id] for u in utterances]
    words = score_words(
        references,
        texts,
        normalizer=normalizer,
        thresholds=thresholds,
        language=frequencies,
        ids=[u.id for u in utterances],
    )
    entities = None
    if any(u.entities for u in utterances):
        entities = score_entities(references, texts, [u.entities for u in utterances], normalizer=normalizer)
    errors = None if protected is None else words.counts(protected_mask(words, protected))
    return Measured(words, entities, divergence, errors)


def _model_scores(
    figures: dict[str, Interval],
    measured: Measured,
    full: Measured | None,
    breakdown: dict[str, Any],
    protected: Protected | None,
    utterances: dict[str, dict[str, float]],
) -> ModelScores:
    """One model's scores; ``full`` is the reference model's, if there is another one."""
    if (words := measured.words) is None:
        return ModelScores(figures, utterances=utterances)
    counts = {
        "all": words.plain.totals(),
        "rare": words.rare[words.thresholds[0]].totals(),
        "common": words.common[words.thresholds[0]].totals(),
        "rare_words_by_threshold": {f"{t:g}": int(words.rare[t].words.sum()) for t in words.thresholds},
    }
    if (entities := measured.entities) is not None:
        counts["entities"] = {
            key: int(getattr(entities, key).sum()) for key in ("mentions", "missed", "words", "errors")
        }
    if measured.protected is not None:
        counts["protected"] = measured.protected.totals()
    changed: dict[str, list[ChangedWord]] = {}
    if full is not None and full.words is not None:
        changed["lost"], changed["regained"] = changed_words(full.words, words)
        if protected is not None:
            mask = protected_mask(words, protected)
            changed["protected_lost"], changed["protected_regained"] = changed_words(full.words, words, chosen=mask)
    return ModelScores(
        figures,
        counts=counts,
        signs=asdict(hallucination_signs(words)),
        hypotheses=dict(zip(words.ids, words.texts, strict=True)),
        breakdown=breakdown,
        utterances=utterances,
        **changed,
    )


def _few_rare_words(rare: Sequence[int]) -> list[str]:
    """A note if rare figures are unreliable or missing."""
    holding = sum(count > 0 for count in rare)
    if holding == 0:
        return ["no rare words in this set: rare figures have no value"]
    if holding < FEW:
        return [f"rare words in {holding} of {len(rare)} utterances only: intervals of rare figures are unreliable"]
    return []


def _entities_left_out(utterances: Sequence[Utterance], entities: EntityScores | None) -> list[str]:
    if entities is None or not entities.not_in_reference:
        return []
    first, entity = entities.not_in_reference[0]
    return [
        f"{len(entities.not_in_reference)} entities are not in their transcript, such as {entity!r} in "
        f"{utterances[first].id}: not scored"
    ]
