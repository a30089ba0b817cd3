"""What each block is called with: its own arguments, found by running the model; what its Linears read."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import ModelError
from tarq.models.types import Batch, Positions, Stage
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set
from tarq.walk.inputs import BlockInputs, InputCapture, groups_of, input_of, offloaded

CPU = torch.device("cpu")
CONFIG = tarq.TarqConfig(group_size=32, scale_dtype="float16", batch_size=3)
SAMPLE = Batch(("a",), {}, torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool))


def decoder(kind, config_class, **options):
    """Four layers, full and sliding attention in turns, a window far shorter than the sequence."""
    torch.manual_seed(0)
    config = config_class(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=3,
        layer_types=["full_attention", "sliding_attention"] * 2, initializer_range=0.5, **options,
    )  # fmt: skip
    return kind(config).eval()


def stage_of(model, embeds):
    blocks = [(f"layers.{i}", layer) for i, layer in enumerate(model.layers)]
    return Stage("decoder", blocks, lambda batch, _: model(inputs_embeds=embeds, use_cache=False), model.norm)


@pytest.mark.parametrize(
    ("kind", "config_class", "options"),
    [(Qwen2Model, Qwen2Config, {}), (Qwen3Model, Qwen3Config, {"head_dim": 8})],
)
def test_blocks_of_mixed_attention_get_their_own_masks(kind, config_class, options):
    model = decoder(kind, config_class, **options)
    embeds = torch.randn(2, 17, 32)
    stage = stage_of(model, embeds)
    with torch.no_grad():
        expected = model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        capture = InputCapture(stage, CPU)
        for _ in range(2):  # the first batch runs the blocks, the next ones only ask for their arguments
            path = capture(SAMPLE, None)
            masks = [path.block(i).kwargs["attention_mask"] for i in range(4)]
            assert masks[0] is masks[2] is not masks[1] is masks[3]  # shared, so that memory stays bounded
            for i, (_, block) in enumerate(stage.blocks):
                path.hidden = path.block(i).run(block)
            torch.testing.assert_close(stage.finish(path.hidden), expected)
    assert not any("forward" in vars(block) for _, block in stage.blocks)


@pytest.mark.parametrize("activation_memory", [4, 0])
def test_mixed_attention_is_quantized_on_the_models_own_activations(walk_hidden_states, activation_memory):
    model = decoder(Qwen3Model, Qwen3Config, head_dim=8)
    embeds = {f"{i}": torch.randn(1, 17, 32) for i in range(3)}
    every = torch.ones(1, 17, dtype=torch.bool)
    positions = Positions(tail=~every, exists=every, padding=~every, audio=~every)
    batches = [replace(SAMPLE, ids=(name,), positions={"decoder": positions}) for name in embeds]
    blocks = [(f"layers.{i}", layer) for i, layer in enumerate(model.layers)]

    def run(batch, _=None):
        return model(inputs_embeds=embeds[batch.ids[0]], use_cache=False).last_hidden_state

    recognizer = SimpleNamespace(
        model=model, device=CPU, stored_dtype=torch.float32, stages=lambda: [Stage("decoder", blocks, run, model.norm)],
        left_out=dict, logits=run, shift_free=(),
    )  # fmt: skip
    config = tarq.TarqConfig(
        group_size=16, scale_dtype="float32", residual="least-squares", activation_memory=activation_memory
    )
    walk_hidden_states(recognizer, batches, config)


def test_nothing_is_computed_in_the_blocks_after_the_first_batch():
    model, ran = decoder(Qwen2Model, Qwen2Config), []
    stage = stage_of(model, torch.randn(1, 5, 32))
    for layer in model.layers:
        layer.mlp.register_forward_hook(lambda *_: ran.append(1))
    capture = InputCapture(stage, CPU)
    with torch.no_grad():
        capture(SAMPLE, None)
        assert len(ran) == 3  # up to the last block
        capture(SAMPLE, None)
    assert len(ran) == 3


def test_the_walk_goes_where_the_model_goes(model_folder, manifest, walk_hidden_states):
    recognizer = tarq.load_recognizer(model_folder)
    batches = calibration_set(recognizer, load_utterances(manifest), CONFIG, Reporter())[0]
    walk_hidden_states(recognizer, batches, CONFIG)


class Model(nn.Module):
    """Two blocks of which the second is fed what ``between`` makes of what the first returned."""

    def __init__(self, between, order=(0, 1)):
        super().__init__()
        self.blocks = nn.ModuleList([Pair(), Pair()])
        self.between, self.order = between, order

    def forward(self):
        out = torch.ones(1, 3, 8), torch.zeros(1)
        for i in self.order:
            out = self.blocks[i](*self.between(i, *out))
        return out


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden, bias=None):
        return self.linear(hidden), hidden.mean(-1)


@pytest.mark.parametrize(
    ("between", "order", "message"),
    [
        (lambda i, hidden, _: (hidden + i,), (0, 1), r"changes the hidden states in front of second"),
        (lambda i, hidden, other: (hidden, other), (0, 1), r"second reads what another block returns"),
        (lambda i, hidden, _: (hidden,), (0,), r"stage s: running the model never reached second"),
        (lambda i, hidden, _: (hidden,), (0, 0), r"first runs out of order or twice"),
    ],
)
def test_what_the_walk_cannot_follow_is_refused(between, order, message):
    model = Model(between, order)
    stage = Stage("s", list(zip(("first", "second"), model.blocks, strict=True)), lambda *_: model(), nn.Identity())
    with torch.no_grad(), pytest.raises(ModelError, match=message):
        InputCapture(stage, CPU)(SAMPLE, None)


def test_linears_are_grouped_by_what_they_read(model_folder, manifest):
    recognizer = tarq.load_recognizer(model_folder)
    batch = calibration_set(recognizer, load_utterances(manifest), replace(CONFIG, samples=3), Reporter())[0][0]
    encoder, decoder = recognizer.stages()
    with torch.no_grad():
        path = InputCapture(encoder, CPU)(batch, None)
        assert [g.names for g in groups_of(encoder.blocks[0][1], path.block(0))] == [
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.out_proj",),
            ("fc1",),
            ("fc2",),
        ]
        audio = recognizer.encoder(**batch.features).last_hidden_state
        path = InputCapture(decoder, CPU)(batch, audio)
        groups = groups_of(decoder.blocks[1][1], path.block(1))
        assert [g.names for g in groups] == [
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.out_proj",),
            ("encoder_attn.q_proj",),
            ("encoder_attn.k_proj", "encoder_attn.v_proj"),
            ("encoder_attn.out_proj",),
            ("fc1",),
            ("fc2",),
        ]
        (further,) = [g for g in groups if g.place]
        assert further.names[0] == "encoder_attn.k_proj"
        assert input_of(decoder.blocks[1][1], further, path.block(1)) is audio
        assert path.first_reader(1, further.place) == (0, further.place)  # one tensor, whoever reads it


def test_a_linear_that_reads_two_tensors_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, hidden):
            return self.linear(self.linear(hidden))

    with pytest.raises(ModelError, match=r"Twice\.linear reads several tensors"):
        groups_of(Twice(), BlockInputs(torch.ones(1, 2, 8)))


def test_an_offloaded_block_returns_home():
    class Moves(nn.Linear):
        def to(self, device):
            went.append(device.type)
            return self

    went, block = [], Moves(2, 2)
    with offloaded(block, torch.device("meta")):
        assert went == ["meta"]
    assert went == ["meta", "cpu"]
    with offloaded(block, CPU):
        assert len(went) == 2
