"""The arguments of each block of a stage, and the inputs of the Linears in a block.

Both are found by watching the model run, so nothing here depends on a model family. Blocks of one stage may differ in
their masks and position embeddings (``layer_types``: sliding and full attention), so every block's own arguments are
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tarq.errors import ModelError
from tarq.models.types import Batch, Stage
from tarq.timing import timed


class _Stop(Exception):
    """Ends a forward pass once the wanted values are captured."""


@dataclass(frozen=True)
class BlockInputs:
    """The arguments of a block on one batch.

    Attributes:
        hidden: [B, T, n] the hidden states, its first positional argument.
        args: its further positional arguments.
        kwargs: its keyword arguments.
    """

    hidden: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None

    def on(self, device: torch.device) -> BlockInputs:
        """The same on a device; nothing is copied if it is there already."""
        return BlockInputs(self.hidden.to(device), moved(self.args, device), moved(self.kwargs, device))

    def run(self, block: nn.Module) -> Tensor:
        """The block's output hidden states."""
        return hidden_of(block(self.hidden, *self.args, **(self.kwargs or {})))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors a block reads beside its hidden states, by their place in the call."""
        places = {f"argument {i + 1}": value for i, value in enumerate(self.args)} | (self.kwargs or {})
        return {place: value for place, value in places.items() if isinstance(value, Tensor)}


@dataclass
class StageInputs:
    """One batch on one path (full precision, or partly quantized), on its way through the blocks of a stage.

    Attributes:
        hidden: [B, T, n] the hidden states at the current block's input.
        calls: the other arguments of each block, positional and keyword. A tensor that the model passes to several
            blocks is a single tensor here too.
    """

    hidden: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def block(self, index: int) -> BlockInputs:
        """The arguments of the block of this index."""
        return BlockInputs(self.hidden, *self.calls[index])

    def first_reader(self, index: int, place: str) -> tuple[int, str]:
        """The first block that receives the tensor at this place of a block's call, and its place there."""
        tensor = self.block(index).tensors()[place]
        readers = (
            (i, name) for i in range(index + 1) for name, other in self.block(i).tensors().items() if other is tensor
        )
        return next(readers)


class InputCapture:
    """Captures the arguments of a stage's blocks, batch by batch, by running the model up to its last block.

    On the first batch the blocks actually run, which shows how they return their hidden states and whether these pass
    from one to the next unchanged. On the others they return their input without computing anything.

    Args:
        stage: the stage.
        device: where blocks are moved to, one at a time, to be run.
    """

    def __init__(self, stage: Stage, device: torch.device) -> None:
        self.stage, self.device = stage, device
        self._lengths: list[int | None] = []  # length of the tuples that blocks return; None for a single tensor

    @timed("block inputs")
    def __call__(self, batch: Batch, previous: Any) -> StageInputs:
        """The inputs of all blocks on a batch.

        Args:
            batch: see :attr:`Stage.start`.
            previous: the output of the stage before, on this path.

        Raises:
            ModelError: the model does not call every block once and in order, changes the hidden states between two
                blocks, or passes a block more of another's output than these.
        """
        run = _Capture(self.stage, self.device, self._lengths)
        with ExitStack() as stack, suppress(_Stop):
            for index, (_, block) in enumerate(self.stage.blocks):
                stack.enter_context(replaced_forward(block, run.forward_of(index)))
            self.stage.start(batch, previous)
        reached = len(run.calls)
        if reached < len(self.stage.blocks):
            raise ModelError(
                f"stage {self.stage.name}: running the model never reached {self.stage.blocks[reached][0]}"
            )
        self._lengths = run.lengths
        assert run.first is not None
        return StageInputs(run.first, run.calls)


