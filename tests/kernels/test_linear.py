"""QuantLinear: the checkpoint's tensors under their names, through everything a module goes through."""

from __future__ import annotations

import copy
import io
import pickle
from importlib.util import find_spec

import pytest
import torch
from tarq.kernels.scheme import Scheme
from tarq.kernels.w4_linear import PackedWeight, dequantize, pack, pack_zeros, unpack, w4_linear
from tarq.kernels.w4_linear.reference import w4_linear as reference
from torch import Tensor, nn

from tarq.linear import QuantLinear, use_int8_activations


def make(
    rows: int = 24,
    columns: int = 192,
    *,
    bits: int = 4,
    group: int = 64,
    symmetric: bool = True,
    bias: bool = True,
    scale: torch.dtype = torch.float16,
) -> QuantLinear:
    scheme = Scheme(bits=bits, group_size=group, symmetric=symmetric)
    groups = -(-columns // group)
    return QuantLinear.from_codes(
        torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8),
        (torch.rand(rows, groups) * 0.02 + 0.005).to(scale),
        None if symmetric else torch.randint(0, 2**bits, (rows, groups), dtype=torch.uint8),
        scheme,
        torch.randn(rows).to(scale) if bias else None,
    )


def exact_weight(layer: QuantLinear) -> Tensor:
    """(code − zero) · scale in float64: ``dequantize`` rounds it to the scales' dtype, a product does not."""
    packed, scales, zeros = (
        layer.state_dict().get(name) for name in ("weight_packed", "weight_scale", "weight_zero_point")
    )
    scheme = layer.scheme
    return dequantize(packed, scales.double(), zeros, layer.in_features, scheme.group_size, scheme.bits)


def dense(layer: QuantLinear, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return nn.functional.linear(x.double(), exact_weight(layer), bias)


def same_tensors(a: QuantLinear, b: QuantLinear) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_forward_is_linear_with_the_dequantized_weight(bits: int, symmetric: bool):
    torch.manual_seed(bits)
    layer = make(bits=bits, symmetric=symmetric)
    for shape in ((192,), (3, 192), (2, 5, 192), (0, 192), (70, 192)):
        x = torch.randn(shape)
        # Codes of more bits make larger weights here, and larger sums to round.
        torch.testing.assert_close(layer(x).double(), dense(layer, x), rtol=1e-4, atol=1e-5 * max(1, 2**bits / 16))
        y = layer(x.bfloat16())
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.double(), dense(layer, x), rtol=3e-2, atol=3e-2 * 2**bits / 16 + 0.02)


def test_tensors_are_those_of_the_checkpoint():
    layer = make(24, 190, symmetric=False)
    described = {name: (tuple(t.shape), t.dtype) for name, t in layer.state_dict().items()}
    assert described == {
        "weight_packed": ((24, 24), torch.int32),
        "weight_scale": ((24, 3), torch.float16),
        "weight_shape": ((2,), torch.int64),
        "weight_zero_point": ((3, 3), torch.int32),
        "bias": ((24,), torch.float16),
    }
    assert layer.weight_shape.tolist() == [24, 190]
    assert set(make(bias=False).state_dict()) == {"weight_packed", "weight_scale", "weight_shape"}
    assert not list(layer.parameters())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_compressed_tensors_reads_the_state_dict(bits: int):
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    layer = make(bits=bits, symmetric=False)
    weights = QuantizationArgs(num_bits=bits, strategy="group", group_size=64, symmetric=False)
    tensors = {k: v for k, v in layer.state_dict().items() if k != "bias"}
    out = PackedQuantizationCompressor.decompress(tensors, QuantizationScheme(targets=["Linear"], weights=weights))
    assert torch.equal(out["weight"], layer.dequantize())


