"""Heads rotated and hidden units sorted before anything is quantized (:mod:`tarq.method.reparametrize`).

Which layers can take it is tested, not listed: the block must compute the same. This rules out queries and keys with
rotary positions, with a norm or with biases of positions, values that pass through anything but the weights of the
attention, and hidden units that are mixed before they are read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, combinations, islice
from typing import ClassVar

import torch
from torch import Tensor, nn

from tarq import distributed
from tarq.checkpoint.unfinished import Part, UnfinishedRun
from tarq.method.reparametrize import order_of, rotate_inputs, rotate_outputs, rotation_of
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.report import Reporter
from tarq.timing import timed
from tarq.walk.equivalence import blocks_on, equivalent, listed
from tarq.walk.inputs import BlockInputs, groups_of, linear_of, offloaded

#: Names that attentions give the size of their heads.
_SIZES = ("head_dim", "head_size")


@dataclass(frozen=True)
class Change:
    """A change of Linears of a block that may leave what it computes as it is.

    Attributes:
        makers: names within the block of those whose outputs change.
        reader: of the one whose inputs change; None for queries and keys, which are changed for each other.
        note: for the report.
    """

    makers: tuple[str, ...]
    reader: str | None
    note: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all its Linears."""
        return self.makers if self.reader is None else (*self.makers, self.reader)

    def apply(self, block: nn.Module) -> None:
        """Change the weights of a block in place."""
        reader = None if self.reader is None else linear_of(block, self.reader).weight
        for maker in self.makers:
            self._change_outputs(linear_of(block, maker), reader)
        if reader is not None:
            reader.data = self.inputs(reader.data)

    def apply_half(self, block: nn.Module) -> None:
        """Only what the rest of :meth:`apply` undoes."""
        reader = None if self.reader is None else linear_of(block, self.reader).weight
        self._change_outputs(linear_of(block, self.makers[0]), reader)

    def _change_outputs(self, maker: nn.Linear, reader: Tensor | None) -> None:
        for parameter in (maker.weight, maker.bias):
            if parameter is not None:
                parameter.data = self.outputs(parameter.data, reader)

    @abstractmethod
    def outputs(self, tensor: Tensor, reader: Tensor | None) -> Tensor:
        """The weight or bias of a maker, changed; ``reader`` is the reader's weight before."""

    @abstractmethod
    def inputs(self, weight: Tensor) -> Tensor:
        """The weight of the reader, changed."""


@dataclass(frozen=True)
class RotatedHeads(Change):
    """Heads of ``size`` channels, rotated."""

    size: int
    note = "heads are rotated"

    def outputs(self, tensor: Tensor, reader: Tensor | None) -> Tensor:
        return rotate_outputs(tensor, rotation_of(self.size).to(tensor.device))

    def inputs(self, weight: Tensor) -> Tensor:
        return rotate_inputs(weight, rotation_of(self.size).to(weight.device))


@dataclass(frozen=True)
class SortedUnits(Change):
    """Hidden units in the order of their columns; a maker may make several sets of them, as a gate and its values."""

    note = "hidden units are sorted"

    def outputs(self, tensor: Tensor, reader: Tensor | None) -> Tensor:
        assert reader is not None
        order = order_of(reader.data)
        return tensor.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)

    def inputs(self, weight: Tensor) -> Tensor:
        return weight[:, order_of(weight)].contiguous()


_KINDS: dict[str, type[Change]] = {kind.__name__: kind for kind in (RotatedHeads, SortedUnits)}


@timed("reparametrization")
@torch.no_grad()
def reparametrize(
    recognizer: Recognizer,
    batch: Batch,
    kinds: Collection[str],
    layers: Collection[str],
    reporter: Reporter,
    device: torch.device,
    run: UnfinishedRun | None = None,
) -> dict[str, str]:
    """Give a full-precision model other weights; what it computes stays the same.

    Args:
        recognizer: the model and how to feed it.
        batch: of calibration speech, to see what leaves a block's output as it is.
        kinds: ``heads`` are rotated, ``hidden`` units sorted.
        layers: names of the Linears that will be quantized; a change that needs another one is left out.
        reporter: receives progress, and which layers could not be changed.
        device: where blocks go one at a time.
        run: keeps which changes are made, or has those that an earlier run has found.

    Returns:
        Name of each changed Linear to a note for the report.
    """
    reporter.phase("reparametrizing")
    run = run or UnfinishedRun()
    part = run.take("other-weights")
    if part is None:
        part = run.keep("other-weights", _find_and_change(recognizer, batch, kinds, layers, device), alone=False)
    else:
        _change_again(recognizer, part, device)
    notes = {name: _KINDS[kind].note for name, kind in part.record["changed"].items()}
    if left := set(part.record["tried"]) - notes.keys():
        reporter.note(f"not reparametrized, or the model might compute something else: {listed(left, notes)}")
    return notes


