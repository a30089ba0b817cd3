"""Solvers: how codes are chosen under a metric.

A solver factorises the metric once for all layers that share it and quantizes them together. A new one is a class here
or elsewhere: pass it to ``tarq.quantize``, or name it in :mod:`tarq.method.registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Factor, Quantized, factorize, group_quantize_layers, round_to_nearest
from tarq.kernels.scheme import Scheme
from tarq.method.residuals import Statistics


class Solver(Protocol):
    """Chooses the codes of a weight. Inherit from it: the defaults ask the walk for the metric alone.

    Attributes:
        dtype: of its targets and statistics.
        paired: ask for H_Δ beside H, whatever the residual: the full-precision network is then walked too.
        reads_audio: False for a solver that needs the weights alone; no audio is read then, unless for a residual or
            to test what can be reparametrized.
        output_moments: ask for ``Σ g gᵀ`` of each layer, g the loss's gradient at its output in the full-precision
            model: one backward pass over the calibration set.
        storable: False for a solver whose layers are more than codes and scales: no checkpoint can hold them.
    """

    dtype: torch.dtype = torch.float32
    paired: bool = False
    reads_audio: bool = True
    output_moments: bool = False
    storable: bool = True

    def factorize(self, hessian: Tensor) -> Factor:
        """The damped metric's factor, ``H + δI = L Lᵀ``.

        Args:
            hessian: [n, n] in the solver's dtype.
        """
        ...

    def quantize(
        self,
        targets: Sequence[Tensor],
        statistics: Statistics | None,
        scheme: Scheme,
        scale_dtype: torch.dtype,
        outputs: Sequence[Tensor] | None = None,
    ) -> list[Quantized]:
        """Codes, scales and zero points of [m, n] targets that share an input.

        Args:
            targets: V of each layer.
            statistics: of their input; None where no audio was read.
            scheme: the lattice.
            scale_dtype: dtype the scales are stored in.
            outputs: [m, m] float64 ``Σ g gᵀ`` of each layer, where the solver asks for them.

        Returns:
            One result per target. Its loss is each row's damped error ``‖(v − v̂) L‖²``, NaN if it was not measured;
            the layer's report is derived from it.
        """
        ...


@dataclass(frozen=True)
class Sweep(Solver):
    """The Cholesky-based column sweep: GPTQ's codes without an inverse (:mod:`tarq.kernels.group_quantize.op`).

    Attributes:
        damp: δ = damp · mean(diag H), raised tenfold each time a factorisation fails.
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
        self,
        targets: Sequence[Tensor],
        statistics: Statistics | None,
        scheme: Scheme,
        scale_dtype: torch.dtype,
        outputs: Sequence[Tensor] | None = None,
    ) -> list[Quantized]:
        if statistics is None:
            raise ValueError("the sweep needs the factor of a metric")
        # On a GPU, targets of one shape are swept together.
        return group_quantize_layers(targets, [statistics.factor] * len(targets), scheme, scale_dtype=scale_dtype)


@dataclass(frozen=True)
class RoundToNearest(Solver):
    """Each weight to its nearest lattice point; the metric matters only to a residual's target.

    Attributes:
        damp: of the metric, for the residual.
        dtype: the dtype weights are rounded in.
    """

    damp: float = 0.01
    dtype: torch.dtype = torch.float32
    reads_audio: bool = False

    def factorize(self, hessian: Tensor) -> Factor:
        return factorize(hessian.to(self.dtype), self.damp)

    def quantize(
        self,
        targets: Sequence[Tensor],
        statistics: Statistics | None,
        scheme: Scheme,
        scale_dtype: torch.dtype,
        outputs: Sequence[Tensor] | None = None,
    ) -> list[Quantized]:
        done = []
        for target in targets:
            v = target.to(self.dtype)
            if statistics is not None:  # an input that is always zero does not matter
                v = v.masked_fill(statistics.factor.dead, 0)
            no_metric = torch.full((len(v),), float("nan"), dtype=torch.float64, device=v.device)
            rounded = Quantized(*round_to_nearest(v, scheme, scale_dtype), no_metric, scheme.group_size)
            if statistics is not None:
                rounded = replace(rounded, loss=damped_loss(v - rounded.dequantize(v.dtype), statistics.factor))
            done.append(rounded)
        return done


def damped_loss(error: Tensor, factor: Factor) -> Tensor:
    """``‖e L‖²`` of each row of an [m, n] error, float64 [m]."""
    return (in_order(error, factor) @ factor.upper).square().sum(1).double()


def in_order(columns: Tensor, factor: Factor, back: bool = False) -> Tensor:
    """[m, n] columns in the factor's order of visit, or from it ``back`` in the natural one."""
    if factor.order is None:
        return columns
    return columns[:, torch.argsort(factor.order) if back else factor.order]
