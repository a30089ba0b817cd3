"""The rows of a batch's hidden states: tail, weight and fold of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from tarq.method.metrics import Metric
from tarq.models.types import Batch, Positions


@dataclass(frozen=True)
class Rows:
    """The rows of one batch's hidden states, batch dimension and all flattened.

    Attributes:
        tail: [R] bool, True in the tail.
        weight: [R] float.
        utterance: [R] int, which utterance of the batch each belongs to.
        fold: [R] int, which fold of the calibration set.
        band: [R] int, which band of the tail; 0 outside it.
    """

    tail: Tensor
    weight: Tensor
    utterance: Tensor
    fold: Tensor
    band: Tensor


class RowCache:
    """Rows of each batch and kind of positions, computed once and shared by all layers that read such rows.

    Args:
        metric: assigns tail and weight.
        padding_weight: of rows beyond the end of the audio.
        folds: how many folds the calibration set is split into: utterances are assigned round-robin.
        device: of the rows.
    """

    def __init__(self, metric: Metric, padding_weight: float, folds: int, device: torch.device) -> None:
        self.metric, self.padding_weight, self.folds, self.device = metric, padding_weight, folds, device
        self._rows: dict[tuple[str, int], Rows] = {}

    def of(self, positions: str, index: int, batch: Batch, utterances_before: int) -> Rows:
        """The rows of a batch.

        Args:
            positions: key of :attr:`Batch.positions`.
            index: of the batch within the calibration set.
            batch: itself.
            utterances_before: how many utterances of the set come before it.
        """
        key = positions, index
        if key not in self._rows:
            rows = assign(self.metric, batch.positions[positions], batch.ids, positions, self.padding_weight)
            rows = replace(rows, fold=(utterances_before + rows.utterance).remainder(self.folds))
            self._rows[key] = Rows(*(getattr(rows, f.name).to(self.device) for f in fields(rows)))
        return self._rows[key]


def assign(metric: Metric, positions: Positions, ids: Sequence[str], stage: str, padding_weight: float) -> Rows:
    """Side, weight and utterance of each row of a batch; all in fold 0."""
    tails, weights = [], []
    for utterance, tail, exists, padding in zip(ids, positions.tail, positions.exists, positions.padding, strict=True):
        valid = exists & ~padding
        in_tail, weight = metric.assign(tail & valid, valid, f"{stage}/{utterance}")
        weight = torch.ones(len(tail)) if weight is None else weight
        tails.append(in_tail)
        weights.append(weight * (valid + padding_weight * (exists & padding)))
    utterance_of = torch.arange(len(ids)).repeat_interleave(positions.exists.shape[1])
    tail, none = torch.cat(tails), torch.zeros_like(utterance_of)
    band = none if positions.band is None else positions.band.flatten().where(tail, none)
    rows = Rows(tail, torch.cat(weights), utterance_of, none, band)
    if not positions.packed:
        return rows
    exists = positions.exists.flatten()
    return Rows(*(getattr(rows, f.name)[exists] for f in fields(rows)))
