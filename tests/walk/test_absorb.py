"""Biases that absorb the mean, on the tiny Whisper: which layers' moments are centred, and what it gains."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.linear import QuantLinear
from tarq.method.absorb import CrossFittedBias
from tarq.method.arms import Arms
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set
from tarq.walk.run import quantize_model

CONFIG = tarq.TarqConfig(group_size=32, scale_dtype="float32", batch_size=3, samples=6, metric="rarebal")


@pytest.fixture(scope="module")
def full(model_folder):
    """In full precision, with biases that are not all zero as the fixture's are."""
    return with_biases(tarq.load_recognizer(model_folder))


@pytest.fixture(scope="module")
def batches(full, manifest):
    return calibration_set(full, load_utterances(manifest), CONFIG, Reporter())[0]


@pytest.fixture(scope="module")
def quantized(model_folder, batches):
    """A recognizer and the report's line of each of its layers."""
    recognizer = with_biases(tarq.load_recognizer(model_folder))
    return recognizer, {r.name: r for r in quantize_model(recognizer, batches, CONFIG, Reporter())}


def with_biases(recognizer):
    generator = torch.Generator().manual_seed(0)
    for module in recognizer.model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.copy_(0.1 * torch.randn(len(module.bias), generator=generator))
    return recognizer


def inputs_of(recognizer, batches, name):
    """What a decoder layer reads at the positions that exist, float64 [R, n]."""
    caught = []
    handle = recognizer.model.get_submodule(name).register_forward_pre_hook(lambda m, args: caught.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            recognizer.logits(batch)
    handle.remove()
    kept = [x[b.positions["decoder"].exists] for x, b in zip(caught, batches, strict=True)]
    return torch.cat(kept).double()


def test_every_bias_moves(full, quantized):
    recognizer, records = quantized
    for name in records:
        layer, before = recognizer.model.get_submodule(name), full.model.get_submodule(name).bias
        assert isinstance(layer, QuantLinear)
        assert (layer.bias is None) == (before is None) == name.endswith("k_proj")
        assert before is None or float((layer.bias - before).detach().abs().max()) > 1e-4


@pytest.mark.parametrize("layer", ["self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"])
def test_the_absorbed_bias_leaves_the_least_weighted_output_error(full, quantized, batches, layer):
    """``Σ d ‖W xf + b − Ŵ x − b'‖²`` by hand: b' is below the old bias, and nothing near it is below b'."""
    recognizer, records = quantized
    name = f"model.decoder.layers.1.{layer}"
    original, packed, lam = full.model.get_submodule(name), recognizer.model.get_submodule(name), records[name].lam
    tail = torch.cat([b.positions["decoder"].tail[b.positions["decoder"].exists] for b in batches])
    d = torch.where(tail, lam, 1.0).double()[:, None]
    assert lam > 1
    with torch.no_grad():
        wanted = inputs_of(full, batches, name) @ original.weight.double().T + original.bias.double()
        product = inputs_of(recognizer, batches, name) @ packed.dequantize().double().T
        new = packed.bias.double()

    def error(bias):
        return float((d * (wanted - product - bias) ** 2).sum())

    torch.testing.assert_close(new, (d * (wanted - product)).sum(0) / d.sum(), rtol=1e-3, atol=1e-4)
    assert error(new) < 0.999 * error(original.bias.double())
    step = torch.randn(len(new), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for size in (0.01, -0.01):
        assert error(new + size * step) > error(new)


def test_new_biases_are_saved_and_loaded(model_folder, manifest, tmp_path):
    recognizer = tarq.load_recognizer(model_folder)
    report = tarq.quantize(recognizer, manifest, replace(CONFIG, scale_dtype="auto"))
    assert report.config["residual"] == "cross-fitted-bias"
    tarq.save(recognizer, tmp_path / "out", report)
    again = tarq.load_recognizer(tmp_path / "out")
    biases = {n: m.bias for n, m in again.model.named_modules() if isinstance(m, QuantLinear) and m.bias is not None}
    assert len(biases) == 32 - 6  # keys have none
    for name, bias in biases.items():
        ours = recognizer.model.get_submodule(name).bias
        assert float(ours.abs().max()) > 1e-4  # the fixture's are zero
        assert torch.equal(bias, ours.to(recognizer.stored_dtype).to(bias.dtype))


@pytest.mark.parametrize("shift_free", [(), (".encoder_attn.k_proj",), (".k_proj",)])
def test_keys_without_a_bias_are_centred_only_where_the_model_allows(model_folder, batches, monkeypatch, shift_free):
    class Watches(CrossFittedBias):
        def centres(self, layer):
            centred[layer.name] = super().centres(layer)
            return centred[layer.name]

    centred, recognizer = {}, tarq.load_recognizer(model_folder)
    monkeypatch.setattr(type(recognizer), "shift_free", shift_free)
    quantize_model(recognizer, batches, CONFIG, Reporter(), Arms.of(CONFIG.to_dict(), residual=Watches()))
    assert len(centred) == 32
    for name, flag in centred.items():
        assert flag == (not name.endswith(".k_proj") or name.endswith(shift_free))
