"""w4_linear: packing against compressed-tensors, every CPU kernel against the float64 reference."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from compressed_tensors.compressors import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as library_dequantize
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tarq.kernels import dispatch
from tarq.kernels.gram import gram
from tarq.kernels.group_quantize import factorize
from tarq.kernels.w4_linear import (
    PackedWeight,
    dequantize,
    get,
    pack,
    pack_zeros,
    packed_words,
    repack,
    unpack,
    unpack_zeros,
    w4_linear,
    w4_linear_int8,
)
from tarq.kernels.w4_linear.reference import w4_linear as reference
from torch import Tensor

from tarq.bench.measure import threads

from .layers import Layer, assert_close_to, assert_product, exact_product, make_layer

NATIVE = dispatch.EXTENSION_ERROR is None
ISAS = torch.ops.tarq.cpu_isas() if NATIVE else []
native = pytest.mark.skipif(not NATIVE, reason="the compiled extension is not built")

SCALES = (torch.float16, torch.bfloat16, torch.float32)

# What an error may be of Σ|x||w| + |b|. float32: rounding of sums. float16: the result's rounding. bfloat16: the
# result's rounding (2⁻⁹) and that of a weight to bfloat16 or of its scale product (2⁻⁹ each).
TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 8e-3}


def assert_accurate(y: Tensor, x: Tensor, layer: Layer, bias: Tensor | None, columns: int, group: int) -> None:
    assert y.dtype == x.dtype
    assert_product(y, x, layer, bias, columns, group, TOLERANCE[x.dtype])


# ---- packing and dequantization ----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 140), seed=st.integers(0, 2**31))
def test_packing_is_compressed_tensors(bits: int, rows: int, columns: int, seed: int):
    codes = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed)).byte()
    signed = (codes.int() - 2 ** (bits - 1)).to(torch.int8)
    packed = pack(codes, bits)
    assert torch.equal(packed, pack_to_int32(signed, bits))
    assert packed.shape == (rows, packed_words(columns, bits))
    assert torch.equal(unpack(packed, bits, columns), codes)
    zeros = pack_zeros(codes, bits)
    assert torch.equal(zeros, pack_to_int32(signed, bits, packed_dim=0))
    assert torch.equal(unpack_zeros(zeros, bits, rows), codes)


def test_nibble_order():
    packed = pack(torch.arange(8, dtype=torch.uint8)[None], 4)
    assert packed.item() == 0x76543210
    assert pack(torch.full((1, 8), 15, dtype=torch.uint8), 4).item() == -1


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_repacking_keeps_the_weights_and_is_undone(bits: int, symmetric: bool):
    codes, zeros = (torch.randint(0, 2**bits, shape, dtype=torch.uint8) for shape in ((9, 70), (9, 3)))
    narrow = pack(codes, bits), None if symmetric else pack_zeros(zeros, bits)
    wide = repack(*narrow, 70, bits, 4)
    scale = torch.rand(9, 3).half()
    as_narrow, as_wide = (dequantize(p, scale, z, 70, 32, b) for (p, z), b in ((narrow, bits), (wide, 4)))
    assert torch.equal(as_narrow, as_wide)
    for back, original in zip(repack(*wide, 70, 4, bits), narrow, strict=True):
        assert original is None if back is None else torch.equal(back, original)


def test_repacking_refuses_what_does_not_fit():
    packed = pack(torch.tensor([[0, 8, 11]], dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="the largest is 252"):  # 0 − 4, wrapped
        repack(packed, None, 3, 4, 3)
    with pytest.raises(ValueError, match="the largest is 11"):
        repack(packed, pack_zeros(torch.zeros(1, 1, dtype=torch.uint8), 4), 3, 4, 3)


def test_packing_refuses_bad_input():
    codes = torch.zeros(2, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="bits must be one of"):
        pack(codes, 5)
    with pytest.raises(ValueError, match="uint8 matrix"):
        pack(codes.int(), 4)
    with pytest.raises(ValueError, match="below 16"):
        pack(codes + 16, 4)
    with pytest.raises(ValueError, match=r"int32 \[N, 2\]"):
        unpack(pack(codes, 4), 4, 9)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dequantize_is_compressed_tensors_bit_for_bit(bits: int, symmetric: bool, scale: torch.dtype):
    rows, columns, group = 17, 256, 64
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    zeros = torch.randint(0, 2**bits, (rows, columns // group), dtype=torch.uint8)
    scales = (torch.rand(rows, columns // group) * 0.02 + 0.005).to(scale)
    packed, packed_zeros = pack(codes, bits), None if symmetric else pack_zeros(zeros, bits)
    theirs = library_dequantize(
        unpack_from_int32(packed, bits, torch.Size((rows, columns))),
        scales,
        None if packed_zeros is None else unpack_from_int32(packed_zeros, bits, zeros.shape, packed_dim=0),
        QuantizationArgs(num_bits=bits, strategy="group", group_size=group, symmetric=symmetric),
    )
    ours = dequantize(packed, scales, packed_zeros, columns, group, bits)
    assert ours.dtype == scale
    assert torch.equal(ours, theirs)


def test_dequantize_ragged_last_group():
    codes = torch.randint(0, 16, (3, 70), dtype=torch.uint8)
    scales, zeros = torch.rand(3, 3), torch.randint(0, 16, (3, 3), dtype=torch.uint8)
    group_of = torch.arange(70) // 32
    expected = (codes.float() - zeros.float()[:, group_of]) * scales[:, group_of]
    assert torch.equal(dequantize(pack(codes, 4), scales, pack_zeros(zeros, 4), 70, 32), expected)
    with pytest.raises(ValueError, match="weight_scale must have shape"):
        dequantize(pack(codes, 4), scales[:, :2], None, 70, 32)


# ---- the kernels -------------------------------------------------------------------------------------------


def assert_each_accurate(
    isas: Callable[[], Iterator[str]],
    x: Tensor,
    layer: Layer,
    bias: Tensor | None,
    columns: int,
    group: int,
    but: Sequence[str] = (),
) -> None:
    """On every instruction set ``but`` some."""
    exact, weight = exact_product(x, layer, bias, columns, group), PackedWeight(*layer, bias, columns, group)
    for isa in isas():
        if isa not in but:
            y = w4_linear(x, weight, backend="native")
            assert y.dtype == x.dtype
            assert_close_to(y, exact, TOLERANCE[x.dtype])


@native
@pytest.mark.parametrize("columns", [8, 24, 104, 127, 128, 129, 288, 328, 384])
def test_kernels_against_float64(isas, columns: int):
    torch.manual_seed(columns)
    for rows in (1, 3, 17, 128):
        for group in (8, 32, 64, 96, 128, 20):
            for symmetric in (True, False):
                scale = SCALES[(rows + group // 8 + symmetric) % 3]
                layer = make_layer(rows, columns, group, symmetric=symmetric, scale=scale)
                for count in (0, 1, 3, 16, 65):
                    bias = torch.randn(rows) if count % 2 else None
                    dtype = torch.bfloat16 if (count + symmetric) % 2 else torch.float32
                    for kind in {dtype, torch.float32}:
                        x = torch.randn(count, columns).to(kind)
                        assert_each_accurate(
                            isas, x, layer, bias, columns, group, but=["scalar"] if rows == 128 else ()
                        )


@native
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 13, 127, 128, 300])
def test_every_row_count_path(isas, dtype: torch.dtype, count: int):
    """Few rows, many rows and the library's product (avx512_bf16, from 128 rows on), on all scale and bias types."""
    rows, columns, group = 130, 384, 128
    for scale in SCALES:
        layer = make_layer(rows, columns, group, symmetric=False, scale=scale)
        assert_each_accurate(
            isas, torch.randn(count, columns).to(dtype), layer, torch.randn(rows).to(scale), columns, group
        )


