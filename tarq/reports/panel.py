"""What a report shows of one model or one set, wherever it was measured: figures with intervals, words, layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tarq.data.utterance import Utterance
from tarq.reports.statistics import FIGURES as STUDIED
from tarq.scoring.bootstrap import Difference, Interval
from tarq.scoring.figures import FIGURES as SCORED

#: In the order of tables.
_ORDER = (
    *("delta_nll_rare", "kl_rare", "delta_nll_common", "kl_common", "rare_wer", "wer"),
    *("protected_wer", "protected_miss_rate", "delta_nll_protected", "kl_protected"),
    *("rare_miss_rate", "common_wer", "b_wer", "numeral_wer", "ne_wer", "ne_fnr"),
    *("insertions", "looping", "timestamp_shift"),
)
#: Unit to factor and decimals.
_UNITS = {"%": (100, 1), "s": (1, 3), "nats": (1, 3)}
_TITLES = {name: source.title for name, source in STUDIED.items()} | {figure.name: figure.title for figure in SCORED}
#: Figure to title, factor it is shown with, decimals and unit.
FIGURES: dict[str, tuple[str, int, int, str]] = {
    name: (_TITLES[name].removesuffix(f" {unit}"), *_UNITS[unit], unit)
    for name in _ORDER
    for unit in [next((u for u in ("%", "s") if _TITLES[name].endswith(f" {u}")), "nats")]
}
#: Damage to the targets that a table's title names.
FIGURES |= {"delta_nll": ("ΔNLL", 1, 3, "nats"), "kl": ("KL", 1, 3, "nats")}
#: Those of the paper's table; the others stand with the words.
MAIN = tuple(FIGURES)[:6]


@dataclass(frozen=True)
class Pair:
    """Two arms compared.

    Attributes:
        family: of comparisons that p-values are adjusted within.
        differences: figure to ``ours − base``.
        adjusted: figure to Holm's p.
        detectable: figure to the smallest true difference that would be found with a chance of 80 %.
        over_draws: figure to the standard deviation of the difference over draws, where there are several.
    """

    ours: str
    base: str
    family: str
    differences: dict[str, Difference]
    adjusted: dict[str, float] = field(default_factory=dict)
    detectable: dict[str, float] = field(default_factory=dict)
    over_draws: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Errors of one arm on one kind of words; counts are means over draws.

    Attributes:
        rate: (S + D + I) / N, a fraction.
        draws: that were transcribed.
        change: of the rate against full precision; None of full precision itself.
    """

    arm: str
    kind: str
    substitutions: float
    deletions: float
    insertions: float
    words: int
    rate: Interval
    change: Difference | None = None
    draws: int = 1


@dataclass(frozen=True)
class Damage:
    """Damage of one arm to some of the targets: those of a speaker, or of words of a band of frequency.

    Attributes:
        group: the speaker or band.
        targets: how many there are.
        difference: of the damage from that of the panel's base, paired.
    """

    arm: str
    group: str
    figure: str
    targets: int
    value: Interval
    difference: Difference | None = None


@dataclass(frozen=True)
class Swing:
    """A figure of one arm over calibration pools: pool to value; ``swing`` is the largest less the smallest."""

    arm: str
    figure: str
    pools: dict[str, Interval]
    swing: Interval


@dataclass(frozen=True)
class Hypothesis:
    """An arm's transcript of an utterance in which it lost or regained a word.

    Attributes:
        times: draws in which it did so.
        draws: that were transcribed.
        text: the transcript, of the first of those draws.
    """

    arm: str
    times: int
    draws: int
    text: str


@dataclass(frozen=True)
class ChangedWord:
    """A rare word that quantization lost or regained.

    Attributes:
        id: of the utterance.
        position: of the word among the reference's words.
        reference: normalised words; None where only the word is known.
        full: full precision's transcript.
        hypotheses: of the arms that changed it.
    """

    kind: str
    id: str
    position: int
    word: str
    reference: tuple[str, ...] | None
    full: str
    hypotheses: tuple[Hypothesis, ...]


@dataclass
class Panel:
    """One model of a study, or one set of an evaluation.

    Attributes:
        title: of the model or set.
        about: how much was measured, in one sentence.
        arms: name to title, in the order they are shown, full precision first where it is known.
        full: the arm that is full precision, if known.
        base: the arm that others are compared with.
        values, differences: (arm, figure) to value, and to paired difference from ``base``.
        recovered: arm to the share of the base's rare damage (ΔNLL) that it does not do.
        bands, groups, places: errors by frequency and by kind of word, and by place in the utterance.
        frequency, speakers: damage (``delta_nll``, ``kl``) by frequency of the target's word, rarest first; and that to
            rare and to common words by speaker.
        layers: arm to its layers: name, lam, alpha, loss, bits.
        clips: utterance id to the audio of it.
        figures_only: of a condition of which only the figures are shown, behind the others.
        absent: what is not shown, and why, to the section that it is said in.
        notes: what else is to be known.
    """

    title: str
    about: str
    arms: dict[str, str]
    full: str | None = None
    base: str | None = None
    values: dict[tuple[str, str], Interval] = field(default_factory=dict)
    differences: dict[tuple[str, str], Difference] = field(default_factory=dict)
    recovered: dict[str, Interval] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    swings: list[Swing] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    bands: list[Group] = field(default_factory=list)
    places: list[Group] = field(default_factory=list)
    frequency: list[Damage] = field(default_factory=list)
    speakers: list[Damage] = field(default_factory=list)
    changed: list[ChangedWord] = field(default_factory=list)
    layers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    clips: dict[str, Utterance] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    figures_only: bool = False

    @property
    def figures(self) -> list[str]:
        """Those of the paper's table that an arm has."""
        return [figure for figure in MAIN if any(figure == known for _, known in self.values)]

    def pair_title(self, pair: Pair) -> str:
        return f"{self.arms.get(pair.ours, pair.ours)} − {self.arms.get(pair.base, pair.base)}"

    @property
    def more(self) -> list[str]:
        """The others that an arm has."""
        return [f for f in FIGURES if f not in MAIN and any(f == known for _, known in self.values)]


@dataclass
class Report:
    """Everything a page shows.

    Attributes:
        title: of the page.
        panels: one a model or set.
        intervals: what the intervals cover, in one sentence.
        origin: everything needed to redo it: heading to lines.
    """

    title: str
    panels: list[Panel]
    intervals: str
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def main(self) -> list[Panel]:
        """Those that are shown in full."""
        return [panel for panel in self.panels if not panel.figures_only]

    def lines(self, of: Literal["absent", "notes"], section: str | None = None) -> list[str]:
        """Lines of the panels, each once; those that are not of all say of which they are.

        Args:
            section: of what is absent, the lines that are said there.
        """
        lines = dict.fromkeys(
            line
            for panel in self.main
            for line in getattr(panel, of)
            if section is None or panel.absent.get(line) == section
        )
        shared = {line: [panel.title for panel in self.main if line in getattr(panel, of)] for line in lines}
        return [
            line if len(titles) == len(self.main) else f"{', '.join(titles)}: {line}" for line, titles in shared.items()
        ]
