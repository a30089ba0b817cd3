"""The CUDA part of the extension, where it was built: linked, imported, registered under the operators' schemas.

It needs no GPU and nothing but torch: `make cuda-build` runs it in the environment of the build, with TARQ_TEST_PACKAGE
naming the folder of the package that was built.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tarq.kernels import dispatch, gram, group_quantize, w4_linear  # noqa: F401 (each declares its operators)
from torch._subclasses.fake_tensor import FakeTensorMode

import tarq

BUILT = os.environ.get("TARQ_TEST_PACKAGE")

pytestmark = pytest.mark.skipif(
    BUILT is None and not dispatch.has_native("group_quantize", "cuda"), reason="the extension has no CUDA part"
)

SCHEMAS = {
    "gram": "(Tensor x, Tensor? y, Tensor? weight) -> Tensor",
    "gram_split": "(Tensor x, Tensor? y, Tensor? weight, Tensor tail, bool drift=False) -> (Tensor, Tensor)",
    "group_quantize": (
        "(Tensor weight, Tensor upper, Tensor? order, int bits, int group_size, bool symmetric, str scale_rule, "
        "ScalarType scale_dtype) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "w4_linear": (
        "(Tensor x, Tensor weight_packed, Tensor weight_scale, Tensor? weight_zero_point, Tensor? bias, "
        "int in_features, int group_size) -> Tensor"
    ),
}


def test_the_package_is_the_one_that_was_built():
    assert dispatch.EXTENSION_ERROR is None
    assert BUILT is None or Path(BUILT).resolve() in Path(tarq.__file__).resolve().parents


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_operator_has_a_cuda_kernel(name):
    assert dispatch.has_native(name, "cuda")
    assert str(getattr(torch.ops.tarq, name).default._schema) == f"tarq::{name}{SCHEMAS[name]}"


def test_the_sweep_is_the_extensions_own():
    """Not the reference, which the dispatcher would find for a device without a kernel."""
    dump = torch._C._dispatch_dump("tarq::group_quantize")
    (line,) = (line for line in dump.splitlines() if line.startswith("CUDA:"))
    assert "group_quantize_cuda.cpp" in line
    assert "boxed unboxed" in line


@pytest.mark.parametrize("layers", [(), (3,)])
@pytest.mark.parametrize("ordered", [False, True])
def test_operators_have_shapes_on_a_device_that_is_not_there(layers, ordered):
    with FakeTensorMode():
        weight, upper = (torch.empty(*layers, m, 300, device="cuda") for m in (40, 300))
        order = torch.empty(*layers, 300, dtype=torch.long, device="cuda") if ordered else None
        codes, scales, zeros, loss = torch.ops.tarq.group_quantize(
            weight, upper, order, 4, 128, True, "absmax", torch.float16
        )
        shapes = [(t.shape, t.dtype, t.device.type) for t in (codes, scales, zeros, loss)]
        x = torch.empty(7, 300, dtype=torch.bfloat16, device="cuda")
        split = gram.gram_split(x, torch.empty(7, dtype=torch.bool, device="cuda"))
        packed, scale = torch.empty(3, 40, 16, dtype=torch.int32, device="cuda"), torch.empty(3, 40, device="cuda")
        y = w4_linear.w4_linear(x, packed, scale, None, None, 300, 128)
    assert shapes == [
        ((*layers, 40, 300), torch.uint8, "cuda"),
        ((*layers, 40, 3), torch.float16, "cuda"),
        ((*layers, 40, 3), torch.uint8, "cuda"),
        ((*layers, 40), torch.float64, "cuda"),
    ]
    assert [s.shape for s in split] == [(300, 300)] * 2
    assert (y.shape, y.dtype) == ((7, 40), torch.bfloat16)