@native
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 300),
    group=st.integers(1, 160) | st.sampled_from([8, 16, 24, 32, 40, 64, 96, 128, 160, 256]),
    count=st.integers(0, 20),
    symmetric=st.booleans(),
    scale=st.sampled_from(SCALES),
    dtype=st.sampled_from(list(TOLERANCE)),
    isa=st.sampled_from(ISAS or [""]),
    count_threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
@example(
    rows=1,
    columns=5,
    group=4,  # two groups in a word
    count=1,
    symmetric=False,
    scale=torch.float16,
    dtype=torch.float32,
    isa="scalar",
    count_threads=1,
    seed=0,
)
@pytest.mark.slow
def test_any_shape(rows, columns, group, count, symmetric, scale, dtype, isa, count_threads, seed):
    torch.manual_seed(seed)
    layer = make_layer(rows, columns, group, symmetric=symmetric, scale=scale)
    x, bias = torch.randn(count, columns).to(dtype), torch.randn(rows)
    with pytest.MonkeyPatch.context() as patch, threads(count_threads):
        patch.setenv("TARQ_CPU_ISA", isa)
        y = w4_linear(x, PackedWeight(*layer, bias, columns, group))
    assert_accurate(y, x, layer, bias, columns, group)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_special_values_stay_where_they_belong(isa: str, dtype: torch.dtype):
    """Infinity and NaN reach their own row only; subnormal, large and negative scales round as the reference's."""
    layer = make_layer(9, 130, 64)
    x = torch.randn(5, 130)
    x[1, 7], x[3, 129] = float("inf"), float("nan")
    y = w4_linear(x.to(dtype), PackedWeight(*layer, None, 130, 64))
    assert y[3].isnan().all()
    assert not y[1].isfinite().any()
    assert y[[0, 2, 4]].isfinite().all()
    scales = torch.tensor([[6e-8], [6000.0], [-0.01]]).half()
    codes = torch.full((3, 8), 11, dtype=torch.uint8)
    x = torch.ones(1, 8).to(dtype)
    weight = PackedWeight(pack(codes, 4), scales, None, None, 8, 8)
    rtol = 1.3e-6 if dtype == torch.float32 else 8e-3  # the result's rounding, and a weight's
    torch.testing.assert_close(w4_linear(x, weight), reference(x, weight), rtol=rtol, atol=0)


