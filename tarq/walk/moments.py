"""The moments of the input of a group of Linears, accumulated over the calibration set."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tarq import distributed
from tarq.config import TarqConfig
from tarq.errors import CalibrationError
from tarq.method.arms import Arms
from tarq.method.bands import merge_bands
from tarq.method.metrics import LayerRows
from tarq.method.moments import Moments
from tarq.method.residuals import Layer
from tarq.models.types import Stage
from tarq.walk.activations import BlockActivations
from tarq.walk.counted import CountedBatches
from tarq.walk.inputs import Group
from tarq.walk.observations import Observations
from tarq.walk.paths import PathPair
from tarq.walk.rows import RowCache


class GroupMoments:
    """Moments of one group's input after another.

    Those of a tensor that several blocks of a stage read (the encoder's output, in a decoder) are accumulated once.

    Args:
        arms: metric, residual and solver.
        config: weight of padding, bands of the tail.
        observations: of the walk.
        counted: the batches that are accumulated.
        device: where the sums live.
    """

    def __init__(
        self,
        arms: Arms,
        config: TarqConfig,
        observations: Observations,
        counted: CountedBatches,
        device: torch.device,
    ) -> None:
        self.arms, self.observations, self.counted, self.device = arms, observations, counted, device
        self.rows = RowCache(arms.metric, config.padding_weight, arms.residual.folds, device)
        self.bands = config.tail_bands if arms.bands else 1
        self._shared: dict[tuple[int, str], list[Moments]] = {}

    def start_stage(self) -> None:
        """Drop the moments of tensors that blocks of another stage read."""
        self._shared.clear()

    def of(
        self,
        stage: Stage,
        activations: BlockActivations,
        group: Group,
        layers: Sequence[Layer],
        waiting: Sequence[str],
    ) -> list[Moments]:
        """The moments of a group's input, one per fold.

        Args:
            stage: the block's.
            activations: of the block.
            group: the Linears that read the input.
            layers: those of them that are quantized.
            waiting: all Linears of the block that are not quantized yet, this group's included.

        Raises:
            CalibrationError: activations are NaN or infinite, or no position of a fold has weight.
        """
        reader = group.first_reader
        if reader is not None and reader in self._shared:
            return self._shared[reader]
        positions = (stage.reads if group.place else None) or stage.name
        pairs = [pair for pair in activations.pairs if pair.index in self.counted.of(positions)]
        parts = self._accumulated(stage, activations, group, layers, waiting, pairs, positions)
        self._check_finite(layers, parts, pairs)
        distributed.reduce(count for part in parts for count in part.counts.values())
        self._check_positions(layers, parts)
        # A single Linear is solved by one process alone; moments that other blocks read again are needed by all.
        alone = distributed.rank_of(0) if len(layers) == 1 and not group.place else None
        distributed.reduce((total for part in parts for total in part.sums()), to=alone)
        if self.bands > 1:
            parts = merge_bands(parts, self.arms.residual.folds, self.arms.residual.weighs_cross)
        if reader is not None and not self.arms.depends_on_layer:
            self._shared[reader] = parts
        return parts

    def _accumulated(
        self,
        stage: Stage,
        activations: BlockActivations,
        group: Group,
        layers: Sequence[Layer],
        waiting: Sequence[str],
        pairs: Sequence[PathPair],
        positions: str,
    ) -> list[Moments]:
        """Moments of this process's batches that count: of each fold, for each band of the tail, in one pass.

        Each position goes to one fold and band, so several cost no more.
        """
        names, folds = [layer.name for layer in layers], self.arms.residual.folds
        parts = self.arms.moments(layers[0].weight.shape[1], self.device, self.bands)
        for pair in pairs:
            x, x_full = activations.read(pair, group, waiting)
            x, x_full = x.flatten(0, -2), None if x_full is None else x_full.flatten(0, -2)
            rows = self.rows.of(positions, pair.index, pair.batch, pair.utterances_before)
            tail, weight = rows.tail, rows.weight
            if len(x) != len(tail):
                raise CalibrationError(f"{_label(layers)}: its input has {len(x)} rows for {len(tail)} positions")
            if self.arms.depends_on_layer:
                block = stage.blocks[activations.index][0]
                norms = self.observations.gradients.of(names, pair.index, self.device)
                attention = self.observations.attention.of(block, group, pair.index, x)
                tail, weight = self.arms.metric.reassign(
                    LayerRows(names, tail, weight, rows.utterance, x, *norms, attention)
                )
            part_of = rows.fold + (rows.band * folds if self.bands > 1 else 0)
            for i, moments in enumerate(parts):
                moments.update(x, x_full, tail, weight * (part_of == i))
        return parts

    def _check_finite(self, layers: Sequence[Layer], parts: Sequence[Moments], pairs: Sequence[PathPair]) -> None:
        for bad in sorted({update for part in parts for update in part.bad_updates()}):
            utterances = ", ".join(pairs[bad].batch.ids)
            raise CalibrationError(
                f"{_label(layers)}: NaN or infinite activations on utterances {utterances}; "
                "check the audio and the model's dtype (float16 overflows: load it in float32 or bfloat16)"
            )

    def _check_positions(self, layers: Sequence[Layer], parts: Sequence[Moments]) -> None:
        """Check that every fold has positions with weight."""
        folds = self.arms.residual.folds
        empty = [not any(sum(part.positions.values()) for part in parts[fold::folds]) for fold in range(folds)]
        if all(empty):
            raise CalibrationError(
                f"{_label(layers)}: the metric {type(self.arms.metric).__name__} gives weight 0 to every position; "
                "give some a positive one, or keep the layer in full precision with ignore"
            )
        if any(empty):
            raise CalibrationError(
                f"{_label(layers)}: no position has weight in {sum(empty)} of the {folds} folds of utterances that the "
                f"residual {type(self.arms.residual).__name__} compares; add usable calibration speech, or take "
                "residual='least-squares'"
            )


def _label(layers: Sequence[Layer]) -> str:
    return "|".join(layer.name for layer in layers)
