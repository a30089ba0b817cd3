"""What a walk is taken for: to quantize a model in place, or for the moments of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tarq.checkpoint.unfinished import UnfinishedRun
from tarq.config import TarqConfig
from tarq.method.algorithm import Solution
from tarq.method.arms import Arms
from tarq.method.moments import Moments
from tarq.method.residuals import Layer
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.report import LayerReport, Reporter
from tarq.walk.folding import fold_input_scales
from tarq.walk.plan import PlannedLayer
from tarq.walk.walk import Walk


def quantize_model(
    recognizer: Recognizer,
    batches: Sequence[Batch],
    config: TarqConfig,
    reporter: Reporter,
    arms: Arms | None = None,
    device: torch.device | None = None,
    notes: Mapping[str, str] | None = None,
    run: UnfinishedRun | None = None,
) -> list[LayerReport]:
    """Quantize every Linear of the model's blocks in place and swap it for a :class:`QuantLinear`.

    Args:
        recognizer: the model and how to feed it.
        batches: calibration batches; unused (may be empty) when the arms read no audio.
        config: what to do; ``scale_dtype`` must be resolved.
        reporter: receives each finished layer.
        arms: used instead of those the configuration names.
        device: where blocks are moved to, one at a time, to be quantized; the model's by default.
        notes: name of a Linear to what its record is to say of it.
        run: keeps what is finished, and has what an earlier run has finished.

    Returns:
        One record per Linear, in order of quantization; skipped layers are included with the reason.

    Raises:
        CalibrationError: activations are NaN or infinite, no group size divides a layer, or a metric cannot be
            factorised; names the layer.
        ModelError: a name to ignore matches no layer, or the model does something that the walk cannot follow.
    """
    walk = Walk(recognizer, batches, config, reporter, arms, device, run=run)
    walk.records.notes = {name: [note] for name, note in (notes or {}).items()}
    if walk.arms.input_scales is not None:
        scaled = fold_input_scales(recognizer, batches, config, reporter, walk.device, walk.arms.input_scales, run)
        for name, note in scaled.items():
            walk.records.notes.setdefault(name, []).append(note)
    for _ in walk.blocks():
        pass
    return walk.records.layers


def gather_moments(
    recognizer: Recognizer, batches: Sequence[Batch], config: TarqConfig, arms: Arms | None = None
) -> dict[str, list[Moments]]:
    """The moments of every input of the full-precision model's Linears; the model is not changed.

    Returns:
        Names of the Linears that share the input, joined by ``|``, to its moments, fold by fold.
    """
    found: dict[str, list[Moments]] = {}

    def keep(layers: Sequence[Layer], folds: Sequence[Moments], planned: PlannedLayer) -> dict[str, Solution]:
        found["|".join(layer.name for layer in layers)] = list(folds)
        return {}

    for _ in Walk(recognizer, batches, config, Reporter(), arms, solve=keep).blocks():
        pass
    return found
