"""Other weights of the same function: what can take them is found out, the model stays the same, rounding gains."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.method.reparametrize import order_of, rotate_inputs, rotate_outputs, rotation_of
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set
from tarq.walk.reparametrize import reparametrize

CONFIG = tarq.TarqConfig(group_size=32, scale_dtype="float32", batch_size=3, samples=6)
CPU = torch.device("cpu")


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def layers_of(model):
    return {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in n}


def attention_layers(model):
    return {n for n in layers_of(model) if n.rpartition(".")[0].endswith("_attn")}


@pytest.mark.parametrize("size", [2, 5, 36, 64])
def test_the_rotation_is_orthogonal_and_mixes_all_channels(size):
    rotation = rotation_of(size)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(size, dtype=torch.float64))
    assert torch.equal(rotation, rotation_of(size))
    if size > 8:
        assert float(rotation.abs().max()) < 0.75


@pytest.mark.parametrize(("size", "heads", "inputs"), [(4, 3, 7), (5, 1, 2)])
def test_weights_are_rotated_as_their_products_with_the_whole_rotation(size, heads, inputs):
    """The rotation of every head, written out as one matrix."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.block_diag(*[rotation_of(size)] * heads)
    maker = torch.randn(size * heads, inputs, generator=generator, dtype=torch.float64)
    reader = torch.randn(inputs, size * heads, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(rotate_outputs(maker, rotation_of(size)), whole @ maker)
    torch.testing.assert_close(rotate_outputs(maker[:, 0], rotation_of(size)), whole @ maker[:, 0])
    torch.testing.assert_close(rotate_inputs(reader, rotation_of(size)), reader @ whole.T)
    assert rotate_outputs(maker.half(), rotation_of(size)).dtype == torch.float16


def test_whisper_computes_the_same_with_all_its_heads_rotated(model_folder, manifest, recognizer):
    plain = tarq.load_recognizer(model_folder)
    batches = calibration_set(recognizer, load_utterances(manifest), CONFIG, Reporter())[0]
    layers = attention_layers(recognizer.model)
    reporter = Notes()
    notes = reparametrize(recognizer, batches[0], ["heads"], layers, reporter, CPU)
    assert set(notes) == layers
    assert not reporter.notes
    for name in layers:
        ours, before = recognizer.model.get_submodule(name), plain.model.get_submodule(name)
        assert not torch.allclose(ours.weight, before.weight, rtol=0.1)
        assert ours.weight.norm().item() == pytest.approx(before.weight.norm().item(), rel=1e-5)
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(recognizer.logits(batch), plain.logits(batch), rtol=1e-4, atol=1e-3)


def test_a_rotation_needs_all_its_layers_to_be_quantized(manifest, recognizer):
    batches = calibration_set(recognizer, load_utterances(manifest), CONFIG, Reporter())[0]
    key, output = "model.decoder.layers.1.self_attn.k_proj", "model.encoder.layers.0.self_attn.out_proj"
    before = {name: parameter.clone() for name, parameter in recognizer.model.named_parameters()}
    layers = attention_layers(recognizer.model) - {key, output}
    notes = reparametrize(recognizer, batches[0], ["heads"], layers, Reporter(), CPU)
    partners = {key.replace("k_proj", "q_proj"), output.replace("out_proj", "v_proj")}
    assert set(notes) == layers - partners
    for name in (key, output, *partners):
        assert torch.equal(recognizer.model.get_submodule(name).weight, before[f"{name}.weight"])


def test_hidden_units_stand_in_the_order_of_their_columns(model_folder, manifest, recognizer):
    plain = tarq.load_recognizer(model_folder)
    batches = calibration_set(recognizer, load_utterances(manifest), CONFIG, Reporter())[0]
    layers = layers_of(recognizer.model)
    notes = reparametrize(recognizer, batches[0], ["heads", "hidden"], layers, Reporter(), CPU)
    assert set(notes) == layers
    for i, layer in enumerate(recognizer.encoder.layers):
        before = plain.encoder.layers[i]
        sizes = layer.fc2.weight.norm(dim=0)
        assert bool((sizes[:-1] >= sizes[1:] - 1e-6).all())
        order = order_of(before.fc2.weight)
        assert not torch.equal(order, torch.arange(len(order)))
        assert torch.equal(layer.fc1.weight, before.fc1.weight[order])
        assert torch.equal(layer.fc1.bias, before.fc1.bias[order])
        assert torch.equal(layer.fc2.weight, before.fc2.weight[:, order])
        assert torch.equal(layer.fc2.bias, before.fc2.bias)
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(recognizer.logits(batch), plain.logits(batch), rtol=1e-4, atol=1e-3)


class FeedForward(nn.Module):
    """A gate and what it gates; hidden units may be mixed before they are read."""

    def __init__(self, mixed, width=12, hidden=20):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up = (nn.Linear(width, hidden) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)
        self.mixed = mixed

    def forward(self, x):
        hidden = F.silu(self.gate(x)) * self.up(x)
        return x + self.down(hidden.cumsum(-1) if self.mixed else hidden)


@pytest.mark.parametrize("mixed", [False, True])
def test_gates_are_sorted_with_what_they_gate(mixed):
    block = FeedForward(mixed)
    hidden = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(1))
    before = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    order = order_of(before["down.weight"])
    notes = reparametrize(
        OneBlock(block), hidden, ["hidden"], {f"only.{n}" for n in ("gate", "up", "down")}, Reporter(), CPU
    )
    assert set(notes) == (set() if mixed else {"only.gate", "only.up", "only.down"})
    if not mixed:
        for name in ("gate.weight", "gate.bias", "up.weight", "up.bias"):
            assert torch.equal(block.get_parameter(name), before[name][order])
        assert torch.equal(block.down.weight, before["down.weight"][:, order])
    else:
        assert all(torch.equal(p, before[name]) for name, p in block.named_parameters())


