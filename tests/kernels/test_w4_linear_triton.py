"""w4_linear on CUDA: every kernel against float64, on a GPU where there is one, else interpreted."""

from __future__ import annotations

import re
from itertools import cycle, pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tarq.kernels import triton_runtime
from tarq.kernels.w4_linear import PackedWeight, dequantize, pack, pack_zeros, w4_linear
from tarq.kernels.w4_linear.triton.layout import prepack, unprepack
from tarq.kernels.w4_linear.triton.plan import DENSE, Plan, choose, entry, plan_of, tiles
from torch import Tensor

from . import layers
from .layers import Layer

launch = pytest.importorskip(
    "tarq.kernels.w4_linear.triton.launch", reason="Triton is not installed", exc_type=ImportError
)
interpreter = pytest.importorskip("triton.runtime.interpreter", exc_type=ImportError)

w4_linear_triton = launch.w4_linear_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

HALVES = (torch.float16, torch.bfloat16)

PLANS = {
    "gemv 1": Plan("gemv", 1, 64, 8, 3),
    "gemv 8": Plan("gemv", 8, 16, 8, 4),
    "gemm 16": Plan("gemm", 16, 128, 8, 4),
    "gemm 64": Plan("gemm", 64, 64, 4, 3),
    "split": Plan("gemm", 32, 64, 4, 4, split_k=4),
    "dense": DENSE,
}

SCALES = (*HALVES, torch.float32)

# What an error may be of Σ|x||w| + |b|: half a unit in the result's last place and a little for the sums. Dense
# weights are rounded to the dtype of x as well.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5.2e-4, torch.bfloat16: 4.1e-3}


# ---- what the interpreter lacks ----------------------------------------------------------------------------


def halves(words: np.ndarray, dtype: torch.dtype) -> Tensor:
    """uint32 [...] to the two 16-bit floats in each of them, float64 [..., 2]."""
    return torch.from_numpy(np.ascontiguousarray(words)[..., None].view(np.int16)).view(dtype).double()


def run_ptx(line: str, registers: dict[str, np.ndarray]) -> None:
    """One of the instructions that unpack codes, for all elements of the uint32 ``registers``."""
    name, operands = line.split(" ", 1)
    target, *sources = (operand.strip(" {}") for operand in operands.split(","))
    if name == "lop3.b32":
        a, b, c = (registers[source] for source in sources[:3])
        terms = ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c) for i in range(8))
        table = int(sources[3], 16)
        registers[target] = np.bitwise_or.reduce([term for i, term in enumerate(terms) if table >> i & 1])
    elif name in ("fma.rn.f16x2", "fma.rn.bf16x2"):
        dtype = torch.bfloat16 if "bf16" in name else torch.float16
        a, b, c = (halves(registers[source], dtype) for source in sources)
        registers[target] = (a * b + c).to(dtype).view(torch.int16).numpy().view(np.uint32)[..., 0]
    elif name == "mov.b32":
        high, source = sources
        registers[target], registers[high] = np.moveaxis(registers[source][..., None].view(np.uint16), -1, 0)
    else:
        raise NotImplementedError(line)


def inline_asm(builder, asm, constraints, values, types, is_pure, pack):
    """``InterpreterBuilder.create_inline_asm``, which raises NotImplementedError."""
    registers = {f"${len(types) + i}": value.data.astype(np.uint32) for i, value in enumerate(values)}
    for line in asm.strip("{}").replace("\n", "").split(";"):
        if line and not line.startswith(".reg"):
            run_ptx(line, registers)
    results = [
        interpreter.TensorHandle(registers[f"${i}"].view(interpreter._get_np_dtype(kind.scalar)), kind.scalar)
        for i, kind in enumerate(types)
    ]
    return type("Call", (), {"get_result": staticmethod(results.__getitem__)})


def dot(builder, a, b, d, input_precision, max_num_imprecise_acc):
    """``InterpreterBuilder.create_dot``, which takes the bits of a bfloat16 for an integer."""

    def value(handle) -> np.ndarray:
        if handle.dtype.scalar.is_bf16():
            return (handle.data.astype(np.uint32) << 16).view(np.float32)
        return handle.data.astype(np.float32)

    return interpreter.TensorHandle(np.matmul(value(a), value(b)) + d.data, d.dtype.scalar)


def truncate_float(builder, value, kind):
    """``InterpreterBuilder.create_fp_trunc``, which rounds to bfloat16 towards zero."""
    if kind.scalar.is_bf16():
        rounded = torch.from_numpy(np.ascontiguousarray(value.data)).bfloat16()
        return interpreter.TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), kind.scalar)
    return builder.cast_impl(value, kind)


