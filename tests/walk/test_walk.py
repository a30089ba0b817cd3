"""The walk: order, pairing, shared inputs, rows, determinism, and what it says of trouble."""

import dataclasses
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import CalibrationError
from tarq.linear import QuantLinear
from tarq.method.arms import Arms
from tarq.method.metrics import Plain, PositionWeights, RareBAL
from tarq.method.moments import Moments
from tarq.method.residuals import LeastSquares
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set
from tarq.walk import inputs, walk
from tarq.walk.run import gather_moments, quantize_model

CONFIG = tarq.TarqConfig.preset("tarq", group_size=32, scale_dtype="float16", batch_size=3)


def arms(**given):
    """Those of the configuration, some replaced."""
    return Arms.of(CONFIG.to_dict(), **given)


def packed(recognizer):
    return {n: m.weight_packed for n, m in recognizer.model.named_modules() if isinstance(m, QuantLinear)}


def test_every_linear_of_the_blocks_is_swapped_and_the_rest_left(recognizer, batches):
    records = quantize_model(recognizer, batches, CONFIG, Reporter())
    assert packed(recognizer).keys() == {r.name for r in records}
    assert len(records) == 2 * 6 + 2 * 10
    assert [n for n, m in recognizer.model.named_modules() if isinstance(m, nn.Linear)] == ["proj_out"]
    assert recognizer.left_out() == {"proj_out": "the output head, tied to the token embedding"}
    decoder = [r for r in records if r.stage == "decoder" and "encoder_attn.k" not in r.name]
    assert all(r.lam > 1 and r.tail_positions > 0 for r in decoder if "encoder_attn.v" not in r.name)
    assert all(r.lam == 1 for r in records if r.stage == "encoder")


class Recorder(LeastSquares):
    """Least squares that keeps the moments each Linear was solved under."""

    def __init__(self):
        self.seen = []

    def target(self, weight, statistics, quantize):
        self.seen.append(statistics.moments)
        return super().target(weight, statistics, quantize)


def test_statistics_are_those_of_the_partly_quantized_network(recognizer, batches):
    """Moments of a late layer, recomputed from whole forward passes of both networks."""
    full, residual = tarq.load_recognizer(recognizer.model.config._name_or_path), Recorder()
    quantize_model(recognizer, batches, CONFIG, Reporter(), arms(metric=Plain(), residual=residual))
    last = residual.seen[-1]  # fc2 of the last decoder block: everything before it is quantized

    def inputs(r):
        caught = []
        handle = r.decoder.layers[-1].fc2.register_forward_pre_hook(lambda m, a: caught.append(a[0]))
        with torch.no_grad():
            for batch in batches:
                r.logits(batch)
        handle.remove()
        rows = [x[batch.positions["decoder"].exists] for x, batch in zip(caught, batches, strict=True)]
        return torch.cat(rows).double()

    x, x_full = inputs(recognizer), inputs(full)
    close = {"rtol": 1e-3, "atol": 1e-3 * float((x.T @ x).abs().max())}
    torch.testing.assert_close(last.hessian.double(), x.T @ x, **close)
    cross = (x_full - x).T @ x
    torch.testing.assert_close(last.cross.double(), cross, rtol=1e-3, atol=1e-3 * float(cross.abs().max()))
    assert float(cross.norm()) > 1e-3 * float((x.T @ x).norm())


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


def test_cross_attention_statistics_are_gathered_once_for_all_decoder_blocks(recognizer, batches, monkeypatch):
    made = []
    original = Moments.__init__

    def counted(self, *args, **kwargs):
        made.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(Moments, "__init__", counted)
    quantize_model(recognizer, batches, CONFIG, Reporter())
    # own inputs of each block, and the encoder's output once; two folds of each
    assert len(made) == 2 * (2 * 4 + 2 * 6 + 1)


