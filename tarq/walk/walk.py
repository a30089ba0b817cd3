"""The walk: block by block, in true order, with paired full-precision and partly quantized activations.

At any time it holds the hidden states of the calibration set on both paths (in the decoder also the
encoder's output, which every block reads, and its moments), the moments of one input, in two halves for cross-fitting,
and, as far as it fits into ``TarqConfig.activation_memory``, what one block's Linears read in full precision and what
its finished parts came to. A block is run once as it was, before anything in it changes, and then up to each group of
Linears as it becomes. Where not all of its inputs are held, its own Linears are put back for a moment and it runs again
up to the group; what a finished part came to is not held then either, and computed again. Blocks may be lent to another
device one at a time, with what passes through them; all else stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from tarq import distributed
from tarq.config import TarqConfig
from tarq.errors import CalibrationError, ModelError
from tarq.linear import QuantLinear
from tarq.method.algorithm import Solution, tail_aware_quantize
from tarq.method.metrics import Metric, make_metric
from tarq.method.moments import SIDES, Moments
from tarq.method.solvers import make_solver
from tarq.models.base import Recognizer
from tarq.models.types import Batch, Positions, Stage
from tarq.report import LayerReport, Reporter
from tarq.walk.blocks import (
    Group,
    Path,
    Room,
    first_input,
    groups_of,
    input_of,
    lent,
    linear_of,
    remembering,
    swapped,
    waiting_for_none,
    watched,
)

#: Group sizes tried, largest first, for a layer the configured one does not divide.
FALLBACK_GROUPS = (64, 32, 16, 8)


@dataclass
class _Pair:
    """One batch on both paths; the full-precision one is walked only where a residual compares with it.

    Attributes:
        index: of the batch within the calibration set, of which other processes may hold other batches.
        turn: utterances of the set before it.
        ahead: first Linear of each group of the block at hand to what it reads in full precision.
        behind: finished child of the block at hand to what it came to on the quantized path.
    """

    index: int
    turn: int
    batch: Batch
    full: Path | None
    quantized: Path
    ahead: dict[str, Tensor] = field(default_factory=dict)
    behind: dict[str, Any] = field(default_factory=dict)

    def look_ahead(self, block: nn.Module, names: Sequence[str], device: torch.device) -> None:
        """Run a block that is still as it was on the full-precision path and keep what these Linears read."""
        if self.full is None:
            return
        home = self.full.hidden.device
        with watched(block, names, lambda name, tensor: self.ahead.setdefault(name, tensor.to(home))):
            self.full.through(block, device)


@dataclass(frozen=True)
class _Rows:
    """The rows of one batch's hidden states, batch dimension and all flattened.

    Attributes:
        tail: [R] bool, the side each goes to.
        weight: [R] float.
        owner: [R] which utterance of the batch each belongs to.
    """

    tail: Tensor
    weight: Tensor
    owner: Tensor


def quantize_model(
    recognizer: Recognizer,
    batches: Sequence[Batch],
    config: TarqConfig,
    reporter: Reporter,
    metric: Metric | None = None,
    device: torch.device | None = None,
) -> list[LayerReport]:
    """Quantize every Linear of the model's blocks in place and swap it for a :class:`QuantLinear`.

    Args:
        recognizer: the model and how to feed it.
        batches: calibration batches; unused (may be empty) when the configuration needs no statistics.
        config: what to do; ``scale_dtype`` must be resolved.
        reporter: hears of each finished layer.
        metric: takes the place of the one the configuration names (any weight per position, say).
        device: where blocks go one at a time to be quantized; where the model is when not given.

    Returns:
        One record per Linear, in order of quantization; layers left alone are among them with a reason.

    Raises:
        CalibrationError: activations are NaN or infinite, or a metric cannot be factorised; names the layer.
        ModelError: a name to ignore matches no layer.
    """
    walk = _Walk(recognizer, batches, config, reporter, metric, device or recognizer.device)
    with torch.no_grad():
        return walk.run()


class _Walk:
    def __init__(
        self,
        recognizer: Recognizer,
        batches: Sequence[Batch],
        config: TarqConfig,
        reporter: Reporter,
        metric: Metric | None,
        device: torch.device,
    ) -> None:
        self.recognizer, self.config, self.reporter = recognizer, config, reporter
        turns = [0, *accumulate(len(batch.ids) for batch in batches)]
        self.share = distributed.dealt([(i, turns[i], batch) for i, batch in enumerate(batches)])
        self.metric = metric or make_metric(
            config.metric, cost_ratio=config.cost_ratio, max_lambda=config.max_lambda, seed=config.seed
        )
        self.solver = make_solver(config.solver, damp=config.damp, act_order=config.act_order)
        self.scale_dtype = getattr(torch, config.scale_dtype)
        self.paired = config.corrects_drift
        self.device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0", as tensors say it
        self.before: dict[str, nn.Linear] = {}  # the block's own Linears, kept where it runs again as it was
        self.reruns = False
        self.room = Room(0)  # for what is held of the block at hand
        self.rows: dict[tuple[str, int], _Rows] = {}
        self.records: list[LayerReport] = []

    def run(self) -> list[LayerReport]:
        stages = self.recognizer.stages()
        self._check_ignored(stages)
        self.reporter.start(sum(len(self._targets(name, b)) for s in stages for name, b in s.blocks))
        handed: list[tuple[Any, Any]] = [(None, None)] * len(self.share)
        for stage in stages:
            if not self.config.needs_statistics:
                for name, block in stage.blocks:
                    with lent(block, self.device):
                        self._round_block(stage, name, block)
                continue
            handed = self._run_stage(stage, handed)
        return self.records

    def _run_stage(self, stage: Stage, handed: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Quantize a stage's blocks; returns what it hands to the next stage, per batch and path."""
        first = stage.blocks[0][1]
        pairs = [
            _Pair(
                index,
                turn,
                b,
                first_input(first, stage, b, full) if self.paired else None,
                first_input(first, stage, b, quantized),
            )
            for (index, turn, b), (full, quantized) in zip(self.share, handed, strict=True)
        ]
        shared: dict[str, list[Moments]] = {}  # of tensors that every block of the stage reads
        for name, block in stage.blocks:
            with lent(block, self.device):
                self._quantize_block(stage, name, block, pairs, shared)
        finished = []
        while pairs:  # one by one, so that the stage's input and output are never both held
            pair = pairs.pop(0)
            full = None if pair.full is None else stage.finish(pair.full.hidden)
            finished.append((full, stage.finish(pair.quantized.hidden)))
        return finished

    def _quantize_block(
        self,
        stage: Stage,
        name: str,
        block: nn.Module,
        pairs: list[_Pair],
        shared: dict[str, list[Moments]],
    ) -> None:
        """Quantize a block group by group, and take both paths through it."""
        # The first process has a batch even where there are fewer than processes.
        groups = distributed.from_first(lambda: groups_of(block, pairs[0].quantized.on(self.device)))
        own = [g.names[0] for g in groups if not g.context and any(self._wanted(f"{name}.{n}") for n in g.names)]
        self.room = Room(self.config.activation_memory * 1e9)
        held = self._fitting(block, own, pairs)
        self.reruns = self.paired and len(held) < len(own)
        for pair in pairs:
            start = None if pair.full is None else pair.full.hidden
            if held or not self.reruns:
                pair.look_ahead(block, held, self.device)
            if self.reruns and pair.full is not None and start is not None:
                pair.full.hidden = start  # the block runs again from there
        for i, group in enumerate(groups):
            finished = waiting_for_none(block, [n for later in groups[i:] for n in later.names])
            self._quantize_group(stage, name, block, group, pairs, shared, finished)
        self._skip_uncalled(stage, name, block, groups)
        for pair in pairs:
            with remembering(block, waiting_for_none(block, []), pair.behind, Room(0), pair.quantized.hidden.device):
                pair.quantized.through(block, self.device)
            pair.ahead.clear()
            pair.behind.clear()
        if self.reruns:
            with swapped(block, self.before):
                for pair in pairs:
                    pair.look_ahead(block, [], self.device)
        self.before.clear()

    def _fitting(self, block: nn.Module, names: Sequence[str], pairs: list[_Pair]) -> list[str]:
        """Those Linears whose full-precision inputs there is room for, the first ones first."""
        hidden = [pair.full.hidden for pair in pairs if pair.full]
        width = {name: linear_of(block, name).in_features for name in names}
        size = {n: sum(h.shape[:-1].numel() * width[n] * h.element_size() for h in hidden) for n in names}
        return [name for name in names if self.room.take(size[name])]

    def _full_input(self, block: nn.Module, group: Group, pair: _Pair) -> Tensor | None:
        """What a group reads on the full-precision path, held or made again."""
        if pair.full is None:
            return None
        name = group.names[0]
        if name in pair.ahead:
            return pair.ahead.pop(name).to(self.device)  # dropped as soon as it is used
        with swapped(block, self.before):
            return input_of(block, name, pair.full.on(self.device), group.context)

    def _quantize_group(
        self,
        stage: Stage,
        block_name: str,
        block: nn.Module,
        group: Group,
        pairs: list[_Pair],
        shared: dict[str, list[Moments]],
        finished: Sequence[str],
    ) -> None:
        linears = {n: linear_of(block, n) for n in group.names if self._wanted(f"{block_name}.{n}")}
        if not linears:
            return
        label = f"{block_name}.{'|'.join(linears)}"
        parts = shared.get(group.context or "")
        if parts is None:
            parts = self._moments(stage, label, block, group, pairs, finished)
            if group.context:
                shared[group.context] = parts
        first = next(iter(linears.values()))
        group_size, note = choose_group_size(first.in_features, self.config.group_size)
        scheme = self.config.scheme(group_size)
        own = {n: linears[n].weight for n in distributed.dealt(list(linears))}
        try:
            solved: dict[str, Solution] = {}
            if own:
                solved = tail_aware_quantize(
                    own,
                    parts,
                    metric=self.metric,
                    residual=self.config.residual,
                    solver=self.solver,
                    scheme=scheme,
                    scale_dtype=self.scale_dtype,
                )
        except (torch.linalg.LinAlgError, ValueError) as error:
            raise CalibrationError(f"{label}: {error}") from error
        solutions = distributed.gathered(list(solved.items()), self.device)
        positions = {side: sum(part.positions[side] for part in parts) for side in SIDES}
        for name, solution in solutions:
            self._swap(stage, block_name, block, name, solution, group_size, positions, note)

    def _moments(
        self,
        stage: Stage,
        label: str,
        block: nn.Module,
        group: Group,
        pairs: list[_Pair],
        finished: Sequence[str],
    ) -> list[Moments]:
        """One pass over the calibration set: the group's inputs on both paths into running moments.

        Cross-fitting wants two halves of the set: utterances take turns. Each position goes to one of them, so
        nothing more is computed.
        """
        name = group.names[0]
        features = linear_of(block, name).in_features
        folds = 2 if self.config.residual == "cross-fitted" else 1
        parts = [Moments(features, paired=self.paired, device=self.device) for _ in range(folds)]
        reads = stage.reads if group.context else stage.name
        for pair in pairs:
            with remembering(block, finished, pair.behind, self.room, pair.quantized.hidden.device):
                x = input_of(block, name, pair.quantized.on(self.device), group.context)
            x_full = self._full_input(block, group, pair)
            of = self._row_weights(reads or stage.name, pair.index, pair.batch)
            if x.shape[:-1].numel() != len(of.tail):
                raise CalibrationError(
                    f"{label}: its input has {x.shape[:-1].numel()} rows for {len(of.tail)} positions"
                )
            fold = (pair.turn + of.owner).remainder(folds)
            rows, rows_full = x.flatten(0, -2), None if x_full is None else x_full.flatten(0, -2)
            try:
                for part, moments in enumerate(parts):
                    moments.update(rows, rows_full, of.tail, of.weight * (fold == part))
            except ValueError as error:
                raise CalibrationError(
                    f"{label}: {error} on utterances {', '.join(pair.batch.ids)}; check the audio and the "
                    "model's dtype (float16 overflows: load it in float32 or bfloat16)"
                ) from error
        distributed.add_up(parts)
        if any(sum(part.positions.values()) == 0 for part in parts):
            raise CalibrationError(
                f"{label}: the residual {self.config.residual!r} needs at least {folds} calibration utterances"
            )
        return parts

    def _row_weights(self, positions: str, index: int, batch: Batch) -> _Rows:
        """Side and weight of each row of a batch; the same for every layer that reads such rows."""
        key = positions, index
        if key not in self.rows:
            self.rows[key] = _assign(
                self.metric, batch.positions[positions], batch.ids, positions, self.config.padding_weight
            )
        rows, device = self.rows[key], self.device
        return _Rows(rows.tail.to(device), rows.weight.to(device), rows.owner.to(device))

    def _swap(
        self,
        stage: Stage,
        block_name: str,
        block: nn.Module,
        name: str,
        solution: Solution,
        group_size: int,
        positions: dict[str, int],
        note: str,
    ) -> None:
        """Put the quantized layer in place of the Linear and record it."""
        linear = linear_of(block, name)
        if self.reruns:
            self.before[name] = linear
        q = solution.quantized
        scheme = self.config.scheme(group_size)
        block.set_submodule(
            name,
            QuantLinear.from_codes(q.codes, q.scales, None if scheme.symmetric else q.zeros, scheme, linear.bias),
        )
        record = LayerReport(
            name=f"{block_name}.{name}",
            stage=stage.name,
            shape=tuple(linear.weight.shape),
            bits=scheme.bits,
            group_size=group_size,
            lam=solution.lam,
            alpha=solution.alpha,
            loss=solution.loss,
            shift=solution.shift,
            damp=solution.damp,
            damp_retries=solution.retries,
            dead_columns=solution.dead_columns,
            positions=positions["common"] + positions["tail"],
            tail_positions=positions["tail"],
            notes=[text for text in (note, solution.note, _degraded(solution)) if text],
        )
        self.records.append(record)
        self.reporter.layer(record)

    def _round_block(self, stage: Stage, block_name: str, block: nn.Module) -> None:
        """Round-to-nearest needs no activations: the weights of a block, as they stand."""
        for name in self._targets(block_name, block):
            linear = linear_of(block, name)
            if not bool(torch.isfinite(linear.weight).all()):
                raise CalibrationError(f"{block_name}.{name}: its weights hold NaN or infinite values")
            group_size, note = choose_group_size(linear.in_features, self.config.group_size)
            (quantized,) = self.solver.quantize([linear.weight], None, self.config.scheme(group_size), self.scale_dtype)
            self._swap(
                stage,
                block_name,
                block,
                name,
                Solution(quantized),
                group_size,
                dict.fromkeys(SIDES, 0),
                note,
            )

    def _wanted(self, name: str) -> bool:
        return not any(_matches(name, pattern) for pattern in self.config.ignore)

    def _targets(self, block_name: str, block: nn.Module) -> list[str]:
        return [n for n, m in block.named_modules() if isinstance(m, nn.Linear) and self._wanted(f"{block_name}.{n}")]

    def _check_ignored(self, stages: Sequence[Stage]) -> None:
        """A name that matches nothing is a misspelling, and the layer it meant would be quantized."""
        names = [f"{name}.{inner}" for s in stages for name, block in s.blocks for inner, _ in block.named_modules()]
        for pattern in self.config.ignore:
            if not any(_matches(name, pattern) for name in names):
                raise ModelError(f"ignore: {pattern!r} matches no layer; names look like {names[1]}")

    def _skip_uncalled(self, stage: Stage, block_name: str, block: nn.Module, groups: list[Group]) -> None:
        """Linears still there after the walk: ignored by name, or never called on calibration audio."""
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                full_name = f"{block_name}.{name}"
                reason = "not called during calibration" if self._wanted(full_name) else "ignored by configuration"
                self.records.append(LayerReport(full_name, stage.name, tuple(module.weight.shape), skipped=reason))


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern of ``ignore`` names a layer or something it lies in."""
    return name == pattern or name.startswith(f"{pattern}.")


def choose_group_size(in_features: int, group_size: int) -> tuple[int, str]:
    """The configured group size, or the largest smaller one that divides the layer, and a note on it.

    Raises:
        CalibrationError: the width is not even a multiple of eight.
    """
    if in_features % group_size == 0:
        return group_size, ""
    for smaller in FALLBACK_GROUPS:
        if smaller < group_size and in_features % smaller == 0:
            return smaller, f"group size {smaller}: {group_size} does not divide {in_features} inputs"
    raise CalibrationError(
        f"no group size of {group_size}, {', '.join(map(str, FALLBACK_GROUPS))} divides {in_features} inputs; "
        "leave the layer alone with ignore"
    )


def _degraded(solution: Solution) -> str:
    if solution.retries:
        return f"damping raised to {solution.damp:g} after {solution.retries} failed factorisations"
    return ""


def _assign(metric: Metric, positions: Positions, ids: Sequence[str], stage: str, padding_weight: float) -> _Rows:
    """Side, weight and owner of each row of a batch."""
    tails, weights = [], []
    for utterance, tail, exists, padding in zip(ids, positions.tail, positions.exists, positions.padding, strict=True):
        heard = exists & ~padding
        side, weight = metric.assign(tail & heard, heard, f"{stage}/{utterance}")
        weight = torch.ones(len(tail)) if weight is None else weight
        tails.append(side)
        weights.append(weight * (heard + padding_weight * (exists & padding)))
    owner = torch.arange(len(ids)).repeat_interleave(positions.exists.shape[1])
    rows = _Rows(torch.cat(tails), torch.cat(weights), owner)
    if not positions.packed:
        return rows
    there = positions.exists.flatten()
    return _Rows(rows.tail[there], rows.weight[there], rows.owner[there])