class Halves(nn.Module):
    """One Linear makes a gate and what it gates, one behind the other or in turn."""

    def __init__(self, in_turn, width=12, hidden=20):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.in_turn = in_turn

    def forward(self, x):
        made = self.up(x)
        values, gate = (made[..., ::2], made[..., 1::2]) if self.in_turn else made.chunk(2, -1)
        return x + self.down(F.silu(gate) * values)


@pytest.mark.parametrize("in_turn", [False, True])
def test_halves_of_one_layer_are_sorted_alike(in_turn):
    block = Halves(in_turn)
    hidden = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(1))
    before = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    order = order_of(before["down.weight"])
    notes = reparametrize(OneBlock(block), hidden, ["hidden"], {"only.up", "only.down"}, Reporter(), CPU)
    assert set(notes) == (set() if in_turn else {"only.up", "only.down"})
    rows, columns = (torch.arange(40), torch.arange(20)) if in_turn else (torch.cat([order, order + 20]), order)
    assert torch.equal(block.up.weight, before["up.weight"][rows])
    assert torch.equal(block.up.bias, before["up.bias"][rows])
    assert torch.equal(block.down.weight, before["down.weight"][:, columns])


class Attention(nn.Module):
    """Attention in which something may stand between the projections and their product; two heads may share keys."""

    def __init__(self, between="nothing", shared=1, size=8, heads=4):
        super().__init__()
        torch.manual_seed(0)
        self.head_dim, self.heads, self.shared, self.between = size, heads, shared, between
        width = size * heads
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, width // shared) for _ in range(2))
        self.norm = nn.LayerNorm(size)
        with torch.no_grad():  # as in a trained model, attention is not flat
            self.q.weight *= 4

    def forward(self, hidden):
        def heads_of(x):
            return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        q, k, v = heads_of(self.q(hidden)), heads_of(self.k(hidden)), heads_of(self.v(hidden))
        k, v = (x.repeat_interleave(self.shared, 1) for x in (k, v))
        if self.between == "rotary":
            angle = torch.arange(q.shape[2], dtype=q.dtype)[:, None] * torch.linspace(0.1, 1, self.head_dim // 2)
            cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
            q, k = (
                x * cos + torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1) * sin for x in (q, k)
            )
        if self.between == "norm":
            q = self.norm(q)
        mixed = F.scaled_dot_product_attention(q, k, v)
        if self.between == "gelu":
            mixed = F.gelu(mixed)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = Attention(**options)

    def forward(self, hidden):
        return hidden + self.attention(hidden)


class OneBlock:
    """As much of a recognizer as has blocks."""

    def __init__(self, block):
        self.block = block

    def stages(self):
        from tarq.models.types import Stage

        return [Stage("only", [("only", self.block)], start=lambda batch, _: self.block(batch), finish=lambda x: x)]


class Stack(OneBlock):
    """Blocks one after the other."""

    def stages(self):
        from tarq.models.types import Stage

        blocks = [(f"only.{i}", block) for i, block in enumerate(self.block)]
        return [Stage("only", blocks, start=lambda batch, _: self.block(batch), finish=lambda x: x)]


def hears_nothing(block):
    """Its values read one channel of the input."""
    with torch.no_grad():
        block.attention.v.weight[:, 1:] = 0
    return block


