"""A bounded beam in place of the sweep's single path, as K-CoreQ has it (arXiv 2602.05902).

The loss of a row is a sum over columns in the order of visit, each of which depends only on the codes so far:

    ‖(v − v̂) L‖² = Σ_j (e_j L_jj + Σ_{i<j} e_i L_ij)²

The sweep takes the code that makes the next term least. The beam keeps the K rows of codes with the least sums so far,
and tries every code behind each. **What it equals:** the sweep itself for K = 1 (the same scales), the best codes there
are once K reaches the number of rows of codes; in between it mostly does better than the sweep, and where it does not,
the sweep's codes stay. **Where it differs:** scales are those of the sweep under any scale rule and any order, theirs
are fixed first; and theirs follows the beam by coordinate descent, which here is the solver ``refined``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Factor, Quantized
from tarq.kernels.scheme import Scheme
from tarq.method.refine import RefinedSweep
from tarq.method.residuals import Statistics
from tarq.method.solvers import Sweep, in_order

#: Columns between two lazy updates of the feedback to later columns.
BLOCK = 64


@dataclass(frozen=True)
class BeamSweep(Sweep):
    """The sweep, then a beam of codes with its scales.

    Attributes:
        width: K, rows of codes kept.
    """

    width: int = 4

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
        masked = [v.to(self.dtype).masked_fill(factor.dead, 0) for v in targets]
        return [beam_search(v, q, factor, scheme, self.width) for v, q in zip(masked, swept, strict=True)]


@dataclass(frozen=True)
class RefinedBeam(RefinedSweep, BeamSweep):
    """The refinement of ``refined``, applied to the beam's codes."""


def beam_search(v: Tensor, q: Quantized, factor: Factor, scheme: Scheme, width: int) -> Quantized:
    """Codes of [m, n] targets by a beam under the scales of ``q``; a row keeps its codes where these are as good."""
    group = torch.arange(v.shape[1], device=v.device) // q.group_size
    scale = in_order(q.scales.to(v.dtype)[:, group], factor)
    zero = in_order(q.zeros.to(v.dtype)[:, group], factor)
    codes, loss = beam(in_order(v, factor), scale, zero, factor.upper, scheme.max_code, width)
    lower = loss < q.loss
    codes = in_order(codes, factor, back=True)
    return replace(q, codes=torch.where(lower[:, None], codes, q.codes), loss=torch.where(lower, loss, q.loss))


def beam(v: Tensor, scale: Tensor, zero: Tensor, upper: Tensor, max_code: int, width: int) -> tuple[Tensor, Tensor]:
    """The best rows of codes a beam finds, columns in the order of visit.

    Args:
        v: [m, n] targets.
        scale: [m, n], of each column.
        zero: [m, n] zero points, likewise.
        upper: [n, n] upper triangular L.
        max_code: codes run from 0 to it.
        width: K.

    Returns:
        uint8 [m, n] codes and float64 [m] ``‖(v − v̂) L‖²``.
    """
    m, n = v.shape
    every = torch.arange(max_code + 1, device=v.device)
    codes = torch.zeros(m, width, n, dtype=torch.uint8, device=v.device)
    terms = torch.zeros(m, width, n, dtype=v.dtype, device=v.device)  # Σ_{i<j} e_i L_ij
    sums = torch.full((m, width), torch.inf, dtype=torch.float64, device=v.device)
    sums[:, 0] = 0
    for first in range(0, n, BLOCK):
        columns = range(first, min(first + BLOCK, n))
        errors = torch.zeros(m, width, len(columns), dtype=v.dtype, device=v.device)
        feedback = terms[:, :, columns].clone()
        origin = torch.arange(width, device=v.device).expand(m, width)  # of each row of codes at the block's begin
        chosen = torch.zeros(m, width, len(columns), dtype=torch.uint8, device=v.device)
        for k, j in enumerate(columns):
            error = v[:, j, None] - (every - zero[:, j, None]) * scale[:, j, None]  # [m, codes]
            tried = sums[:, :, None] + (error[:, None] * upper[j, j] + feedback[:, :, k, None]).square()
            sums, best = tried.flatten(1).topk(width, dim=1, largest=False)
            parent, code = best // len(every), best % len(every)
            errors, feedback, chosen = (_gather_rows(t, parent) for t in (errors, feedback, chosen))
            origin = origin.gather(1, parent)
            chosen[:, :, k], errors[:, :, k] = code.to(torch.uint8), error.gather(1, code)
            feedback += errors[:, :, k, None] * upper[j, columns]
        codes, terms = _gather_rows(codes, origin), _gather_rows(terms, origin)
        codes[:, :, columns] = chosen
        terms[:, :, columns.stop :] += errors @ upper[columns, columns.stop :]
    return codes[:, 0], sums[:, 0]  # topk has the least first


def _gather_rows(rows: Tensor, parent: Tensor) -> Tensor:
    """[m, K, n] rows of codes, or what belongs to them, by [m, K] parents."""
    return rows.gather(1, parent[:, :, None].expand(-1, -1, rows.shape[2]))
