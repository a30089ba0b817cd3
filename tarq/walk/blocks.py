"""A block of a model: watch it, stop it on the way, lend it to a device, keep what its parts came to.

What a block computes is found out by watching it: which Linears it calls, in which order, and which of them read the
same tensor. So nothing here knows a family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tarq.errors import ModelError
from tarq.linear import QuantLinear
from tarq.models.types import Batch, Stage


class _Stop(Exception):
    """Ends a forward pass once what was wanted from it is there."""


@dataclass
class Path:
    """One batch on one path (full precision, or partly quantized): a block's arguments.

    Attributes:
        hidden: [B, T, n] the block's input.
        args: its further positional arguments.
        kwargs: its keyword arguments.
    """

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, device: torch.device) -> Path:
        """The same on a device; nothing is copied where it is there already."""
        return Path(self.hidden.to(device), _moved(self.args, device), _moved(self.kwargs, device))

    def through(self, block: nn.Module, device: torch.device) -> None:
        """Go through a block that lies on a device; the hidden states return to where they were."""
        self.hidden = self.on(device).run(block).to(self.hidden.device)

    def run(self, block: nn.Module) -> Tensor:
        out = block(self.hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out

    def context(self) -> dict[str, Tensor]:
        """The tensors a block reads beside its hidden states, by their place in the call."""
        places = {f"argument {i + 1}": value for i, value in enumerate(self.args)} | self.kwargs
        return {place: value for place, value in places.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Group:
    """Linears of one block that read the same tensor.

    Attributes:
        names: within the block, in calling order.
        context: place of that tensor among the block's further arguments, None for a tensor of its own.
    """

    names: tuple[str, ...]
    context: str | None


def linear_of(block: nn.Module, name: str) -> nn.Linear:
    return cast(nn.Linear, block.get_submodule(name))


def first_input(block: nn.Module, stage: Stage, batch: Batch, handed: Any) -> Path:
    """The arguments the stage's first block is called with on a batch."""
    caught: list[Path] = []

    def catch(module: nn.Module, args: tuple, kwargs: dict) -> None:
        caught.append(Path(args[0], tuple(args[1:]), dict(kwargs)))
        raise _Stop

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        stage.start(batch, handed)
    except _Stop:
        pass
    finally:
        handle.remove()
    if not caught:
        raise ModelError(f"stage {stage.name}: running the model never reached its first block")
    return caught[0]


def waiting_for_none(block: nn.Module, waiting: Iterable[str]) -> list[str]:
    """Children of a block that hold quantized layers, and none of the Linears that wait to be quantized."""
    parts = {name.partition(".")[0] for name in waiting}
    return [
        name
        for name, child in block.named_children()
        if name not in parts and any(isinstance(module, QuantLinear) for module in child.modules())
    ]


@dataclass
class Room:
    """Memory for activations that are held between a block's runs.

    Attributes:
        free: bytes.
    """

    free: float

    def take(self, size: int) -> bool:
        """Whether so many bytes were still free; now they are not."""
        fits = size <= self.free
        self.free -= size if fits else 0
        return fits


@contextmanager
def remembering(
    block: nn.Module, names: Sequence[str], known: dict[str, Any], room: Room, home: torch.device
) -> Iterator[None]:
    """While open, these children of a block do not compute what they computed before on the same batch.

    Args:
        block: its children are called at most once a pass.
        names: children that compute the same again, since nothing in them or before them changes any more.
        known: child to what it returned; added to, as far as there is room.
        room: for what is held.
        home: where it is held; it returns to the device it came from.
    """

    def once(name: str, forward: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name in known:
                value, device = known[name]
                return _moved(value, device, copy=True)  # the block may write into it
            value = forward(*args, **kwargs)
            tensors = [t for t in (value if isinstance(value, tuple) else (value,)) if t is not None]
            if all(isinstance(t, Tensor) for t in tensors) and room.take(sum(t.nbytes for t in tensors)):
                known[name] = _moved(value, home, copy=True), tensors[0].device
            return value

        return call

    # Not another module in the child's place: a block may ask its children for more than to be called.
    children = {name: block.get_submodule(name) for name in names}
    own = {name: vars(child)["forward"] for name, child in children.items() if "forward" in vars(child)}
    for name, child in children.items():
        child.forward = once(name, child.forward)
    try:
        yield
    finally:
        for name, child in children.items():
            del child.forward  # the class's own shows again
            if name in own:
                child.forward = own[name]


def _moved(value: Any, device: torch.device, copy: bool = False) -> Any:
    """Tensors on a device, also within tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.to(device, copy=copy)
    if isinstance(value, dict):
        return {key: _moved(item, device, copy) for key, item in value.items()}
    return type(value)(_moved(item, device, copy) for item in value) if type(value) in (tuple, list) else value


@contextmanager
def lent(block: nn.Module, device: torch.device) -> Iterator[None]:
    """A block on a device for a while, then back where it was."""
    home = next(block.parameters()).device
    if home == device:
        yield
        return
    block.to(device)
    try:
        yield
    finally:
        block.to(home)


@contextmanager
def swapped(block: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other modules in a block's places for a while."""
    now = {name: block.get_submodule(name) for name in modules}
    for name, module in modules.items():
        block.set_submodule(name, module)
    try:
        yield
    finally:
        for name, module in now.items():
            block.set_submodule(name, module)


@contextmanager
def watched(block: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], object]) -> Iterator[None]:
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


def groups_of(block: nn.Module, path: Path) -> list[Group]:
    """Watch one forward pass: the block's Linears in calling order, grouped by the tensor they read."""
    calls: list[tuple[str, Tensor]] = []
    linears = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    with watched(block, linears, lambda name, tensor: calls.append((name, tensor))):
        path.run(block)
    context = path.context()
    groups: dict[int, tuple[list[str], str | None]] = {}
    for name, tensor in calls:  # the list keeps every tensor alive, so an id is never reused
        place = next((p for p, value in context.items() if value is tensor), None)
        names, _ = groups.setdefault(id(tensor), ([], place))
        if name not in names:
            names.append(name)
    called = [name for names, _ in groups.values() for name in names]
    if len(called) > len(set(called)):
        twice = next(name for name in called if called.count(name) > 1)
        raise ModelError(f"{type(block).__name__}.{twice} reads several tensors in one pass, which the walk cannot do")
    return [Group(tuple(names), place) for names, place in groups.values()]


def input_of(block: nn.Module, name: str, path: Path, context: str | None) -> Tensor:
    """What a Linear of the block reads on a path: a further argument, or caught on the way and stopped there."""
    if context:
        return path.context()[context]
    caught: list[Tensor] = []

    def catch(name: str, tensor: Tensor) -> None:
        caught.append(tensor)
        raise _Stop

    with suppress(_Stop), watched(block, [name], catch):
        path.run(block)
    return caught[0]