@pytest.fixture(autouse=True, scope="module")
def _complete_interpreter():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_inline_asm", inline_asm)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
        patch.setattr(interpreter.InterpreterBuilder, "create_fp_trunc", truncate_float)
        yield


# ---- helpers -----------------------------------------------------------------------------------------------


def make_layer(*shape: int, **options: Any) -> Layer:
    return layers.make_layer(*shape, **options, device=DEVICE)


def laid_out(layer: tuple, bias: Tensor | None, columns: int, group: int) -> PackedWeight:
    """A layer as the kernels read it."""
    return prepack(PackedWeight(*layer, bias, columns, group))


def on_device(*tensors: Tensor | None) -> tuple:
    return tuple(None if tensor is None else tensor.to(DEVICE) for tensor in tensors)


def assert_accurate(
    y: Tensor, x: Tensor, layer: Layer, bias: Tensor | None, columns: int, group: int, *, dense: bool = False
) -> None:
    """Weights are rounded only if ``dense``."""
    assert y.dtype == x.dtype
    layers.assert_product(y, x, layer, bias, columns, group, TOLERANCE[x.dtype] * (2 if dense else 1))


def check(plan, m: int, n: int, k: int, group: int, *, dtype=torch.float16, symmetric=True, bias=True):
    layer = make_layer(n, k, group, symmetric=symmetric, scale=SCALES[(m + n + k) % 3])
    x = torch.randn(m, k, device=DEVICE).to(dtype)
    offset = torch.randn(n, device=DEVICE).to(dtype) if bias else None
    y = w4_linear_triton(x, laid_out(layer, offset, k, group), plan=plan)
    dense = plan == DENSE or m > 256 or group not in (32, 64, 128, 256)
    assert_accurate(y, x, layer, offset, k, group, dense=dense)


# ---- layout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 127), (8, 128), (17, 129), (33, 400)])
def test_prepacking_round_trip(rows: int, columns: int, symmetric: bool):
    layer = make_layer(rows, columns, 32, symmetric=symmetric)
    stored = PackedWeight(*layer, torch.randn(rows, device=DEVICE), columns, 32)
    prepacked = prepack(stored)
    for tensor in prepacked[:4]:
        assert tensor is None or (tensor.is_contiguous() and tensor.data_ptr() % 16 == 0)
    for found, original in zip(unprepack(prepacked), stored, strict=True):
        assert torch.equal(found, original) if isinstance(original, Tensor) else found == original


def test_prepacked_order():
    codes = torch.randint(0, 16, (5, 256), dtype=torch.uint8)
    words = prepack(PackedWeight(pack(codes, 4), torch.ones(5, 2), None, None, 256, 128)).packed
    assert words.shape == (2, 5, 16)
    for block, word, i in ((0, 0, 0), (0, 15, 7), (1, 6, 3), (1, 9, 4)):
        column = 128 * block + 32 * (i % 4) + 2 * word + i // 4
        assert torch.equal(words[block, :, word] >> 4 * i & 15, codes[:, column].int())


# ---- the kernels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_every_kernel_once(name: str):
    """Ragged rows, tokens, K and last group; four groups in a K block; zero points and a bias."""
    check(PLANS[name], 3, 21, 200, 32, symmetric=False)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("name", [name for name in PLANS if name != "dense"])
