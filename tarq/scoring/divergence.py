"""Teacher-forced damage: KL divergence and change in negative log-likelihood, on rare and common targets and by band
of frequency.

No decoding is involved, hence none of its variance: a few hundred positions separate methods that would need
tens of thousands of words by WER.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tarq.words.bands import band_masks


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


def kinds_of_targets(
    targets: Tensor, rare: Tensor, zipf: Tensor | None = None, protected: Tensor | None = None
) -> dict[str, Tensor]:
    """What scored targets are: rare or common, protected, and in which band of frequency.

    Args:
        targets: [B, T] next tokens; −100 is not scored.
        rare: [B, T] bool, the target belongs to a rare word.
        zipf: [B, T] Zipf score of its word, NaN where it belongs to none; None for no bands.
        protected: [B, T] bool, the target belongs to a protected word; None where no list of them is given.

    Returns:
        ``rare``, ``common``, ``protected`` and the names of the parts (:data:`tarq.words.bands.NAMES`) to bool [B, T].
    """
    scored = targets != -100
    kinds = {"rare": scored & rare, "common": scored & ~rare}
    if protected is not None:
        kinds["protected"] = scored & protected
    bands = {} if zipf is None else band_masks(zipf)
    return kinds | {band: scored & chosen for band, chosen in bands.items()}


def divergence(
    reference: Tensor,
    logits: Tensor,
    targets: Tensor,
    rare: Tensor,
    zipf: Tensor | None = None,
    protected: Tensor | None = None,
) -> dict[str, Divergence]:
    """Divergence of a model from full precision on one batch.

    Args:
        reference: [B, T, V] logits of the full-precision model.
        logits: [B, T, V] logits of the model.
        targets, rare, zipf, protected: what is scored (:func:`kinds_of_targets`).

    Returns:
        Sums over the positions of each kind, one entry an utterance of the batch.
    """
    p, q = reference.float().log_softmax(-1), logits.to(reference.device).float().log_softmax(-1)
    kinds = kinds_of_targets(targets, rare, zipf, protected)
    targets = targets.to(p.device)
    kl = (p.exp() * (p - q)).sum(-1).double()
    index = targets.clamp_min(0)[..., None]
    delta = (p.gather(-1, index) - q.gather(-1, index))[..., 0].double()

    def sums(mask: Tensor) -> Divergence:
        mask = mask.to(p.device)
        return Divergence(
            torch.where(mask, kl, 0).sum(-1).cpu().numpy(),
            torch.where(mask, delta, 0).sum(-1).cpu().numpy(),
            mask.sum(-1).cpu().numpy(),
        )

    return {kind: sums(mask) for kind, mask in kinds.items()}


def joined(parts: list[Divergence], order: list[int]) -> Divergence:
    """Concatenate batches and reorder them: entry i of the result is entry ``order[i]``."""
    return Divergence(
        *(np.concatenate([getattr(p, name) for p in parts])[order] for name in ("kl", "delta_nll", "positions"))
    )