def _find_and_change(
    recognizer: Recognizer, batch: Batch, kinds: Collection[str], layers: Collection[str], device: torch.device
) -> Part:
    """Find and make the changes of each block; which they are, by its name, and of which Linears they were tried."""
    changes: dict[str, list[dict]] = {}
    changed: dict[str, str] = {}
    tried: set[str] = set()
    seen: list[list[Change]] = []
    found: list[Change] = []
    for name, block, arguments in blocks_on(recognizer, batch, device):
        named = {n.removeprefix(f"{name}.") for n in layers if n.startswith(f"{name}.")}
        before, seen = seen, list(_candidates(block, arguments, kinds, named))
        known = found if seen == before else [one[0] for one in seen if one]
        found = distributed.broadcast(partial(_chosen, block, arguments, seen, known))
        for change in found:
            change.apply(block)
            changed |= {f"{name}.{n}": type(change).__name__ for n in change.names}
        changes[name] = [{"kind": type(change).__name__} | asdict(change) for change in found]
        tried |= {f"{name}.{n}" for change in chain.from_iterable(seen) for n in change.names}
    return Part({}, {"changes": changes, "changed": changed, "tried": sorted(tried)})


def _change_again(recognizer: Recognizer, part: Part, device: torch.device) -> None:
    """Make the changes that an earlier run has found."""
    for name, block in chain.from_iterable(stage.blocks for stage in recognizer.stages()):
        with offloaded(block, device):
            for change in part.record["changes"][name]:
                fields = {name: value for name, value in change.items() if name not in ("kind", "makers")}
                _KINDS[change["kind"]](tuple(change["makers"]), **fields).apply(block)


def _chosen(
    block: nn.Module, arguments: BlockInputs, candidates: Sequence[Sequence[Change]], known: list[Change]
) -> list[Change]:
    """The first change of each list that leaves what the block computes as it is.

    Blocks are mostly alike: ``known``, what one with the same candidates before it could take, or the first of each
    list, is tried at once. Lists it took nothing of are tried again: that block's rotary positions, say, this one may
    not have.
    """
    taken = known if known and _same(block, arguments, known) else []
    others = (one for one in candidates if not set(one) & set(taken))
    fitting = (islice((change for change in one if _same(block, arguments, [change])), 1) for one in others)
    return taken + list(chain.from_iterable(fitting))


def _candidates(
    block: nn.Module, arguments: BlockInputs, kinds: Collection[str], names: Collection[str]
) -> Iterator[list[Change]]:
    """Changes to try, of Linears of these names: of each list at most one."""
    groups = [[n for n in group.names if n in names] for group in groups_of(block, arguments)]
    called = list(chain.from_iterable(groups))
    attentions = dict(_attentions(block))
    inside = {n: path for n in called if (path := n.rpartition(".")[0]) in attentions}
    if "heads" in kinds:
        for path, size in attentions.items():
            yield from _head_changes(block, size, [n for n in called if inside.get(n) == path])
    if "hidden" in kinds:
        outside = [found for group in groups if (found := [n for n in group if n not in inside])]
        for i, makers in enumerate(outside):
            widths = [linear_of(block, n).out_features for n in makers]
            readers = [
                n
                for n in chain.from_iterable(outside[i + 1 :])
                if all(width % linear_of(block, n).in_features == 0 for width in widths)
            ]
            yield [SortedUnits(tuple(makers), reader) for reader in readers]


def _attentions(block: nn.Module) -> Iterator[tuple[str, int]]:
    """Name within a block of each module with heads, and their size."""
    for path, module in block.named_modules():
        size = next((s for n in _SIZES if isinstance(s := getattr(module, n, None), int)), 0)
        if size > 1 and any(isinstance(child, nn.Linear) for child in module.children()):
            yield path, size


def _head_changes(block: nn.Module, size: int, attention: Sequence[str]) -> Iterator[list[Change]]:
    """Rotations of queries and keys, and of values, of the Linears of one attention, in calling order."""
    if len(attention) < 2:
        return
    *before, last = attention
    makers = [n for n in before if linear_of(block, n).out_features % size == 0]
    yield [RotatedHeads(pair, None, size) for pair in combinations(makers, 2)]
    if linear_of(block, last).in_features % size == 0:
        yield [RotatedHeads((maker,), last, size) for maker in reversed(makers)]


def _same(block: nn.Module, arguments: BlockInputs, changes: Sequence[Change]) -> bool:
    """Whether the block computes the same with all these changes, and not with the half of any."""

    def whole() -> None:
        for change in changes:
            change.apply(block)

    return equivalent(block, arguments, whole, *(partial(change.apply_half, block) for change in changes))