@native
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [232, 256, 328])
@pytest.mark.parametrize("group", [8, 32, 96, 128, 256, 20])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_an_outlier_leaves_the_others_their_say(isas, count: int, group: int, columns: int, symmetric: bool):
    """Weights of zero beside weights of use: the zero point's share of a huge input must not swallow the rest."""
    groups = -(-columns // group)
    for outlier in (1e3, 1e4, 1e5, 1e7, -1e5):
        codes = torch.randint(0, 16, (40, columns), dtype=torch.uint8)
        zeros = torch.randint(*((8, 9) if symmetric else (0, 16)), (40, groups), dtype=torch.uint8)
        x = torch.randn(count, columns)
        for k in (13, 200):
            codes[:, k] = zeros[:, k // group]
            x[:, k] = outlier
        scales = (torch.rand(40, groups) * 0.02 + 0.005).half()
        layer = pack(codes, 4), scales, None if symmetric else pack_zeros(zeros, 4)
        assert_each_accurate(isas, x, layer, None, columns, group)


@native
@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize("magnitude", [1e37, 1e-27])
def test_large_and_small_inputs(isa: str, count: int, magnitude: float):
    layer, x = make_layer(40, 256, 128, symmetric=False), torch.randn(count, 256) * magnitude
    assert_accurate(w4_linear(x, PackedWeight(*layer, None, 256, 128)), x, layer, None, 256, 128)


@native
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 128])
def test_weights_are_not_rounded_to_the_scales_dtype(isa: str, dtype: torch.dtype, rows: int):
    """One-hot activations read W itself: with float32 activations (code − zero) · scale to float32's last bits."""
    for scale in SCALES:
        packed, scales, zeros = make_layer(20, 128, 32, symmetric=False, scale=scale)
        weight = dequantize(packed, scales.float(), zeros, 128, 32)
        whole = PackedWeight(packed, scales, zeros, None, 128, 32)
        y = torch.cat([w4_linear(x, whole) for x in torch.eye(128, dtype=dtype).split(rows)])
        if dtype == torch.float32:
            # Rounding weights to bfloat16 or float16 would be off by 2⁻¹⁰ of a scale and more.
            torch.testing.assert_close(y.T, weight, rtol=0, atol=2**-19 * float(scales.max()))
        else:
            torch.testing.assert_close(y.T.float(), weight, rtol=8e-3, atol=0)


