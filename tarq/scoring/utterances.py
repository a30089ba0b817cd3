"""Scores utterance by utterance: what every figure of an evaluation is a ratio of sums of."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from tarq.scoring.bootstrap import Ratio
from tarq.scoring.divergence import Divergence
from tarq.scoring.figures import Measured
from tarq.scoring.words import Counts

#: Figure to the columns it is a ratio of: Σ numerator / Σ denominator over utterances.
COLUMNS = {
    "wer": ("errors", "words"),
    "rare_wer": ("rare_errors", "rare_words"),
    "protected_wer": ("protected_errors", "protected_words"),
    "delta_nll_rare": ("delta_nll_rare", "targets_rare"),
    "kl_rare": ("kl_rare", "targets_rare"),
    "delta_nll_common": ("delta_nll_common", "targets_common"),
    "kl_common": ("kl_common", "targets_common"),
    "delta_nll_protected": ("delta_nll_protected", "targets_protected"),
    "kl_protected": ("kl_protected", "targets_protected"),
}
_NUMBERS = tuple(dict.fromkeys(name for pair in COLUMNS.values() for name in pair))


def sums_by_utterance(measured: Measured, forced: Sequence[str]) -> dict[str, dict[str, float]]:
    """Utterance id to its errors and words (all, rare, protected), and to its sums of KL and ΔNLL in nats.

    Args:
        measured: of one model on one set.
        forced: ids that the divergence has an entry for.
    """
    found: dict[str, dict[str, float]] = {}
    if (words := measured.words) is not None:
        counts: dict[str, Counts | None] = {
            "": words.plain, "rare_": words.rare[words.thresholds[0]], "protected_": measured.protected,
        }  # fmt: skip
        for prefix, of_kind in counts.items():
            if of_kind is not None:
                _add(found, words.ids, {f"{prefix}errors": of_kind.errors, f"{prefix}words": of_kind.words})
    sums = measured.divergence or {}
    for kind in ("rare", "common", "protected"):
        if (known := sums.get(kind)) is not None:
            _add(found, forced, _columns(kind, known))
    return found


def _columns(kind: str, known: Divergence) -> dict[str, Any]:
    return {f"delta_nll_{kind}": known.delta_nll, f"kl_{kind}": known.kl, f"targets_{kind}": known.positions}


def _add(found: dict[str, dict[str, float]], ids: Sequence[str], columns: Mapping[str, Any]) -> None:
    for name, values in columns.items():
        for i, value in zip(ids, values.tolist(), strict=True):
            found.setdefault(i, {})[name] = value


def ratios_of(utterances: Sequence[Mapping[str, float]]) -> dict[str, Ratio]:
    """The figures that some utterances' sums give, by name; those without a column are left out.

    An utterance without a column, since it could not be teacher-forced, counts nothing in it.
    """
    there = {name for sums in utterances for name in sums}
    return {
        figure: Ratio([s.get(above, 0.0) for s in utterances], [s.get(below, 0.0) for s in utterances])
        for figure, (above, below) in COLUMNS.items()
        if {above, below} <= there
    }


def utterances_csv(evaluation: Mapping[str, Any], texts: Mapping[str, Mapping[str, str]]) -> str:
    """A table with a row for every utterance and model; what was not measured is empty.

    Args:
        evaluation: of :meth:`tarq.scoring.run.Evaluation.to_dict`.
        texts: set to utterance id to its transcript as it is written.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(("set", "id", "model", "reference", "hypothesis", *_NUMBERS))
    for label, scores in evaluation["sets"].items():
        for model, known in scores["models"].items():
            own = texts.get(label, {})
            for i in dict.fromkeys([*own, *known["utterances"]]):
                sums = known["utterances"].get(i, {})
                row = (label, i, model, own.get(i, ""), known["hypotheses"].get(i, ""))
                table.writerow((*row, *(sums.get(name, "") for name in _NUMBERS)))
    return out.getvalue()
