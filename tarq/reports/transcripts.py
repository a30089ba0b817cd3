"""What transcripts say beside a rate: where errors are, by kind and frequency, and which rare words changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarq.errors import TarqError
from tarq.reports.panel import ChangedWord, Group, Hypothesis, Panel
from tarq.reports.results import ERRORS
from tarq.reports.statistics import FULL
from tarq.scoring.bootstrap import Ratio, resample_two_way
from tarq.scoring.breakdown import by_band, by_kind, reference_names
from tarq.scoring.words import HIT, Counts, WordScores, score_words
from tarq.words.rarity import is_rare
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

#: In the order they are shown.
KINDS = ("rare", "common", "numerals", "names")
#: Parts of an utterance, by its words.
PLACES = ("1st fifth", "2nd", "3rd", "4th", "5th")
#: Fields of a run's configuration that say how words are cut and which are rare.
_WORDS = ("normalizer", "language", "word_frequencies", "tail_threshold")

Table = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Decoded:
    """The transcripts of one model's arms.

    Attributes:
        ids: of U utterances.
        references: U texts, if known.
        full: U transcripts of full precision, if there are some.
        arms: arm to draw to U transcripts.
        words, counted: full precision's counts that the results hold, and arm to draw to such counts.
        config: of the run.
        names: of each utterance, marked by its corpus.
    """

    ids: Sequence[str]
    references: Sequence[str] | None
    full: Sequence[str] | None
    arms: Mapping[str, Sequence[Sequence[str]]]
    words: Mapping[str, Any]
    counted: Mapping[str, Sequence[Mapping[str, Any]]]
    config: Mapping[str, Any]
    names: Sequence[Sequence[str]]


def describe_words(panel: Panel, decoded: Decoded) -> dict[str, str]:
    """Fill a panel's ``groups``, ``bands``, ``places`` and ``changed``; returns what stays out, to its section."""
    kinds = _stored_kinds(decoded)
    bands: dict[str, dict[str, list[Counts]]] = {}
    places: dict[str, dict[str, list[Counts]]] = {}
    absent: dict[str, str] = {}
    if decoded.references is None or decoded.full is None or not decoded.arms:
        lacking = "transcripts" if decoded.full is None or not decoded.arms else "reference texts"
        reason = f"the results hold no {lacking}"
        reason += " (--data gives them)." if lacking == "reference texts" else " (a grid's decode asks for them)."
        absent |= {
            f"Word errors by word frequency: {reason}": "frequency",
            f"Errors by place in the utterance: {reason}": "errors",
            f"Rare words lost and regained: {reason}": "words",
        }
    else:
        try:
            scores, names = _scored(decoded)
        except TarqError as error:
            reason = f"words cannot be counted here ({error})."
            return {
                f"Word errors by word frequency: {reason}": "frequency",
                f"Words lost and regained: {reason}": "words",
            }
        stored = set(kinds.get(FULL, {}))
        for arm, runs in scores.items():
            bands[arm] = _stacked([by_band(run) for run in runs])
            places[arm] = _stacked([by_place(run) for run in runs])
            counted = _stacked([by_kind(run, names) for run in runs])
            kinds.setdefault(arm, {}).update({kind: counts for kind, counts in counted.items() if kind not in stored})
        panel.changed = _changed(scores)
        if "names" not in {kind for found in kinds.values() for kind in found}:
            line = "Errors on names: the corpus marks none, and its transcripts have no capitals to go by."
            absent[line] = "errors"
        if not panel.changed:
            absent["Rare words lost and regained: none changed."] = "words"
        panel.notes.append(f"Words by frequency are cut by the normalizer {scores[FULL][0].normalizer.name!r}.")
    panel.groups = _groups(kinds, panel, KINDS)
    panel.bands = _groups(bands, panel, list(bands.get(FULL, {})))
    panel.places = _groups(places, panel, PLACES)
    if not panel.groups:
        absent["Errors by kind of word: the results hold no word counts."] = "errors"
    return absent


def by_place(scores: WordScores) -> dict[str, Counts]:
    """Counts over the fifths of each utterance's words; parts without words are left out."""
    lengths = np.bincount(scores.utterance_of, minlength=len(scores.ids))
    place = scores.positions * len(PLACES) // lengths[scores.utterance_of]
    return {name: scores.counts(place == i) for i, name in enumerate(PLACES) if (place == i).any()}


