"""Bits by stage, block and layer: which layers get which, refused before any audio is read, the same codes as alone."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import tarq
from tarq.errors import ModelError
from tarq.linear import QuantLinear
from tarq.terminal.cli import app
from tarq.walk.plan import is_at, plan

CONFIG = tarq.TarqConfig(group_size=32, samples=6)
Q = "model.decoder.layers.0.self_attn.q_proj"


def codes(recognizer):
    return {n: m.dequantize() for n, m in recognizer.model.named_modules() if isinstance(m, QuantLinear)}


@pytest.mark.parametrize(
    ("place", "matches"),
    [
        ("decoder", True), (Q, True), ("model.decoder", True), ("model.decoder.layers.0", True), ("*.q_proj", True),
        ("model.*.layers.0.self_attn", True), ("model.decoder.layers.[01]", True), ("*q_proj", True),
        ("encoder", False), ("decoder.layers.0", False), ("model.decoder.layers.1", False), ("q_proj", False),
        ("model.decoder.layers.0.self_attn.q", False), ("Decoder", False),
    ],
)  # fmt: skip
def test_a_place_is_a_stage_or_a_pattern(place, matches):
    assert is_at(place, "decoder", Q) == matches


def test_the_last_place_that_matches_counts(recognizer):
    both = {"model.decoder.layers.0": 8, "decoder": 3}
    for places, bits in ((both, 3), (dict(reversed(both.items())), 8), ({"encoder": 8}, 4)):
        (layer,) = (p for p in plan(recognizer, replace(CONFIG, bits_for=places)) if p.name == Q)
        assert layer.bits == bits


@pytest.mark.parametrize(
    ("places", "ignore"),
    [({"encode": 8}, ()), ({"decoder": 8, "decoder.layers.0": 3}, ()), ({"encoder": 8}, ("model.encoder",))],
)
def test_a_place_without_a_layer_is_named_before_any_audio_is_read(recognizer, tmp_path, places, ignore):
    config = replace(CONFIG, bits_for=places, ignore=ignore)
    said = rf"bits: '{list(places)[-1]}' matches no layer.*stages are encoder, decoder, and names look like model\."
    with pytest.raises(ModelError, match=said):
        tarq.quantize(recognizer, tmp_path / "there is no such file.jsonl", config)
    with pytest.raises(ModelError, match=said):
        tarq.plan(recognizer, config)
    assert not codes(recognizer)


@pytest.mark.parametrize(
    "method", ["refined", "rtn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gptq", "awq", "yaqa"))]
)
def test_a_layer_among_others_is_quantized_as_alone(model_folder, manifest, method):
    """The first Linears' codes do not depend on how wide their neighbours are, and all at one place is all."""
    settings = {"group_size": 32, "samples": 4, "scale_dtype": "float32"}
    first = "model.encoder.layers.0.self_attn"

    def made(**fields):
        recognizer = tarq.load_recognizer(model_folder)
        report = tarq.quantize(recognizer, manifest, tarq.TarqConfig.preset(method, **settings, **fields))
        return codes(recognizer), report

    narrow, _ = made(bits=3)
    wide, _ = made(bits=8)
    everywhere, _ = made(bits=4, bits_for={"encoder": 8, "decoder": 8})
    mixed, report = made(bits=3, bits_for={f"{first}.k_proj": 8, "model.decoder.layers.1": 4})
    assert all(torch.equal(everywhere[name], wide[name]) for name in wide)
    if method != "awq":  # whose input scales are those of the group's first layer
        assert torch.equal(mixed[f"{first}.k_proj"], wide[f"{first}.k_proj"])
        for name in ("q_proj", "v_proj"):
            assert torch.equal(mixed[f"{first}.{name}"], narrow[f"{first}.{name}"])
    assert {layer.bits for layer in report.layers if layer.name.startswith("model.decoder.layers.1.")} == {4}
    notes = {layer.name: [note for note in layer.notes if "vLLM" in note] for layer in report.layers}
    told = [name for name, found in notes.items() if found]
    # Rounding to nearest does not ask which Linears read one input.
    assert sorted(told) == ([] if method == "rtn" else [f"{first}.{name}" for name in ("k_proj", "q_proj", "v_proj")])


def test_an_input_that_is_always_zero_is_rounded_to_each_layers_width(recognizer, manifest):
    norm = recognizer.encoder.layers[0].self_attn_layer_norm
    norm.weight.data.zero_()
    norm.bias.data.zero_()
    place = "model.encoder.layers.0.self_attn.k_proj"
    tarq.quantize(recognizer, manifest, replace(CONFIG, bits_for={place: 8}))
    layers = {n: m.scheme.bits for n, m in recognizer.model.named_modules() if isinstance(m, QuantLinear)}
    assert layers[place] == 8
    assert layers[place.replace("k_proj", "v_proj")] == 4


def test_the_command_line(model_folder, manifest, tmp_path):
    def said(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    base = ("quantize", model_folder, tmp_path / "out", "--method", "rtn", "--group-size", 32)
    widths = "20 layers of 3 bits, 12 layers of 8 bits: 5.00 bits per weight"
    assert widths in said(*base, "--bits", "encoder=8,decoder=3", "--dry-run")
    assert "'encode' matches no layer" in said(*base, "--bits", "encode=8", code=1)
    assert not (tmp_path / "out").exists()
    made = said(*base, "--bits", "encoder=8,decoder=3")
    shown = said("inspect", tmp_path / "out")
    for text in (made, shown):
        assert widths in text
        assert "transformers without tarq does so up to 5.22 only" in text
        assert "packed layers are slow" not in text  # 8 bits have a kernel
    assert "8/32" in shown
    assert "3/32" in shown
    assert tarq.transcribe(tmp_path / "out", [manifest.parent / "u0.wav"])
    assert "bits per weight" not in said(*base, "--overwrite")