@native
@pytest.mark.parametrize("shape", [(128,), (0, 128), (2, 0, 128), (2, 3, 128), (1, 1, 1, 128)])
def test_leading_shapes(shape: tuple[int, ...]):
    layer = make_layer(10, 128, 64)
    x = torch.randn(shape)
    assert_accurate(w4_linear(x, PackedWeight(*layer, None, 128, 64)), x, layer, None, 128, 64)


@native
def test_strides():
    layer = make_layer(10, 96, 32, symmetric=False)
    bias = torch.randn(20)[::2]
    for x in (
        torch.randn(96, 7).T,
        torch.randn(7, 192)[:, ::2],
        torch.randn(7, 100)[:, 3:99],
        torch.randn(1, 96).expand(7, 96),
        torch.randn(3, 5, 96).transpose(0, 1),
        torch.randn(400, 192, dtype=torch.bfloat16)[:, ::2],
    ):
        assert not x.is_contiguous() or x.storage_offset()
        assert_accurate(w4_linear(x, PackedWeight(*layer, bias, 96, 32)), x, layer, bias, 96, 32)
    strided = tuple(torch.stack([t, t], -1)[..., 0] for t in layer)
    x = torch.randn(7, 96)
    assert torch.equal(
        w4_linear(x, PackedWeight(*strided, bias, 96, 32)), w4_linear(x, PackedWeight(*layer, bias, 96, 32))
    )


CHOICE = """
import os, sys, torch
from tarq.kernels.gram import gram
from tarq.kernels.w4_linear import PackedWeight, pack, w4_linear
torch.manual_seed(0)
packed = pack(torch.randint(0, 16, (96, 512), dtype=torch.uint8), 4)
weight = PackedWeight(packed, torch.rand(96, 4), None, None, 512, 128)
x = torch.randn(256, 512).bfloat16()
def outputs(isa):
    if isa is not None:
        os.environ["TARQ_CPU_ISA"] = isa
    return w4_linear(x[:1], weight), w4_linear(x, weight), gram(x)
unforced = outputs(None)
forced = [outputs(isa) for isa in sys.argv[1:]]
print([[torch.equal(a, b) for a, b in zip(unforced, by_name)] for by_name in forced])
"""


@native
@pytest.mark.slow
@pytest.mark.skipif("avx512_bf16" not in ISAS, reason="this CPU has one way only to multiply bfloat16")
def test_processes_choose_alike_what_multiplies_bfloat16():
    """What the first call measures decides; processes that share a job must not differ, nor two runs of it."""
    own = {name: value for name, value in os.environ.items() if name != "TARQ_CPU_ISA"}
    named = [isa for isa in ("avx512", "avx512_bf16", "avx512_amx") if isa in ISAS]
    command = [sys.executable, "-P", "-c", CHOICE, *named]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) for _ in range(4)]
    said = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert len(set(said)) == 1, said
    by_name = ast.literal_eval(said[0])
    assert all(map(any, zip(*by_name, strict=True)))  # each is one of them, to the bit


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_the_result(dtype: torch.dtype):
    layer = make_layer(1030, 1280, 128)
    for count in (1, 5, 70):
        x, results = torch.randn(count, 1280).to(dtype), []
        for count_threads in (1, 2, 3):
            with threads(count_threads):
                results.append(w4_linear(x, PackedWeight(*layer, None, 1280, 128)))
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


