"""Gradients of the loss at the outputs of Linears, in the full-precision model: one backward pass per batch.

The loss is the sum of the true tokens' teacher-forced cross-entropies, each with its weight from the metric. No
parameter gets a gradient: the graph begins at the first Linear's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tarq import distributed
from tarq.errors import CalibrationError
from tarq.method.arms import Arms
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.timing import timed


@dataclass
class OutputGradients:
    """Gradients at each Linear's output from a backward pass over the calibration set.

    Attributes:
        norms: (layer, batch index) to [R] float32 squared norms, one a row; of this process's batches, on the CPU.
        scales: layer to the mean of the squared norms that are not 0, over the whole set.
        moments: layer to [m, m] float64 ``Σ g gᵀ`` of this process's batches, on the model's device.
    """

    norms: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)

    def take_moments(self, names: Sequence[str], ranks: Sequence[int]) -> dict[str, Tensor]:
        """Those of :attr:`moments` that this process needs, over the whole set; they are then dropped everywhere.

        Args:
            names: layers, the same in every process.
            ranks: the process that needs each.
        """
        taken = {name: self.moments.pop(name) for name in names}
        for rank in sorted(set(ranks)):
            distributed.reduce([taken[n] for n, needed in zip(names, ranks, strict=True) if needed == rank], to=rank)
        return {n: taken[n] for n, needed in zip(names, ranks, strict=True) if needed == distributed.rank()}

    def of(self, names: Sequence[str], index: int, device: torch.device) -> tuple[Tensor | None, float]:
        """[R] squared norms on a batch over the outputs of several Linears of one input together, and their mean.

        None, and 1, where no target is reached from them.
        """
        reached = [name for name in names if (name, index) in self.norms and self.scales[name] > 0]
        if not reached:
            return None, 1.0
        norms = torch.stack([self.norms[name, index] for name in reached]).sum(0)
        return norms.to(device), sum(self.scales[name] for name in reached)


@timed("backward")
def output_gradients(
    recognizer: Recognizer,
    batches: Sequence[tuple[int, Batch]],
    names: Sequence[str],
    arms: Arms,
    rare_share: float,
) -> OutputGradients:
    """Run the loss backward through the model on every batch.

    Args:
        recognizer: of the full-precision model, all of it on one device.
        batches: this process's, with their indices in the calibration set.
        names: of Linears; one that a pass does not reach is left out.
        arms: ask for squared norms row by row, for second moments, or both; say how much each target counts.
        rare_share: share of rare targets in the whole calibration set.

    Raises:
        CalibrationError: gradients are NaN or infinite.
    """
    found, norms, moments = OutputGradients(), arms.gradients, arms.solver.output_moments
    linears = {name: recognizer.model.get_submodule(name) for name in names}
    if moments:
        found.moments = {name: _zero_moments(linear) for name, linear in linears.items()}
    with _frozen(recognizer.model):
        for index, batch in batches:
            seen = _backward(recognizer, batch, linears, arms.target_weight(batch.tail_target, rare_share), found)
            for name, pieces in seen.items():
                rows = torch.cat(pieces).cpu()
                if not bool(rows.isfinite().all()):
                    ids = ", ".join(batch.ids)
                    raise CalibrationError(f"{name}: NaN or infinite gradients on utterances {ids}; load it in float32")
                if norms:
                    found.norms[name, index] = rows
    if norms:
        found.scales = _means(found.norms, names, recognizer.device)
    return found


def _means(norms: Mapping[tuple[str, int], Tensor], names: Sequence[str], device: torch.device) -> dict[str, float]:
    """Mean squared norm of each Linear's rows that have one, over all processes' batches; 0 where none has."""
    sums = torch.zeros(len(names), 2, dtype=torch.float64)
    place = {name: i for i, name in enumerate(names)}
    for (name, _), rows in norms.items():
        sums[place[name]] += torch.stack([rows.sum(dtype=torch.float64), (rows > 0).sum().double()])
    sums = sums.to(device)  # where processes meet
    distributed.reduce([sums])
    return {name: float(total / count.clamp_min(1)) for name, (total, count) in zip(names, sums, strict=True)}


def _backward(
    recognizer: Recognizer, batch: Batch, linears: Mapping[str, nn.Module], weight: Tensor, found: OutputGradients
) -> dict[str, list[Tensor]]:
    """Squared norms of each Linear's rows on one batch, call by call: a model may run a batch in several pieces."""
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            calls = seen.setdefault(name, [])
            call = len(calls)
            calls.append(
                torch.zeros(output.shape[:-1].numel(), device=output.device)
            )  # it may not contribute to any target

            def take(gradient: Tensor) -> None:
                g = gradient.detach().flatten(0, -2).float()
                calls[call] = g.square().sum(1)
                if name in found.moments:
                    found.moments[name] += g.mT @ g

            output = output + anchor  # so that there is a graph in any case
            output.register_hook(take)  # sees the gradient of this value, even if the model writes into it
            return output

        return hook

    with torch.enable_grad(), ExitStack() as stack:
        anchor = torch.zeros((), device=recognizer.device, dtype=recognizer.dtype, requires_grad=True)
        for name, linear in linears.items():
            stack.callback(linear.register_forward_hook(watch(name)).remove)
        logits = recognizer.logits(batch)
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), batch.targets.to(logits.device).flatten(), reduction="none"
        )
        (losses * weight.to(logits.device).flatten()).sum().backward()
    return seen


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """While open, no parameter requires a gradient."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def rare_share(batches: Sequence[Batch]) -> float:
    """Share of rare targets in a calibration set."""
    every = sum(int((batch.targets != -100).sum()) for batch in batches)
    return sum(int(batch.tail_target.sum()) for batch in batches) / max(every, 1)


def _zero_moments(linear: nn.Module) -> Tensor:
    weight: Tensor = linear.weight  # type: ignore[assignment]
    return torch.zeros(len(weight), len(weight), dtype=torch.float64, device=weight.device)
