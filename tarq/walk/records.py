"""The report's record of each Linear, and progress, in the order of the walk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from torch import nn

from tarq.method.algorithm import Solution
from tarq.method.moments import SUBSETS, Moments
from tarq.method.residuals import Layer
from tarq.report import LayerReport, Reporter
from tarq.walk.observations import Observations
from tarq.walk.plan import PlannedLayer, linears_of


class LayerRecords:
    """The records of a model's Linears.

    Args:
        plan: name of each Linear that is to be quantized to what is planned for it.
        observations: of the walk; say what could not be observed for a layer.
        reporter: receives the record of each quantized layer.

    Attributes:
        layers: one record per Linear, in order of quantization; those left in full precision are included.
        notes: Linear to what its record says of it beside all else.
    """

    def __init__(self, plan: Mapping[str, PlannedLayer], observations: Observations, reporter: Reporter) -> None:
        self.plan, self.observations, self.reporter = plan, observations, reporter
        self.layers: list[LayerReport] = []
        self.notes: dict[str, list[str]] = {}

    def start(self) -> None:
        """The walk begins, or goes on after blocks that are finished."""
        self.reporter.start(len(self.plan) - sum(not record.skipped for record in self.layers))

    def quantized(
        self, stage: str, layers: Sequence[Layer], solutions: Mapping[str, Solution], folds: Sequence[Moments] = ()
    ) -> None:
        """Record the Linears of one input.

        Args:
            stage: name of theirs.
            layers: the Linears.
            solutions: by name; a layer without one is not recorded here.
            folds: moments of their input; empty where no audio was read.
        """
        positions = {subset: sum(fold.positions[subset] for fold in folds) for subset in SUBSETS}
        mixed = self._mixed_bits(layers)
        for layer in layers:
            if layer.name not in solutions:
                continue
            planned, solution = self.plan[layer.name], solutions[layer.name]
            notes = [planned.note, *solution.notes, self.observations.attention.note(layer.name)]
            notes += [_small_scales(solution), *self.notes.get(layer.name, ()), mixed]
            record = LayerReport(
                name=layer.name,
                stage=stage,
                shape=tuple(layer.weight.shape),
                bits=planned.bits,
                group_size=planned.group_size or 0,
                positions=positions["common"] + positions["tail"],
                tail_positions=positions["tail"],
                notes=[text for text in notes if text],
                **asdict(solution.figures),
            )
            self.layers.append(record)
            self.reporter.layer(record)

    def skipped(self, stage: str, block_name: str, block: nn.Module) -> None:
        """Record the Linears a finished block still has: ignored by name, or never called on calibration audio."""
        for name, linear in linears_of(block_name, block):
            reason = "not called during calibration" if name in self.plan else "ignored by configuration"
            self.layers.append(LayerReport(name, stage, tuple(linear.weight.shape), skipped=reason))

    def _mixed_bits(self, layers: Sequence[Layer]) -> str:
        """A note on Linears of one input whose bits differ, or ""."""
        bits = {layer.name.rpartition(".")[2]: self.plan[layer.name].bits for layer in layers}
        if len(set(bits.values())) == 1:
            return ""
        each = ", ".join(f"{name} {width}" for name, width in bits.items())
        return f"Linears of one input differ in bits ({each}): a loader that fuses them, as vLLM does, cannot take them"


def _small_scales(solution: Solution) -> str:
    """A note on groups whose scale would underflow its dtype and was raised to the smallest one it holds, or ""."""
    scales, count = solution.quantized.scales, solution.quantized.coarse_groups
    dtype = str(scales.dtype).removeprefix("torch.")
    return f"{count} of {scales.numel()} scales are too small for {dtype}: set scale_dtype to bfloat16" if count else ""