@pytest.mark.parametrize("size", [1, 4])
def test_batching_and_padding_do_not_change_the_statistics(model_folder, manifest, size):
    """The same moments whatever the batch, in every fold."""

    def moments(batch_size):
        recognizer = tarq.load_recognizer(model_folder)
        config = dataclasses.replace(CONFIG, batch_size=batch_size)
        batches = calibration_set(recognizer, load_utterances(manifest), config, Reporter())[0]
        return gather_moments(recognizer, batches, config)

    ours, expected = moments(size), moments(8)
    assert ours.keys() == expected.keys()
    for label, parts in ours.items():
        assert len(parts) == 2
        for one, eight in zip(parts, expected[label], strict=True):
            assert one.positions == eight.positions
            for subset in ("common", "tail"):
                difference = (one.hessian[subset] - eight.hessian[subset]).norm()
                assert difference <= 1e-5 * eight.hessian[subset].norm()


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
        return packed(recognizer)

    first, second = codes(metric="random"), codes(metric="random")
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = codes(metric="random", seed=1)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_cross_fitting_needs_two_utterances(model_folder, manifest):
    recognizer = tarq.load_recognizer(model_folder)
    with pytest.raises(CalibrationError, match="at least 2 calibration utterances"):
        tarq.quantize(recognizer, manifest, dataclasses.replace(CONFIG, samples=1))


def test_a_fold_without_weight_is_refused_by_layer(recognizer, manifest):
    """Utterances that were there, and turn out to be too few for the folds once they are read."""
    one = dataclasses.replace(CONFIG, samples=1)
    batches = calibration_set(recognizer, load_utterances(manifest), one, Reporter())[0]
    with pytest.raises(CalibrationError, match=r"q_proj.*: no position has weight in 1 of the 2 folds.*CrossFitted"):
        quantize_model(recognizer, batches, one, Reporter())


def test_ignored_layers_stay_and_are_recorded(recognizer, batches):
    ignore = ("model.encoder.layers.0", "model.decoder.layers.1.fc2")
    records = quantize_model(recognizer, batches, dataclasses.replace(CONFIG, ignore=ignore), Reporter())
    skipped = {r.name: r.skipped for r in records if r.skipped}
    assert len(skipped) == 6 + 1
    assert set(skipped.values()) == {"ignored by configuration"}
    assert isinstance(recognizer.decoder.layers[1].fc2, nn.Linear)


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
        return quantize_model(recognizer, batches, CONFIG, Reporter(), arms(metric=metric)), packed(recognizer)

    records, weighted = codes(
        PositionWeights(lambda key: torch.linspace(0, 1, 100) if "encoder" in key else _none(key))
    )
    assert all(r.lam == 1 for r in records)
    _, plain = codes(RareBAL())
    assert any(not torch.equal(weighted[name], plain[name]) for name in plain)


def _none(key):
    raise KeyError(key)


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


@pytest.mark.parametrize("share", [0.3, 0])
def test_a_bound_on_activations_changes_no_code(model_folder, batches, share):
    """A part of a block's inputs held, nothing held: the codes of everything held."""

    def codes(gigabytes):
        recognizer = tarq.load_recognizer(model_folder)
        quantize_model(recognizer, batches, dataclasses.replace(CONFIG, activation_memory=gigabytes), Reporter())
        return packed(recognizer)

    rows = sum(b.positions["encoder"].exists.numel() for b in batches)
    everything, some = codes(4), codes(share * rows * 4 * 5 * 128 / 1e9)  # widths 128, 128, 128 and 256
    assert all(torch.equal(some[name], everything[name]) for name in everything)


def test_blocks_are_offloaded_one_at_a_time(recognizer, batches, monkeypatch):
    """A model that stays in RAM: whatever runs in a block runs while it, and it alone, is on the device."""
    there, together, alone = [], [], []

    @contextmanager
    def spy(block, device):
        there.append(block)
        together.append(len(there))
        yield
        there.pop()

    for module in (inputs, walk):
        monkeypatch.setattr(module, "offloaded", spy)
    blocks = [block for stage in recognizer.stages() for _, block in stage.blocks]
    for block in blocks:
        block.fc1.register_forward_pre_hook(lambda module, args, block=block: alone.append(there == [block]))
    quantize_model(recognizer, batches, CONFIG, Reporter())
    assert set(together) == {1}
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
