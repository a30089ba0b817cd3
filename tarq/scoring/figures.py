"""The figures of an evaluation: one list for JSON, tables and reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from tarq.scoring.bootstrap import Ratio
from tarq.scoring.divergence import Divergence
from tarq.scoring.entities import EntityScores
from tarq.scoring.words import Counts, WordScores, biased_counts, hallucination_signs, rare_reference_words
from tarq.words.bands import NAMES


@dataclass(frozen=True)
class Measured:
    """One model's results on one set.

    Attributes:
        words: word scores, if the set was transcribed.
        entities: entity scores, if it has entities too.
        divergence: kind of target to sums; None for the reference model and without one.
        protected: word errors on protected words; None where no list of them is given.
    """

    words: WordScores | None = None
    entities: EntityScores | None = None
    divergence: Mapping[str, Divergence] | None = None
    protected: Counts | None = None

    @property
    def protected_divergence(self) -> Divergence | None:
        """The sums on protected targets, if a list of them is given."""
        return (self.divergence or {}).get("protected")


@dataclass(frozen=True)
class Figure:
    """A figure of one model on one set, and how it is written.

    Attributes:
        name: in JSON and in Python.
        title: in tables.
        unit: ``%`` for a rate, which is stored as a fraction; or nats per target position.
        source: the field of :class:`Measured` it is computed from.
        ratio: its sums by utterance, from that field.
        shown: in tables of values; the others are in JSON only.
        compared: in tables of paired differences.
    """

    name: str
    title: str
    unit: Literal["%", "nats"]
    source: Literal["words", "entities", "divergence", "protected", "protected_divergence"]
    ratio: Callable[[Any], Ratio]
    shown: bool = True
    compared: bool = False

    def text(self, value: float, sign: str = "") -> str:
        """A value as tables write it, and an interval's ends: percent with two decimals, nats with four.

        Args:
            sign: ``+`` for differences.
        """
        if math.isnan(value):
            return "–"
        return f"{100 * value:{sign}.2f}" if self.unit == "%" else f"{value:{sign}.4f}"


def _rate(counts: Callable[[WordScores], Counts]) -> Callable[[WordScores], Ratio]:
    return lambda scores: Ratio(counts(scores).errors, counts(scores).words)


def _rare(scores: WordScores) -> Counts:
    return scores.rare[scores.thresholds[0]]


def _looping(scores: WordScores) -> list[int]:
    looping = hallucination_signs(scores).looping
    return [int(name in looping) for name in scores.ids]


def _mean(figure: str, kind: str) -> Callable[[Mapping[str, Divergence]], Ratio]:
    return lambda sums: Ratio(getattr(sums[kind], figure), sums[kind].positions)


def _rare_wer_below(threshold: float) -> Figure:
    """Rare WER at another threshold than the main one."""
    name, title = f"rare_wer_zipf_{threshold:g}", f"rare WER % (Zipf < {threshold:g})"
    return Figure(name, title, "%", "words", _rate(lambda scores: scores.rare[threshold]), shown=False)


#: In the order of the tables. ΔNLL of the true token stands beside KL from full precision.
FIGURES = (
    Figure("wer", "WER %", "%", "words", _rate(lambda scores: scores.plain), compared=True),
    Figure("rare_wer", "rare WER %", "%", "words", _rate(_rare), compared=True),
    Figure("rare_miss_rate", "rare missed %", "%", "words", lambda s: Ratio(_rare(s).misses, _rare(s).words)),
    Figure("common_wer", "common WER %", "%", "words", _rate(lambda scores: scores.common[scores.thresholds[0]])),
    Figure(
        "b_wer",
        "B-WER %",
        "%",
        "words",
        _rate(lambda scores: biased_counts(scores, rare_reference_words(scores))[0]),
        shown=False,
    ),
    Figure(
        "insertions",
        "insertions %",
        "%",
        "words",
        lambda scores: Ratio(scores.plain.insertions, scores.plain.words),
        shown=False,
    ),
    Figure(
        "looping", "looping %", "%", "words", lambda scores: Ratio(_looping(scores), [1] * len(scores.ids)), shown=False
    ),
    Figure("protected_wer", "protected WER %", "%", "protected", lambda c: Ratio(c.errors, c.words), compared=True),
    Figure("protected_miss_rate", "protected missed %", "%", "protected", lambda c: Ratio(c.misses, c.words)),
    Figure("ne_wer", "entity WER %", "%", "entities", lambda e: Ratio(e.errors, e.words), compared=True),
    Figure("ne_fnr", "entities missed %", "%", "entities", lambda e: Ratio(e.missed, e.mentions), compared=True),
    Figure("delta_nll_rare", "ΔNLL rare", "nats", "divergence", _mean("delta_nll", "rare"), compared=True),
    Figure("kl_rare", "KL rare", "nats", "divergence", _mean("kl", "rare"), compared=True),
    Figure("delta_nll_common", "ΔNLL common", "nats", "divergence", _mean("delta_nll", "common"), compared=True),
    Figure("kl_common", "KL common", "nats", "divergence", _mean("kl", "common"), compared=True),
    Figure(
        "delta_nll_protected",
        "ΔNLL protected",
        "nats",
        "protected_divergence",
        lambda d: Ratio(d.delta_nll, d.positions),
        compared=True,
    ),
    Figure(
        "kl_protected",
        "KL protected",
        "nats",
        "protected_divergence",
        lambda d: Ratio(d.kl, d.positions),
        compared=True,
    ),
)

#: Band of frequency, or no word, to the same damage there; in JSON and in reports only.
BANDED = {
    band: tuple(
        Figure(f"{name} {band}", f"{title} {band}", "nats", "divergence", _mean(name, band), shown=False)
        for name, title in (("delta_nll", "ΔNLL"), ("kl", "KL"))
    )
    for band in NAMES
}


def ratios(measured: Measured, thresholds: Sequence[float]) -> dict[str, Ratio]:
    """Every available figure of a model on a set, by name, as sums per utterance; of bands, those that have targets.

    Args:
        thresholds: Zipf scores that the words were counted at; each one after the first gives a further rare WER.
    """
    sums = measured.divergence or {}
    bands = [figures for band, figures in BANDED.items() if band in sums and sums[band].positions.any()]
    further = [*map(_rare_wer_below, thresholds[1:]), *chain.from_iterable(bands)]
    return {
        figure.name: figure.ratio(source)
        for figure in (*FIGURES, *further)
        if (source := getattr(measured, figure.source)) is not None
    }
