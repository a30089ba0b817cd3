"""Layers of unlike group sizes in one scheme: the largest common group, scales repeated, and back."""

import pytest
import torch
from tarq.kernels.scheme import Scheme
from tarq.kernels.w4_linear import dequantize
from torch import nn

from tarq.checkpoint.compressed_tensors import common_group_size, merge_groups, repeat_groups
from tarq.linear import QuantLinear


def layer(columns, group, symmetric, bits=4, rows=9):
    generator = torch.Generator().manual_seed(columns + group)
    groups = -(-columns // group)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)
    zeros = None if symmetric else torch.randint(0, 2**bits, (rows, groups), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(rows, groups, generator=generator) + 0.1).half()
    return QuantLinear.from_codes(codes, scales, zeros, Scheme(bits, group, symmetric))


def model(*layers):
    return nn.ModuleDict({f"l{i}": each for i, each in enumerate(layers)})


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_that_do_not_divide_each_other(symmetric):
    of = model(layer(192, 96, symmetric), layer(192, 64, symmetric), layer(224, 32, symmetric))
    assert common_group_size(of) == common_group_size(model(of["l0"], of["l1"])) == 32
    weights = {name: each.dequantize() for name, each in of.items()}
    state = of.state_dict()
    repeat_groups(state, of, 32)
    stored = model(*(QuantLinear(each.in_features, 9, Scheme(4, 32, symmetric), bias=False) for each in of.values()))
    for name, weight in weights.items():
        tensors = (state.get(f"{name}.weight_{part}") for part in ("packed", "scale", "zero_point"))
        assert torch.equal(dequantize(*tensors, weight.shape[1], 32), weight)
    stored.load_state_dict(state)
    merge_groups(stored)
    assert [each.scheme.group_size for each in stored.values()] == [96, 64, 32]
    for name, weight in weights.items():
        assert torch.equal(stored[name].dequantize(), weight)
        assert torch.equal(stored[name].packed_weight().scale, of[name].packed_weight().scale)


@pytest.mark.parametrize("unlike", ["scales", "zeros"])
def test_groups_merge_only_where_scales_and_zero_points_do(unlike):
    scales, zeros = torch.ones(9, 4).half(), torch.full((9, 4), 5, dtype=torch.uint8)
    codes = torch.arange(9 * 128).remainder(16).reshape(9, 128).byte()
    (scales if unlike == "scales" else zeros)[3, 2:] = 6  # in halves; the others are alike throughout
    of = model(QuantLinear.from_codes(codes, scales, zeros, Scheme(4, 32, False)))
    before = of["l0"].dequantize()
    merge_groups(of)
    assert of["l0"].scheme.group_size == 64
    assert torch.equal(of["l0"].dequantize(), before)


def test_one_size_or_unlike_kinds_stay():
    assert common_group_size(model(layer(128, 64, True), layer(192, 64, True))) is None
    assert common_group_size(model(layer(128, 64, True), layer(128, 32, False))) is None
    assert common_group_size(model(layer(128, 64, True), layer(128, 32, True, bits=3))) is None
