"""The activations of one block: budget, recomputation, what finished children returned."""

import pytest
import torch
from tarq.kernels.group_quantize import round_to_nearest
from tarq.kernels.scheme import Scheme
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tarq.linear import QuantLinear
from tarq.walk.activations import BlockActivations, MemoryBudget, caching_outputs
from tarq.walk.inputs import BlockInputs, Group, StageInputs, input_of
from tarq.walk.paths import PathPair

CPU = torch.device("cpu")
SCHEME = Scheme(4, 8, True, "absmax")
NAMES = ("first", "second", "third")


class Block(nn.Module):
    """Three Linears on end; counts how often each runs."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16)

    def forward(self, hidden, scale):
        return self.third(self.second(self.first(hidden).relu()) + hidden) * scale


def pairs_of(count=2):
    torch.manual_seed(1)

    def path():
        return StageInputs(torch.randn(1, 5, 16), [((torch.tensor(2.0),), {})])

    return [PathPair(i, i, None, path(), path()) for i in range(count)]


def rounded(linear):
    codes, scales, _ = round_to_nearest(linear.weight.detach(), SCHEME, torch.float32)
    return QuantLinear.from_codes(codes, scales, None, SCHEME, linear.bias)


def walked(budget):
    """What each Linear reads on both paths, the hidden states behind the block, and what was free after the start."""
    torch.manual_seed(0)
    block, pairs, read = Block(), pairs_of(), []
    memory = MemoryBudget(budget)
    with torch.no_grad():
        activations = BlockActivations(block, 0, pairs, NAMES, memory, CPU)
        held = budget - memory.free
        for i, name in enumerate(NAMES):
            read.append([activations.read(pair, Group((name,), None), NAMES[i:]) for pair in pairs])
            activations.replace(name, rounded(block.get_submodule(name)))
        activations.advance()
    assert all(not pair.cached_inputs and not pair.cached_outputs for pair in pairs)
    assert not activations.originals
    return read, [(pair.full.hidden, pair.quantized.hidden) for pair in pairs], held


#: Bytes of what each Linear reads on both batches.
ROWS = 2 * 5 * 4


@pytest.mark.parametrize(("budget", "held"), [(1e9, 64), (17, 16), (50, 48), (0, 0)])
def test_a_budget_changes_what_is_held_and_no_activation(budget, held):
    """Everything, the first input, the first two, nothing."""
    read, behind, bytes_held = walked(budget * ROWS if budget < 1e9 else budget)
    assert bytes_held == held * ROWS
    pairs = pairs_of()
    torch.manual_seed(0)
    block, now = Block(), Block()
    now.load_state_dict(block.state_dict())
    with torch.no_grad():
        for i, name in enumerate(NAMES):
            for pair, (x, x_full) in zip(pairs, read[i], strict=True):
                for model, path, got in ((now, pair.quantized, x), (block, pair.full, x_full)):
                    expected = input_of(model, Group((name,), None), path.block(0))
                    assert torch.equal(got, expected)
            now.set_submodule(name, rounded(block.get_submodule(name)))
        for pair, (full, quantized) in zip(pairs, behind, strict=True):
            assert torch.equal(full, pair.full.block(0).run(block))
            assert torch.equal(quantized, pair.quantized.block(0).run(now))


class Writes(nn.Module):
    """A block that writes into what a part of it returned."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, hidden):
        out = self.first(hidden)
        out += hidden
        return self.last(out)


@pytest.mark.parametrize("free", [1e9, 0])
def test_a_block_may_write_into_what_its_parts_returned(free):
    torch.manual_seed(0)
    block, inputs, cached = Writes(), BlockInputs(torch.randn(2, 3, 16)), {}
    last = Group(("last",), None)
    with torch.no_grad():
        expected = input_of(block, last, inputs)
        for _ in range(3):
            with caching_outputs(block, ["first"], cached, MemoryBudget(free), CPU):
                assert torch.equal(input_of(block, last, inputs), expected)
    assert bool(cached) == bool(free)
    assert "forward" not in vars(block.first)


class Attention(nn.Module):
    """May be without Linears, and may write into what it attended to."""

    def __init__(self, linears=True, writes=False):
        super().__init__()
        self.q, self.out = (nn.Linear(16, 16) if linears else nn.Identity() for _ in range(2))
        self.writes = writes

    def forward(self, x):
        q = self.q(x)[:, None]
        attended = F.scaled_dot_product_attention(q, q, q)[:, 0]
        if self.writes:
            attended *= 2
        return (self.out(attended), None)


class Attentions(TorchDispatchMode):
    """Counts those that are really computed."""

    computed = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.computed += "scaled_dot_product" in str(function)
        return function(*args, **(kwargs or {}))


class Attends(nn.Module):
    """Attentions with Linears and between them one without, which runs twice."""

    def __init__(self, writes):
        super().__init__()
        self.one, self.mix, self.two = Attention(writes=writes), Attention(False), Attention(writes=writes)

    def forward(self, hidden):
        hidden = hidden + self.one(hidden)[0]
        hidden = hidden + self.mix(hidden)[0]
        hidden = hidden + self.mix(hidden)[0]
        return hidden + self.two(hidden)[0]


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("free", [1e9, 2 * 5 * 16 * 4, 0])
def test_an_attention_in_front_of_a_linear_is_not_computed_again(writes, free):
    """Whichever attention of the block, and whatever the block does with it; the activations stay the same."""
    names = ("one.q", "one.out", "two.q", "two.out")

    def walk(budget):
        torch.manual_seed(0)
        block, pairs, read = Attends(writes), [], []
        for i in range(2):
            path = StageInputs(torch.randn(2, 5, 16), [((), {})])
            pairs.append(PathPair(i, i, None, None, path))
        with torch.no_grad():
            memory = MemoryBudget(budget)
            activations = BlockActivations(block, 0, pairs, names, memory, CPU)
            for i, name in enumerate(names):
                read += [activations.read(pair, Group((name,), None), names[i:])[0] for pair in pairs]
                activations.replace(name, rounded(block.get_submodule(name)))
            activations.advance()
        assert all(not pair.cached_outputs for pair in pairs)
        return read + [pair.quantized.hidden for pair in pairs]

    expected = walk(0)
    with Attentions() as attentions:
        got = walk(free)
    assert all(map(torch.equal, got, expected))
    if free == 1e9:
        assert attentions.computed == 2 * (6 if writes else 4)


def test_a_budget_is_never_overdrawn():
    budget = MemoryBudget(10)
    assert [budget.take(size) for size in (6, 6, 4, 1)] == [True, False, True, False]
    assert budget.free == 0
