"""Solvers: how codes are chosen under a metric.

A solver factorises the metric once for all layers that share it and quantizes them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Factor, Quantized, factorize, group_quantize_layers, round_to_nearest
from tarq.kernels.scheme import Scheme


class Solver(Protocol):
    """Chooses the codes of a weight, computing in a dtype of its own."""

    @property
    def dtype(self) -> torch.dtype: ...

    def factorize(self, hessian: Tensor) -> Factor:
        """The damped metric's factor, ``H + δI = L Lᵀ``."""
        ...

    def quantize(
        self, weights: Sequence[Tensor], factor: Factor | None, scheme: Scheme, scale_dtype: torch.dtype
    ) -> list[Quantized]:
        """Codes, scales and zero points of [m, n] weights; on a GPU those of one shape are swept at once."""
        ...


@dataclass(frozen=True)
class Sweep:
    """The Cholesky-based column sweep: GPTQ's codes without an inverse (kernels.md).

    Attributes:
        damp: δ = damp · mean(diag H), raised tenfold as often as a factorisation fails.
        act_order: ``static`` fixes the scales first and visits columns by falling diag(H).
        dtype: the sweep's arithmetic; float32 is the production choice.
    """

    damp: float = 0.01
    act_order: str = "none"
    dtype: torch.dtype = torch.float32

    def factorize(self, hessian: Tensor) -> Factor:
        order = hessian.diagonal().argsort(descending=True, stable=True) if self.act_order == "static" else None
        return factorize(hessian.to(self.dtype), self.damp, order=order)

    def quantize(
        self, weights: Sequence[Tensor], factor: Factor | None, scheme: Scheme, scale_dtype: torch.dtype
    ) -> list[Quantized]:
        if factor is None:
            raise ValueError("the sweep needs the factor of a metric")
        return group_quantize_layers(
            [weight.to(self.dtype) for weight in weights], [factor] * len(weights), scheme, scale_dtype=scale_dtype
        )


@dataclass(frozen=True)
class RoundToNearest:
    """Each weight to its nearest lattice point; the metric matters only to a residual's target."""

    damp: float = 0.01
    dtype: torch.dtype = torch.float32

    def factorize(self, hessian: Tensor) -> Factor:
        return factorize(hessian.to(self.dtype), self.damp)

    def quantize(
        self, weights: Sequence[Tensor], factor: Factor | None, scheme: Scheme, scale_dtype: torch.dtype
    ) -> list[Quantized]:
        rounded = [round_to_nearest(weight.to(self.dtype), scheme, scale_dtype) for weight in weights]
        no_metric = [torch.full((len(weight),), float("nan"), dtype=torch.float64) for weight in weights]
        return [Quantized(*r, loss, scheme.group_size) for r, loss in zip(rounded, no_metric, strict=True)]


def make_solver(name: str, *, damp: float = 0.01, act_order: str = "none") -> Solver:
    """The solver a configuration names: ``sweep`` or ``rtn``.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "sweep":
        return Sweep(damp, act_order)
    if name == "rtn":
        return RoundToNearest(damp)
    raise ValueError(f"unknown solver {name!r}: choose sweep or rtn")
