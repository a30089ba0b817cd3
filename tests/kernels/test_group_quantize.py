"""``group_quantize``: the C++ sweep against the textbook sweep, and the promises of its public functions."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tarq.kernels import dispatch
from tarq.kernels.group_quantize import (
    Factor,
    Quantized,
    factorize,
    group_quantize,
    group_quantize_layers,
    op,
    round_to_nearest,
)
from tarq.kernels.group_quantize.reference import group_scales, textbook_sweep
from tarq.kernels.scheme import Scheme

from tarq.bench.measure import threads

native = pytest.mark.skipif(dispatch.EXTENSION_ERROR is not None, reason="the extension is not built")
ISAS = torch.ops.tarq.cpu_isas() if dispatch.EXTENSION_ERROR is None else []

SCHEMES = [
    Scheme(),
    Scheme(scale_rule="minmax"),
    Scheme(scale_rule="mse"),
    Scheme(symmetric=False),
    Scheme(symmetric=False, scale_rule="mse"),
    Scheme(bits=2, group_size=32),
    Scheme(bits=3, group_size=50, scale_rule="mse"),  # no multiple of the block, nor of a panel
    Scheme(bits=8, group_size=200, symmetric=False),  # longer than the block
    Scheme(group_size=1000),  # one group per row
    Scheme(group_size=5),
]


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small gain nothing from threads, and lose much on a busy machine."""
    with threads(1):
        yield


COLUMNS = (1, 3, 127, 128, 129, 384, 300)


@cache
def gram_of_inputs(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + n)
    x = torch.randn(3 * n + 20, n, generator=generator, dtype=torch.float64)
    x = x @ (torch.eye(n, dtype=x.dtype) + torch.randn(n, n, generator=generator, dtype=x.dtype) / n**0.5)
    x[:, 1::17] *= 40
    return x.mT @ x


