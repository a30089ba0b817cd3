"""Input scales, folded into the module that produces the input: a norm, or a Linear whose outputs pass through unmixed.

Whether a module can take them is tested, not listed: its outputs are divided and the weights of the Linears behind it
multiplied by random scales, and the block must compute the same. This rules out a norm that the residual stream reads
too, a GELU in between, and grouped heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tarq import distributed
from tarq.checkpoint.unfinished import Part, UnfinishedRun
from tarq.config import TarqConfig
from tarq.method.arms import Arms
from tarq.method.moments import Moments
from tarq.method.residuals import Layer, NoResidual
from tarq.method.scaling import InputScaling
from tarq.method.solvers import Sweep
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.report import Reporter
from tarq.walk.equivalence import blocks_on, equivalent, listed
from tarq.walk.inputs import BlockInputs, capture_inputs, groups_of, linear_of
from tarq.walk.plan import PlannedLayer
from tarq.walk.walk import Walk


@dataclass(frozen=True)
class ScaleFold:
    """Where scales of an input go.

    Attributes:
        producer: makes the input and can divide it.
        readers: every Linear that reads it.
    """

    producer: nn.Module
    readers: Sequence[nn.Linear]

    def apply(self, s: Tensor) -> None:
        """Divide the input by ``s`` [n] and multiply the readers' columns by it."""
        for parameter in (self.producer.weight, getattr(self.producer, "bias", None)):
            if isinstance(parameter, Tensor):
                by = s.to(parameter)
                parameter.data /= by[:, None] if parameter.dim() == 2 else by
        self.scale_readers(s)

    def scale_readers(self, s: Tensor) -> None:
        """Only the second half of :meth:`apply`."""
        for reader in self.readers:
            reader.weight.data *= s.to(reader.weight)


@torch.no_grad()
def fold_input_scales(
    recognizer: Recognizer,
    batches: Sequence[Batch],
    config: TarqConfig,
    reporter: Reporter,
    device: torch.device,
    scaling: InputScaling,
    run: UnfinishedRun | None = None,
) -> dict[str, str]:
    """Scale the inputs of a full-precision model's Linears; what it computes stays the same.

    Args:
        recognizer: the model and how to feed it.
        batches: the calibration set.
        config: the lattice, and which Linears there are.
        reporter: receives progress.
        device: where blocks go one at a time.
        scaling: finds the scales.
        run: keeps the scales, or has those that an earlier run has found.

    Returns:
        Name of each Linear to what was done, for the report.
    """
    reporter.phase("input scales")
    scale_folds = find_scale_folds(recognizer, batches[0], device)
    found = (run or UnfinishedRun()).once(
        "input-scales", lambda: _search_scales(recognizer, batches, config, device, scaling, scale_folds)
    )
    scales, notes = found.tensors, dict(found.record["notes"])
    for first, fold in {id(fold): (name, fold) for name, fold in scale_folds.items() if name in scales}.values():
        fold.apply(scales[first])
    if unscaled := notes.keys() - scales.keys():
        reporter.note(f"input scales: nothing in front can take those of {listed(unscaled, scales)}")
    return notes


def _search_scales(
    recognizer: Recognizer,
    batches: Sequence[Batch],
    config: TarqConfig,
    device: torch.device,
    scaling: InputScaling,
    scale_folds: Mapping[str, ScaleFold],
) -> Part:
    """The scales of each Linear's input, and a note on each Linear, in one walk over the full-precision model."""
    scales: dict[str, tuple[Tensor, str]] = {}
    notes: dict[str, str] = {}

    def search(layers: Sequence[Layer], folds: Sequence[Moments], planned: PlannedLayer) -> dict:
        first, weights = layers[0].name, [layer.weight for layer in layers]
        for layer in layers:
            notes[layer.name] = "nothing in front of it can take scales of its input"
        gathered = distributed.all_gather([scaling.statistics(first)], device)
        if first in scale_folds and distributed.rank() == 0 and folds[0].any_nonzero:
            scheme = config.scheme(planned.group_size, planned.bits)
            statistics = [each for each in gathered if each is not None]  # a process may have no batches
            found = scaling.scales(weights, folds[0], scheme, statistics)
            scales.update(dict.fromkeys((layer.name for layer in layers), found))
        return {}

    arms = Arms(scaling.metric, NoResidual(), Sweep())
    for _ in Walk(recognizer, batches, config, Reporter(), arms, device, search).blocks():
        pass
    scales = distributed.broadcast(lambda: scales)
    notes |= {name: note for name, (_, note) in scales.items()}
    return Part({name: s for name, (s, _) in scales.items()}, {"notes": notes})


@torch.no_grad()
def find_scale_folds(recognizer: Recognizer, batch: Batch, device: torch.device) -> dict[str, ScaleFold]:
    """Planned or not, each Linear of the blocks whose input can be scaled, with where the scales go."""
    found: dict[str, ScaleFold] = {}
    for name, block, arguments in blocks_on(recognizer, batch, device):
        for names, fold in scale_folds_of(block, arguments):
            found |= {f"{name}.{n}": fold for n in names}
    return found


def scale_folds_of(block: nn.Module, arguments: BlockInputs) -> Iterator[tuple[Sequence[str], ScaleFold]]:
    """Names of the Linears that share an input of a block which can be scaled, and where the scales go."""
    groups = groups_of(block, arguments)
    norm_outputs: list[tuple[nn.Module, object]] = []
    inputs: dict[str, Tensor] = {}
    norms = [m for m in block.modules() if isinstance(w := getattr(m, "weight", None), Tensor) and w.dim() == 1]
    with ExitStack() as stack:
        for norm in norms:
            hook = norm.register_forward_hook(lambda module, args, output: norm_outputs.append((module, output)))
            stack.callback(hook.remove)
        stack.enter_context(capture_inputs(block, [group.names[0] for group in groups], inputs.setdefault))
        arguments.run(block)
    preceding: list[nn.Linear] = []
    for group in groups:
        readers = [linear_of(block, name) for name in group.names]
        candidates = [module for module, output in norm_outputs if output is inputs[group.names[0]]]
        candidates += [linear for linear in reversed(preceding) if linear.out_features == readers[0].in_features]
        preceding += readers
        for producer in () if group.place else candidates:  # none for an argument: other blocks read it too
            fold = ScaleFold(producer, readers)
            width = readers[0].in_features
            s = torch.rand(width, generator=torch.Generator().manual_seed(width)).mul(2).sub(1).exp2()  # within ½ … 2
            s = s.to(arguments.hidden.device)
            if equivalent(block, arguments, partial(fold.apply, s), partial(fold.scale_readers, s)):
                yield group.names, fold
                break
