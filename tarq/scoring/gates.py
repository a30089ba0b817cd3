"""Gates: how much worse a model may be than another, for a build that is to fail where it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tarq.scoring.bootstrap import Difference


@dataclass(frozen=True)
class Gate:
    """A limit on the increase of a rate.

    Attributes:
        figure: name of the rate (:data:`tarq.scoring.figures.FIGURES`).
        title: of the rate, for messages.
        limit: in points (percent of words); an increase above it fails.
        option: that set it.
    """

    figure: str
    title: str
    limit: float
    option: str

    def broken(self, difference: Difference | None) -> str:
        """Why a difference does not pass: its value and interval; empty if it does.

        The value decides, not the interval. What cannot be measured does not pass.
        """
        if difference is None or math.isnan(difference.value):
            return f"{self.option} {self.limit:g}: {self.title} was not measured (no such word, or no transcripts)"
        points = 100 * difference.value
        if points <= self.limit + 1e-9:
            return ""
        low, high = 100 * difference.low, 100 * difference.high
        clear = "the limit is below the interval" if low > self.limit else "the limit is within the interval"
        return (
            f"{self.option} {self.limit:g}: {self.title} rose by {points:.2f} points [{low:.2f}, {high:.2f}] ({clear})"
        )


def failures(
    gates: Sequence[Gate],
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]],
    models: Sequence[str],
    base: str,
) -> list[str]:
    """Every gate that a model does not pass, with set, model and interval.

    Args:
        differences: set to ``B − A`` to figure to difference; each pair is there in one direction.
        models: labels of those that are checked against the base.
    """
    found = []
    for label, pairs in differences.items():
        for model in models:
            known = paired(pairs, model, base)
            found += [
                f"{label}, {model} against {base}: {why}" for g in gates if (why := g.broken(known.get(g.figure)))
            ]
    return found


def paired(pairs: Mapping[str, Mapping[str, Difference]], ours: str, base: str) -> dict[str, Difference]:
    """The differences ``ours − base`` of a set, where it holds the pair in either direction."""
    if f"{ours} − {base}" in pairs:
        return dict(pairs[f"{ours} − {base}"])
    return {
        figure: Difference(-d.value, -d.high, -d.low, d.sign_flips)
        for figure, d in pairs.get(f"{base} − {ours}", {}).items()
    }
