"""Whisper's own greedy search gives what ``generate``'s does."""

import pytest
import torch
from transformers import LogitsProcessor

import tarq
from tarq.models import generation, whisper_decoding
from tarq.models.whisper_decoding import Steps, can_step

from .families import make_whisper


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def recognizer(request, tmp_path_factory):
    folder = make_whisper(tmp_path_factory.mktemp("model") / "whisper", encoder=1, decoder=2)
    return tarq.load_recognizer(folder, dtype=getattr(torch, request.param))


@pytest.fixture
def audio(recognizer):
    """Outputs of the encoder that are far apart, so that rows differ."""
    config = recognizer.model.config
    torch.manual_seed(0)
    return (4 * torch.randn(9, config.max_source_positions, config.d_model)).to(recognizer.model.dtype)


class EndsEarly(LogitsProcessor):
    """Ends a row once its last token is of a class: at different places, which depend on what was decoded."""

    def __init__(self, end):
        self.end = end

    def __call__(self, ids, scores):
        if ids.shape[1] > 5:
            scores[ids[:, -1] % 7 == 0, self.end] = 1e4
        return scores


def searched(recognizer, audio, monkeypatch, **options):
    """Tokens of a search in which rows end at different places."""
    finite = generation.FiniteLogits()

    class Both(LogitsProcessor):
        def __call__(self, ids, scores):
            return EndsEarly(recognizer.end_token)(ids, finite(ids, scores))

    monkeypatch.setattr(generation, "FiniteLogits", Both)
    with torch.no_grad():
        return recognizer._generate(audio, recognizer.prefix(), **options)


@torch.no_grad()
def test_a_step_computes_the_models_logits(recognizer, audio):
    ids = torch.randint(0, 90, (len(audio), 12), generator=torch.Generator().manual_seed(1))
    steps = Steps(recognizer.model, audio, 12)
    found = [steps(ids[:, :4]), *(steps(ids[:, t : t + 1]) for t in range(4, 12))]
    expected = recognizer.model(
        encoder_outputs=recognizer.model_output(audio), decoder_input_ids=ids, use_cache=False
    ).logits[:, 3:]
    tolerance = 1e-5 if audio.dtype == torch.float32 else 0.05
    torch.testing.assert_close(torch.stack(found, dim=1), expected, rtol=tolerance, atol=tolerance)


def test_same_tokens_though_rows_leave_the_batch(recognizer, audio, monkeypatch):
    left = []
    keep = Steps.keep
    monkeypatch.setattr(Steps, "keep", lambda self, rows: left.append(len(rows)) or keep(self, rows))
    found = searched(recognizer, audio, monkeypatch)
    plain = searched(recognizer, audio, monkeypatch, custom_generate=None)
    assert torch.equal(found, plain)
    assert len(left) > 1  # rows did leave, more than once
    prompt = len(recognizer.prefix())
    assert len({(row[prompt:] == recognizer.end_token).nonzero()[0].item() for row in found}) > 2


def test_a_row_alone_gives_what_it_gives_in_a_batch(recognizer, audio, monkeypatch):
    together = searched(recognizer, audio, monkeypatch)
    for row, states in zip(together, audio, strict=True):
        alone = searched(recognizer, states[None], monkeypatch)[0]
        assert torch.equal(row[: len(alone)], alone)


@pytest.mark.parametrize("what", ["hook", "another forward", "another class", "eager attention"])
def test_models_that_are_not_plain_take_generate(recognizer, audio, monkeypatch, what):
    model = recognizer.model
    layer = model.model.decoder.layers[0]
    assert can_step(model)
    used = []
    monkeypatch.setattr(whisper_decoding, "Steps", lambda *_: used.append(1))
    if what == "hook":
        hook = layer.self_attn.register_forward_hook(lambda *_: None)
    elif what == "another forward":
        monkeypatch.setattr(layer, "forward", layer.forward)
    elif what == "another class":
        monkeypatch.setattr(layer, "__class__", type("Own", (type(layer),), {}))
    else:
        monkeypatch.setattr(model.config, "_attn_implementation", "eager")
    assert not can_step(model)
    assert len(searched(recognizer, audio[:1], monkeypatch)) == 1
    assert not used
    if what == "hook":
        hook.remove()
