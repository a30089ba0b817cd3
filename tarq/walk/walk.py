"""The walk: stage → block → group of Linears that share an input: moments → solve → swap.

Blocks are quantized in execution order, so a Linear's input comes from the network with everything before it quantized,
paired with its input in full precision. At any time the walk holds the hidden states of the calibration set on both
paths, the moments of one input (and those of the encoder's output, which every decoder block reads), and the caches of
:mod:`tarq.walk.activations` for one block. Blocks and their activations may be moved to another device one at a time;
all else stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from tarq import distributed
from tarq.config import TarqConfig
from tarq.errors import CalibrationError, ModelError
from tarq.kernels.group_quantize.reference import check_scales
from tarq.kernels.scheme import Scheme
from tarq.linear import QuantLinear, packed_layer
from tarq.method.algorithm import Solution, tail_aware_quantize
from tarq.method.arms import Arms
from tarq.method.bands import merged
from tarq.method.figures import Figures
from tarq.method.metrics import LayerRows
from tarq.method.moments import SIDES, Moments
from tarq.method.residuals import Layer
from tarq.method.solvers import RoundToNearest
from tarq.models.base import Recognizer
from tarq.models.types import Batch, Stage
from tarq.report import LayerReport, Reporter
from tarq.timing import timed
from tarq.walk.activations import BlockActivations, MemoryBudget, PathPair
from tarq.walk.attention import AttentionGiven, attention_given
from tarq.walk.gradients import OutputGradients, output_gradients, rare_share
from tarq.walk.inputs import Group, InputCapture, groups_of, linear_of, offloaded
from tarq.walk.plan import PlannedLayer, check_fits, linears_of, plan
from tarq.walk.rows import RowCache

#: Computes the codes of a group's Linears from their moments; no entry for those that stay in full precision.
Solve = Callable[[Sequence[Layer], Sequence[Moments], PlannedLayer], Mapping[str, Solution]]


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

    Attributes:
        records: of the Linears so far.
        notes: Linear to what its record says of it beside all else.
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
    ) -> None:
        self.recognizer, self.config, self.reporter = recognizer, config, reporter
        self.arms = arms or Arms.of(config.to_dict())
        self.device = torch.empty(0, device=device or recognizer.device).device  # "cuda" becomes "cuda:0"
        self.solve = solve or self._solve
        before = [0, *accumulate(len(batch.ids) for batch in batches)]
        self.batches = batches
        self.share = distributed.shard([(i, before[i], batch) for i, batch in enumerate(batches)])
        self.rows = RowCache(self.arms.metric, config.padding_weight, self.arms.residual.folds, self.device)
        self.bands = config.tail_bands if self.arms.bands else 1
        self.gradients, self.attention = OutputGradients(), AttentionGiven()
        self.plan: dict[str, PlannedLayer] = {}
        self.records: list[LayerReport] = []
        self.notes: dict[str, str] = {}

    @torch.no_grad()
    def blocks(self) -> Iterator[WalkedBlock]:
        """Quantize block after block; without audio nothing is yielded."""
        planned = plan(self.recognizer, self.config)
        check_fits(planned)
        self.plan = {p.name: p for p in planned if p.group_size is not None}
        self.reporter.start(len(self.plan))
        stages = self.recognizer.stages()
        if not self.arms.solves_by_audio:
            for stage in stages:
                for name, block in stage.blocks:
                    self._round_block(stage, name, block)
            return
        if self.arms.gradients or self.arms.solver.output_moments:
            self._run_backward()
        if self.arms.attention:
            self._check_on_device("attention")
            self.attention = attention_given(self.recognizer, [(i, batch) for i, _, batch in self.share])
        handed: list[tuple[Any, Any]] = [(None, None)] * len(self.share)
        for stage in stages:
            handed = yield from self._walk_stage(stage, handed)

    def _walk_stage(
        self, stage: Stage, handed: list[tuple[Any, Any]]
    ) -> Generator[WalkedBlock, None, list[tuple[Any, Any]]]:
        """Quantize a stage's blocks; returns its output for the next stage, per batch and path."""
        capture = InputCapture(stage, self.device)
        pairs = [
            PathPair(
                index,
                before,
                batch,
                capture(batch, full) if self.arms.paired else None,
                capture(batch, quantized),
            )
            for (index, before, batch), (full, quantized) in zip(self.share, handed, strict=True)
        ]
        shared: dict[tuple[int, str], list[Moments]] = {}  # moments of tensors that several blocks of the stage read
        for index, (name, block) in enumerate(stage.blocks):
            with offloaded(block, self.device):
                self._quantize_block(stage, index, pairs, shared)
            yield WalkedBlock(stage.name, name, pairs)
        finished = []
        while pairs:  # one by one, so that the stage's input and output are never both held
            pair = pairs.pop(0)
            full = None if pair.full is None else stage.finish(pair.full.hidden)
            finished.append((full, stage.finish(pair.quantized.hidden)))
        return finished

    def _quantize_block(
        self, stage: Stage, index: int, pairs: list[PathPair], shared: dict[tuple[int, str], list[Moments]]
    ) -> None:
        """Quantize a block group by group, and take both paths through it."""
        name, block = stage.blocks[index]
        # The first process has a batch even where there are fewer than processes.
        groups = distributed.broadcast(lambda: self._groups(block, index, pairs[0]))
        own = [g.names[0] for g in groups if not g.place and any(f"{name}.{n}" in self.plan for n in g.names)]
        budget = MemoryBudget(self.config.activation_memory * 1e9)
        activations = BlockActivations(block, index, pairs, own, budget, self.device)
        for i, group in enumerate(groups):
            chosen = [n for n in group.names if f"{name}.{n}" in self.plan]
            if not chosen:
                continue
            layers = [self._layer(f"{name}.{n}", linear_of(block, n)) for n in chosen]
            parts = shared.get(group.first_reader) if group.first_reader else None
            if parts is None:
                waiting = [n for later in groups[i:] for n in later.names]
                parts = self._moments(stage, activations, group, layers, waiting)
                if group.first_reader and not self.arms.depends_on_layer:
                    shared[group.first_reader] = parts
            positions = {side: sum(part.positions[side] for part in parts) for side in SIDES}
            solved = self.solve(layers, parts, self.plan[layers[0].name])
            unlike = self._unlike_widths(layers)
            for n, layer in zip(chosen, layers, strict=True):
                if layer.name in solved:
                    linear, solution = linear_of(block, n), solved[layer.name]
                    activations.replace(n, self._packed(layer.name, linear, solution))
                    self._record(stage, layer.name, linear, solution, positions, unlike)
        self._skip(stage, name, block)
        activations.advance()

    @timed("forward, quantized")
    def _groups(self, block: nn.Module, index: int, pair: PathPair) -> list[Group]:
        """The block's groups of Linears, with the first reader of tensors that several blocks receive."""
        groups = groups_of(block, pair.quantized.block(index).on(self.device))
        return [replace(g, first_reader=pair.quantized.first_reader(index, g.place)) if g.place else g for g in groups]

    def _moments(
        self,
        stage: Stage,
        activations: BlockActivations,
        group: Group,
        layers: Sequence[Layer],
        waiting: Sequence[str],
    ) -> list[Moments]:
        """Accumulate the group's inputs on both paths into running moments, fold by fold, in one pass over the data.

        Each position goes to one fold, so several folds cost no more.
        """
        parts = self.arms.moments(layers[0].weight.shape[1], self.device, self.bands)
        folds = self.arms.residual.folds
        label = "|".join(layer.name for layer in layers)
        kind = (stage.reads if group.place else None) or stage.name
        for pair in activations.pairs:
            x, x_full = activations.read(pair, group, waiting)
            of = self.rows.of(kind, pair.index, pair.batch, pair.utterances_before)
            x, x_full = x.flatten(0, -2), None if x_full is None else x_full.flatten(0, -2)
            if len(x) != len(of.tail):
                raise CalibrationError(f"{label}: its input has {len(x)} rows for {len(of.tail)} positions")
            tail, weight = of.tail, of.weight
            if self.arms.depends_on_layer:
                names = [layer.name for layer in layers]
                norms = self.gradients.of(names, pair.index, self.device)
                given = self.attention.of(stage.blocks[activations.index][0], group, pair.index, x)
                tail, weight = self.arms.metric.reassign(LayerRows(names, tail, weight, of.utterance, x, *norms, given))
            part = of.fold + (of.band * folds if self.bands > 1 else 0)
            for i, moments in enumerate(parts):
                moments.update(x, x_full, tail, weight * (part == i))
        for bad in sorted({update for part in parts for update in part.bad_updates()}):
            raise CalibrationError(
                f"{label}: NaN or infinite activations on utterances {', '.join(activations.pairs[bad].batch.ids)}; "
                "check the audio and the model's dtype (float16 overflows: load it in float32 or bfloat16)"
            )
        distributed.reduce(count for part in parts for count in part.counts.values())
        self._check_positions(label, [parts[fold::folds] for fold in range(folds)])
        # A single Linear is solved by the first process alone; moments that other blocks read again are needed by all.
        alone = 0 if len(layers) == 1 and not group.place else None
        distributed.reduce((total for part in parts for total in part.sums()), to=alone)
        return merged(parts, folds, self.arms.residual.weighs_cross) if self.bands > 1 else parts

    def _check_positions(self, label: str, parts: Sequence[Sequence[Moments]]) -> None:
        """Check that every fold has positions with weight."""
        empty = [sum(sum(part.positions.values()) for part in fold) == 0 for fold in parts]
        if all(empty):
            raise CalibrationError(
                f"{label}: the metric {type(self.arms.metric).__name__} gives weight 0 to every position; give some a "
                "positive one, or keep the layer in full precision with ignore"
            )
        if any(empty):
            raise CalibrationError(
                f"{label}: the residual {type(self.arms.residual).__name__} needs at least {len(parts)} calibration "
                "utterances; add some, or take residual='least-squares'"
            )

    def _solve(self, layers: Sequence[Layer], parts: Sequence[Moments], planned: PlannedLayer) -> dict[str, Solution]:
        """Algorithm 1; each process solves its share of the Linears, those of one scheme together."""
        own = distributed.shard(layers)
        outputs = None
        if self.arms.solver.output_moments:
            outputs = {layer.name: self.gradients.moments[layer.name].to(self.device) for layer in own}
        solved: dict[str, Solution] = {}
        with naming("|".join(layer.name for layer in own)):
            if any(part.seen for part in parts):
                for scheme in dict.fromkeys(self._scheme(layer.name) for layer in own):
                    alike = [layer for layer in own if self._scheme(layer.name) == scheme]
                    solved |= tail_aware_quantize(alike, parts, self.arms, scheme, self._scale_dtype, outputs)
            else:
                solved = {layer.name: self._rounded(layer) for layer in own}
        return dict(distributed.all_gather([(layer.name, solved[layer.name]) for layer in own], self.device))

    def _rounded(self, layer: Layer) -> Solution:
        """Round to nearest a layer whose input is zero on all calibration speech."""
        (quantized,) = RoundToNearest().quantize([layer.weight], None, self._scheme(layer.name), self._scale_dtype)
        columns = Figures(dead_columns=layer.weight.shape[1])
        return Solution(quantized, columns, notes=["its input is zero on all calibration speech: rounded to nearest"])

    def _round_block(self, stage: Stage, block_name: str, block: nn.Module) -> None:
        """Without audio: quantize a block's weights as they are."""
        with offloaded(block, self.device):
            for name, linear in linears_of(block_name, block):
                if name not in self.plan:
                    continue
                with naming(name):
                    (quantized,) = self.arms.solver.quantize(
                        [linear.weight], None, self._scheme(name), self._scale_dtype
                    )
                solution = Solution(quantized)
                packed = self._packed(name, linear, solution)
                block.set_submodule(name.removeprefix(f"{block_name}."), packed)
                self._record(stage, name, linear, solution, dict.fromkeys(SIDES, 0))
        self._skip(stage, block_name, block)

    def _scheme(self, name: str) -> Scheme:
        planned = self.plan[name]
        return self.config.scheme(planned.group_size, planned.bits)

    def _unlike_widths(self, layers: Sequence[Layer]) -> str:
        """A note on Linears of one input whose bits differ."""
        widths = {layer.name.rpartition(".")[2]: self.plan[layer.name].bits for layer in layers}
        if len(set(widths.values())) == 1:
            return ""
        told = ", ".join(f"{name} {bits}" for name, bits in widths.items())
        return f"Linears of one input differ in bits ({told}): a loader that fuses them, as vLLM does, cannot take them"

    @property
    def _scale_dtype(self) -> torch.dtype:
        return getattr(torch, self.config.scale_dtype)

    @timed("swap")
    def _packed(self, name: str, linear: nn.Linear, solution: Solution) -> QuantLinear:
        """The layer that replaces a Linear."""
        q = solution.quantized
        scheme = self._scheme(name)
        with naming(name):
            check_scales(q.scales, scheme)
        bias: Tensor | None = linear.bias
        if solution.bias is not None:  # as it will be stored, so that what follows makes up for its rounding
            bias = solution.bias.to(self.recognizer.stored_dtype).to(linear.bias.dtype)
        return packed_layer(q, scheme, bias)

    def _record(
        self, stage: Stage, name: str, linear: nn.Linear, solution: Solution, positions: dict[str, int], note: str = ""
    ) -> None:
        planned = self.plan[name]
        notes: list[str | None] = [planned.note, *solution.notes, self.attention.note(name), _small_scales(solution)]
        notes += [self.notes.get(name), note]
        record = LayerReport(
            name=name,
            stage=stage.name,
            shape=tuple(linear.weight.shape),
            bits=planned.bits,
            group_size=planned.group_size or 0,
            positions=positions["common"] + positions["tail"],
            tail_positions=positions["tail"],
            notes=[text for text in notes if text],
            **asdict(solution.figures),
        )
        self.records.append(record)
        self.reporter.layer(record)

    def _skip(self, stage: Stage, block_name: str, block: nn.Module) -> None:
        """Record the Linears still there: ignored by name, or never called on calibration audio."""
        for name, linear in linears_of(block_name, block):
            reason = "not called during calibration" if name in self.plan else "ignored by configuration"
            self.records.append(LayerReport(name, stage.name, tuple(linear.weight.shape), skipped=reason))

    @timed("backward")
    def _run_backward(self) -> None:
        """Gradients at the outputs of all planned Linears, before anything is quantized."""
        self._check_on_device("gradients")
        batches, share = [(index, batch) for index, _, batch in self.share], rare_share(self.batches)
        self.gradients = output_gradients(self.recognizer, batches, list(self.plan), self.arms, share)

    def _check_on_device(self, what: str) -> None:
        """See that the whole model can run, for what the arms want to know of it; its phase is reported."""
        if self.device != self.recognizer.device:
            raise ModelError(
                f"a metric or solver that asks for {what} needs the whole model on the device: leave offload out"
            )
        self.reporter.phase(what)

    def _layer(self, name: str, linear: nn.Linear) -> Layer:
        return Layer(name, linear.weight, linear.bias, name.endswith(self.recognizer.shift_free))


@contextmanager
def naming(layers: str) -> Iterator[None]:
    """While open, a solver's failure is raised with the layers concerned and the fix."""
    try:
        yield
    except (torch.linalg.LinAlgError, ValueError) as error:
        speech = isinstance(error, torch.linalg.LinAlgError)
        mend = "more calibration speech or a larger damp may help, " if speech else ""
        raise CalibrationError(f"{layers}: {error}; {mend}or keep the layer in full precision with ignore") from error


def _small_scales(solution: Solution) -> str:
    """A note on groups whose scale would underflow its dtype and was raised to the smallest one it holds."""
    scales, count = solution.quantized.scales, solution.quantized.coarse_groups
    dtype = str(scales.dtype).removeprefix("torch.")
    return f"{count} of {scales.numel()} scales are too small for {dtype}: set scale_dtype to bfloat16" if count else ""
