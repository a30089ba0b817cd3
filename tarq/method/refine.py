"""Refinement of the sweep's codes and scales under the same metric; it never raises the loss.

Given codes, the scale of a group is a least-squares problem; given scales, each code has one best value while the
others stay fixed. A few passes of both lower ``‖(v − v̂) L‖²`` further than one sweep can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tarq.kernels.group_quantize import Quantized, group_refine
from tarq.kernels.scheme import Scheme
from tarq.method.residuals import Statistics
from tarq.method.solvers import Sweep


@dataclass(frozen=True)
class RefinedSweep(Sweep):
    """The sweep, then passes of a group's scale given its codes and its codes given the scale.

    Attributes:
        rounds: passes over all groups.
    """

    rounds: int = 4

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
        hessian, factor = statistics.moments.hessian, statistics.factor
        return [
            group_refine(v, q, hessian, factor, scheme, passes=self.rounds) for v, q in zip(targets, swept, strict=True)
        ]
