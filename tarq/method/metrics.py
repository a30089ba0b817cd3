"""Metrics: which calibration positions count how much.

A metric answers two questions and nothing else: on which side of the statistics a position goes and with
what weight (before anything is accumulated), and how the two sides are put together (after).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tarq.method.moments import SIDES, Moments

_EPSILON = 1e-12


@dataclass(frozen=True)
class Rebalanced:
    """The moments of both sides put together.

    Attributes:
        hessian: [n, n], the metric H = H_C + λ H_T.
        cross: [n, n], the cross-moment H_Δ; None for unpaired moments.
    """

    hessian: Tensor
    cross: Tensor | None


class Metric(Protocol):
    """How much each position counts."""

    def assign(self, tail: Tensor, exists: Tensor, key: str) -> tuple[Tensor, Tensor | None]:
        """Side and weight of each position of one utterance.

        Args:
            tail: [T] bool, positions tagged as rare.
            exists: [T] bool, False on rows that only fill up a batch or lie beyond the audio.
            key: names utterance and stage; whatever is random is seeded by it.

        Returns:
            [T] bool (the side that is re-weighted) and [T] float weights, or None for ones.
        """
        ...

    def balance(self, parts: Sequence[Moments]) -> tuple[float, str]:
        """λ, the weight of a tail position against a common one, and what is unusual about it (or "").

        Args:
            parts: moments of one input over parts of the calibration set.
        """
        ...


def rebalance(
    parts: Sequence[Moments], lam: float, lam_cross: float | None = None, dtype: torch.dtype = torch.float64
) -> Rebalanced:
    """Both sides of the pooled moments put together, summed in float64.

    Args:
        parts: moments of one input over parts of the calibration set.
        lam: how often a tail position counts.
        lam_cross: the same for the cross-moment alone; ``lam`` when not given.
        dtype: of the result. One float64 sum is held at a time: of a wide layer it is half a gigabyte.
    """

    def weigh(sums: list[dict[str, Tensor]], weight: float) -> Tensor:
        total = torch.add(sums[0]["common"], sums[0]["tail"], alpha=weight)
        for each in sums[1:]:
            total.add_(each["common"]).add_(each["tail"], alpha=weight)
        return total.to(dtype)

    crosses = [part.cross for part in parts if part.cross is not None]
    return Rebalanced(
        weigh([part.hessian for part in parts], lam),
        weigh(crosses, lam if lam_cross is None else lam_cross) if crosses else None,
    )


@dataclass(frozen=True)
class Plain:
    """Every position alike: GPTQ's metric."""

    def assign(self, tail: Tensor, exists: Tensor, key: str) -> tuple[Tensor, Tensor | None]:
        return torch.zeros_like(tail), None

    def balance(self, parts: Sequence[Moments]) -> tuple[float, str]:
        return 1.0, ""


@dataclass(frozen=True)
class RareBAL:
    """Tail positions up-weighted until both sides have the same trace (arXiv 2605.27808, §3).

    ``λ = c · tr(H_C) / (tr(H_T) + ε)`` and ``H_rB = H_C + λ H_T``, so ``tr(λ H_T) = c · tr(H_C)``. Shrinking
    H_T towards H_C by a factor ρ is the same metric at ``c' = c (1 − ρ) / (1 + ρ c)``, so it needs no option.

    Attributes:
        cost_ratio: c.
        max_lambda: cap on λ, or None.
    """

    cost_ratio: float = 1.0
    max_lambda: float | None = None

    def assign(self, tail: Tensor, exists: Tensor, key: str) -> tuple[Tensor, Tensor | None]:
        return tail, None

    def balance(self, parts: Sequence[Moments]) -> tuple[float, str]:
        count = {side: sum(part.positions[side] for part in parts) for side in SIDES}
        for side, missing in count.items():
            if missing == 0:
                return 1.0, f"no {side} position: plain metric"
        trace = {side: sum(float(part.hessian[side].trace()) for part in parts) for side in SIDES}
        lam = self.cost_ratio * trace["common"] / (trace["tail"] + _EPSILON)
        if self.max_lambda is not None and lam > self.max_lambda:
            return self.max_lambda, f"λ capped at {self.max_lambda:g} (was {lam:.1f})"
        expected = self.cost_ratio * count["common"] / count["tail"]
        if expected > 0 and not 0.2 < lam / expected < 5:
            return lam, f"λ = {lam:.1f} where the position counts suggest {expected:.1f}"
        return lam, ""


@dataclass(frozen=True)
class Control:
    """RareBAL on as many positions as the tail has, but not the rare ones: the paper's controls.

    Attributes:
        rarebal: the arithmetic, unchanged.
        among: ``random`` draws from all positions, ``common`` from those outside the tail.
        seed: of the draw, together with the utterance and stage.
    """

    rarebal: RareBAL
    among: str
    seed: int = 0

    def assign(self, tail: Tensor, exists: Tensor, key: str) -> tuple[Tensor, Tensor | None]:
        # 32 bits, since that is all a CPU generator takes of its seed.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{key}".encode()))
        pool = (exists if self.among == "random" else exists & ~tail).nonzero().flatten()
        count = min(int((tail & exists).sum()), len(pool))
        chosen = torch.zeros_like(tail)
        chosen[pool[torch.randperm(len(pool), generator=generator)[:count]]] = True
        return chosen, None

    def balance(self, parts: Sequence[Moments]) -> tuple[float, str]:
        return self.rarebal.balance(parts)


@dataclass(frozen=True)
class PositionWeights:
    """A real weight for each position, from wherever it comes: gradients, confidences, frequency buckets.

    Attributes:
        weights: utterance-and-stage key (``"decoder/utterance-id"``) to [T] non-negative weights, or a
            function of the key; where it has no entry (KeyError) every position counts as one.
    """

    weights: Mapping[str, Tensor] | Callable[[str], Tensor]

    def assign(self, tail: Tensor, exists: Tensor, key: str) -> tuple[Tensor, Tensor | None]:
        try:
            weight = self.weights(key) if callable(self.weights) else self.weights[key]
        except KeyError:
            return torch.zeros_like(tail), None
        weight = weight.float().cpu()
        if weight.shape != tail.shape or not bool(((weight >= 0) & torch.isfinite(weight)).all()):
            raise ValueError(
                f"position weights of {key} must be {tail.shape[0]} finite non-negative numbers, "
                f"got shape {tuple(weight.shape)}"
            )
        return torch.zeros_like(tail), weight

    def balance(self, parts: Sequence[Moments]) -> tuple[float, str]:
        return 1.0, ""


def make_metric(name: str, *, cost_ratio: float = 1.0, max_lambda: float | None = None, seed: int = 0) -> Metric:
    """The metric a configuration names: ``rarebal``, ``plain``, ``random`` or ``common``.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "plain":
        return Plain()
    rarebal = RareBAL(cost_ratio, max_lambda)
    if name == "rarebal":
        return rarebal
    if name in ("random", "common"):
        return Control(rarebal, name, seed)
    raise ValueError(f"unknown metric {name!r}: choose rarebal, plain, random or common")
