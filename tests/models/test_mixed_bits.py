"""Layers of unlike bits, for every family: quantize, save, load, the same logits; and what plain transformers does."""

from __future__ import annotations

import json

import pytest
import torch
from packaging.version import Version
from transformers import __version__
from transformers.utils import is_mistral_common_available

import tarq
from tarq.checkpoint.compressed_tensors import layer_schemes
from tarq.data.corpora.registry import load_utterances
from tarq.linear import QuantLinear
from tarq.report import Reporter
from tarq.speech.calibration import make_examples
from tarq.walk.plan import linears_of
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

from .families import FAMILIES, plain_logits

#: From here on transformers expands all layers by one scheme.
ONE_SCHEME = Version(__version__) >= Version("5.23")


@pytest.fixture(
    params=[FAMILIES[0], *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES[1:])], ids=lambda f: f.name
)
def family(request):
    if request.param.name == "voxtral" and not is_mistral_common_available():
        pytest.skip("Voxtral's tokenizer needs mistral-common")
    return request.param


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
def test_every_family(family, symmetric, manifest, tmp_path):
    recognizer = tarq.load_recognizer(family.make(tmp_path / "model"))
    stages = recognizer.stages()
    first, last = stages[0], stages[-1]
    deepest, _ = last.blocks[-1]
    leaf = linears_of(*last.blocks[-1])[-1][0].rpartition(".")[2]
    places = {first.name: 8, deepest: 3, f"*.{leaf}": 2}
    wanted = {
        name: 2 if name.endswith(f".{leaf}") else 3 if block == deepest else 8 if stage.name == first.name else 4
        for stage in stages
        for block, module in stage.blocks
        for name, _ in linears_of(block, module)
    }
    assert {2, 3, 8} <= set(wanted.values())
    config = tarq.TarqConfig.preset(
        "rtn", group_size=32, bits_for=places, symmetric=symmetric, scale_dtype="float32", scale_rule="absmax"
    )
    planned = tarq.plan(recognizer, config)
    report = tarq.quantize(recognizer, None, config)
    assert {layer.name: layer.bits for layer in report.layers} == wanted
    assert {layer.name: layer.bits for layer in planned.layers if layer.stage} == wanted
    assert planned.bytes_after == report.sizes["linear_bytes_after"]
    tarq.save(recognizer, tmp_path / "out", report)

    again = tarq.load_recognizer(tmp_path / "out")
    packed = {n: m.scheme.bits for n, m in again.model.named_modules() if isinstance(m, QuantLinear)}
    assert packed == wanted
    assert tarq.TarqConfig.from_dict(tarq.Report.read(tmp_path / "out").config) == config
    assert any("layers differ in bits" in note for note in tarq.Report.read(tmp_path / "out").notes)
    batch = recognizer.collate(
        make_examples(recognizer, load_utterances(manifest), Rarity(Words()), Reporter()).examples[:1]
    )
    with torch.no_grad():
        before, after = plain_logits(recognizer, batch), plain_logits(again, batch)
        torch.testing.assert_close(after, before)

        if ONE_SCHEME and not symmetric:  # refused, not misread: the widest scheme comes first
            with pytest.raises(RuntimeError, match="conversion"):
                type(again.model).from_pretrained(tmp_path / "out", dtype=torch.float32)
            return
        plain = type(again.model).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
        parts = again.tokenizer, again.feature_extractor, torch.float32, again.processor
        theirs = plain_logits(type(again)(plain, *parts), batch)
        torch.testing.assert_close(theirs, before, rtol=1e-2, atol=1e-2)


def test_what_a_loader_fuses_is_named_where_its_parts_are_alike(model_folder, tmp_path):
    """vLLM takes whatever no entry names for any other ``Linear``: what it fuses must be matched by its own scheme."""
    recognizer = tarq.load_recognizer(model_folder)
    places = {"encoder": 8, "model.decoder.layers.0.self_attn.q_proj": 8}
    config = tarq.TarqConfig.preset("rtn", group_size=32, bits_for=places)
    tarq.save(recognizer, tmp_path / "out", tarq.quantize(recognizer, None, config))
    stored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    wide, rest = stored["config_groups"].values()
    assert (wide["weights"]["num_bits"], rest["weights"]["num_bits"], rest["targets"]) == (8, 4, ["Linear"])
    fused = torch.nn.Module()
    for name in ("model.encoder.layers.0.self_attn.qkv_proj", "model.decoder.layers.0.self_attn.qkv_proj"):
        place = fused
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        place.add_module(leaf, torch.nn.Linear(2, 2))
    found = {name: scheme.bits for name, scheme in layer_schemes(stored, fused).items()}
    assert found == {
        "model.encoder.layers.0.self_attn.qkv_proj": 8,
        "model.decoder.layers.0.self_attn.qkv_proj": 4,
    }