def hessian(n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Gram of correlated inputs, a few channels of which are forty times as loud, as in real layers."""
    return gram_of_inputs(n, seed).to(dtype, copy=True)


def weights(m: int, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + m + n)
    return torch.randn(m, n, generator=generator, dtype=torch.float64).to(dtype) * 0.02


def falling(h: torch.Tensor) -> torch.Tensor:
    return torch.argsort(h.diagonal(), descending=True)


def damped(h: torch.Tensor, damp: float = 0.01) -> torch.Tensor:
    return h + damp * h.diagonal().mean() * torch.eye(h.shape[0], dtype=h.dtype)


def exact(q: Quantized) -> torch.Tensor:
    """The lattice points themselves: products in float64, not rounded to the scales' dtype."""
    group = torch.arange(q.codes.shape[1]) // q.group_size
    return (q.codes.double() - q.zeros.double()[:, group]) * q.scales.double()[:, group]


def quadratic_error(weight: torch.Tensor, quantized: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    error = weight.double() - quantized.double()
    return ((error @ metric.double()) * error).sum(1)


@cache
def swept_by_the_textbook(m: int, n: int, scheme: Scheme, ordered: bool) -> tuple[torch.Tensor, ...]:
    """Found once for all instruction sets."""
    h = hessian(n)
    return textbook_sweep(weights(m, n), damped(h), scheme, order=falling(h) if ordered else None)


@native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_native_is_the_textbook_sweep(scheme, isa, monkeypatch):
    monkeypatch.setenv("TARQ_CPU_ISA", isa)
    same = total = 0
    for n in COLUMNS if isa == ISAS[0] else (3, 129, 300):
        for m, ordered in ((1, False), (5, True), (33, False), (33, True))[2 if n >= 300 else 0 :]:
            h, w = hessian(n), weights(m, n)
            order = falling(h) if ordered else None
            got = group_quantize(w, factorize(h, order=order), scheme, backend="native")
            codes, scales, zeros = swept_by_the_textbook(m, n, scheme, ordered)
            same += int((got.codes == codes).sum())
            total += codes.numel()
            if torch.equal(got.codes, codes):  # else a tie went the other way, and all behind it
                torch.testing.assert_close(got.scales, scales)
                assert torch.equal(got.zeros, zeros)
                expected = quadratic_error(w, exact(got), damped(h))
                torch.testing.assert_close(got.loss, expected, rtol=1e-6, atol=1e-14)
    assert same >= 0.999 * total


@native
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("ordered", [False, True])
def test_backends_agree_on_loss_and_scales(scale_dtype, ordered):
    h, w = hessian(300), weights(33, 300)
    factor = factorize(h, order=falling(h) if ordered else None)
    for scheme in SCHEMES[:5]:
        ours, reference = (
            group_quantize(w, factor, scheme, scale_dtype=scale_dtype, backend=b) for b in ("native", "reference")
        )
        assert ours.scales.dtype == reference.scales.dtype == scale_dtype
        assert (ours.codes == reference.codes).double().mean() >= 0.999
        assert (ours.scales == reference.scales).double().mean() >= 0.99
        torch.testing.assert_close(ours.loss.sum(), reference.loss.sum(), rtol=1e-6, atol=0)


@native
@settings(deadline=None, max_examples=40)
@given(
    m=st.integers(1, 60),
    n=st.integers(1, 280),
    group=st.integers(1, 300),
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    rule=st.sampled_from(["absmax", "minmax", "mse"]),
    ordered=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    count_threads=st.integers(1, 3),
    seed=st.integers(0, 5),
)
@pytest.mark.slow
def test_native_on_any_shape(m, n, group, bits, symmetric, rule, ordered, dtype, count_threads, seed):
    h, w = hessian(n, dtype, seed=seed), weights(m, n, dtype, seed=seed)
    scheme = Scheme(bits, group, symmetric, rule)
    order = falling(h) if ordered else None
    with threads(count_threads):
        got = group_quantize(w, factorize(h, order=order), scheme, backend="native")
    expected = quadratic_error(w, exact(got), damped(h.double()))
    torch.testing.assert_close(got.loss, expected, rtol=1e-6 if dtype == torch.float64 else 1e-3, atol=1e-12)
    if dtype == torch.float64:
        # Half-way cases may fall either way, and then change the rest of their row: bound rows, not codes.
        codes, _, _ = textbook_sweep(w, damped(h), scheme, order=order)
        assert (got.codes != codes).any(1).sum() <= max(1, m // 20)


@native
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES[:6], ids=str)
def test_float32_is_as_good_as_float64(scheme, ordered):
    h, w = hessian(384), weights(48, 384)
    order = falling(h) if ordered else None
    precise = group_quantize(w, factorize(h, order=order), scheme)
    single = group_quantize(w.float(), factorize(h.float(), order=order), scheme)
    # Codes differ where a value was within float32 error of half-way; what is behind it adapts.
    assert (precise.codes == single.codes).double().mean() >= 0.97
    expected = quadratic_error(w, exact(single), damped(h))
    torch.testing.assert_close(single.loss, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(single.loss.sum(), precise.loss.sum(), rtol=1e-2, atol=0)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("isa", ISAS)
def test_native_factor(dtype, isa, monkeypatch):
    monkeypatch.setenv("TARQ_CPU_ISA", isa)
    for n in (1, 7, 191, 192, 193, 400, 577):
        h = hessian(n, dtype)
        ours, reference = factorize(h, backend="native"), factorize(h, backend="reference")
        assert torch.equal(ours.upper, ours.upper.triu())
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        scale = float(h.diagonal().max())
        for factor in (ours, reference):
            rebuilt = factor.upper.double() @ factor.upper.double().mT
            assert float((rebuilt - damped(h.double())).abs().max()) <= tolerance * scale


@native
def test_result_does_not_depend_on_threads():
    h, w = hessian(700, torch.float32), weights(301, 700, torch.float32)
    results = []
    for count_threads in (1, 2, 3, 7):
        with threads(count_threads):
            factor = factorize(h)
            results.append((factor.upper, *vars(group_quantize(w, factor, Scheme(scale_rule="mse"))).values()))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result[:-1], results[0][:-1], strict=True))


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native)])
def test_sweep_beats_rounding(backend):
    h, w = hessian(256), weights(20, 256)
    scheme = Scheme(group_size=64)
    swept = group_quantize(w, factorize(h), scheme, backend=backend)
    codes, scales, _ = round_to_nearest(w, scheme)
    rounded = (codes.double() - 8) * scales.double().repeat_interleave(64, 1)
    assert swept.loss.sum() < 0.9 * quadratic_error(w, rounded, damped(h)).sum()