@pytest.mark.slow
def test_one_hot_inputs_read_the_weight(name: str, group: int, dtype: torch.dtype):
    """Every code meets every zero point, and each input its own code: exact, since scales are powers of two."""
    columns = 272
    codes = (torch.arange(columns) % 16 + torch.arange(32)[:, None]) % 16
    zeros = (torch.arange(-(-columns // group)) * 5 + torch.arange(32)[:, None]) % 16
    scales = 2.0 ** (torch.arange(zeros.numel()).reshape(zeros.shape) % 5 - 2)
    layer = on_device(pack(codes.byte(), 4), scales.to(dtype), pack_zeros(zeros.byte(), 4))
    eye = torch.eye(columns, device=DEVICE, dtype=dtype)
    plan = PLANS[name]
    plan = plan._replace(block_m=8 if plan.kernel == "gemv" else 64)  # gemv holds x of all its warps in shared memory
    y = w4_linear_triton(eye, laid_out(layer, None, columns, group), plan=plan)
    assert torch.equal(y.T, dequantize(*layer, columns, group))


@pytest.mark.parametrize("n", [1, 3, 127, 128, 129, 384])
@pytest.mark.parametrize("k", [1, 3, 8, 24, 127, 128, 129, 288, 384])
@pytest.mark.slow
def test_shapes(n: int, k: int):
    """Ragged rows, blocks and groups; each shape with other tokens, groups, dtypes and kernels, in turn."""
    turn = n + k
    group = (32, 64, 128)[turn % 3]
    for plan, m in (("gemv 1", 1), ("gemm 16", 3), ("split", 17)):
        check(PLANS[plan], m, n, k, group, dtype=HALVES[turn % 2], symmetric=turn % 4 < 2, bias=turn % 8 < 4)


@pytest.mark.parametrize("m", [0, 1, 3, 8, 16, 17, 65])
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.slow
def test_tokens(name: str, m: int):
    check(PLANS[name], m, 24, 200, 64, symmetric=False)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, 256, 40, 200, 1024])
@pytest.mark.parametrize("name", ["gemv 8", "split", "dense"])
@pytest.mark.slow
def test_groups(name: str, group: int, symmetric: bool):
    """Groups of parts of a block, of several blocks, of all of K, and those that fit no block."""
    for k in (200, 520):
        check(PLANS[name], 5, 20, k, group, symmetric=symmetric, dtype=HALVES[group % 3 % 2])


@pytest.mark.parametrize("m", [1, 5, 16, 40, 64, 100, 300])
@pytest.mark.slow
def test_chosen_plan(m: int):
    check(None, m, 72, 300, 128, symmetric=False)


@pytest.mark.parametrize("name", ["gemv 8", "gemm 64", "dense"])
@pytest.mark.slow
def test_strides(name: str):
    layer = make_layer(10, 96, 32, symmetric=False)
    bias = torch.randn(20, device=DEVICE).half()[::2]
    base = torch.randn(40, 40, 192, device=DEVICE).half()
    for x in (
        base[0].T[:96],
        base[0, :7, ::2],
        base[0, :7, 3:99],
        base[0, :1, :96].expand(7, 96),
        base[:3, :5, :96].transpose(0, 1),
        base[1, 2, 96:],
        base[:0, 0, 1:97],
    ):
        x = x if x.shape[-1] == 96 else x.T
        y = w4_linear_triton(x, laid_out(layer, bias, 96, 32), plan=PLANS[name])
        assert_accurate(y, x, layer, bias, 96, 32, dense=name == "dense")


def test_layer_as_on_disk():
    """No prepacking: the same result as prepacked and dense, whatever the strides."""
    layer = make_layer(10, 200, 40, symmetric=False)
    x = torch.randn(2, 3, 200, device=DEVICE).half()
    expected = w4_linear_triton(x, laid_out(layer, None, 200, 40), plan=DENSE)
    assert torch.equal(w4_linear_triton(x, PackedWeight(*layer, None, 200, 40)), expected)
    strided = tuple(torch.stack([tensor, tensor], -1)[..., 0] for tensor in layer)
    assert torch.equal(w4_linear_triton(x, PackedWeight(*strided, None, 200, 40)), expected)
    assert_accurate(expected, x, layer, None, 200, 40, dense=True)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("name", [name for name in PLANS if name != "dense"])
@pytest.mark.slow
def test_values_near_the_limits_of_float16(name: str):
    """Sums far beyond float16 inside a group cancel without overflow; results beyond it are infinite."""
    codes = torch.full((16, 256), 15, dtype=torch.uint8)
    codes[:, 1::2] = 1  # code − zero is 7 and −7
    scales = torch.full((16, 2), 2**-10).half()
    layer = on_device(pack(codes, 4), scales, None)
    x = torch.full((9, 256), 65504.0, device=DEVICE, dtype=torch.float16)
    x[:, 0] = 60000
    y = w4_linear_triton(x, laid_out(layer, None, 256, 128), plan=PLANS[name])
    assert torch.equal(y, torch.full_like(y, 7 * (60000 - 65504) / 1024))
    x[:, 1::2] *= -1
    y = w4_linear_triton(x, laid_out(layer, None, 256, 128), plan=PLANS[name])
    assert torch.equal(y, torch.full_like(y, torch.inf))
    small = torch.full_like(x, 2**-24)  # the smallest subnormal
    y = w4_linear_triton(small, laid_out(layer, torch.ones(16, device=DEVICE), 256, 128), plan=PLANS[name])
    assert torch.equal(y, torch.ones_like(y))


@pytest.mark.parametrize("scale", SCALES)
def test_float32_is_as_exact_as_the_reference(scale: torch.dtype):
    """Weights are not rounded to the scales' dtype, in either layout."""
    layer = make_layer(20, 136, 32, symmetric=False, scale=scale)
    weight = dequantize(layer[0], layer[1].float(), layer[2], 136, 32)
    stored = PackedWeight(*layer, None, 136, 32)
    for own in (prepack(stored), stored):
        assert torch.equal(w4_linear_triton(torch.eye(136, device=DEVICE), own).T, weight)
    x = torch.randn(5, 136, device=DEVICE)
    assert_accurate(w4_linear_triton(x, laid_out(layer, None, 136, 32)), x, layer, None, 136, 32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scale", SCALES)
def test_dense_weights_are_rounded_once(scale: torch.dtype, dtype: torch.dtype):
    """To the dtype of x, whatever that of the scales."""
    layer = make_layer(20, 136, 32, symmetric=False, scale=scale)
    y = w4_linear_triton(torch.eye(136, device=DEVICE, dtype=dtype), laid_out(layer, None, 136, 32), plan=DENSE)
    assert torch.equal(y.T, dequantize(layer[0], layer[1].float(), layer[2], 136, 32).to(dtype))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.slow
def test_tensors_that_are_not_aligned(name: str):
    """Every stored tensor and x an element into its storage, K and the stride of x no multiple of a vector."""

    def shifted(tensor: Tensor) -> Tensor:
        storage = torch.cat([tensor.flatten()[:1], tensor.flatten()])
        return storage[1:].view(tensor.shape)

    layer = make_layer(10, 100, 32, symmetric=False)
    x, bias = shifted(torch.randn(9, 101, device=DEVICE).half())[:, :100], torch.randn(10, device=DEVICE).half()
    y = w4_linear_triton(x, laid_out(tuple(map(shifted, layer)), shifted(bias), 100, 32), plan=PLANS[name])
    assert torch.equal(y, w4_linear_triton(x.contiguous(), laid_out(layer, bias, 100, 32), plan=PLANS[name]))
    assert_accurate(y, x, layer, bias, 100, 32, dense=name == "dense")


@pytest.mark.parametrize("prepacked", [True, False])
def test_activations_that_do_not_fit_are_named(prepacked: bool):
    """The weight was looked at when it was laid out (``test_w4_linear.py``); every call looks at x."""
    stored = PackedWeight(*make_layer(5, 72, 32, symmetric=False), None, 72, 32)
    weight = prepack(stored) if prepacked else stored
    for x, message in (
        (
            torch.randn(2, 71, device=DEVICE),
            "the last dimension of x must be in_features = 72, but x has shape [2, 71]",
        ),
        (torch.randn(2, 144, device=DEVICE), "the last dimension of x must be in_features = 72"),
        (torch.tensor(1.0, device=DEVICE), "the last dimension of x must be in_features = 72"),
        (torch.randn(2, 72, device=DEVICE).double(), "x must be float32, bfloat16 or float16, not torch.float64"),
        (torch.randn(2, 72, device="meta"), "x is on meta but the weight on"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(f"w4_linear: {message}")):
            w4_linear_triton(x, weight)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(sorted(PLANS)),
    m=st.integers(1, 20),
    n=st.integers(1, 70),
    k=st.integers(1, 300),
    group=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from(HALVES),
    symmetric=st.booleans(),
    bias=st.booleans(),
)
@pytest.mark.slow
def test_any_shape(name, m, n, k, group, dtype, symmetric, bias):
    check(PLANS[name], m, n, k, group, dtype=dtype, symmetric=symmetric, bias=bias)


# ---- choice ------------------------------------------------------------------------------------------------

CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_choice(capability: tuple[int, int]):
    """Total, and with more tokens never back from dense to a tile."""
    compiled = set(tiles(capability)) | {DENSE}
    for n in (1, 384, 1280, 5120, 16384, 51866):
        for k in (1, 384, 1280, 5120, 16384):
            for sms in (28, 132, 148):
                plans = [choose(m, n, k, capability, sms) for m in (1, 2, 8, 9, 16, 17, 64, 65, 256, 257, 10**6)]
                order = [plan.kernel == "dense" for plan in plans]
                assert order == sorted(order)
                assert not order[0]
                assert order[-1]
                for plan in plans:
                    assert plan._replace(split_k=1) in compiled
                    assert plan.split_k in (1, 2, 4, 8, 16)
                    assert plan.split_k == 1 or (plan.kernel == "gemm" and plan.split_k * 2 <= -(-k // 128))


def test_choice_follows_the_chip_and_the_layer():
    assert choose(1, 4096, 4096, (7, 5), 40) == DENSE
    assert choose(40, 1280, 5120, (9, 0), 132).split_k > choose(40, 1280, 5120, (9, 0), 28).split_k
    assert choose(4, 1280, 1280, (9, 0), 132).kernel == "gemv"
    assert choose(4, 1280, 5120, (9, 0), 132).split_k == 16
    assert choose(1, 4096, 4096, (9, 0), 132, groups=4) != DENSE == choose(200, 4096, 4096, (9, 0), 132, groups=4)
    # Where the plan of the nearest layer has no room for so many groups, another's.
    assert choose(64, 16384, 16384, (9, 0), 132).block_n > choose(64, 16384, 16384, (9, 0), 132, groups=4).block_n > 0


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_table(capability: tuple[int, int]):
    known = entry(capability)
    assert known
    assert all(a["max_m"] < b["max_m"] for a, b in pairwise(known["regimes"]))
    for regime in known["regimes"]:
        assert len({(layer["outputs"], layer["inputs"]) for layer in regime["layers"]}) == len(regime["layers"])
        for layer in regime["layers"]:
            plan = plan_of(layer)
            assert plan.kernel in ("gemv", "gemm", "dense")
            # Its own layer on its own chip gets exactly this plan.
            at = regime["max_m"], layer["outputs"], layer["inputs"]
            assert choose(*at, capability, known["sm_count"]) == plan
            # Packed words are read once for all the tokens of a call, as long as it is bound by reading them.
            assert regime["max_m"] > 64 or plan.block_m >= regime["max_m"]


#: Those whose tiles differ in kind: some of the latter limit their registers.
CAPABILITIES = [(9, 0), (10, 0)]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compilations(capability: tuple[int, int], benchmark_script):
    """Each has a name of its own, a type for every argument, and names no argument twice."""
    variants = benchmark_script("triton_variants")
    entries = list(variants.of_w4_linear(capability, variants=variants.ALL_VARIANTS))
    assert len({name for name, *_ in entries}) == len(entries)
    for name, kernel, signature, constexprs, attrs, options in entries:
        assert list(signature) == list(kernel.arg_names), name
        constants = {i for i, kind in enumerate(signature.values()) if kind == "constexpr"}
        assert {i for (i,) in constexprs} == constants, name
        assert not constants & {i for (i,) in attrs}, name
        assert set(options) <= {"num_warps", "num_stages", "maxnreg"}, name


NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32"}


def specialized(kernel, given: dict) -> dict:
    """What Triton compiles a launch of ``kernel`` with these arguments for: name to type or value."""
    told = kernel.kwargs if hasattr(kernel, "kwargs") else vars(kernel)  # interpreted or not
    found = {}
    for name, value in given.items():
        multiple = name not in (told["do_not_specialize_on_alignment"] or ())
        if isinstance(value, Tensor):
            kind = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32"}[
                value.dtype
            ]
            found[name] = f"*{kind}", value.data_ptr() % 16 == 0
        elif name not in kernel.arg_names or name.isupper() or value is None:
            found[name] = value
        elif name in (told["do_not_specialize"] or ()):
            found[name] = "i32", False
        else:
            found[name] = 1 if value == 1 else ("i32", multiple and value % 16 == 0)
    return found


#: Arguments of gemv and gemm that matter when K has been summed, and those that matter until then.
ENDS, LOOPS = {"bias_ptr", "y_ptr", "N_UNIT"}, {"scale_ptr", "zero_ptr", "GROUPS", "blocks"}


def seen(kernel, arguments: dict) -> set:
    """A specialization, of gemv and gemm in two halves: compiled are both, not each half with each."""
    halves = (ENDS, LOOPS) if "GROUPS" in arguments else (set(),)
    return {
        (kernel, frozenset((name, value) for name, value in arguments.items() if name not in half)) for half in halves
    }


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.slow
def test_every_launch_is_one_that_was_compiled(
    monkeypatch: pytest.MonkeyPatch, record_launches, benchmark_script, capability: tuple[int, int]
):
    """Of all dtypes, groups of all kinds, sizes that are multiples of vectors and such that are not, one among them."""
    launched = []

    def note(kernel, given, constants):
        launched.append((kernel, specialized(kernel, given)))

    monkeypatch.setattr(triton_runtime, "chip", lambda device: (capability, 132))
    record_launches(launch, ("gemv_kernel", "gemm_kernel", "reduce_kernel", "dequantize_kernel"), note)
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *arguments: None)
    known = entry(capability)
    assert known
    tokens = [regime["max_m"] for regime in known["regimes"]] + [1000]
    calls = product(
        ((1, 1), (24, 200), (32, 1280), (384, 5120), (8192, 1280)),
        (32, 64, 128, 256, 2048, 40),
        (True, False),
        SCALES,
        SCALES,
    )
    for ((n, k), group, symmetric, scale, dtype), bias in zip(calls, cycle((None, *SCALES, None)), strict=False):
        groups = -(-k // group)
        stored = PackedWeight(
            torch.zeros(n, -(-k // 8), device=DEVICE, dtype=torch.int32),
            torch.ones(n, groups, device=DEVICE, dtype=scale),
            None if symmetric else torch.zeros(-(-n // 8), groups, device=DEVICE, dtype=torch.int32),
            None if bias is None else torch.zeros(n, device=DEVICE, dtype=bias),
            k,
            group,
        )
        weight = stored._replace(
            packed=torch.zeros(-(-k // 128), n, 16, device=DEVICE, dtype=torch.int32),
            scale=torch.ones(groups, n, device=DEVICE, dtype=scale),
            zeros=None if symmetric else torch.zeros(groups, n, device=DEVICE, dtype=torch.int32),
            layout="triton",
        )
        x = torch.zeros(tokens[-1], k + 3, device=DEVICE, dtype=dtype)
        for m in tokens:
            w4_linear_triton(x[:m, :k], weight)
        w4_linear_triton(x[3:5, 3:], weight)
        w4_linear_triton(x[:3, :k], stored)
    monkeypatch.undo()

    compiled = set()
    variants = benchmark_script("triton_variants")
    every = variants.of_w4_linear(capability, variants=variants.ALL_VARIANTS)
    for _, kernel, signature, constexprs, attrs, options in every:
        arguments = {
            name: constexprs.get((i,), (kind, (i,) in attrs)) for i, (name, kind) in enumerate(signature.items())
        }
        compiled |= seen(kernel, arguments | options)
    asked = set().union(*(seen(*launch) for launch in launched))
    assert {kernel.__name__ for kernel, _ in asked} == {f"{n}_kernel" for n in ("gemv", "gemm", "reduce", "dequantize")}
    missing = [f"{kernel.__name__}: {sorted(arguments, key=str)}" for kernel, arguments in asked - compiled]
    assert not missing


# ---- on a GPU ----------------------------------------------------------------------------------------------

SHAPES = [(4096, 4096), (1280, 1280), (1280, 5120), (5120, 1280), (1111, 1000)]


@pytest.mark.gpu
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_large_shapes(n: int, k: int, dtype: torch.dtype, symmetric: bool):
    for m in (1, 2, 8, 11, 16, 32, 64, 100, 256, 1500):
        for group in (128, 32):
            check(None, m, n, k, group, dtype=dtype, symmetric=symmetric)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
def test_every_tile_of_this_chip(dtype: torch.dtype):
    for tile in tiles(torch.cuda.get_device_capability()):
        for split in (1, 4) if tile.kernel == "gemm" else (1,):
            check(tile._replace(split_k=split), tile.block_m, 1280, 1280, 128, dtype=dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 16, 64, 300])
def test_cuda_graph(m: int):
    layer = make_layer(1280, 1280, 128, symmetric=False)
    bias = torch.randn(1280, device=DEVICE).half()
    weight = laid_out(layer, bias, 1280, 128)
    x = torch.randn(m, 1280, device=DEVICE).half()
    w4_linear_triton(x, weight)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = w4_linear_triton(x, weight)
    for _ in range(2):
        x.normal_()
        graph.replay()
        assert_accurate(y, x, layer, bias, 1280, 128, dense=m > 256)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 40])
def test_torch_compile(rows: int):
    layer, bias = make_layer(1280, 1280, 128), torch.randn(1280, device=DEVICE).half()
    weight = laid_out(layer, bias, 1280, 128)
    compiled = torch.compile(lambda x: w4_linear(x, weight) * 2, mode="reduce-overhead")
    for _ in range(4):  # runs, records a graph, replays it
        x = torch.randn(rows, 1280, device=DEVICE).half()
        assert_accurate(compiled(x) / 2, x, layer, bias, 1280, 128)
