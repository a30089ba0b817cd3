"""The Triton kernel of ``group_refine`` against the reference: interpreted, or on the GPU where there is one."""

import pytest
import torch
from tarq.kernels.group_quantize import factorize, group_quantize, reference
from tarq.kernels.scheme import Scheme

launch = pytest.importorskip(
    "tarq.kernels.group_quantize.triton.launch", reason="Triton is not installed", exc_type=ImportError
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module", autouse=True)
def fill_uninitialized_memory():
    """Have ``torch.empty`` hold NaN on a CPU, so that an entry left unwritten shows."""
    torch.use_deterministic_algorithms(DEVICE == "cpu")
    yield
    torch.use_deterministic_algorithms(False)


def problem(m: int, n: int, scheme: Scheme, scale_dtype: torch.dtype = torch.float32) -> tuple:
    """The arguments of ``reference.refine`` but the number of passes: a layer that was swept, in float32."""
    generator = torch.Generator().manual_seed(m + n)
    x = torch.randn(3 * n + 20, n, generator=generator) + 0.5
    x[:, 1::17] *= 5
    v = torch.randn(m, n, generator=generator) * 0.02
    factor = factorize(x.mT @ x)
    q = group_quantize(v, factor, scheme, scale_dtype=scale_dtype)
    tensors = v, factor.damped(x.mT @ x), q.codes, q.scales, q.zeros, q.loss
    return *(t.to(DEVICE) for t in tensors), scheme


def exact_loss(v, hessian, codes, scales, zeros, scheme) -> torch.Tensor:
    group = torch.arange(v.shape[1], device=v.device) // scheme.group_size
    error = v.double() - (codes.double() - zeros.double()[:, group]) * scales.double()[:, group]
    return ((error @ hessian.double()) * error).sum(1)


@pytest.mark.parametrize(
    ("m", "n", "scheme", "scale_dtype"),
    [
        (5, 45, Scheme(group_size=16), torch.float16),  # a ragged last group
        (1, 20, Scheme(bits=3, group_size=5, symmetric=False), torch.float32),
        (3, 70, Scheme(bits=2, group_size=64), torch.float32),
        (9, 33, Scheme(bits=8, group_size=128, symmetric=False), torch.float16),  # a group is wider than the row
        (2, 150, Scheme(group_size=140), torch.float16),  # wider than a launch
        pytest.param(13, 200, Scheme(group_size=128), torch.float16, marks=pytest.mark.slow),
        pytest.param(6, 300, Scheme(group_size=1000, symmetric=False), torch.float32, marks=pytest.mark.slow),
        pytest.param(5, 128, Scheme(group_size=32), torch.bfloat16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_it_is_the_reference(m, n, scheme, scale_dtype):
    arguments = problem(m, n, scheme, scale_dtype)
    v, hessian, codes, scales, zeros, loss, _ = arguments
    got = launch.group_refine_triton(*arguments, 2)
    expected = reference.refine(v.double(), hessian.double(), codes, scales, zeros, loss, scheme, 2)
    assert [t.dtype for t in got] == [torch.uint8, scale_dtype, torch.float64]
    # A value within float32 error of half-way may fall either way, and then what is behind it in its row.
    alike = (got[0] == expected[0]).all(1)
    if scale_dtype != torch.bfloat16 or DEVICE == "cuda":  # the interpreter cuts bfloat16 off instead of rounding
        assert int((~alike).sum()) <= max(1, m // 10)
    torch.testing.assert_close(
        got[1][alike], expected[1][alike], rtol=2e-2 if scale_dtype == torch.bfloat16 else 2e-3, atol=0
    )
    before, after = (exact_loss(v, hessian, c, s, zeros, scheme) for c, s in ((codes, scales), got[:2]))
    assert bool((after <= before).all())
    assert float(after.sum()) < float(before.sum())
    assert bool(((got[2] - after).abs() <= 1e-4 * before).all())


def test_arguments_are_left_alone_and_need_not_be_contiguous():
    arguments = problem(4, 40, Scheme(group_size=16), torch.float16)
    before = [t.clone() for t in arguments[:6]]
    apart = [torch.stack([t, t], -1)[..., 0] for t in arguments[:6]]
    assert not apart[0].is_contiguous()
    expected = launch.group_refine_triton(*arguments, 1)
    for a, b in zip(expected, launch.group_refine_triton(*apart, arguments[6], 1), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(before, arguments[:6], strict=True))


@pytest.mark.parametrize(("wanted", "usable"), [(8160.0, True), (8400.0, False), (1e6, False), (-100.0, False)])
def test_a_scale_that_cannot_be_stored_stays(wanted, usable):
    codes = torch.tensor([[0, 15, 1, 14]], dtype=torch.uint8)
    v = (codes.float() - 8) * wanted
    loss = ((codes.float() - 8) * 8000 - v).square().sum(1).double() * 1.01
    scales, zeros = torch.tensor([[8000.0]]).half(), torch.tensor([[8]], dtype=torch.uint8)
    arguments = [t.to(DEVICE) for t in (v, torch.eye(4), codes, scales, zeros, loss)]
    _, got, _ = launch.group_refine_triton(*arguments, Scheme(4, 4), 1)
    assert got.item() == torch.tensor(wanted if usable else 8000.0).half().item()


def test_no_rows_are_no_launch():
    arguments = problem(3, 20, Scheme(group_size=8))
    empty = [t[:0] if i != 1 else t for i, t in enumerate(arguments[:6])]
    got = launch.group_refine_triton(*empty, arguments[6], 2)
    assert [tuple(t.shape) for t in got] == [(0, 20), (0, 3), (0,)]


def test_the_callers_precision_is_kept():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        launch.group_refine_triton(*problem(2, 20, Scheme(group_size=8)), 1)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_launch_is_one_that_was_compiled(monkeypatch, record_launches, benchmark_script, scale_dtype):
    """Of groups of all widths, wider than a launch and than the row, and layers whose tensors lie anywhere."""
    launched = []

    def note(kernel, given, options):
        names = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        assert all(t.is_contiguous() and t.data_ptr() % 16 == 0 for t in tensors.values())
        kinds = {name: names[t.dtype] for name, t in tensors.items()}
        constants = {name: value for name, value in (given | options).items() if name.isupper() or name == "num_warps"}
        launched.append((kinds, constants))

    record_launches(launch, ("refine_kernel",), note)
    for n in (1, 12, 129, 300):
        for size in (1, 5, 16, 32, 50, 64, 100, 128, 200, 1000):
            groups = -(-n // size)
            scales = torch.ones(3, 2 * groups, dtype=scale_dtype, device=DEVICE)[:, ::2]
            codes = torch.full((3, n), 8, dtype=torch.uint8, device=DEVICE)
            zeros = torch.full((7, groups), 8, dtype=torch.uint8, device=DEVICE)[1:4]
            weight = torch.zeros(3 * n + 1, device=DEVICE)[1:].view(3, n)
            hessian = torch.eye(2 * n, device=DEVICE)[:n, :n]
            loss = torch.ones(3, dtype=torch.float64, device=DEVICE)
            launch.group_refine_triton(weight, hessian, codes, scales, zeros, loss, Scheme(4, size), 1)
    monkeypatch.undo()

    compiled = []
    for one in benchmark_script("triton_variants").of_group_refine():
        names = one.kernel.arg_names
        assert list(one.signature) == list(names)
        pointers = {name: kind for name, kind in one.signature.items() if kind.startswith("*")}
        assert all(one.attrs[(names.index(name),)] == [["tt.divisibility", 16]] for name in pointers)
        given = {names[i]: value for (i,), value in one.constexprs.items()}
        compiled.append((pointers, given | one.options))
    assert {constants["WIDTH"] for _, constants in launched} == {constants["WIDTH"] for _, constants in compiled}
    assert {constants["REFIT"] for _, constants in launched} == {True, False}
    assert all(one in compiled for one in launched)