def test_diagonal_hessian_is_rounding_to_nearest():
    w = weights(9, 200)
    h = torch.diag(torch.rand(200, dtype=torch.float64) + 0.5)
    for scheme in SCHEMES:
        got = group_quantize(w, factorize(h), scheme)
        codes, scales, zeros = round_to_nearest(w, scheme)
        assert torch.equal(got.codes, codes)
        assert torch.equal(got.scales, scales)
        assert torch.equal(got.zeros, zeros)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native)])
@pytest.mark.parametrize("scheme", [Scheme(group_size=16), Scheme(group_size=16, symmetric=False)], ids=str)
@pytest.mark.parametrize("ordered", [False, True])
def test_dead_columns_become_zero(backend, scheme, ordered):
    h = hessian(70)
    dead = torch.tensor([0, 31, 48, *range(16, 32), 69])
    h[dead] = 0
    h[:, dead] = 0
    factor = factorize(h, order=falling(h) if ordered else None, backend=backend)
    assert factor.dead.nonzero().flatten().tolist() == sorted(set(dead.tolist()))
    assert factor.retries == 0
    w = weights(5, 70)
    got = group_quantize(w, factor, scheme, backend=backend)
    assert not got.dequantize()[:, dead].any()
    assert (got.scales[:, 1] == 1).all()  # columns 16 … 31 are all dead: an all-zero group
    alive = ~factor.dead
    expected = quadratic_error(w[:, alive], exact(got)[:, alive], damped(h[alive][:, alive]))
    torch.testing.assert_close(got.loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native)])
def test_failed_cholesky_raises_the_damping(backend):
    h = hessian(40)
    eigenvalues = torch.linalg.eigvalsh(h)
    indefinite = h - (eigenvalues[0] + 0.05 * h.diagonal().mean()) * torch.eye(40, dtype=h.dtype)
    factor = factorize(indefinite, backend=backend)  # smallest eigenvalue −5 % of the mean: 1 % will not do
    assert (factor.retries, factor.damp) == (1, pytest.approx(0.1))
    singular = torch.ones(40, 40, dtype=torch.float32)
    factor = factorize(singular, damp=0.0, backend=backend)
    assert factor.retries >= 1
    assert factor.damp > 0
    hopeless = torch.eye(40) - 2 * torch.ones(40, 40).fill_diagonal_(0)
    with pytest.raises(torch.linalg.LinAlgError, match=r"not positive definite with damping 1 after 2 retries"):
        factorize(hopeless, backend=backend)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unsound_input_is_refused(bad):
    h = hessian(20)
    h[7, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        factorize(h)
    with pytest.raises(ValueError, match="input is always zero"):
        factorize(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"\[n, n\]"):
        factorize(torch.zeros(4, 5))
    factor, w = factorize(hessian(20)), weights(3, 20)
    with pytest.raises(ValueError, match=r"\[m, 20\]"):
        group_quantize(w[:, :19], factor, Scheme())
    with pytest.raises(ValueError, match="float64"):
        group_quantize(w, factor, Scheme(), scale_dtype=torch.float64)
    w[1, 1] = bad
    with pytest.raises(ValueError, match="not finite"):
        group_quantize(w, factor, Scheme())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[({"damp": bad}, "damping must be finite") for bad in (float("nan"), float("inf"), -0.1)],
        *[({"max_damp": bad}, "damping must be finite") for bad in (float("nan"), float("inf"), 0.001)],
        ({"hessian": torch.zeros(0, 0)}, r"must be \[n, n\], not \[0, 0\]"),
        ({"hessian": torch.full((4, 4), float("nan"))}, "not finite"),
        ({"hessian": torch.eye(4).half()}, "must be float32 or float64, not torch.float16"),
        ({"hessian": torch.eye(4).long()}, "must be float32 or float64, not torch.int64"),
        ({"hessian": torch.eye(4, device="meta")}, "meta device"),
        ({"order": torch.tensor([0, 1, 1, 3])}, "permutation"),
        ({"order": torch.arange(3)}, "permutation"),
        ({"order": torch.arange(4).float()}, "permutation"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native)])
