"""Refinement of the sweep's codes and scales under the same metric; it never raises the loss.

Given the codes, the scales of a row solve a least-squares problem; given the scales, each code has one best value with
the others fixed. A few alternating rounds lower ``‖(v − v̂) L‖²`` further than one sweep can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Factor, Quantized
from tarq.kernels.scheme import Scheme
from tarq.method.residuals import Statistics
from tarq.method.solvers import Sweep, damped_loss

#: Columns per block: the gradient of the other columns is updated after each block.
BLOCK = 128
_TINY = 1e-30


@dataclass(frozen=True)
class RefinedSweep(Sweep):
    """The sweep, then alternating rounds: scales given codes, codes given scales.

    Attributes:
        rounds: number of rounds.
    """

    rounds: int = 3

    def quantize(
        self,
        targets: Sequence[Tensor],
        statistics: Statistics | None,
        scheme: Scheme,
        scale_dtype: torch.dtype,
        outputs: Sequence[Tensor] | None = None,
    ) -> list[Quantized]:
        swept = super().quantize(targets, statistics, scheme, scale_dtype, outputs)
        assert statistics is not None
        factor = statistics.factor
        hessian = damped(factor)
        live = [v.to(self.dtype).masked_fill(factor.dead, 0) for v in targets]
        return [refined(v, q, hessian, factor, scheme, self.rounds) for v, q in zip(live, swept, strict=True)]


def damped(factor: Factor) -> Tensor:
    """``H + δI`` [n, n] in natural order."""
    hessian = factor.upper @ factor.upper.mT
    if factor.order is None:
        return hessian
    back = torch.argsort(factor.order)
    return hessian[back][:, back]


def expanded(q: Quantized, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Levels (codes less zero points), scales and zero points, all [m, n], and the group [n] of each column."""
    group = torch.arange(q.codes.shape[1], device=q.codes.device) // q.group_size
    zero = q.zeros.to(dtype)[:, group]
    return q.codes.to(dtype) - zero, q.scales.to(dtype)[:, group], zero, group


def refined(v: Tensor, q: Quantized, hessian: Tensor, factor: Factor, scheme: Scheme, rounds: int) -> Quantized:
    """Codes and scales of [m, n] targets after some rounds; no row's loss exceeds that of ``q``."""
    for _ in range(rounds):
        q = _better(q, replace(q, scales=refit_scales(v, q, hessian)), v, factor)
        q = _better(q, replace(q, codes=descend_codes(v, q, hessian, scheme)), v, factor)
    return q


def refit_scales(v: Tensor, q: Quantized, hessian: Tensor) -> Tensor:
    """The scales [m, G] that minimise ``(v − v̂) H (v − v̂)ᵀ`` of each row, given its codes.

    With ``z_g`` the levels of group g, zero elsewhere, they solve ``A s = r``, ``A_gh = z_g H z_hᵀ`` and
    ``r_g = z_g H vᵀ``.
    The result has the stored dtype; a scale that would not be positive and finite there keeps its old value.
    """
    m, groups = q.scales.shape
    levels, _, _, group = expanded(q, v.dtype)

    def by_group(products: Tensor) -> Tensor:
        return torch.zeros(m, groups, dtype=v.dtype, device=v.device).index_add_(1, group, products)

    a = torch.empty(m, groups, groups, dtype=torch.float64, device=v.device)
    for g in range(groups):
        columns = slice(g * q.group_size, (g + 1) * q.group_size)
        a[:, g] = by_group((levels[:, columns] @ hessian[columns]) * levels).double()
    r = by_group((v @ hessian) * levels).double()
    # A group whose levels are all zero does not determine a scale: it keeps its own.
    diagonal = a.diagonal(dim1=1, dim2=2)
    empty = diagonal <= 0
    diagonal += torch.where(empty, 1.0, 1e-9 * diagonal.clamp_min(_TINY))
    solved, _ = torch.linalg.solve_ex(a, r[..., None])
    scales = solved[..., 0].to(q.scales.dtype)
    usable = ~empty & scales.isfinite() & (scales >= torch.finfo(scales.dtype).tiny)
    return torch.where(usable, scales, q.scales)


def descend_codes(v: Tensor, q: Quantized, hessian: Tensor, scheme: Scheme) -> Tensor:
    """Codes after one pass of coordinate descent, columns in natural order.

    With ``E = V − V̂``, the best level of column j with the others fixed is the integer nearest to
    ``level_j + (E H)_j / (s_j H_jj)`` within the lattice. E and E H are kept up to date, block by block.
    """
    n = v.shape[1]
    level, scale, zero, _ = expanded(q, v.dtype)
    gradient = (v - level * scale) @ hessian
    top = 2**scheme.bits - 1
    for first in range(0, n, BLOCK):
        columns = slice(first, min(first + BLOCK, n))
        within, moved = hessian[columns, columns], torch.zeros_like(level[:, columns])
        here = gradient[:, columns].clone()
        for j in range(moved.shape[1]):
            s, z, old = scale[:, first + j], zero[:, first + j], level[:, first + j]
            step = here[:, j] / (s * within[j, j]).clamp_min(_TINY)
            best = torch.minimum(torch.maximum(torch.round(old + step), -z), top - z)
            change = (best - old) * s
            here -= change[:, None] * within[j]
            moved[:, j] = change
            level[:, first + j] = best
        gradient -= moved @ hessian[columns]
    return (level + zero).to(torch.uint8)


def _better(old: Quantized, new: Quantized, v: Tensor, factor: Factor) -> Quantized:
    """For each row the candidate with the smaller loss, with scales as stored and products as in the kernels."""
    levels, scale, _, _ = expanded(new, v.dtype)
    loss = damped_loss(v - levels * scale, factor)
    lower = loss < old.loss
    return Quantized(
        torch.where(lower[:, None], new.codes, old.codes),
        torch.where(lower[:, None], new.scales, old.scales),
        old.zeros,
        torch.where(lower, loss, old.loss),
        old.group_size,
    )
