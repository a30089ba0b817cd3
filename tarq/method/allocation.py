"""Bit allocation: from the damage of each bit width to a width for each layer, at a stated mean.

Layers begin at their narrowest width. The step that takes most damage away per bit it costs is taken again and again,
as long as one fits the budget: a greedy solution of the knapsack that mixed precision is. Layers that read one input
share a width, since loaders fuse them.

The table is data. :func:`tarq.walk.sensitivity.measure` estimates it from moments and gradients; a measured one (the
divergence after swapping one block at a time, say) can take its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tarq.arguments import checked_arguments
from tarq.errors import ConfigError


@dataclass(frozen=True)
class Sensitivity:
    """What each width does to layers that get one width together.

    Attributes:
        names: the layers.
        weights: how many weights they have together.
        damage: bits per weight to the damage there, in a unit that all rows of a table share.
    """

    names: tuple[str, ...]
    weights: int
    damage: Mapping[int, float]


def mean_bits(sizes: Sequence[tuple[int, int]]) -> float:
    """Mean bits per weight of layers, given (weights, bits) of each; scales and zero points are not counted."""
    return sum(weights * bits for weights, bits in sizes) / sum(weights for weights, _ in sizes)


@checked_arguments()
def allocate_bits(
    table: Sequence[Sensitivity], target: float, others: Sequence[tuple[int, int]] = ()
) -> dict[str, int]:
    """Bits per weight of each layer of a table, ready for ``TarqConfig(bits_for=…)``.

    Args:
        table: damage by layer and width; a layer gets one of its row's widths.
        target: mean bits per weight to stay within, over the table and the others.
        others: (weights, bits) of layers whose bits are settled.

    Raises:
        ConfigError: a row has no width or its damage is not finite, or the narrowest widths exceed the target.
    """
    for row in table:
        if not row.damage or not all(map(math.isfinite, row.damage.values())):
            raise ConfigError(f"damage of {', '.join(row.names)} must be a finite number for each width")
    chosen = [min(row.damage) for row in table]
    every = [*others, *((row.weights, bits) for row, bits in zip(table, chosen, strict=True))]
    remaining = target * sum(weights for weights, _ in every) - sum(weights * bits for weights, bits in every)
    if remaining < 0:
        raise ConfigError(
            f"target_bits must be at least {mean_bits(every):.4g}, the mean of the narrowest widths, not {target:g}"
        )
    while True:
        steps = [
            ((row.damage[current] - row.damage[bits]) / (row.weights * (bits - current)), -i, bits)
            for i, (row, current) in enumerate(zip(table, chosen, strict=True))
            for bits in row.damage
            if bits > current and row.damage[bits] < row.damage[current] and row.weights * (bits - current) <= remaining
        ]
        if not steps:
            return {name: bits for row, bits in zip(table, chosen, strict=True) for name in row.names}
        _, place, bits = max(steps)
        remaining -= table[-place].weights * (bits - chosen[-place])
        chosen[-place] = bits