def test_from_codes_keeps_codes_and_refuses_contradictions():
    codes = torch.randint(0, 16, (6, 70), dtype=torch.uint8)
    scales, zeros = torch.rand(6, 3), torch.zeros(6, 3, dtype=torch.uint8)
    scheme = Scheme(group_size=32)
    layer = QuantLinear.from_codes(codes, scales, None, scheme, None)
    assert torch.equal(unpack(layer.weight_packed, 4, 70), codes)
    assert (layer.in_features, layer.out_features) == (70, 6)
    with pytest.raises(ValueError, match="zeros must be None"):
        QuantLinear.from_codes(codes, scales, zeros, scheme, None)
    with pytest.raises(ValueError, match="zeros must be a tensor"):
        QuantLinear.from_codes(codes, scales, None, Scheme(group_size=32, symmetric=False), None)
    with pytest.raises(ValueError, match=r"scales must have shape \[6, 3\]"):
        QuantLinear.from_codes(codes, scales[:, :2], None, scheme, None)
    with pytest.raises(ValueError, match="bias must have shape"):
        QuantLinear.from_codes(codes, scales, None, scheme, torch.zeros(7))
    with pytest.raises(ValueError, match="scale_dtype"):
        QuantLinear.from_codes(codes, scales.double(), None, scheme, None)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_state_dict_round_trip_from_meta(bits: int, symmetric: bool, assign: bool):
    source = make(bits=bits, symmetric=symmetric, scale=torch.bfloat16)
    target = QuantLinear(192, 24, source.scheme, bias=True, scale_dtype=torch.float16, device="meta")
    assert all(t.is_meta for t in target.state_dict().values())
    if not assign:
        target.to_empty(device="cpu")
    target.load_state_dict(source.state_dict(), assign=assign)
    assert target.weight_scale.dtype == torch.bfloat16  # the saved dtype wins over the constructor's
    x = torch.randn(3, 192)
    assert torch.equal(target.weight_scale, source.weight_scale)
    assert torch.equal(target.state_dict()["weight_packed"], source.state_dict()["weight_packed"])
    torch.testing.assert_close(target(x), source(x), rtol=0, atol=0.02)  # a copied bias is rounded to float16


def test_a_different_width_of_equal_packing_is_noticed():
    target = QuantLinear(127, 8, Scheme(), bias=False)
    with pytest.raises(RuntimeError, match=r"weight_shape is \[8, 128\], but this layer is \[8, 127\]"):
        target.load_state_dict(make(8, 128, group=128, bias=False).state_dict())


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("weight_packed", torch.int64), ("weight_scale", torch.float64), ("weight_zero_point", torch.half)],
)
def test_tensors_of_another_dtype_are_named(name: str, dtype: torch.dtype, assign: bool):
    layer = make(symmetric=False)
    tensors = layer.state_dict()
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises(RuntimeError, match=f"0.{name} must be .* not {dtype}"):
        nn.Sequential(layer).load_state_dict({f"0.{key}": tensor for key, tensor in tensors.items()}, assign=assign)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(bad: float):
    with pytest.raises(ValueError, match="scales must be finite"):
        QuantLinear.from_codes(torch.zeros(2, 64, dtype=torch.uint8), torch.tensor([[1.0], [bad]]), None, Scheme())
    with pytest.raises(ValueError, match="meta device"):
        QuantLinear.from_codes(torch.zeros(2, 64, dtype=torch.uint8, device="meta"), torch.ones(2, 1), None, Scheme())


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_copies(bits: int, symmetric: bool):
    layer = make(bits=bits, symmetric=symmetric)
    same_tensors(layer, copy.deepcopy(layer))
    same_tensors(layer, pickle.loads(pickle.dumps(layer)))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    same_tensors(layer, loaded)
    assert loaded.scheme == layer.scheme
    x = torch.randn(2, 192)
    assert torch.equal(loaded(x), layer(x))


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
@pytest.mark.parametrize("scale", [torch.float16, torch.bfloat16, torch.float32])
def test_casting_a_model_leaves_codes_and_scales(bits: int, cast: str, scale: torch.dtype):
    layer = make(bits=bits, scale=scale, symmetric=False)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    model = nn.Sequential(nn.LayerNorm(192), layer)
    getattr(model, cast)()
    dtype = model[0].weight.dtype
    assert layer.bias is not None
    assert layer.bias.dtype == dtype
    after = layer.state_dict()
    for name in ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point"):
        assert after[name].dtype == before[name].dtype
        assert torch.equal(after[name], before[name])
    model.to(torch.bfloat16).to("meta")
    assert layer.weight_scale.is_meta
    assert layer.weight_scale.dtype == scale


