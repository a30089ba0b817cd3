"""The output head in 8 bits."""

import pytest
import torch
from tarq.kernels import dispatch

import tarq
from tarq.errors import CheckpointError, ModelError
from tarq.head import pack_head
from tarq.linear import QuantLinear

from .conftest import CONFIG
from .families import make_whisper

pytestmark = pytest.mark.skipif(dispatch.EXTENSION_ERROR is not None, reason="the compiled extension is not built")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp("model") / "whisper", encoder=1, decoder=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_logits_are_near_and_the_embedding_is_as_it_was(folder, dtype):
    plain, packed = (tarq.load_recognizer(folder, dtype=dtype, packed_head=way) for way in (False, True))
    head = packed.model.get_output_embeddings()
    assert isinstance(head, QuantLinear)
    assert (head.scheme.bits, head.backend) == (8, "planes")
    weight = plain.model.get_input_embeddings().weight
    assert torch.equal(packed.model.model.decoder.embed_tokens.weight, plain.model.model.decoder.embed_tokens.weight)
    # A step of absmax over a group is 1 / 127 of its largest weight.
    assert (
        head.dequantize(torch.float32) - plain.model.proj_out.weight.float()
    ).abs().max() <= weight.abs().max() / 253
    states = torch.randn(2, 5, plain.model.config.d_model).to(dtype)
    near, exact = head(states), plain.model.proj_out(states)
    assert 0 < ((near - exact).norm() / exact.norm()).item() < 0.02


def test_transcribes_as_without(folder, manifest):
    audio = [manifest.parent / "u0.wav", manifest.parent / "u1.wav"]
    texts = [tarq.transcribe(tarq.load_recognizer(folder, packed_head=way), audio) for way in (False, True)]
    assert texts[0] == texts[1]


def test_such_a_model_is_not_saved(folder, manifest, tmp_path):
    recognizer = tarq.load_recognizer(folder)
    report = tarq.quantize(recognizer, manifest, CONFIG)
    pack_head(recognizer.model)
    with pytest.raises(CheckpointError, match="head was packed for transcribing; load it without packed_head"):
        tarq.save(recognizer, tmp_path / "out", report)
    assert not (tmp_path / "out").exists()


def test_refused_where_it_gains_nothing(folder, tmp_path, monkeypatch):
    recognizer = tarq.load_recognizer(folder, packed_head=True)
    with pytest.raises(ModelError, match="WhisperForConditionalGeneration is packed already"):
        pack_head(recognizer.model)
    monkeypatch.setenv("TARQ_BACKEND", "reference")
    with pytest.raises(ModelError, match="packed_head gains nothing here: every call expands the weight"):
        tarq.load_recognizer(folder, packed_head=True)
