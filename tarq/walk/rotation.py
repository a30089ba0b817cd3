"""Heads of attentions, rotated before anything is quantized (:mod:`tarq.method.rotation`).

Which projections can be rotated is tested, not listed: the block must compute the same. This rules out queries and keys
with rotary positions, with a norm or with biases of positions, and values that pass through anything but the weights of
the attention.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import torch
from torch import nn

from tarq.method.rotation import rotate_inputs, rotate_outputs, rotation_of
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.report import Reporter
from tarq.walk.equivalence import blocks_on, equivalent
from tarq.walk.inputs import BlockInputs, groups_of, linear_of

#: Names that attentions give the size of their heads.
_SIZES = ("head_dim", "head_size")


@dataclass(frozen=True)
class Rotation:
    """Linears of one attention that are rotated together, by their names in the block.

    Attributes:
        size: of a head.
        makers: whose outputs are rotated.
        reader: whose inputs are; None for queries and keys, which are rotated for each other.
    """

    size: int
    makers: tuple[str, ...]
    reader: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of all its Linears."""
        return self.makers if self.reader is None else (*self.makers, self.reader)

    def apply(self, block: nn.Module) -> None:
        """Rotate the weights of a block in place."""
        for maker in self.makers:
            self._rotate_outputs(linear_of(block, maker))
        if self.reader is not None:
            weight = linear_of(block, self.reader).weight
            weight.data = rotate_inputs(weight.data, rotation_of(self.size).to(weight.device))

    def apply_half(self, block: nn.Module) -> None:
        """Only what the rest of :meth:`apply` undoes."""
        self._rotate_outputs(linear_of(block, self.makers[0]))

    def _rotate_outputs(self, linear: nn.Linear) -> None:
        for parameter in (linear.weight, linear.bias):
            if parameter is not None:
                parameter.data = rotate_outputs(parameter.data, rotation_of(self.size).to(parameter.device))


@torch.no_grad()
def rotate_heads(
    recognizer: Recognizer, batch: Batch, layers: Collection[str], reporter: Reporter, device: torch.device
) -> dict[str, str]:
    """Rotate the heads of a full-precision model's attentions; what it computes stays the same.

    Args:
        recognizer: the model and how to feed it.
        batch: of calibration speech, to see what can be rotated.
        layers: names of the Linears that will be quantized; a rotation that needs another one is left out.
        reporter: receives progress, and which projections of attentions could not be rotated.
        device: where blocks go one at a time.

    Returns:
        Name of each rotated Linear to a note for the report.
    """
    reporter.phase("rotating heads")
    notes: dict[str, str] = {}
    left: set[str] = set()
    attentions: list[tuple[int, list[str]]] = []
    before: list[Rotation] = []
    for name, block, arguments in blocks_on(recognizer, batch, device):
        quantized = {n.removeprefix(f"{name}.") for n in layers if n.startswith(f"{name}.")}
        seen, attentions = attentions, list(_attentions(block, arguments, quantized))
        # Blocks are mostly alike: what the one before could take is tried at once.
        if attentions != seen or (before and not _same(block, arguments, before)):
            before = [r for size, own in attentions for r in _rotations_of(block, arguments, size, own)]
        for rotation in before:
            rotation.apply(block)
        rotated = {n for rotation in before for n in rotation.names}
        notes |= {f"{name}.{n}": "its heads are rotated" for n in sorted(rotated)}
        every = {n for _, attention in attentions for n in attention}
        left |= {re.sub(r"\.\d+\.", ".*.", f"{name}.{n}") for n in every - rotated}
    if left:
        reporter.note(f"heads are not rotated in {', '.join(sorted(left))}: the model would not compute the same")
    return notes


def _attentions(block: nn.Module, arguments: BlockInputs, names: Collection[str]) -> Iterator[tuple[int, list[str]]]:
    """The size of the heads of each attention, and which of the Linears of these names it holds, in calling order."""
    called = [n for group in groups_of(block, arguments) for n in group.names if n in names]
    for path, module in block.named_modules():
        size = next((s for n in _SIZES if isinstance(s := getattr(module, n, None), int)), 0)
        own = [n for n in called if n.rpartition(".")[0] == path]
        if size > 1 and len(own) > 1:
            yield size, own


def _rotations_of(block: nn.Module, arguments: BlockInputs, size: int, attention: Sequence[str]) -> Iterator[Rotation]:
    """The rotations of an attention that leave what the block computes as it is: of queries and keys, and of values."""
    *before, last = attention
    makers = [n for n in before if linear_of(block, n).out_features % size == 0]
    reads = linear_of(block, last).in_features % size == 0
    values = [Rotation(size, (maker,), last) for maker in reversed(makers)] if reads else []
    scores = [Rotation(size, pair) for pair in combinations(makers, 2)]
    for candidates in (scores, values):
        yield from islice((r for r in candidates if _same(block, arguments, [r])), 1)


def _same(block: nn.Module, arguments: BlockInputs, rotations: Sequence[Rotation]) -> bool:
    """Whether the block computes the same with all these rotations, and not with the half of each."""

    def whole(copied: nn.Module) -> None:
        for rotation in rotations:
            rotation.apply(copied)

    def half(copied: nn.Module) -> None:
        for rotation in rotations:
            rotation.apply_half(copied)

    return equivalent(block, arguments, block, whole, half)