def test_what_cannot_be_factored_is_refused(change, message, backend):
    arguments = {"hessian": torch.eye(4)} | change
    with pytest.raises(ValueError, match=message):
        factorize(**arguments, backend=backend)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((3, 20), float("nan")), "not finite"),
        (torch.full((3, 20), float("-inf")), "not finite"),
        (torch.full((3, 20), 1e300, dtype=torch.float64), "not finite"),
        (torch.ones(3, 20, dtype=torch.int32), "float matrix"),
        (torch.ones(3, 20, device="meta"), "meta device"),
        (torch.full((3, 20), 6e5), "float16 scales cannot hold"),  # the scale is clamped
        (torch.full((3, 20), 7e4), "float16 scales cannot hold"),  # the scale fits, its products do not
    ],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_would_not_come_back_are_refused(weight, message, symmetric):
    scheme, factor = Scheme(symmetric=symmetric), factorize(torch.eye(20))
    with pytest.raises(ValueError, match=message):
        group_quantize(weight, factor, scheme, scale_dtype=torch.float16)
    if weight.dtype != torch.float64:
        with pytest.raises(ValueError, match=message):
            round_to_nearest(weight, scheme, torch.float16)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native)])
def test_weights_too_small_for_their_scales_are_counted(backend):
    w = weights(4, 40, torch.float32)
    w[1, :20] *= 1e-4
    w[3] = 0  # all-zero groups lose nothing
    factor, scheme = factorize(torch.eye(40)), Scheme(group_size=20)
    for dtype, expected in ((torch.float16, 1), (torch.bfloat16, 0), (torch.float32, 0)):
        assert group_quantize(w, factor, scheme, scale_dtype=dtype, backend=backend).coarse_groups == expected
    for dtype in (torch.float16, torch.bfloat16):
        assert group_quantize(w, factor, scheme, scale_dtype=dtype, backend=backend).dequantize().isfinite().all()


@pytest.mark.parametrize("ordered", [False, True])
def test_solve(ordered):
    h = hessian(50)
    factor = factorize(h, order=falling(h) if ordered else None)
    rows = weights(6, 50)
    torch.testing.assert_close(factor.solve(rows) @ damped(h), rows)


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_round_to_nearest(scheme, scale_dtype):
    w = weights(7, 300)
    w[0, : scheme.group_size] = 0
    w[1] = 1e-9  # below what float16 scales can express
    w[2, :150] = w[2, 0]  # no span
    codes, scales, zeros = round_to_nearest(w, scheme, scale_dtype)
    assert codes.dtype == zeros.dtype == torch.uint8
    assert scales.dtype == scale_dtype
    assert int(codes.max()) <= scheme.max_code
    assert scales[0, 0] == 1
    assert (scales > 0).all()
    assert torch.isfinite(scales).all()
    if scheme.symmetric:
        assert (zeros == scheme.symmetric_zero).all()
    group = torch.arange(300) // scheme.group_size
    s, z = scales.double()[:, group], zeros.double()[:, group]
    lattice = torch.arange(scheme.max_code + 1, dtype=torch.float64)
    every = (lattice - z[..., None]) * s[..., None]
    chosen = ((codes.double() - z) * s - w).abs()
    torch.testing.assert_close(chosen, (every - w[..., None]).abs().amin(-1), rtol=0, atol=1e-12)


