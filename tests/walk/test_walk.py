"""The walk: order, pairing, shared inputs, rows, determinism, and what it says of trouble."""

import dataclasses
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from tarq.walk.blocks import Path, Room, first_input, groups_of, input_of, remembering
from torch import nn

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import CalibrationError, ModelError
from tarq.linear import QuantLinear
from tarq.method.metrics import PositionWeights, RareBAL
from tarq.method.moments import Moments
from tarq.report import Reporter, peak_memory
from tarq.speech.calibration import calibration_set
from tarq.walk import walk as sequential
from tarq.walk.walk import choose_group_size, quantize_model

CONFIG = tarq.TarqConfig(group_size=32, scale_dtype="float16", batch_size=3)


@pytest.fixture
def recognizer(model_folder):
    return tarq.load_recognizer(model_folder)


@pytest.fixture
def batches(recognizer, manifest):
    return calibration_set(recognizer, load_utterances(manifest), CONFIG, Reporter())[0]


def test_blocks_are_watched_in_true_order(recognizer, batches):
    stages = recognizer.stages()
    encoder, decoder = stages
    path = first_input(encoder.blocks[0][1], encoder, batches[0], None)
    assert [g.names for g in groups_of(encoder.blocks[0][1], path)] == [
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ]
    audio = recognizer.encoder(**batches[0].features).last_hidden_state
    groups = groups_of(decoder.blocks[0][1], first_input(decoder.blocks[0][1], decoder, batches[0], audio))
    assert [g.names for g in groups] == [
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("encoder_attn.q_proj",),
        ("encoder_attn.k_proj", "encoder_attn.v_proj"),
        ("encoder_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ]
    assert [g.context is not None for g in groups] == [False, False, False, True, False, False, False]


def test_every_linear_of_the_blocks_is_swapped_and_the_rest_left(recognizer, batches):
    records = quantize_model(recognizer, batches, CONFIG, Reporter())
    packed = {n for n, m in recognizer.model.named_modules() if isinstance(m, QuantLinear)}
    assert packed == {r.name for r in records}
    assert len(packed) == 2 * 6 + 2 * 10
    assert [n for n, m in recognizer.model.named_modules() if isinstance(m, nn.Linear)] == ["proj_out"]
    assert recognizer.left_out() == {"proj_out": "the output head, tied to the token embedding"}
    decoder = [r for r in records if r.stage == "decoder" and "encoder_attn.k" not in r.name]
    assert all(r.lam > 1 and r.tail_positions > 0 for r in decoder if "encoder_attn.v" not in r.name)
    assert all(r.lam == 1 for r in records if r.stage == "encoder")


def test_statistics_are_those_of_the_partly_quantized_network(recognizer, batches, monkeypatch):
    """Moments of a late layer, recomputed from whole forward passes of both networks."""
    full = tarq.load_recognizer(recognizer.model.config._name_or_path)
    seen = {}
    original = Moments.update

    def spy(self, x, x_full, tail, weight):
        seen.setdefault(self, []).append((x, x_full, tail, weight))
        return original(self, x, x_full, tail, weight)

    monkeypatch.setattr(Moments, "update", spy)
    quantize_model(recognizer, batches, CONFIG, Reporter())
    last, _ = list(seen.values())[-2:]  # fc2 of the last decoder block: everything before it is quantized

    def inputs(r):
        caught = []
        block = r.decoder.layers[-1].fc2
        handle = block.register_forward_pre_hook(lambda m, a: caught.append(a[0]))
        with torch.no_grad():
            for batch in batches:
                r.logits(batch)
        handle.remove()
        return caught

    counted = 0
    for (x, x_full, _, weight), now, before in zip(last, inputs(recognizer), inputs(full), strict=True):
        rows = weight > 0
        counted += int(rows.sum())
        torch.testing.assert_close(x[rows], now.flatten(0, 1)[rows], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(x_full[rows], before.flatten(0, 1)[rows], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(x[rows], x_full[rows], atol=1e-3)
    every = sum(int(b.positions["decoder"].exists.sum()) for b in batches)
    assert 0.3 * every < counted < 0.7 * every  # one half; the other went elsewhere


def test_a_finished_part_of_a_block_runs_once_a_batch(model_folder, batches, monkeypatch):
    """What a block came to on its way to one Linear is not computed again on the way to the next."""
    ran = Counter()
    forward = QuantLinear.forward

    def counted(self, x):
        ran[self] += 1
        return forward(self, x)

    monkeypatch.setattr(QuantLinear, "forward", counted)

    def runs(activation_memory):
        ran.clear()
        config = dataclasses.replace(CONFIG, activation_memory=activation_memory)
        quantize_model(tarq.load_recognizer(model_folder), batches, config, Reporter())
        assert len(ran) == 32
        assert not any("forward" in vars(module) for module in ran)
        return sum(ran.values()) / len(batches)

    # Of a block's attention, what is in front of the output projection runs twice: up to it, and with it.
    assert runs(4) == 2 * (6 + 3) + 2 * (12 + 4)
    assert runs(0) > 1.5 * runs(4)


class Writes(nn.Module):
    """A block that writes into what a part of it returned."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, hidden):
        out = self.first(hidden)
        out += hidden
        return self.last(out)


@pytest.mark.parametrize("free", [1e9, 0])
def test_a_block_may_write_into_what_its_parts_returned(free):
    torch.manual_seed(0)
    block, path, known = Writes(), Path(torch.randn(2, 3, 16), (), {}), {}
    cpu = torch.device("cpu")
    with torch.no_grad():
        expected = input_of(block, "last", path, None)
        for _ in range(3):
            with remembering(block, ["first"], known, Room(free), cpu):
                assert torch.equal(input_of(block, "last", path, None), expected)
    assert bool(known) == bool(free)


def test_cross_attention_statistics_are_gathered_once_for_all_decoder_blocks(recognizer, batches, monkeypatch):
    fed = set()
    original = Moments.update

    def spy(self, *args):
        fed.add(self)
        return original(self, *args)

    monkeypatch.setattr(Moments, "update", spy)
    quantize_model(recognizer, batches, CONFIG, Reporter())
    # own inputs of each block, and the encoder's output once; two halves of each
    assert len(fed) == 2 * (2 * 4 + 2 * 6 + 1)


@pytest.mark.parametrize("size", [1, 4])
def test_batching_and_padding_do_not_change_the_statistics(model_folder, manifest, monkeypatch, size):
    """First layers of encoder and decoder: the same moments whatever the batch."""

    def moments(batch_size):
        kept = []
        original = Moments.update

        def spy(self, *args):
            if self not in kept:
                kept.append(self)
            return original(self, *args)

        recognizer = tarq.load_recognizer(model_folder)
        config = dataclasses.replace(CONFIG, batch_size=batch_size)
        batches = calibration_set(recognizer, load_utterances(manifest), config, Reporter())[0]
        with monkeypatch.context() as patch:
            patch.setattr(Moments, "update", spy)
            quantize_model(recognizer, batches, config, Reporter())
        return kept

    ours, expected = moments(size), moments(8)
    for index in (0, 1, 16, 17):  # q/k/v of the first encoder and of the first decoder block, two halves each
        assert ours[index].positions == expected[index].positions
        for side in ("common", "tail"):
            difference = (ours[index].hessian[side] - expected[index].hessian[side]).norm()
            assert difference <= 1e-5 * expected[index].hessian[side].norm()


def test_padding_frames_count_with_their_weight(recognizer, batches, manifest):
    def positions(weight):
        r = tarq.load_recognizer(recognizer.model.config._name_or_path)
        config = dataclasses.replace(CONFIG, padding_weight=weight, residual="least-squares")
        return quantize_model(r, batches, config, Reporter())[0].positions

    frames = sum(int((~b.positions["encoder"].padding).sum()) for b in batches)
    assert positions(0.0) == frames
    assert positions(0.5) == sum(b.positions["encoder"].padding.numel() for b in batches)


def test_the_same_seed_gives_the_same_codes(model_folder, manifest):
    def codes(**options):
        recognizer = tarq.load_recognizer(model_folder)
        tarq.quantize(recognizer, manifest, dataclasses.replace(CONFIG, **options))
        return {n: m.weight_packed for n, m in recognizer.model.named_modules() if isinstance(m, QuantLinear)}

    first, second = codes(metric="random"), codes(metric="random")
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = codes(metric="random", seed=1)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_cross_fitting_needs_two_utterances(model_folder, manifest):
    recognizer = tarq.load_recognizer(model_folder)
    with pytest.raises(CalibrationError, match="at least 2 calibration utterances"):
        tarq.quantize(recognizer, manifest, dataclasses.replace(CONFIG, samples=1))


def test_ignored_layers_stay_and_are_recorded(recognizer, batches):
    ignore = ("model.encoder.layers.0", "model.decoder.layers.1.fc2")
    records = quantize_model(recognizer, batches, dataclasses.replace(CONFIG, ignore=ignore), Reporter())
    skipped = {r.name: r.skipped for r in records if r.skipped}
    assert len(skipped) == 6 + 1
    assert set(skipped.values()) == {"ignored by configuration"}
    assert isinstance(recognizer.decoder.layers[1].fc2, nn.Linear)


def test_a_name_to_ignore_that_matches_nothing_is_refused(recognizer, batches):
    with pytest.raises(ModelError, match=r"'encoder\.layers\.0' matches no layer; names look like model\.encoder"):
        quantize_model(recognizer, batches, dataclasses.replace(CONFIG, ignore=("encoder.layers.0",)), Reporter())


def test_rtn_refuses_weights_that_are_no_numbers(recognizer):
    recognizer.decoder.layers[1].fc1.weight.data[3, 5] = float("nan")
    config = tarq.TarqConfig.preset("rtn", group_size=32, scale_dtype="float16")
    with pytest.raises(CalibrationError, match=r"model\.decoder\.layers\.1\.fc1: its weights hold NaN"):
        quantize_model(recognizer, [], config, Reporter())


def test_rtn_reads_no_audio(recognizer):
    records = quantize_model(
        recognizer, [], tarq.TarqConfig.preset("rtn", group_size=32, scale_dtype="float16"), Reporter()
    )
    assert len(records) == 32
    assert all(r.loss is None and r.positions == 0 for r in records)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_name_the_layer(recognizer, batches, bad):
    recognizer.decoder.layers[1].fc1.weight.data[3, 5] = bad
    with pytest.raises(CalibrationError, match=r"model\.decoder\.layers\.1\.fc2.*NaN or infinite.*utterances"):
        quantize_model(
            recognizer,
            batches,
            dataclasses.replace(CONFIG, ignore=("model.decoder.layers.1.fc1",)),
            Reporter(),
        )


def test_a_weight_per_position_takes_the_place_of_the_metric(model_folder, batches):
    def codes(metric):
        recognizer = tarq.load_recognizer(model_folder)
        records = quantize_model(recognizer, batches, CONFIG, Reporter(), metric)
        return records, {n: m.weight_packed for n, m in recognizer.model.named_modules() if isinstance(m, QuantLinear)}

    records, weighted = codes(
        PositionWeights(lambda key: torch.linspace(0, 1, 100) if "encoder" in key else _none(key))
    )
    assert all(r.lam == 1 for r in records)
    _, plain = codes(RareBAL())
    assert any(not torch.equal(weighted[name], plain[name]) for name in plain)


def _none(key):
    raise KeyError(key)


@pytest.mark.parametrize(
    ("inputs", "asked", "got"),
    [(384, 128, 128), (288, 128, 32), (320, 128, 64), (416, 128, 32), (96, 32, 32)],
)
def test_group_size_divides_the_layer(inputs, asked, got):
    size, note = choose_group_size(inputs, asked)
    assert size == got
    assert bool(note) == (size != asked)


def test_no_group_size_divides():
    with pytest.raises(CalibrationError, match="12 inputs"):
        choose_group_size(12, 128)


def test_progress_is_reported(recognizer, batches):
    class Listener(Reporter):
        total, seen = 0, 0

        def start(self, layers):
            self.total = layers

        def layer(self, record):
            self.seen += 1

    listener = Listener()
    quantize_model(recognizer, batches, CONFIG, listener)
    assert listener.total == listener.seen == 32


def test_a_bound_on_activations_holds_and_changes_no_code(model_folder, batches, monkeypatch):
    """Everything held, the first two groups of a block, nothing: the same codes; what is held fits the bound."""
    most, drawn = 0, 0
    original = sequential._Pair.look_ahead

    def spy(self, *args):
        nonlocal drawn, most
        original(self, *args)
        drawn += sum(t.nbytes for t in self.ahead.values()) if args[1] else 0
        most = max(most, drawn)

    monkeypatch.setattr(sequential._Pair, "look_ahead", spy)

    def codes(budget):
        nonlocal drawn, most
        recognizer = tarq.load_recognizer(model_folder)
        encoder = sum(b.positions["encoder"].exists.numel() for b in batches) * 4 * 128  # bytes of one narrow input
        config = dataclasses.replace(CONFIG, activation_memory=budget * encoder / 1e9)
        most = drawn = 0
        # what is held of a block is given up before the next one
        done = sequential._Walk._quantize_block

        def block(*args):
            nonlocal drawn
            drawn = 0
            done(*args)

        with monkeypatch.context() as patch:
            patch.setattr(sequential._Walk, "_quantize_block", block)
            quantize_model(recognizer, batches, config, Reporter())
        layers = {n: m.weight_packed for n, m in recognizer.model.named_modules() if isinstance(m, QuantLinear)}
        return layers, most / encoder

    everything, held = codes(100)
    assert held == 5  # widths 128, 128, 128 and 256
    for budget in (2.5, 0):
        layers, held = codes(budget)
        assert held == int(budget)
        assert all(torch.equal(layers[name], everything[name]) for name in everything)


def test_blocks_are_lent_one_at_a_time(recognizer, batches, monkeypatch):
    """A model that stays in RAM: whatever runs in a block's moments runs while it, and it alone, is on the device."""
    lent, together, alone = [], [], []
    original = sequential.lent

    @contextmanager
    def spy(block, device):
        lent.append(block)
        together.append(len(lent))
        with original(block, device):
            yield
        lent.pop()

    monkeypatch.setattr(sequential, "lent", spy)
    blocks = [block for stage in recognizer.stages() for _, block in stage.blocks]
    for block in blocks:  # after the hook that stops a stage's start at its first block
        block.fc1.register_forward_pre_hook(lambda module, args, block=block: alone.append(lent == [block]))
    quantize_model(recognizer, batches, CONFIG, Reporter(), device=torch.device("cpu"))
    assert together == [1] * len(blocks)
    assert len(alone) > len(blocks)
    assert all(alone)


@pytest.mark.gpu
def test_an_offloaded_model_is_quantized_on_the_gpu(model_folder, manifest):
    config = dataclasses.replace(CONFIG, activation_memory=0)
    recognizer = tarq.load_recognizer(model_folder, device="cuda", dtype=torch.float32, offload=True)
    report = tarq.quantize(recognizer, manifest, config, offload="cuda")
    assert report.memory["device_peak_bytes"] > 0
    assert {t.device.type for t in recognizer.model.state_dict().values()} == {"cpu"}
    whole = tarq.load_recognizer(model_folder, device="cuda", dtype=torch.float32)
    tarq.quantize(whole, manifest, CONFIG)
    packed = {n: m for n, m in whole.model.named_modules() if isinstance(m, QuantLinear)}
    for name, module in recognizer.model.named_modules():
        if isinstance(module, QuantLinear):
            apart = (module.dequantize(torch.float32) - packed[name].dequantize(torch.float32).cpu()).norm()
            assert apart < 0.05 * module.dequantize(torch.float32).norm()


def test_peak_memory_is_in_the_report(model_folder, manifest):
    held = tarq.load_recognizer(model_folder)
    before = peak_memory(torch.device("cpu"))["ram_peak_bytes"]
    report = tarq.quantize(held, manifest, CONFIG)
    assert report.memory["ram_peak_bytes"] >= before > 10e6
