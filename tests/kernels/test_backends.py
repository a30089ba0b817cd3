"""Backends of ``w4_linear``: who gets a layer, one of one's own, and what is said of layers that are slow."""

from __future__ import annotations

import importlib.util
import runpy
import warnings
from pathlib import Path

import pytest
import torch
from tarq.kernels import dispatch
from tarq.kernels.scheme import Scheme
from tarq.kernels.w4_linear import Backend, Config, backends, get, register, select, survey, unregister
from torch import nn

from tarq.errors import TarqError
from tarq.linear import QuantLinear, slow_layers, use_int8_activations

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_backend.py"
native = pytest.mark.skipif(dispatch.EXTENSION_ERROR is not None, reason="the compiled extension is not built")
CPU = Config("cpu", 4, 128, 1280, 1280)
GPU = CPU._replace(device="cuda", capability=(9, 0))


def make(bits: int = 4, group: int = 64, *, symmetric: bool = True) -> QuantLinear:
    codes = torch.randint(0, 2**bits, (24, 192), dtype=torch.uint8)
    zeros = None if symmetric else torch.randint(0, 2**bits, (24, -(-192 // group)), dtype=torch.uint8)
    scales = (torch.rand(24, -(-192 // group)) * 0.02 + 0.005).half()
    return QuantLinear.from_codes(codes, scales, zeros, Scheme(bits, group, symmetric), torch.randn(24))


@pytest.fixture
def own():
    """The example's backend, registered while the test lasts."""
    spec = importlib.util.spec_from_file_location("own_backend", EXAMPLE)
    assert spec
    assert spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield get("bytes")
    unregister("bytes")


def test_the_example_is_short_and_runs(capsys):
    assert len(EXAMPLE.read_text().splitlines()) < 40
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    unregister("bytes")
    printed = capsys.readouterr().out
    assert printed.startswith("bytes: 64 outputs, off by ")
    assert "weight_packed" in printed


def test_layers_run_on_a_backend_of_ones_own(own, monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(5, 192)
    layer, other = make(), make(symmetric=False)
    assert (layer.backend, layer.weight_packed.dtype) == ("bytes", torch.uint8)
    assert other.backend != "bytes"  # which knows no zero points
    monkeypatch.setenv("TARQ_BACKEND", "reference")
    again = QuantLinear(192, 24, layer.scheme)
    again.load_state_dict(layer.state_dict())
    assert again.backend == "reference"
    again.bias = layer.bias
    torch.testing.assert_close(layer(x), again(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x.double()), again(x.double()))
    assert torch.equal(layer.dequantize(), again.dequantize())
    gradients = [torch.autograd.grad(each(x.requires_grad_()).sum(), x)[0] for each in (layer, again)]
    torch.testing.assert_close(*gradients)
    layer.to(torch.bfloat16)  # chosen anew where a module is moved or cast
    assert layer.backend == "reference"


def test_an_own_name_is_a_choice_for_layers_and_nothing_to_other_operations(own, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TARQ_BACKEND", "bytes")
    assert make().backend == "bytes"
    assert not dispatch.use_reference(None, "gram", "cpu") or dispatch.EXTENSION_ERROR
    with pytest.raises(TarqError, match=r"backend 'bytes' cannot run 4 bits in groups of 64 on cpu: .*no zero points"):
        make(symmetric=False)


def test_a_layer_whose_backend_is_gone_says_so(own):
    layer = make()
    unregister("bytes")
    try:
        with pytest.raises(TarqError, match="no w4_linear backend is named 'bytes'"):
            layer(torch.randn(1, 192))
    finally:
        register(own)


@pytest.mark.parametrize("name", ["cpp", "reference", "auto", "stored"])
def test_names_are_taken_once(name: str):
    backend = Backend()
    backend.name = name
    with pytest.raises(ValueError, match=f"'{name}'.* is taken"):
        register(backend)


def test_an_unknown_name_in_the_environment_is_said_where_layers_are_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TARQ_BACKEND", "fast")
    with pytest.raises(TarqError, match="variable TARQ_BACKEND=fast is not a backend: choose one of auto, ref"):
        make()


@native
@pytest.mark.parametrize(
    ("config", "name", "remark"),
    [
        (CPU, "cpp", ""),
        (CPU._replace(bits=3), "cpp", ""),
        (CPU._replace(bits=8), "planes", ""),
        (CPU._replace(bits=8, group_size=20), "planes", "not a multiple of 8"),
        (CPU._replace(bits=8, int8_activations=True), "reference", "keeps the inputs of 8-bit layers exact"),
        (CPU._replace(group_size=20), "cpp", "not a multiple of 8"),
        (CPU._replace(int8_activations=True), "cpp", ""),
        (CPU._replace(int8_activations=True, group_size=40), "reference", "rounds activations in groups of 32, 64"),
        (CPU._replace(device="mps"), "reference", "every call expands the weight"),
        (GPU, "triton", ""),
        (GPU._replace(capability=(7, 5)), "triton", "compute capability is 7.5, below 8.0"),
        (GPU._replace(group_size=40), "triton", "groups are not 32, 64"),
        (GPU._replace(bits=8), "reference", "triton has no kernel for 8 bits"),
        (GPU._replace(int8_activations=True), "reference", "gain nothing on a GPU"),
    ],
)
def test_who_gets_a_layer_and_what_holds_it_back(config, name, remark, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends.triton_runtime, "installed", lambda: True)
    monkeypatch.setattr(dispatch, "has_native", lambda operation, device: True)
    backends._warn.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            backend, said = select(config)
    assert backend.name == name
    assert remark in said
    assert (said == "") == (remark == "")
    assert len(caught) == int(remark != "")
    assert remark in str(caught[0].message) if caught else True
    order = [entry[0] for entry in survey(config)]
    assert order == ["planes", "cpp", "triton", "reference"]


def test_without_triton_a_gpu_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends.triton_runtime, "installed", lambda: False)
    assert ("triton", False, "is missing: Triton is not installed; pip install triton") in survey(GPU)
    with pytest.raises(TarqError, match=r"backend 'native' cannot run .* on cuda: .*pip install triton"):
        select(GPU, "native")


@native
def test_slow_and_exact_layers_are_told():
    model = nn.ModuleDict({"fast": make(), "wide": make(8), "odd": make(group=20), "wide too": make(8)})
    notes = slow_layers(model)
    assert notes == ["1 packed layers are slow: groups that are not a multiple of 8 are slow"]
    rounded = use_int8_activations(model)
    assert (rounded, rounded.exact) == (1, ("wide", "odd", "wide too"))
    assert slow_layers(nn.Linear(3, 3)) == []