@pytest.mark.parametrize("bits", [4, 3])
def test_autocast_does_what_linear_does(bits: int):
    layer, plain, x = make(bits=bits), nn.Linear(192, 24), torch.randn(3, 192)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == plain(x).dtype == torch.bfloat16
        many = layer(x.repeat(200, 1))
    torch.testing.assert_close(layer(x.bfloat16()), many[:3], rtol=2e-2, atol=2e-2)
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("bits", [4, 3])
def test_compiles_without_a_graph_break(bits: int):
    torch._dynamo.reset()
    layer = make(bits=bits, symmetric=False)
    model = nn.Sequential(nn.LayerNorm(192), layer, nn.GELU())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for count in (1, 5):
        x = torch.randn(count, 192)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))
    x = torch.randn(5, 192, requires_grad=True)
    compiled(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.slow
def test_compiles_with_inductor():
    torch._dynamo.reset()
    layer = make()
    x = torch.randn(2, 192)
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_reach_what_is_around_the_layer(bits: int):
    layer = make(bits=bits)
    x = torch.randn(4, 192, requires_grad=True)
    layer(x).sum().backward()
    expected = exact_weight(layer).float().sum(0).expand(4, 192)
    torch.testing.assert_close(x.grad, expected)
    assert not any(t.requires_grad for t in layer.buffers())


def test_packed_bytes_and_repr():
    layer = make(1280, 1280, group=128, bias=False)
    assert layer.packed_bytes() == 1280 * 1280 // 2 + 1280 * 10 * 2 + 16
    assert layer.packed_bytes() < 0.27 * 1280 * 1280 * 2
    expected = "in_features=1280, out_features=1280, bits=4, group_size=128, symmetric=True, scales=float16, bias=False"
    assert expected in repr(layer)
    assert layer.dequantize().dtype == torch.float16
    assert layer.dequantize(torch.float32).shape == (1280, 1280)
    assert not hasattr(layer, "weight")


def test_int8_activations_are_a_choice_of_the_layer_and_near():
    model = nn.Sequential(make(24, 192), make(16, 24, bits=3, group=32), make(8, 16, bits=8, group=16))
    x = torch.randn(5, 192)
    exact, saved = model(x), model.state_dict()
    assert use_int8_activations(model) == 2
    assert "int8_activations=True" in repr(model[0])
    rounded = model(x)
    assert not torch.equal(rounded, exact)
    assert ((rounded - exact).norm() / exact.norm()).item() < 0.05
    assert model.state_dict().keys() == saved.keys()
    assert use_int8_activations(nn.Linear(4, 4)) == 0


@pytest.mark.parametrize("group", [8, 16, 32, 40, 64, 96, 128, 192, 256])
def test_layers_whose_groups_int8_lacks_stay_exact(group: int):
    """The layers' own groups as the package chooses them: what cannot be rounded is not counted, and still runs."""
    layer, x = make(24, 192, group=group), torch.randn(5, 192)
    exact = layer(x)
    assert use_int8_activations(layer) == int(group in (32, 64, 128, 192, 256))
    assert torch.equal(layer(x), exact) == (not layer.int8_activations)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_two_and_three_bits_run_from_nibbles_and_are_saved_as_they_were(bits: int, symmetric: bool):
    rows, columns, groups = 20, 190, 3
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    zeros = None if symmetric else torch.randint(0, 2**bits, (rows, groups), dtype=torch.uint8)
    layer = QuantLinear.from_codes(codes, torch.rand(rows, groups), zeros, Scheme(bits, 64, symmetric))
    stored = layer.state_dict()
    assert torch.equal(stored["weight_packed"], pack(codes, bits))
    assert zeros is None or torch.equal(stored["weight_zero_point"], pack_zeros(zeros, bits))
    assert layer.packed_bytes() == sum(t.nbytes for t in stored.values())
    assert layer.weight_packed.shape == (rows, 24)
    assert torch.equal(unpack(layer.weight_packed, 4, columns), codes + (8 - 2 ** (bits - 1) if symmetric else 0))
    x = torch.randn(7, columns)
    tensors = stored["weight_packed"], stored["weight_scale"], stored.get("weight_zero_point")
    y = reference(x, PackedWeight(*tensors, None, columns, 64, bits))
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)
    # A layer whose buffers were set by hand computes the same before it is laid out, and after.
    by_hand = QuantLinear(columns, rows, layer.scheme, bias=False, device="meta")
    by_hand.weight_packed, by_hand.weight_scale, by_hand.weight_zero_point = tensors
    assert torch.equal(by_hand(x), y)
    by_hand.prepack()
    assert torch.equal(by_hand(x), layer(x))


