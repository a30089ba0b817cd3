"""What a block leaves as it is, and how layers that were left are named."""

import threading

import pytest
import torch
from torch import nn

from tarq.walk.equivalence import equivalent, listed
from tarq.walk.inputs import BlockInputs


def block_of(kind, dtype):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 8)).to(dtype).eval()
    if kind == "lock":
        block.lock = threading.Lock()
    elif kind == "own forward":
        own = block.forward
        block.forward = lambda hidden: own(hidden)
    return block


@pytest.mark.parametrize("kind", ["plain", "lock", "own forward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_a_block_is_tried_in_float32_and_keeps_its_own_weights(kind, dtype):
    """Also one that cannot be copied, or whose forward is not its class's; and when a change fails."""
    block = block_of(kind, dtype)
    before = {name: (tensor, tensor.data_ptr(), tensor.clone()) for name, tensor in block.state_dict().items()}
    arguments = BlockInputs(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).to(dtype))

    def doubled():
        block[0].weight.data *= 2  # in place, too
        block[0].bias.data = block[0].bias.data * 2

    def halved():
        assert block[2].weight.dtype == torch.float32
        block[2].weight.data /= 2

    def both():
        doubled()
        halved()

    def fails():
        doubled()
        raise ValueError

    assert equivalent(block, arguments, both, doubled)
    assert not equivalent(block, arguments, doubled, doubled)
    with pytest.raises(ValueError):  # noqa: PT011 - our own
        equivalent(block, arguments, fails)
    assert block.state_dict().keys() == before.keys()
    for name, tensor in block.state_dict().items():
        assert (tensor.dtype, tensor.data_ptr()) == (before[name][0].dtype, before[name][1])
        assert torch.equal(tensor, before[name][2])


@pytest.mark.parametrize(
    ("left", "changed", "said"),
    [
        (["a.0.q", "a.1.q", "a.0.k"], ["a.0.v"], "a.*.k, a.*.q"),
        (["a.1.q", "a.3.q"], ["a.0.q", "a.2.q"], "a.1.q, a.3.q"),
        (["a.0.1.q", "a.0.2.q", "a.0.1.3"], [], "a.*.*.3, a.*.*.q"),
    ],
)
def test_layers_of_all_blocks_are_named_once(left, changed, said):
    assert listed(left, changed) == said
