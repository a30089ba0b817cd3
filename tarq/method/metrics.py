"""Metrics: how calibration positions are weighted.

A metric assigns each position to a subset (common or tail) with a weight, before anything is accumulated, and combines
the moments of the two subsets afterwards. A new one is a class here or elsewhere: pass it to
``tarq.quantize``, or name it in :mod:`tarq.method.registry`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from tarq.method.moments import SUBSETS, Moments

_EPSILON = 1e-12


@dataclass(frozen=True)
class LayerRows:
    """The positions of one batch as the Linears that share an input see them; all tensors are on one device.

    Attributes:
        layers: names of these Linears in the model.
        tail: [R] bool, as :meth:`Metric.assign` returned.
        weight: [R] float, likewise; 0 where a row is not a position, or is padding without weight.
        utterance: [R] int, which of the batch's utterances each row belongs to.
        inputs: [R, n] the Linears' input.
        gradients: [R] squared norm of the loss's gradient at the outputs of these Linears, in the full-precision
            model; None unless the metric asks for them, and where no target is reached from these Linears.
        gradient_scale: mean of these squared norms over the rows of the whole calibration set that have one.
        attention: [R] what the block's self-attention gives each row (its cross-attention, where the Linears read
            what several blocks do), summed over heads and queries, in the full-precision model; None unless the
            metric asks for it, and, with a note in the report, where no attention is known over these rows.
    """

    layers: Sequence[str]
    tail: Tensor
    weight: Tensor
    utterance: Tensor
    inputs: Tensor
    gradients: Tensor | None = None
    gradient_scale: float = 1.0
    attention: Tensor | None = None


class Metric(Protocol):
    """The weight of each position. Inherit from it: the defaults ask the walk for nothing.

    Attributes:
        activations: whether weights depend on the layer; then :meth:`reassign` is called for each one.
        gradients: ask for the gradients at each layer's outputs too: one backward pass over the calibration set.
        attention: ask for the attention each row is given: one pass over the calibration set.
        bands: ask that bands of the tail (``tail_bands`` of the configuration) have equal traces before
            :meth:`balance` sees them.
        reads_tail: whether it matters to the weights which positions are in the tail.
    """

    activations: bool = False
    gradients: bool = False
    attention: bool = False
    bands: bool = False
    reads_tail: ClassVar[bool] = True

    def assign(self, tail: Tensor, exists: Tensor, key: str) -> tuple[Tensor, Tensor | None]:
        """Whether each position of one utterance is in the tail, and its weight.

        Args:
            tail: [T] bool, positions tagged as rare.
            exists: [T] bool, False on rows that pad a batch or lie beyond the audio.
            key: utterance and stage (``"decoder/utterance-id"``); seeds whatever is random.

        Returns:
            [T] bool, True in the tail, and [T] float weights, or None for ones.
        """
        ...

    def balance(self, folds: Sequence[Moments]) -> tuple[float, str]:
        """λ, the weight of a tail position relative to a common one, and a note if it is unusual (or "").

        Args:
            folds: moments of one input over each fold of the calibration set.
        """
        ...

    def reassign(self, rows: LayerRows) -> tuple[Tensor, Tensor]:
        """The same of each row for one layer; called only where the metric asks for
        activations, gradients or attention.

        Returns:
            [R] bool and [R] float.
        """
        return rows.tail, rows.weight

    def target_weight(self, rare: Tensor, share: float) -> Tensor:
        """The weight of each target token's cross-entropy in the loss whose gradients are asked for.

        Args:
            rare: [B, T] bool, targets that belong to a rare word.
            share: of such targets in the whole calibration set.

        Returns:
            [B, T] float; ones by default.
        """
        return torch.ones(rare.shape)


@dataclass(frozen=True)
class Rebalanced:
    """The combined moments of both subsets.

    Attributes:
        hessian: [n, n], the metric H = H_C + λ H_T; about the mean if centred.
        cross: [n, n], the cross-moment H_Δ, likewise; None for unpaired moments.
        mean: [n] ``μ = Σ d x / Σ d``; None if first moments were not asked for.
        mean_full: [n] ``μ_f = Σ d xf / Σ d``; ``mean`` itself for unpaired moments.
        drift: [n, n] ``Σ d (xf − x)(xf − x)ᵀ``, likewise about the mean; None where it was not asked for.
    """

    hessian: Tensor
    cross: Tensor | None
    mean: Tensor | None = None
    mean_full: Tensor | None = None
    drift: Tensor | None = None


def rebalance(
    folds: Sequence[Moments],
    lam: float,
    lam_cross: float | None = None,
    dtype: torch.dtype = torch.float64,
    centred: bool = False,
) -> Rebalanced:
    """Combine the pooled moments of both subsets, in float64.

    Args:
        folds: moments of one input over each fold of the calibration set.
        lam: weight of a tail position.
        lam_cross: the same for the cross-moment alone; ``lam`` by default.
        dtype: of the result. Only one float64 sum is held at a time: for a wide layer it is half a gigabyte.
        centred: take moments about the mean: ``H − n μ μᵀ`` and ``H_Δ − n (μ_f − μ) μᵀ`` with ``n = Σ d``.

    Raises:
        ValueError: centred moments without first ones.
    """
    lam_cross = lam if lam_cross is None else lam_cross

    def weighted_sum(sums: list[dict[str, Tensor]], weight: float) -> Tensor:
        terms = [(each[s], w) for each in sums for s, w in zip(SUBSETS, (1.0, weight), strict=True) if s in each]
        (first, w), *others = terms or [(sums[0]["common"], 1.0)]
        total = first * w
        for other, w in others:
            total.add_(other, alpha=w)
        return total

    def centre(total: Tensor, rows: Tensor | None, columns: Tensor | None, mass: Tensor) -> Tensor:
        return total if rows is None or columns is None else total.addr_(rows, columns, alpha=-float(mass))

    firsts = [fold.mean for fold in folds if fold.mean is not None]
    fulls = [fold.mean_full for fold in folds if fold.mean_full is not None]
    crosses = [fold.cross for fold in folds if fold.cross is not None]
    if centred and not firsts:
        raise ValueError("centred moments need the first ones")
    mass = weighted_sum([fold.mass for fold in folds], lam)
    mean = weighted_sum(firsts, lam) / mass if firsts else None
    mean_full = weighted_sum(fulls, lam) / mass if fulls else mean
    hessian = weighted_sum([fold.hessian for fold in folds], lam)
    hessian = centre(hessian, mean, mean, mass).to(dtype) if centred else hessian.to(dtype)
    cross = None
    if crosses:
        cross = weighted_sum(crosses, lam_cross)
        if centred and mean is not None and mean_full is not None:
            share = weighted_sum([fold.mass for fold in folds], lam_cross)
            drift = (weighted_sum(fulls, lam_cross) - weighted_sum(firsts, lam_cross)) / share
            cross = centre(cross, drift, weighted_sum(firsts, lam_cross) / share, share)
        cross = cross.to(dtype)
    drifts = [fold.drift for fold in folds if fold.drift is not None]
    square = weighted_sum(drifts, lam) if drifts else None
    if square is not None and centred and mean is not None and mean_full is not None:
        square = centre(square, mean_full - mean, mean_full - mean, mass)

    def converted(total: Tensor | None) -> Tensor | None:
        return None if total is None else total.to(dtype)

    return Rebalanced(hessian, cross, converted(mean), converted(mean_full), converted(square))


@dataclass(frozen=True)
class Plain(Metric):
    """All positions weighted equally: GPTQ's metric."""

    reads_tail: ClassVar[bool] = False

    def assign(self, tail: Tensor, exists: Tensor, key: str) -> tuple[Tensor, Tensor | None]:
        return torch.zeros_like(tail), None

    def balance(self, folds: Sequence[Moments]) -> tuple[float, str]:
        return 1.0, ""