def test_prepacking_twice_or_undoing_it_twice_changes_nothing():
    layer = make(bits=3, symmetric=False)
    before, packed = copy.deepcopy(layer), layer.weight_packed
    layer.prepack()
    assert layer.weight_packed is packed
    layer.unprepack()
    layer.unprepack()
    assert torch.equal(layer.weight_packed, before.state_dict()["weight_packed"])
    layer.to("meta")
    assert not layer.prepacked


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_order_of_the_gpu_is_not_in_the_state_dict(bits: int, symmetric: bool):
    layer, other = (make(24, 300, bits=bits, symmetric=symmetric) for _ in range(2))
    before, x = copy.deepcopy(layer), torch.randn(3, 300)
    layer.unprepack()
    layer.prepack(torch.device("cuda"))
    assert layer.weight_packed.dim() == 3
    assert layer.packed_bytes() == before.packed_bytes()
    same_tensors(layer, before)
    assert torch.equal(layer.dequantize(), before.dequantize())
    y = w4_linear(x, layer.packed_weight(), backend="reference")
    torch.testing.assert_close(y, before(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x), before(x), rtol=1e-4, atol=1e-5)  # on a CPU its operator is the reference's
    layer.load_state_dict(other.state_dict())
    same_tensors(layer, other)
    layer.unprepack()
    layer.prepack(torch.device("cuda"))
    layer.bfloat16()  # on a CPU any cast or move goes back to the order of its kernels
    assert layer.prepacked == other.prepacked
    assert torch.equal(layer.weight_packed, other.weight_packed)


@pytest.fixture
def decoder() -> nn.Sequential:
    """Layers that read one another's results, on the GPU, as a decoder's MLP has them."""
    torch._dynamo.reset()
    layers = [make(5120, 1280, group=128), nn.GELU(), make(1280, 5120, group=128, symmetric=False)]
    return nn.Sequential(nn.LayerNorm(1280), *layers).half().cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 300])
def test_a_cuda_graph_holds_the_layers(decoder, rows):
    x = torch.randn(rows, 1280, device="cuda").half()
    with torch.inference_mode():
        decoder(x)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = decoder(x)
        for _ in range(3):
            x.normal_()
            graph.replay()
            assert torch.equal(y, decoder(x))


@pytest.mark.gpu
def test_compiled_layers_run_as_cuda_graphs(decoder):
    compiled = torch.compile(decoder, mode="reduce-overhead", fullgraph=True)
    counters = torch._dynamo.utils.counters
    counters.clear()
    with torch.inference_mode():
        for rows in (1, 1, 1, 1, 5, 5, 5):
            x = torch.randn(rows, 1280, device="cuda").half()
            torch.compiler.cudagraph_mark_step_begin()
            y = compiled(x)
            error = (y - decoder(x)).float().norm() / y.float().norm()
            assert error < 2e-2
    assert not counters["inductor"]["cudagraph_skips"]
