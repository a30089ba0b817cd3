"""Outliers kept in 16 bits beside the codes: SpQR (arXiv 2306.03078, ICLR 2024), and a tail that leaves them alone.

A few weights cost most: those with large rounding errors in the metric, and those that stretch their group's scale.
With ``H + δI = L Lᵀ``, leaving weight k out of its group gains

    u_k = Σ_j (e_j L_jj)² − Σ_{j≠k} (e'_j L_jj)²

where e and e' are the group's rounding errors under a scale that is fitted with k, and without. A share of the layer's
weights, those of largest u, keep 16 bits. Scales are fitted to the others, and the sweep goes over all columns as
usual: an outlier compensates the errors of the columns before it and leaves none of its own.

**What it equals.** The sweep at a share of 0. The authors' loop, code for code, for the same scales and outliers.

**Where it differs.** They decide within the sweep, by a threshold, and the share follows from it (about 1 %); here the
share is given, and u is the target's. Only a group's largest and least weights are refitted without: for the others the
fit stays as it is under ``absmax`` and ``minmax``, and nearly so under ``mse``. Groups are the lattice's; theirs are of
16 weights, with scales of 3 bits. So this is the graft of paper 2605.27808: W4G128 and 1 % in 16 bits, 0.3 bits a
weight more. That is no plain W4G128, so such a model can be measured, but not saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from tarq.kernels.group_quantize import Factor, Quantized
from tarq.kernels.group_quantize.reference import encode, group_scales
from tarq.kernels.scheme import Scheme
from tarq.method.metrics import LayerRows, RareBAL
from tarq.method.residuals import Statistics
from tarq.method.solvers import Sweep, damped_loss, in_order
from tarq.outliers import WithOutliers


@dataclass(frozen=True)
class SpQR(Sweep):
    """The sweep with outliers.

    Attributes:
        share: of a layer's weights that keep 16 bits.
    """

    share: float = 0.01
    storable: bool = False

    def quantize(
        self,
        targets: Sequence[Tensor],
        statistics: Statistics | None,
        scheme: Scheme,
        scale_dtype: torch.dtype,
        outputs: Sequence[Tensor] | None = None,
    ) -> list[Quantized]:
        if statistics is None:
            raise ValueError("SpQR needs the metric")
        factor = statistics.factor
        done: list[Quantized] = []
        for target in targets:
            v = target.to(self.dtype).masked_fill(factor.dead, 0)
            gain = outlier_gain(v, factor, scheme, scale_dtype).flatten()
            best = gain.topk(round(self.share * gain.numel())).indices
            outlier = torch.zeros_like(gain, dtype=torch.bool)
            outlier[best] = gain[best] > 0
            done.append(sweep_with_outliers(v, outlier.view_as(v), factor, scheme, scale_dtype))
        return done


def outlier_gain(v: Tensor, factor: Factor, scheme: Scheme, scale_dtype: torch.dtype) -> Tensor:
    """[m, n] u of each target."""
    (metric,) = in_order(factor.upper.diagonal().square()[None], factor, back=True)
    return torch.cat(
        [
            _group_gain(w, d, scheme, scale_dtype)
            for w, d in zip(v.split(scheme.group_size, 1), metric.split(scheme.group_size), strict=True)
        ],
        dim=1,
    )


def _group_gain(w: Tensor, metric: Tensor, scheme: Scheme, scale_dtype: torch.dtype) -> Tensor:
    """[m, g] u within one group of columns, [g] ``L_jj²``: only its two extremes affect the fit."""

    def weighted_error(fitted: Tensor) -> Tensor:
        s, z = (each[:, None] for each in group_scales(fitted, scheme, scale_dtype))
        return (w - (encode(w, s, z, scheme) - z) * s).square() * metric

    with_all = weighted_error(w)
    gain = with_all.clone()
    for extreme in (w.argmin(1, keepdim=True), w.argmax(1, keepdim=True)):
        excluded = torch.zeros_like(w, dtype=torch.bool).scatter(1, extreme, True)
        without = weighted_error(without_outliers(w, excluded)).masked_fill(excluded, 0)
        gain.scatter_(1, extreme, (with_all.sum(1) - without.sum(1))[:, None])
    return gain


def without_outliers(w: Tensor, outlier: Tensor) -> Tensor:
    """[m, g] the weights of a group that its scale is fitted to: outliers are replaced by the mean of the others."""
    others = (~outlier).sum(1, keepdim=True).clamp_min(1)
    return torch.where(outlier, w.masked_fill(outlier, 0).sum(1, keepdim=True) / others, w)


def sweep_with_outliers(
    v: Tensor, outlier: Tensor, factor: Factor, scheme: Scheme, scale_dtype: torch.dtype
) -> WithOutliers:
    """Codes of [m, n] targets and 16 bits for the outliers among them, column after column.

    Args:
        v: in the factor's dtype, 0 where an input is dead.
        outlier: [m, n] bool.

    Raises:
        ValueError: an outlier is beyond what 16 bits hold.
    """
    (m, n), upper, size = v.shape, factor.upper, scheme.group_size
    half = scale_dtype if scale_dtype.itemsize == 2 else torch.float16
    scales, zeros = (v.new_zeros(m, -(-n // size)) for _ in range(2))
    if factor.order is not None:
        for group, (w, excluded) in enumerate(zip(v.split(size, 1), outlier.split(size, 1), strict=True)):
            scales[:, group], zeros[:, group] = group_scales(without_outliers(w, excluded), scheme, scale_dtype)
    visit_order = range(n) if factor.order is None else factor.order.tolist()
    ordered_v, ordered_outlier = in_order(v, factor), in_order(outlier, factor)
    errors, codes, v_hat = (torch.zeros_like(ordered_v) for _ in range(3))
    for first in range(0, n, size):
        block = slice(first, min(first + size, n))
        feedback = errors[:, :first] @ upper[:first, block]  # Σ_{i<j} e_i L_ij
        within = upper[block, block]
        if factor.order is None:
            compensated = ordered_v[:, block] + solve_triangular(within, feedback, upper=True, left=False)
            fit = group_scales(without_outliers(compensated, ordered_outlier[:, block]), scheme, scale_dtype)
            scales[:, first // size], zeros[:, first // size] = fit
        for k, j in enumerate(range(block.start, block.stop)):
            s, z = scales[:, visit_order[j] // size], zeros[:, visit_order[j] // size]
            w = ordered_v[:, j] + feedback[:, k] / within[k, k]
            codes[:, j] = encode(w, s, z, scheme)
            v_hat[:, j] = torch.where(ordered_outlier[:, j], w.to(half).to(w.dtype), (codes[:, j] - z) * s)
            errors[:, j] = ordered_v[:, j] - v_hat[:, j]
            feedback[:, k + 1 :] += errors[:, j, None] * within[k, k + 1 :]
    error, v_hat, codes = (in_order(each, factor, back=True) for each in (errors, v_hat, codes))
    values = v_hat[outlier].to(half)
    if not bool(values.isfinite().all()):
        raise ValueError(f"an outlier is beyond the range of {str(half).removeprefix('torch.')}")
    return WithOutliers(
        codes=codes.to(torch.uint8),
        scales=scales.to(scale_dtype),
        zeros=zeros.to(torch.uint8),
        loss=damped_loss(error, factor),
        group_size=size,
        places=outlier.flatten().nonzero().flatten(),
        values=values,
    )


@dataclass(frozen=True)
class GatedRareBAL(RareBAL):
    """RareBAL, but a rare position that excites an outlier column counts as a common one.

    The orthogonality gate of paper 2605.27808 for its graft on SpQR: outliers serve such a position already, so the
    extra weight goes to the others. Position t excites column j where ``|x_tj| > 3 · mean |x_j|``. We have one sentence
    of it, so two choices are ours: outlier columns are the inputs of largest mean magnitude, and means are over the
    utterance's own positions, so that nothing depends on what else is in a batch.

    Attributes:
        columns: share of the inputs that are outlier columns; at least one is.
        excited: how many times its mean magnitude an input must have.
    """

    columns: float = 0.01
    excited: float = 3.0
    activations: bool = True

    def reassign(self, rows: LayerRows) -> tuple[Tensor, Tensor]:
        tail = rows.tail.clone()
        count = math.ceil(self.columns * rows.inputs.shape[1])
        for utterance in rows.utterance[rows.tail].unique():
            here = (rows.utterance == utterance) & (rows.weight > 0)
            magnitude = rows.inputs[here].float().abs()
            mean = magnitude.mean(0)
            outliers = mean.topk(count).indices
            tail[here] &= ~(magnitude[:, outliers] > self.excited * mean[outliers]).any(1)
        return tail, rows.weight
