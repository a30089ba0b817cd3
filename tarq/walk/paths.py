"""The calibration set on both paths through the model: in full precision, and as far as it is quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tarq.models.types import Batch, Stage
from tarq.walk.caching import Kept
from tarq.walk.inputs import InputCapture, StageInputs


@dataclass
class PathPair:
    """One batch on both paths.

    Attributes:
        index: of the batch within the calibration set, of which other processes may hold other batches.
        utterances_before: how many utterances of the set come before it.
        batch: inputs and targets.
        full: its state on the full-precision path, which is walked only if a residual compares with it.
        quantized: its state on the path that is quantized so far.
        cached_inputs: first Linear of each group of the current block to its full-precision input.
        cached_outputs: what parts of the current block came to on the quantized path (:mod:`tarq.walk.caching`).
    """

    index: int
    utterances_before: int
    batch: Batch
    full: StageInputs | None
    quantized: StageInputs
    cached_inputs: dict[str, Tensor] = field(default_factory=dict)
    cached_outputs: dict[str | int, Kept] = field(default_factory=dict)


@dataclass(frozen=True)
class StageOutput:
    """What a stage hands to the next on one batch; None before the first stage, and on a path that is not walked."""

    full: Any = None
    quantized: Any = None


def stage_inputs(
    stage: Stage,
    share: Sequence[tuple[int, int, Batch]],
    previous: Sequence[StageOutput],
    paired: bool,
    device: torch.device,
) -> list[PathPair]:
    """Both paths at the input of a stage.

    Args:
        stage: the stage.
        share: this process's batches: index in the calibration set, number of utterances before it, batch.
        previous: output of the stage before, for each batch.
        paired: whether the full-precision path is walked.
        device: where blocks are moved to, one at a time, to be run.
    """
    capture = InputCapture(stage, device)
    pairs = []
    for (index, before, batch), output in zip(share, previous, strict=True):
        quantized = capture(batch, output.quantized)
        full = None
        if paired:  # up to the first block the paths are one
            full = replace(quantized) if output.full is output.quantized else capture(batch, output.full)
        pairs.append(PathPair(index, before, batch, full, quantized))
    return pairs


def stage_outputs(stage: Stage, pairs: list[PathPair]) -> list[StageOutput]:
    """The outputs of a stage from both paths at its last block's output.

    The list of pairs is emptied one by one, so that the stage's input and output are never both held.
    """
    outputs = []
    while pairs:
        pair = pairs.pop(0)
        full = None if pair.full is None else stage.finish(pair.full.hidden)
        outputs.append(StageOutput(full, stage.finish(pair.quantized.hidden)))
    return outputs