# ---- the operator ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(symmetric: bool, dtype: torch.dtype):
    layer = make_layer(12, 64, 32, symmetric=symmetric)
    for x in (torch.randn(3, 64).to(dtype), torch.randn(2, 0, 64).to(dtype), torch.randn(64, 5).to(dtype).T):
        torch.library.opcheck(torch.ops.tarq.w4_linear.default, (x, *layer, torch.randn(12), 64, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_reference(dtype: torch.dtype):
    layer, x, bias = make_layer(5, 72, 32, symmetric=False), torch.randn(2, 3, 72).to(dtype), torch.randn(5)
    y = w4_linear(x, PackedWeight(*layer, bias, 72, 32), backend="reference")
    packed, scales, zeros = layer
    exact = x.double() @ dequantize(packed, scales.double(), zeros, 72, 32).T + bias.double()
    assert y.dtype == dtype
    torch.testing.assert_close(y, exact.to(dtype))


def test_backend_choice():
    layer, x = make_layer(5, 72, 32), torch.randn(2, 72)
    with pytest.raises(
        ValueError, match="backend='cuda' is not a backend: choose one of auto, reference, native, triton, cpp"
    ):
        w4_linear(x, PackedWeight(*layer, None, 72, 32), backend="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_input_and_bias_gradients(dtype: torch.dtype):
    layer, group = make_layer(9, 64, 32, symmetric=False), 32
    x, bias = torch.randn(4, 64).to(dtype).requires_grad_(), torch.randn(9, requires_grad=True)
    upstream = torch.randn(4, 9).to(dtype)
    gradients = torch.autograd.grad(w4_linear(x, PackedWeight(*layer, bias, 64, group)), (x, bias), upstream)
    packed, scales, zeros = layer
    weight = dequantize(packed, scales.float(), zeros, 64, group)
    torch.testing.assert_close(gradients[0], (upstream.float() @ weight).to(dtype))
    torch.testing.assert_close(gradients[1], upstream.float().sum(0))


#: A change of a sound layer's tensors or sizes, and what the message says of it.
BAD_WEIGHTS = [
    ({"packed": torch.zeros(5, 9)}, "weight_packed must be int32"),
    ({"packed": torch.zeros(5, 8, dtype=torch.int32)}, "weight_packed must have shape"),
    ({"packed": torch.zeros(45, dtype=torch.int32)}, "weight_packed must have two dimensions"),
    ({"scale": torch.ones(5, 2)}, "weight_scale must have shape"),
    ({"scale": torch.ones(5, 3, dtype=torch.int32)}, "weight_scale must be float32"),
    ({"zeros": torch.zeros(5, 3, dtype=torch.int32)}, "weight_zero_point must have shape"),
    ({"zeros": torch.zeros(1, 3)}, "weight_zero_point must be int32"),
    ({"bias": torch.zeros(6)}, "bias must have shape"),
    ({"bias": torch.zeros(5, dtype=torch.int32)}, "bias must be"),
    ({"group_size": 0}, "group_size must be positive"),
    ({"in_features": 0}, "in_features must be positive"),
]


@pytest.mark.parametrize(("change", "message"), BAD_WEIGHTS)
def test_a_bad_weight_is_named_when_it_is_laid_out_and_when_it_is_used(change: dict, message: str):
    weight = PackedWeight(*make_layer(5, 72, 32, symmetric=False), None, 72, 32)._replace(**change)
    for name in ("reference", "cpp", "triton"):
        with pytest.raises(ValueError, match=message):
            get(name).prepack(weight)
    if NATIVE:
        with pytest.raises((RuntimeError, NotImplementedError), match=message):
            w4_linear(torch.randn(2, max(weight.in_features, 1)), weight)


@native
def test_bad_activations_are_named():
    weight = PackedWeight(*make_layer(5, 72, 32), None, 72, 32)
    for x, message in (
        (torch.randn(2, 71), "last dimension of x must be in_features = 72"),
        (torch.ones(2, 72, dtype=torch.int32), "x must be float32, bfloat16 or float16"),
    ):
        with pytest.raises(RuntimeError, match=message):
            w4_linear(x, weight)


@native
def test_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TARQ_CPU_ISA", "sse9")
    layer, x = make_layer(1, 8, 8), torch.randn(2, 8)
    for call in (
        lambda: w4_linear(x, PackedWeight(*layer, None, 8, 8)),
        lambda: w4_linear_int8(x, PackedWeight(*layer, None, 8, 8)),
        lambda: gram(x, backend="native"),
        lambda: factorize(torch.eye(8), backend="native"),
    ):
        with pytest.raises(RuntimeError, match=r"TARQ_CPU_ISA is sse9, but this machine has .*scalar"):
            call()


@native
def test_newer_instructions_stay_in_their_files():
    """No weak symbol of the extension may come from a file compiled for AVX: an older machine could run it."""
    import tarq._C

    try:
        listing = subprocess.run(["nm", "-C", tarq._C.__file__], capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("nm is not installed")
    shared = [line for line in listing.splitlines() if line[17:18] in "WVu" and ("Avx" in line or "_mm" in line)]
    assert not shared


@native
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process with another environment")
@pytest.mark.slow
def test_isa_can_be_forced_from_outside():
    code = (
        "import torch; from tarq.kernels.w4_linear import PackedWeight, w4_linear, pack;"
        "packed = pack(torch.ones(1, 8, dtype=torch.uint8), 4);"
        "w4_linear(torch.ones(1, 8), PackedWeight(packed, torch.ones(1, 1), None, None, 8, 8))"
    )
    for isa, ok in (("scalar", True), ("none", False)):
        result = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env=os.environ | {"TARQ_CPU_ISA": isa},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode == 0) == ok, result.stderr


@native
@pytest.mark.skipif("avx512_bf16" not in ISAS, reason="this CPU has no bfloat16 instructions: nothing is made dense")
@pytest.mark.parametrize("bias", [True, False])
def test_large_layers_are_made_dense_in_slices(bias: bool, monkeypatch: pytest.MonkeyPatch):
    """More than 24 MB of dense weights: several library calls, the last on fewer rows."""
    monkeypatch.setenv("TARQ_CPU_ISA", "avx512_bf16")
    layer = make_layer(3001, 4608, 128)
    x, offset = torch.randn(210, 4608).bfloat16(), torch.randn(3001) if bias else None
    with threads(2):
        y = w4_linear(x, PackedWeight(*layer, offset, 4608, 128))
    assert_accurate(y, x, layer, offset, 4608, 128)


#: The library's product fails where the speed of expanded weights is measured, on one thread.
FAILING = """
import torch
from tarq.kernels.w4_linear import PackedWeight, w4_linear
library = torch.library.Library("aten", "IMPL")
library.impl("linear", lambda *_: (_ for _ in ()).throw(MemoryError("planted")), "CPU")
torch.set_num_threads(2)
weight = PackedWeight(torch.zeros(64, 16, dtype=torch.int32), torch.ones(64, 1).half(), None, None, 128, 128)
try:
    w4_linear(torch.ones(128, 128).bfloat16(), weight)
except MemoryError as error:
    print(error, torch.get_num_threads())
"""


@native
@pytest.mark.skipif("avx512_bf16" not in ISAS, reason="this CPU has no bfloat16 instructions: nothing is measured")
def test_the_number_of_threads_comes_back_after_an_error():
    environment = {name: value for name, value in os.environ.items() if name != "TARQ_CPU_ISA"}
    command = [sys.executable, "-P", "-W", "ignore", "-c", FAILING]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["planted", "2"], done.stderr


@native
def test_the_function_can_be_traced_whole():
    torch._dynamo.reset()
    weight = PackedWeight(*make_layer(12, 64, 32), torch.randn(12), 64, 32)
    traced = torch.compile(lambda x: w4_linear(x, weight) * 2, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 64)
    torch.testing.assert_close(traced(x), w4_linear(x, weight) * 2)