def test_scale_rules():
    w = torch.tensor([[-1.0, 0.25, 0.5, 2.0]], dtype=torch.float64)
    assert group_scales(w, Scheme(), torch.float32)[0].item() == pytest.approx(2 / 7.5)
    assert group_scales(w, Scheme(scale_rule="minmax"), torch.float32)[0].item() == pytest.approx(3 / 15)
    scale, zero = group_scales(w, Scheme(symmetric=False), torch.float32)
    assert (scale.item(), zero.item()) == (pytest.approx(0.2), 5)
    scale, zero = group_scales(w.abs(), Scheme(symmetric=False), torch.float32)  # the range includes zero
    assert (scale.item(), zero.item()) == (pytest.approx(2 / 15), 0)
    assert group_scales(w * 1e6, Scheme(), torch.float16)[0].item() == torch.finfo(torch.float16).max
    for symmetric in (True, False):
        w = weights(50, 128)
        errors = []
        for rule in ("absmax", "mse"):
            codes, scales, zeros = round_to_nearest(w, Scheme(3, 128, symmetric, rule))
            errors.append((w - (codes.double() - zeros) * scales.double()).square().sum(1))
        assert (errors[1] <= errors[0]).all()
        assert errors[1].sum() < 0.9 * errors[0].sum()


def test_quantized_dequantizes_in_the_dtype_of_its_scales():
    got = group_quantize(weights(3, 300), factorize(hessian(300)), Scheme(), scale_dtype=torch.bfloat16)
    assert got.scales.shape == (3, 3)
    expected = (got.codes.float() - 8).bfloat16() * got.scales.repeat_interleave(128, 1)[:, :300]
    assert torch.equal(got.dequantize(), expected)
    assert torch.equal(got.dequantize(torch.float32), expected.float())


@native
def test_operators_are_registered_soundly():
    assert dispatch.has_native("group_quantize", "cpu")
    assert dispatch.has_native("upper_cholesky", "cpu")
    h, w = hessian(40), weights(3, 40)
    upper = factorize(h).upper
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.tarq.upper_cholesky, (h, h.diagonal().clone()), test_utils=checks)
    for order in (None, falling(h)):
        args = (w, upper, order, 4, 16, True, "absmax", torch.float16)
        torch.library.opcheck(torch.ops.tarq.group_quantize, args, test_utils=checks)
    with pytest.raises(RuntimeError, match="permutation"):
        torch.ops.tarq.group_quantize(w, upper, torch.zeros(40).long(), 4, 16, True, "absmax", torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and dispatch.has_native("group_quantize", "cuda")),
    reason="no CUDA device, or the extension is built without CUDA",
)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_cuda_is_the_cpu_kernel(scheme, ordered):
    for n in (1, 70, 129, 300, 384):
        h, w = hessian(n, torch.float32), weights(33, n, torch.float32)
        order = falling(h) if ordered else None
        cpu = group_quantize(w, factorize(h, order=order), scheme, scale_dtype=torch.float16)
        factor = factorize(h.cuda(), order=order.cuda() if ordered else None)
        gpu = group_quantize(w.cuda(), factor, scheme, scale_dtype=torch.float16, backend="native")
        fetched = Quantized(*(t.cpu() for t in (gpu.codes, gpu.scales, gpu.zeros, gpu.loss)), gpu.group_size)
        assert (fetched.codes == cpu.codes).double().mean() >= 0.97
        torch.testing.assert_close(fetched.loss.sum(), cpu.loss.sum(), rtol=1e-2, atol=0)
        expected = quadratic_error(w, exact(fetched), damped(h.double()))
        torch.testing.assert_close(fetched.loss, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=native)])
