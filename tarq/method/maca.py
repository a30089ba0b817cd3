"""Each utterance as one sample, after MaCa (arXiv 2602.07465, ICASSP 2026).

Summed over positions, a long utterance counts more than a short one, and in the encoder a slow speaker more than a
fast one. Here every utterance has the same mass: each of its T positions weighs ``1 / T``, so

    H = Σ_u (1 / T_u) Σ_{t ∈ u} x_t x_tᵀ

**What it equals.** The plain metric where all utterances are of one length; else :class:`PositionWeights` of ``1 / T``.

**Where it differs.** It is the second half of MaCa, "each sequence as an independent sample". The first, prefixes of
several lengths cut from long texts, has no counterpart here: utterances come in their own lengths. The rows beyond the
end of the audio do not count in T and weigh their share of ``1 / T``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tarq.method.metrics import Plain


@dataclass(frozen=True)
class PerUtterance(Plain):
    """``1 / T`` for each of an utterance's T positions."""

    def assign(self, tail: Tensor, exists: Tensor, key: str) -> tuple[Tensor, Tensor | None]:
        return torch.zeros_like(tail), torch.full(tail.shape, 1.0 / max(int(exists.sum()), 1))