class _Capture:
    """One run of a stage for :class:`InputCapture`."""

    def __init__(self, stage: Stage, device: torch.device, lengths: list[int | None]) -> None:
        self.stage, self.device = stage, device
        self.checks, self.lengths = not lengths, list(lengths)
        self.first: Tensor | None = None
        self.last: Tensor | None = None
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.others: list[Any] = []  # further outputs of blocks; kept, so that an id is never reused

    def forward_of(self, index: int) -> Callable[[Callable], Callable]:
        name, block = self.stage.blocks[index]

        def replacement(forward: Callable) -> Callable:
            def call(*args: Any, **kwargs: Any) -> Any:
                if index != len(self.calls):
                    raise ModelError(f"{name} runs out of order or twice in one pass, which the walk cannot follow")
                if not args or not isinstance(args[0], Tensor):
                    raise ModelError(f"{name} does not take its hidden states as its first argument")
                hidden, further = args[0], args[1:]
                self.calls.append((further, dict(kwargs)))
                if index == 0:
                    self.first = hidden
                if self.checks:
                    self._check(index, hidden, further, kwargs)
                if index == len(self.stage.blocks) - 1:
                    raise _Stop
                if not self.checks:
                    length = self.lengths[index]
                    return hidden if length is None else (hidden, *[None] * (length - 1))
                with offloaded(block, self.device):
                    out = forward(*moved(args, self.device), **moved(kwargs, self.device))
                out = moved(out, hidden.device)
                self.last = hidden_of(out)
                self.lengths.append(len(out) if isinstance(out, tuple) else None)
                self.others += out[1:] if isinstance(out, tuple) else []
                return out

            return call

        return replacement

    def _check(self, index: int, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> None:
        """Check that passing hidden states from block to block, as the walk does, is what the model does."""
        name = self.stage.blocks[index][0]
        last = self.last
        if last is not None and hidden is not last and not _same(hidden, last):
            raise ModelError(f"the model changes the hidden states in front of {name}, which the walk cannot follow")
        arguments = {id(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
        if any(id(other) in arguments for other in self.others if isinstance(other, Tensor)):
            raise ModelError(f"{name} reads what another block returns beside its hidden states: not supported")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def hidden_of(output: Any) -> Tensor:
    """The hidden states in a block's output: all of it, or its first element."""
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class Group:
    """Linears of one block that read the same tensor.

    Attributes:
        names: within the block, in calling order.
        place: of that tensor in the block's call; None for one the block computes itself.
        first_reader: index of the first block of the stage that receives this tensor, and its place there.
    """

    names: tuple[str, ...]
    place: str | None
    first_reader: tuple[int, str] | None = None


def linear_of(block: nn.Module, name: str) -> nn.Linear:
    return cast(nn.Linear, block.get_submodule(name))


def groups_of(block: nn.Module, inputs: BlockInputs) -> list[Group]:
    """Watch one forward pass: the block's Linears in calling order, grouped by the tensor they read.

    Raises:
        ModelError: a Linear reads several tensors in one pass.
    """
    calls: list[tuple[str, Tensor]] = []
    linears = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    with capture_inputs(block, linears, lambda name, tensor: calls.append((name, tensor))):
        inputs.run(block)
    further = inputs.tensors()
    groups: dict[int, tuple[list[str], str | None]] = {}
    for name, tensor in calls:  # the list keeps every tensor alive, so an id is never reused
        place = next((p for p, value in further.items() if value is tensor), None)
        names, _ = groups.setdefault(id(tensor), ([], place))
        if name not in names:
            names.append(name)
    called = [name for names, _ in groups.values() for name in names]
    if len(called) > len(set(called)):
        repeated = next(name for name in called if called.count(name) > 1)
        raise ModelError(
            f"{type(block).__name__}.{repeated} reads several tensors in one pass, which the walk cannot do"
        )
    return [Group(tuple(names), place) for names, place in groups.values()]


@timed("forward, quantized")
def groups_in_stage(block: nn.Module, index: int, path: StageInputs, device: torch.device) -> list[Group]:
    """:func:`groups_of` the block of this index, with the first reader of tensors that several blocks receive."""
    groups = groups_of(block, path.block(index).on(device))
    return [replace(g, first_reader=path.first_reader(index, g.place)) if g.place else g for g in groups]


def input_of(block: nn.Module, group: Group, inputs: BlockInputs) -> Tensor:
    """The input of a group's Linears: an argument of the block, or captured in a pass that stops there."""
    if group.place:
        return inputs.tensors()[group.place]
    captured: list[Tensor] = []

    def capture(name: str, tensor: Tensor) -> None:
        captured.append(tensor)
        raise _Stop

    with suppress(_Stop), capture_inputs(block, group.names[:1], capture):
        inputs.run(block)
    return captured[0]


@contextmanager
def capture_inputs(block: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], object]) -> Iterator[None]:
    """While open, ``see`` is called with the name and the input of each named module that is about to run."""

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            see(name, args[0])

        return hook

    handles = [block.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced_forward(module: nn.Module, replacement: Callable[[Callable], Callable]) -> Iterator[None]:
    """While open, a module runs ``replacement`` of its ``forward``.

    The module itself is not replaced: its holder may use more of it than the call.
    """
    own = vars(module).get("forward")
    module.forward = replacement(module.forward)
    try:
        yield
    finally:
        del module.forward  # uncovers the class's own
        if own is not None:
            module.forward = own


@contextmanager
def offloaded(block: nn.Module, device: torch.device) -> Iterator[None]:
    """While open, a block is on a device; afterwards it returns to its own."""
    original = next(block.parameters()).device
    if original == device:
        yield
        return
    block.to(device)
    try:
        yield
    finally:
        block.to(original)


def moved(value: Any, device: torch.device, copy: bool = False) -> Any:
    """Tensors on a device, also within tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.to(device, copy=copy)
    if isinstance(value, dict):
        return {key: moved(item, device, copy) for key, item in value.items()}
    return type(value)(moved(item, device, copy) for item in value) if type(value) in (tuple, list) else value