def _stored_kinds(decoded: Decoded) -> dict[str, dict[str, list[Counts]]]:
    """Arm to kind to counts of its draws, of the kinds that the results hold for all."""
    runs: dict[str, Any] = {FULL: [decoded.words]} if decoded.words else {}
    runs |= decoded.counted
    found = {arm: [_with_common(run) for run in some] for arm, some in runs.items()}
    shared = [kind for kind in KINDS if found and all(kind in run for some in found.values() for run in some)]
    return {arm: {kind: [run[kind] for run in some] for kind in shared} for arm, some in found.items()}


def _with_common(stored: Mapping[str, Any]) -> dict[str, Counts]:
    counts = {
        kind: Counts(*(np.asarray(known[name], dtype=np.int64) for name in (*ERRORS, "words")))
        for kind, known in stored.items()
        if {*ERRORS, "words"} <= set(known)
    }
    if {"all", "rare"} <= set(counts) and "common" not in counts:
        fields = (*ERRORS, "words")
        counts["common"] = Counts(*(getattr(counts["all"], f) - getattr(counts["rare"], f) for f in fields))
    return counts


def _scored(decoded: Decoded) -> tuple[dict[str, list[WordScores]], list[frozenset[str]] | None]:
    words = Words(**{name: decoded.config[name] for name in _WORDS if decoded.config.get(name) is not None})
    normalizer, frequencies = Rarity(words).of_language()
    references = decoded.references or []

    def score(texts: Sequence[str]) -> WordScores:
        return score_words(
            references, texts, normalizer=normalizer, thresholds=[words.tail_threshold], language=frequencies,
            ids=decoded.ids,
        )  # fmt: skip

    names = reference_names(references, normalizer, words.language, decoded.names)
    assert decoded.full is not None
    return {FULL: [score(decoded.full)]} | {
        arm: [score(texts) for texts in runs] for arm, runs in decoded.arms.items()
    }, names


def _stacked(runs: Sequence[Mapping[str, Counts]]) -> dict[str, list[Counts]]:
    return {kind: [run[kind] for run in runs] for kind in runs[0]}


def _groups(found: Mapping[str, Mapping[str, list[Counts]]], panel: Panel, kinds: Sequence[str]) -> list[Group]:
    """Rates of every arm on every kind of word, with intervals, and changes against full precision where it is known.

    Arms of unequally many draws are not resampled in step: full precision is repeated for as many as each has.
    """
    full = found.get(FULL, {})
    groups = []
    tables = {(arm, kind): [run.errors for run in runs] for arm, some in found.items() for kind, runs in some.items()}
    lengths = {len(table) for table in tables.values()}
    ratios = {}
    for (arm, kind), table in tables.items():
        ratios[arm, kind, len(table)] = Ratio(table, found[arm][kind][0].words)
        if arm == FULL:
            ratios |= {(arm, kind, n): Ratio(table * n, found[arm][kind][0].words) for n in lengths}
    known = resample_two_way(ratios) if ratios else {}
    for kind in kinds:
        for arm in panel.arms:
            runs = found.get(arm, {}).get(kind)
            if not runs:
                continue
            ours = known[arm, kind, len(runs)]
            s, d, i = (float(np.mean([getattr(run, name).sum() for run in runs])) for name in ERRORS)
            change = ours.minus(known[FULL, kind, len(runs)]) if arm != FULL and kind in full else None
            words = int(runs[0].words.sum())
            groups.append(Group(arm, kind, s, d, i, words, ours.interval(), change, len(runs)))
    return groups


def _changed(scores: Mapping[str, list[WordScores]]) -> list[ChangedWord]:
    """Rare words that arms lost and regained, those changed most often first."""
    (full,) = scores[FULL]
    words = [word for reference in full.references for word in reference]
    positions = full.positions
    rare = np.array([is_rare(word, full.thresholds[0], full.language) for word in words], dtype=bool)
    before = full.outcome == HIT
    hits = {arm: np.stack([run.outcome == HIT for run in runs]) for arm, runs in scores.items() if arm != FULL}
    found: list[tuple[float, ChangedWord]] = []
    for row in np.flatnonzero(rare):
        changed = {arm: np.flatnonzero(now[:, row] != before[row]) for arm, now in hits.items()}
        u = int(full.utterance_of[row])
        hypotheses = tuple(
            Hypothesis(arm, len(draws), len(hits[arm]), scores[arm][draws[0]].texts[u])
            for arm, draws in changed.items()
            if len(draws)
        )
        if hypotheses:
            share = sum(h.times / h.draws for h in hypotheses)
            kind = "lost" if before[row] else "regained"
            word = ChangedWord(
                kind, full.ids[u], int(positions[row]), words[row], full.references[u], full.texts[u], hypotheses
            )  # fmt: skip
            found.append((share, word))
    return [word for _, word in sorted(found, key=lambda known: -known[0])]
