"""Two results compared: those of ``tarq evaluate``, or transcripts scored against references; paired by utterance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tarq.data.transcripts import Transcript
from tarq.errors import DataError
from tarq.scoring.bootstrap import RESAMPLES, Difference, Interval, resample
from tarq.scoring.breakdown import protected_mask
from tarq.scoring.figures import Measured
from tarq.scoring.utterances import ratios_of, sums_by_utterance
from tarq.scoring.words import score_words
from tarq.words.transcripts import Rarity

#: Utterance id to its sums (:mod:`tarq.scoring.utterances`).
Sums = Mapping[str, Mapping[str, float]]
#: What must be the same for two results to be of the same words.
_SETTINGS = ("language", "normalizer", "word_frequencies")


@dataclass(frozen=True)
class Compared:
    """One model of the first results and one of the second, on one set.

    Attributes:
        label: of set and model.
        utterances: that both scored.
        before, after: figure to value with its 95 % interval.
        differences: figure to ``second − first``, paired.
        notes: what could not be compared.
    """

    label: str
    utterances: int
    before: dict[str, Interval]
    after: dict[str, Interval]
    differences: dict[str, Difference]
    notes: list[str] = field(default_factory=list)


def compare_sums(label: str, first: Sums, second: Sums, resamples: int = RESAMPLES, seed: int = 0) -> Compared:
    """Every figure that both have, on the utterances that both have.

    Raises:
        DataError: they have no utterance in common.
    """
    ids = [i for i in first if i in second]
    if not ids:
        raise DataError(f"{label}: no utterance is in both; compare results of the same speech")
    ratios = {
        (side, figure): ratio
        for side, sums in (("first", first), ("second", second))
        for figure, ratio in ratios_of([sums[i] for i in ids]).items()
    }
    known = resample(ratios, resamples, seed)
    shared = [figure for side, figure in ratios if side == "first" and ("second", figure) in ratios]
    alone = len(first) + len(second) - 2 * len(ids)
    notes = [f"{alone} utterances are in one of the two only, and left out"] if alone else []
    return Compared(
        label,
        len(ids),
        {figure: known["first", figure].interval() for figure in shared},
        {figure: known["second", figure].interval() for figure in shared},
        {figure: known["second", figure].minus(known["first", figure]) for figure in shared},
        notes,
    )


def compare_evaluations(
    first: Mapping[str, Any], second: Mapping[str, Any], resamples: int = RESAMPLES
) -> list[Compared]:
    """Models of one label on sets of one label; where no label is shared, the one quantized model of each.

    Args:
        first, second: of ``tarq evaluate --json``.

    Raises:
        DataError: nothing can be compared, or words were counted differently.
    """
    shared = [label for label in first["sets"] if label in second["sets"]]
    if not shared:
        raise DataError(
            f"no set is in both: the first has {', '.join(first['sets'])}, the second {', '.join(second['sets'])}"
        )
    if first["thresholds"][:1] != second["thresholds"][:1]:
        raise DataError(
            f"rare is Zipf < {first['thresholds'][0]:g} in the first and < {second['thresholds'][0]:g} in the second: "
            "evaluate both with one --tail-threshold"
        )
    found = []
    for label in shared:
        ours, theirs = first["sets"][label], second["sets"][label]
        for setting in _SETTINGS:
            if ours.get(setting) != theirs.get(setting):
                raise DataError(
                    f"{label}: {setting} is {ours.get(setting)} in the first and {theirs.get(setting)} in the second: "
                    "evaluate both alike"
                )
        for before, after in _pairs(first, second, label):
            name = before if before == after else f"{before} → {after}"
            sums = [scores["models"][m].get("utterances") for scores, m in ((ours, before), (theirs, after))]
            if not all(sums):
                raise DataError(f"{label}, {name}: no sums by utterance, as an older tarq wrote it; evaluate again")
            found.append(compare_sums(f"{label}: {name}", sums[0], sums[1], resamples))
    return found


def _pairs(first: Mapping[str, Any], second: Mapping[str, Any], label: str) -> list[tuple[str, str]]:
    names = [list(results["sets"][label]["models"]) for results in (first, second)]
    if shared := [name for name in names[0] if name in names[1] and name != first.get("reference")]:
        return [(name, name) for name in shared]
    others = [
        [name for name in some if name != results.get("reference")]
        for some, results in zip(names, (first, second), strict=True)
    ]
    if [len(some) for some in others] == [1, 1]:
        return [(others[0][0], others[1][0])]
    if names[0] == names[1] and len(names[0]) == 1:
        return [(names[0][0], names[1][0])]
    raise DataError(
        f"{label}: no model is in both: the first has {', '.join(names[0])}, the second {', '.join(names[1])}; "
        "evaluate them in one call, or one model in each"
    )


def sums_of_transcripts(
    references: Sequence[Transcript], hypotheses: Sequence[Transcript], rarity: Rarity, what: str
) -> dict[str, dict[str, float]]:
    """Utterance id to errors and words, of transcripts scored against references of the same ids.

    Args:
        what: the transcripts are called, in errors.

    Raises:
        DataError: no id is in both.
    """
    texts = {h.id: h.text for h in hypotheses}
    scored = [r for r in references if r.id in texts]
    if not scored:
        known, given = (", ".join(t.id for t in list(some)[:2]) for some in (references, hypotheses))
        raise DataError(f"{what}: none of its utterances ({given}, …) is in the reference ({known}, …); ids must agree")
    found: dict[str, dict[str, float]] = {}
    for language in dict.fromkeys(r.language for r in scored):
        some = [r for r in scored if r.language == language]
        normalizer, frequencies = rarity.of_language(language)
        words = score_words(
            [r.text for r in some], [texts[r.id] for r in some], normalizer=normalizer,
            thresholds=[rarity.words.tail_threshold], language=frequencies, ids=[r.id for r in some],
        )  # fmt: skip
        protected = rarity.protected(language)
        errors = None if protected is None else words.counts(protected_mask(words, protected))
        found |= sums_by_utterance(Measured(words, protected=errors), ())
    return found
