"""Which batches a layer's moments are accumulated over: enough positions for an encoder, all of a decoder's.

An utterance has hundreds of encoder positions and a few dozen decoder ones, so that speech enough for a decoder is far
more than an encoder needs. Batches that do not count pass through the blocks all the same, for the stages behind.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

from tarq.models.types import Batch


class CountedBatches:
    """The batches whose positions count, for each kind of positions.

    Args:
        batches: the whole calibration set.
        most: positions to count at most; None for all. Where it cuts, batches are drawn at random until the next would
            exceed it, but at least one, and an utterance of every fold.
        folds: how many folds the calibration set is split into: utterances are assigned round-robin.
        seed: of the draw.
    """

    def __init__(self, batches: Sequence[Batch], most: int | None, folds: int = 1, seed: int = 0) -> None:
        self.batches, self.most, self.folds, self.seed = batches, most, folds, seed
        self._counted: dict[str, frozenset[int]] = {}

    def of(self, positions: str) -> frozenset[int]:
        """Indices of the batches that count.

        Args:
            positions: key of :attr:`Batch.positions`.
        """
        if positions not in self._counted:
            self._counted[positions] = frozenset(self._draw(positions))
        return self._counted[positions]

    def anywhere(self, index: int) -> bool:
        """Whether a batch counts for any kind of positions."""
        return any(index in self.of(positions) for positions in self.batches[index].positions)

    def rows(self, positions: str) -> dict[int, int]:
        """Index of each batch to its number of positions."""
        return {i: int(batch.positions[positions].exists.sum()) for i, batch in enumerate(self.batches)}

    def summary(self) -> dict[str, int]:
        """Positions that count, for each kind of which not all do."""
        found = {}
        for kind in self.batches[0].positions if self.batches else ():
            rows, counted = self.rows(kind), self.of(kind)
            if len(counted) < len(rows):
                found[kind] = sum(rows[i] for i in counted)
        return found

    def _draw(self, positions: str) -> list[int]:
        rows = self.rows(positions)
        if self.most is None or sum(rows.values()) <= self.most:
            return list(rows)
        before = [0, *accumulate(len(batch.ids) for batch in self.batches)]
        order = list(rows)
        random.Random(self.seed).shuffle(order)
        drawn: list[int] = []
        total, missing = 0, set(range(self.folds))
        for i in order:
            folds = {utterance % self.folds for utterance in range(before[i], before[i + 1])}
            if total + rows[i] > self.most and not missing & folds:
                if missing:
                    continue
                break
            drawn.append(i)
            total, missing = total + rows[i], missing - folds
        return drawn
