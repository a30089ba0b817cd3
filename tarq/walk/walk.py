"""The walk: stage → block → group of Linears that share an input: moments → solve → swap.

Blocks are quantized in execution order, so a Linear's input comes from the network with everything before it quantized,
paired with its input in full precision. At any time the walk holds the hidden states of the calibration set on both
paths, the moments of one input (and those of the encoder's output, which every decoder block reads), and the caches of
:mod:`tarq.walk.activations` for one block. Blocks and their activations may be moved to another device one at a time;
all else stays where it is.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from tarq import distributed
from tarq.checkpoint.unfinished import UnfinishedRun
from tarq.config import TarqConfig
from tarq.method.arms import Arms
from tarq.method.residuals import Layer
from tarq.models.base import Recognizer
from tarq.models.types import Batch, Stage
from tarq.report import Reporter
from tarq.walk.activations import BlockActivations, MemoryBudget
from tarq.walk.counted import CountedBatches
from tarq.walk.finished import FinishedBlocks
from tarq.walk.inputs import groups_in_stage, linear_of, offloaded
from tarq.walk.moments import GroupMoments
from tarq.walk.observations import Observations
from tarq.walk.paths import PathPair, StageOutput, stage_inputs, stage_outputs
from tarq.walk.plan import check_fits, linears_of, plan
from tarq.walk.records import LayerRecords
from tarq.walk.solving import GroupSolver, Solve


@dataclass(frozen=True)
class WalkedBlock:
    """A block that the walk has just finished; valid until the walk continues.

    Attributes:
        stage: its stage.
        name: in the model.
        pairs: this process's batches on both paths, at the block's output.
    """

    stage: str
    name: str
    pairs: Sequence[PathPair]


class Walk:
    """One walk over a model; see :func:`tarq.walk.run.quantize_model`.

    Args:
        solve: used instead of Algorithm 1.
        run: keeps finished blocks, and has those of an earlier run that goes on.

    Attributes:
        arms: metric, residual and solver.
        device: where blocks are quantized.
        plan: name of each Linear that is to be quantized to what is planned for it.
        observations: of the full-precision model, once the walk has begun.
        records: of the Linears so far.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        batches: Sequence[Batch],
        config: TarqConfig,
        reporter: Reporter,
        arms: Arms | None = None,
        device: torch.device | None = None,
        solve: Solve | None = None,
        run: UnfinishedRun | None = None,
    ) -> None:
        self.recognizer, self.batches, self.config, self.reporter = recognizer, batches, config, reporter
        self.arms = arms or Arms.of(config.to_dict())
        self.device = torch.empty(0, device=device or recognizer.device).device  # "cuda" becomes "cuda:0"
        planned = plan(recognizer, config)
        check_fits(planned)
        self.plan = {layer.name: layer for layer in planned if layer.group_size is not None}
        before = [0, *accumulate(len(batch.ids) for batch in batches)]
        self.observations = Observations()
        self.counted = CountedBatches(batches, config.max_positions, self.arms.residual.folds, config.seed)
        counted = [(i, before[i], batch) for i, batch in enumerate(batches) if self.counted.anywhere(i)]
        self.share = distributed.shard(counted)
        self.moments = GroupMoments(self.arms, config, self.observations, self.counted, self.device)
        self.solver = GroupSolver(recognizer, config, self.plan, self.arms, self.observations, self.device)
        self.solve = solve or self.solver.solve
        self.records = LayerRecords(self.plan, self.observations, reporter)
        self.finished = FinishedBlocks(run or UnfinishedRun(), self.solver, self.records)

    @torch.no_grad()
    def blocks(self) -> Iterator[WalkedBlock]:
        """Quantize block after block; without audio nothing is yielded."""
        self.finished.start()
        stages = self.recognizer.stages()
        if not self.arms.solves_by_audio:
            for stage in stages:
                for name, block in stage.blocks:
                    with offloaded(block, self.device):
                        self._quantize_without_audio(stage, name, block)
            return
        share = [(index, batch) for index, _, batch in self.share]
        self.observations.observe(
            self.recognizer, self.batches, share, list(self.plan), self.arms, self.device, self.reporter
        )
        outputs = [StageOutput()] * len(self.share)
        for stage in stages:
            outputs = yield from self._walk_stage(stage, outputs)

    def _walk_stage(
        self, stage: Stage, previous: Sequence[StageOutput]
    ) -> Generator[WalkedBlock, None, list[StageOutput]]:
        """Quantize a stage's blocks; returns its output for the next stage."""
        pairs = stage_inputs(stage, self.share, previous, self.arms.paired, self.device)
        self.moments.start_stage()
        for index, (name, block) in enumerate(stage.blocks):
            with offloaded(block, self.device):
                layers = self.finished.take(name, block)
                if layers is None:
                    self._quantize_block(stage, index, pairs)
                    self.finished.keep(name, block)
                else:
                    self._go_through(block, index, pairs, layers)
            yield WalkedBlock(stage.name, name, pairs)
        return stage_outputs(stage, pairs)

    def _quantize_block(self, stage: Stage, index: int, pairs: Sequence[PathPair]) -> None:
        """Quantize a block group by group, and take both paths through it."""
        name, block = stage.blocks[index]
        # The first process has a batch even where there are fewer than processes.
        groups = distributed.broadcast(lambda: groups_in_stage(block, index, pairs[0].quantized, self.device))
        own = [g.names[0] for g in groups if not g.place and any(f"{name}.{n}" in self.plan for n in g.names)]
        budget = MemoryBudget(self.config.activation_memory * 1e9)
        activations = BlockActivations(block, index, pairs, own, budget, self.device, self.counted.of(stage.name))
        for i, group in enumerate(groups):
            within = {f"{name}.{n}": n for n in group.names if f"{name}.{n}" in self.plan}
            layers = [self._layer(full, linear_of(block, n)) for full, n in within.items()]
            if not layers:
                continue
            waiting = [n for later in groups[i:] for n in later.names]
            # Moments.
            moments = self.moments.of(stage, activations, group, layers, waiting)
            # Solve: Algorithm 1, in tarq.method.algorithm.
            solutions = self.solve(layers, moments, self.plan[layers[0].name])
            # Swap.
            for layer in layers:
                if layer.name in solutions:
                    activations.replace(within[layer.name], self.solver.packed(layer, solutions[layer.name]))
            self.records.quantized(stage.name, layers, solutions, moments)
        self.records.skipped(stage.name, name, block)
        activations.advance()

    def _go_through(
        self, block: nn.Module, index: int, pairs: Sequence[PathPair], layers: Mapping[str, nn.Module]
    ) -> None:
        """Take both paths through a block that an earlier run has finished."""
        activations = BlockActivations(block, index, pairs, [], MemoryBudget(0), self.device)
        for name, layer in layers.items():
            activations.replace(name, layer)
        activations.advance()

    def _quantize_without_audio(self, stage: Stage, block_name: str, block: nn.Module) -> None:
        """Quantize a block's weights as they are."""
        layers = self.finished.take(block_name, block)
        if layers is not None:
            for name, packed in layers.items():
                block.set_submodule(name, packed)
            return
        for name, linear in linears_of(block_name, block):
            if name in self.plan:
                layer = self._layer(name, linear)
                solution = self.solver.solve_without_audio(layer)
                block.set_submodule(name.removeprefix(f"{block_name}."), self.solver.packed(layer, solution))
                self.records.quantized(stage.name, [layer], {name: solution})
        self.records.skipped(stage.name, block_name, block)
        self.finished.keep(block_name, block)

    def _layer(self, name: str, linear: nn.Linear) -> Layer:
        return Layer(name, linear.weight, linear.bias, name.endswith(self.recognizer.shift_free))