@dataclass(frozen=True)
class RareBAL(Metric):
    """Tail positions up-weighted until both subsets have the same trace (arXiv 2605.27808, §3).

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

    def balance(self, folds: Sequence[Moments]) -> tuple[float, str]:
        count = {subset: sum(fold.positions[subset] for fold in folds) for subset in SUBSETS}
        for subset, missing in count.items():
            if missing == 0:
                return 1.0, f"no {subset} position: plain metric"
        trace = {subset: sum(float(fold.hessian[subset].trace()) for fold in folds) for subset in SUBSETS}
        lam = self.cost_ratio * trace["common"] / (trace["tail"] + _EPSILON)
        if self.max_lambda is not None and lam > self.max_lambda:
            return self.max_lambda, f"λ capped at {self.max_lambda:g} (was {lam:.1f})"
        expected = self.cost_ratio * count["common"] / count["tail"]
        if expected > 0 and not 0.2 < lam / expected < 5:
            return lam, f"λ = {lam:.1f} where the position counts suggest {expected:.1f}"
        return lam, ""


@dataclass(frozen=True)
class RandomControl(RareBAL):
    """RareBAL on a random set of positions of the tail's size, drawn from all: one of the paper's controls.

    Attributes:
        seed: random seed of the draw, together with the utterance and stage.
    """

    seed: int = 0

    def assign(self, tail: Tensor, exists: Tensor, key: str) -> tuple[Tensor, Tensor | None]:
        # 32 bits: a CPU generator uses no more of its seed.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{key}".encode()))
        pool = self.drawn_from(tail, exists).nonzero().flatten()
        count = min(int((tail & exists).sum()), len(pool))
        chosen = torch.zeros_like(tail)
        chosen[pool[torch.randperm(len(pool), generator=generator)[:count]]] = True
        return chosen, None

    def drawn_from(self, tail: Tensor, exists: Tensor) -> Tensor:
        """[T] bool, the positions to draw from."""
        return exists


@dataclass(frozen=True)
class CommonControl(RandomControl):
    """The same, drawn from the positions outside the tail."""

    def drawn_from(self, tail: Tensor, exists: Tensor) -> Tensor:
        return exists & ~tail


@dataclass(frozen=True)
class PositionWeights(Metric):
    """A real weight for each position, from any source: gradients, confidences, frequency buckets.

    Attributes:
        weights: utterance-and-stage key (``"decoder/utterance-id"``) to [T] non-negative weights, or a
            function of the key; without an entry (KeyError), every position has weight one.
    """

    weights: Mapping[str, Tensor] | Callable[[str], Tensor]
    reads_tail: ClassVar[bool] = False

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

    def balance(self, folds: Sequence[Moments]) -> tuple[float, str]:
        return 1.0, ""
