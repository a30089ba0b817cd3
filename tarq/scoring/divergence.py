"""Teacher-forced damage: KL divergence and change in negative log-likelihood, on rare and common targets.

No decoding is involved, hence none of its variance: a few hundred positions separate methods that would need
tens of thousands of words by WER.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """Sums over one kind of target position, per utterance; every array is [utterances].

    Attributes:
        kl: Σ KL(full precision ‖ quantized), in nats.
        delta_nll: Σ (NLL quantized − NLL full precision) of the target token, in nats.
        positions: number of positions.
    """

    kl: NDArray[np.float64]
    delta_nll: NDArray[np.float64]
    positions: NDArray[np.int64]


def divergence(reference: Tensor, logits: Tensor, targets: Tensor, rare: Tensor) -> dict[str, Divergence]:
    """Divergence of a model from full precision on one batch.

    Args:
        reference: [B, T, V] logits of the full-precision model.
        logits: [B, T, V] logits of the model.
        targets: [B, T] next tokens; −100 is not scored.
        rare: [B, T] bool, the target belongs to a rare word.

    Returns:
        Sums over ``rare`` and ``common`` positions, one entry an utterance of the batch.
    """
    p, q = reference.float().log_softmax(-1), logits.to(reference.device).float().log_softmax(-1)
    targets, rare = targets.to(p.device), rare.to(p.device)
    kl = (p.exp() * (p - q)).sum(-1).double()
    index = targets.clamp_min(0)[..., None]
    delta = (p.gather(-1, index) - q.gather(-1, index))[..., 0].double()
    scored = targets != -100

    def sums(mask: Tensor) -> Divergence:
        return Divergence(
            torch.where(mask, kl, 0).sum(-1).cpu().numpy(),
            torch.where(mask, delta, 0).sum(-1).cpu().numpy(),
            mask.sum(-1).cpu().numpy(),
        )

    return {"rare": sums(scored & rare), "common": sums(scored & ~rare)}


def joined(parts: list[Divergence], order: list[int]) -> Divergence:
    """Concatenate batches and reorder them: entry i of the result is entry ``order[i]``."""
    return Divergence(
        *(np.concatenate([getattr(p, name) for p in parts])[order] for name in ("kl", "delta_nll", "positions"))
    )