@pytest.mark.parametrize("ordered", [False, True])
def test_operator_takes_layers_of_one_shape(backend, ordered):
    hessians, many = [hessian(140, seed=s) for s in range(3)], [weights(9, 140, seed=s) for s in range(3)]
    factors = [factorize(h, order=falling(h) if ordered else None) for h in hessians]
    each = [group_quantize(w, f, Scheme(), backend=backend) for w, f in zip(many, factors, strict=True)]
    run = torch.ops.tarq.group_quantize if backend == "native" else op._reference
    order = torch.stack([falling(h) for h in hessians]) if ordered else None
    upper = torch.stack([factor.upper for factor in factors])
    together = run(torch.stack(many), upper, order, 4, 128, True, "absmax", torch.float32)
    for tensors, alone in zip(zip(*together, strict=True), each, strict=True):
        for tensor, name in zip(tensors, ("codes", "scales", "zeros", "loss"), strict=True):
            assert torch.equal(tensor, getattr(alone, name)), name
    with pytest.raises(RuntimeError, match="each layer needs its factor"):
        torch.ops.tarq.group_quantize(torch.stack(many[:2]), upper, None, 4, 128, True, "absmax", torch.float32)


def test_layers_keep_their_order():
    sizes = [(5, 70), (3, 140), (5, 70), (4, 70)]
    hessians = [hessian(n, seed=i) for i, (_, n) in enumerate(sizes)]
    many = [weights(m, n, seed=i) for i, (m, n) in enumerate(sizes)]
    factors = [factorize(h, order=falling(h) if i == 2 else None) for i, h in enumerate(hessians)]
    for got, w, factor in zip(group_quantize_layers(many, factors, Scheme()), many, factors, strict=True):
        alone = group_quantize(w, factor, Scheme())
        assert torch.equal(got.codes, alone.codes)
        assert torch.equal(got.loss, alone.loss)
    with pytest.raises(ValueError, match="shorter"):
        group_quantize_layers(many, factors[:3], Scheme())


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and dispatch.has_native("group_quantize", "cuda")),
    reason="no CUDA device, or the extension is built without CUDA",
)
@pytest.mark.parametrize("ordered", [False, True])
def test_cuda_layers_together_are_those_alone(ordered):
    many = [weights(40, 300, torch.float32, seed=s).cuda() for s in range(3)]
    hessians = [hessian(300, torch.float32, seed=s).cuda() for s in range(3)]
    factors = [factorize(h, order=falling(h) if ordered else None) for h in hessians]
    for got, w, factor in zip(group_quantize_layers(many, factors, Scheme()), many, factors, strict=True):
        alone = group_quantize(w, factor, Scheme())
        assert (got.codes == alone.codes).double().mean() >= 0.97  # batched products may sum in another order
        torch.testing.assert_close(got.loss.sum(), alone.loss.sum(), rtol=1e-2, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(
    not (torch.cuda.is_available() and dispatch.has_native("group_quantize", "cuda")),
    reason="no CUDA device, or the extension is built without CUDA",
)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("group", [128, 200])  # 200: wider than a span, its scale from a triangular solve
def test_cuda_sweep_does_not_wait_for_the_device(group, ordered, layers):
    hessians = [hessian(400, torch.float32, seed=s).cuda() for s in range(layers)]
    factors = [factorize(h, order=falling(h) if ordered else None) for h in hessians]
    weight = torch.stack([weights(40, 400, torch.float32, seed=s).cuda() for s in range(layers)])
    upper = torch.stack([factor.upper for factor in factors])
    order = torch.stack([factor.order for factor in factors]) if ordered else None
    arguments = (weight, upper, order, 4, group, True, "mse", torch.float16)
    first = torch.ops.tarq.group_quantize(*arguments)  # sets up what libraries set up once
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = torch.ops.tarq.group_quantize(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_reference_can_be_forced(monkeypatch):
    monkeypatch.setattr(torch.ops.tarq, "group_quantize", None)
    monkeypatch.setenv("TARQ_BACKEND", "reference")
    factor = factorize(hessian(20))
    assert isinstance(factor, Factor)
    group_quantize(weights(2, 20), factor, Scheme())