@pytest.mark.parametrize(
    ("blocks", "left", "said"),
    [
        # what one block could not take, the next one may
        ([{"between": "rotary"}, {}], {"0.attention.q", "0.attention.k"}, "only.0.attention.k, only.0.attention.q"),
        ([{"silent": True}, {}], {"0.attention.q", "0.attention.k"}, "only.0.attention.k, only.0.attention.q"),
        # what one block took, the next one may not, although nothing is seen of it on this batch
        (
            [{}, {"between": "rotary", "silent": True}],
            {"1.attention.q", "1.attention.k"},
            "only.1.attention.k, only.1.attention.q",
        ),
        (
            [{"between": "rotary"}] * 2,
            {f"{i}.attention.{n}" for i in range(2) for n in "qk"},
            "only.*.attention.k, only.*.attention.q",
        ),
    ],
)
def test_blocks_are_tested_each_for_itself(blocks, left, said):
    """Values that read only a channel which is 0 in the batch tell nothing of queries and keys."""
    silent = [options.get("silent", False) for options in blocks]
    made = [Block(**{k: v for k, v in options.items() if k != "silent"}) for options in blocks]
    stack = nn.Sequential(*(hears_nothing(b) if quiet else b for b, quiet in zip(made, silent, strict=True)))
    hidden = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
    if True in silent:
        hidden[..., 0] = 0
        with torch.no_grad():  # and stays so up to the second block
            stack[0].attention.out.weight[0], stack[0].attention.out.bias[0] = 0, 0
    other = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = stack(other)
    layers = {f"only.{n}" for n, m in stack.named_modules() if isinstance(m, nn.Linear)}
    reporter = Notes()
    notes = reparametrize(Stack(stack), hidden, ["heads"], layers, reporter, CPU)
    assert layers - set(notes) == {f"only.{name}" for name in left}
    assert reporter.notes == [f"not reparametrized, or the model might compute something else: {said}"]
    with torch.no_grad():
        torch.testing.assert_close(stack(other), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "rotated"),
    [
        ({}, {"q", "k", "v", "out"}),
        ({"shared": 2}, {"q", "k", "v", "out"}),
        ({"size": 5}, {"q", "k", "v", "out"}),
        ({"between": "rotary"}, {"v", "out"}),
        ({"between": "norm"}, {"v", "out"}),
        ({"between": "gelu"}, {"q", "k"}),
    ],
)
def test_a_block_says_itself_what_can_be_rotated(options, rotated):
    block = Block(**options)
    width = block.attention.out.in_features
    hidden = torch.randn(2, 6, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = block(hidden)
    reporter = Notes()
    layers = {f"only.attention.{name}" for name in ("q", "k", "v", "out")}
    notes = reparametrize(OneBlock(block), hidden, ["heads"], layers, reporter, CPU)
    assert set(notes) == {f"only.attention.{name}" for name in rotated}
    with torch.no_grad():
        torch.testing.assert_close(block(hidden), plain, rtol=1e-4, atol=1e-4)
    left = sorted(layers - set(notes))
    assert reporter.notes == (
        [f"not reparametrized, or the model might compute something else: {', '.join(left)}"] if left else []
    )


@pytest.mark.parametrize(
    ("kind", "reader", "note"),
    [("heads", "out_proj", "heads are rotated"), ("hidden", "fc2", "hidden units are sorted")],
)
def test_channels_that_stand_out_are_rounded_better(recognizer, manifest, kind, reader, note):
    """Output projections, or second layers, read a few channels much more than the others."""

    def spiky():
        made = tarq.load_recognizer(recognizer.model.config._name_or_path)
        for name in layers_of(made.model):
            if name.endswith(reader):
                made.model.get_submodule(name).weight.data[:, ::16] *= 20
        return made

    full = spiky()
    batch = calibration_set(full, load_utterances(manifest), CONFIG, Reporter())[0][0]
    errors = {}
    for choice in ("none", kind, "both"):
        quantized = spiky()
        config = tarq.TarqConfig.preset("gptq", group_size=32, samples=6, batch_size=3, bits=3, reparametrize=choice)
        report = tarq.quantize(quantized, manifest, config)
        said = {layer.name for layer in report.layers if note in layer.notes}
        attention = attention_layers(full.model)
        changed = attention if kind == "heads" else layers_of(full.model) - attention
        assert said == (set() if choice == "none" else changed)
        with torch.no_grad():
            errors[choice] = float((quantized.logits(batch) - full.logits(batch)).square().mean())
    assert errors[kind] < 0.7 * errors["none"], errors


@pytest.mark.parametrize("given", [True, False])
def test_rounding_to_nearest_is_reparametrized_where_speech_is_given(recognizer, manifest, given):
    config = tarq.TarqConfig.preset("rtn", group_size=32, samples=3, reparametrize="both")
    report = tarq.quantize(recognizer, manifest if given else None, config)
    notes = [] if given else ["not reparametrized: it is tested on calibration speech, and none is given"]
    assert report.notes == notes
    assert all(bool(layer.notes) == given for layer in report.layers)


def test_rotated_biases_are_those_that_are_stored(recognizer, manifest):
    for module in recognizer.model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data = torch.linspace(-1, 1, len(module.bias)).half().to(module.bias)
    config = tarq.TarqConfig.preset("gptq", group_size=32, samples=3, reparametrize="both")
    tarq.quantize(recognizer, manifest, config)
    assert recognizer.stored_dtype == torch.float16
    for name, bias in recognizer.model.named_buffers():
        if name.endswith("proj.bias"):
            assert torch.equal(bias, bias.half().to(bias)), name
