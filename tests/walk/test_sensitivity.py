"""Bits to a stated mean: what each width does to the loss, and what is spent where."""

import dataclasses

import pytest
import torch

import tarq
from tarq import Sensitivity, allocate_bits
from tarq.data.corpora.registry import load_utterances
from tarq.errors import ConfigError
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set
from tarq.walk.sensitivity import measure

CONFIG = tarq.TarqConfig.preset("gptq", group_size=32, samples=4, scale_dtype="float32")
FC1 = "model.decoder.layers.1.fc1"


def mean(report):
    weights = [(torch.Size(layer.shape).numel(), layer.bits) for layer in report.layers]
    return sum(n * bits for n, bits in weights) / sum(n for n, _ in weights)


@pytest.fixture(scope="module")
def table(model_folder, manifest):
    recognizer = tarq.load_recognizer(model_folder)
    recognizer.model.float()
    outlying = recognizer.model.get_submodule(FC1).weight.data
    outlying[:, ::32] = 20 * outlying.std()  # one weight in each group, so the others' steps are coarse
    before = {name: tensor.clone() for name, tensor in recognizer.model.state_dict().items()}
    batches, *_ = calibration_set(recognizer, load_utterances(manifest), CONFIG, Reporter())
    found = measure(recognizer, batches, CONFIG, Reporter())
    assert all(torch.equal(tensor, before[name]) for name, tensor in recognizer.model.state_dict().items())
    return found


@pytest.mark.parametrize(
    ("target", "others", "bits"),
    [
        (4, (), (4, 4, 4)),
        (4.9, (), (4, 8, 4)),  # a takes most away, but b most per bit
        (6, (), (4, 8, 4)),  # a no longer fits
        (7.9, (), (8, 8, 4)),
        (8, (), (8, 8, 4)),  # c is made worse by more bits, and keeps what it has
        (4.5, [(150, 4)], (4, 8, 4)),
        (4.5, [(200, 2)], (8, 8, 4)),
    ],
)
def test_most_damage_per_bit_first(target, others, bits):
    rows = [
        Sensitivity(("a",), 100, {4: 10.0, 8: 1.0}),
        Sensitivity(("b", "b2"), 30, {4: 6.0, 8: 0.0}),
        Sensitivity(("c",), 20, {4: 1.0, 8: 2.0}),
    ]
    a, b, c = bits
    assert allocate_bits(rows, target, others) == {"a": a, "b": b, "b2": b, "c": c}


def test_in_steps_and_refused():
    row = Sensitivity(("a",), 10, {3: 9.0, 4: 3.0, 8: 0.0})
    assert [allocate_bits([row], target)["a"] for target in (3, 3.9, 4, 7.9, 8)] == [3, 3, 4, 4, 8]
    with pytest.raises(ConfigError, match="target_bits must be at least 5, the mean"):
        allocate_bits([row], 4.5, [(10, 7)])
    with pytest.raises(ConfigError, match="damage of a must be a finite number"):
        allocate_bits([dataclasses.replace(row, damage={4: float("nan")})], 4)
    with pytest.raises(ConfigError, match="target_bits must be at least bits, 4, not 3"):
        tarq.TarqConfig(target_bits=3)


def test_what_each_width_does_is_measured(table):
    names = [name for row in table for name in row.names]
    assert len(names) == len(set(names)) == 32
    assert {len(row.names) for row in table} == {1, 2, 3}  # q, k and v get one width, and k and v of what was heard
    for row in table:
        assert set(row.damage) == {4, 8}
        assert row.weights == 128 * 128 * len(row.names) * (2 if "fc" in row.names[0] else 1)
        assert 0 < row.damage[8] < row.damage[4] / 30
    felt = {row.names[0]: row.damage[4] for row in table}
    assert felt[FC1] > 4 * felt["model.decoder.layers.0.fc1"]


def test_damage_is_the_losss_second_order_change(model_folder, manifest, table):
    """Against (gᵀ E x)² position by position, gradients and inputs taken by hooks, for a layer of one reader."""
    recognizer = tarq.load_recognizer(model_folder)
    recognizer.model.float()
    linear = recognizer.model.get_submodule(FC1)
    linear.weight.data[:, ::32] = 20 * linear.weight.data.std()
    batches, *_ = calibration_set(recognizer, load_utterances(manifest), CONFIG, Reporter())
    rare, every = (sum(int(b.rare_target.sum()) for b in batches), sum(int((b.targets != -100).sum()) for b in batches))
    inputs, gradients = [], []

    def hook(module, args, output):
        inputs.append(args[0].detach())
        output.requires_grad_()
        output.register_hook(lambda g: gradients.append(g))

    handle = linear.register_forward_hook(hook)
    x, g = [], []
    for batch in batches:
        logits = recognizer.logits(batch).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), reduction="none")
        weight = torch.where(batch.rare_target, 0.5 * every / rare, 0.5 * every / (every - rare)).flatten()
        (loss * weight).sum().backward()
        exists = batch.positions["decoder"].exists
        x.append(inputs.pop()[exists])
        g.append(gradients.pop()[exists])
    handle.remove()
    x, g = torch.cat(x).double(), torch.cat(g).double()
    (row,) = (row for row in table if row.names == (FC1,))
    report = tarq.quantize(recognizer, manifest, CONFIG)  # GPTQ's own error is another: only its size is compared
    error = (linear.weight - recognizer.model.get_submodule(FC1).dequantize()).double()
    exact = float((g @ error * x).sum(1).square().sum()) / (2 * every)
    independent = float(((g.mT @ g @ error) * (error @ x.mT @ x)).sum()) / (2 * every * len(x))
    assert report.layers
    assert independent == pytest.approx(row.damage[4], rel=0.25)
    assert row.damage[4] / 4 < exact < 4 * row.damage[4]  # inputs and gradients are not quite independent


@pytest.mark.parametrize("target", [4.0, 4.5])
def test_a_run_spends_up_to_its_target(model_folder, manifest, tmp_path, target):
    recognizer = tarq.load_recognizer(model_folder)
    config = dataclasses.replace(CONFIG, target_bits=target, bits_for={"model.encoder.layers.0": 3})
    report = tarq.quantize(recognizer, manifest, config)
    bits = {layer.name: layer.bits for layer in report.layers}
    assert {n for name, n in bits.items() if name.startswith("model.encoder.layers.0.")} == {3}
    assert target - 0.3 < mean(report) <= target
    assert 8 in bits.values()  # also at 4.0: the three bits of a block pay for them
    assert any(note.startswith(f"target_bits {target:g}: ") for note in report.notes)
    tarq.save(recognizer, tmp_path / "out", report)
    assert tarq.TarqConfig.from_dict(tarq.Report.read(tmp_path / "out").config) == config
    again = tarq.load_recognizer(tmp_path / "out")
    for name, layer in recognizer.model.named_modules():
        if isinstance(layer, tarq.QuantLinear):
            assert torch.equal(again.model.get_submodule(name).dequantize(), layer.dequantize())


def test_a_table_measured_otherwise_takes_its_place(model_folder, tmp_path):
    wanted = "model.decoder.layers.0.fc2"
    config = tarq.TarqConfig.preset("rtn", group_size=32, target_bits=4.5)
    table = [Sensitivity((wanted,), 128 * 256, {3: 9.0, 8: 0.1})]
    recognizer = tarq.load_recognizer(model_folder)
    report = tarq.quantize(recognizer, None, config, sensitivities=table)  # and no speech is asked for
    assert {layer.name for layer in report.layers if layer.bits == 8} == {wanted}
    for wrong, said in (([dataclasses.replace(table[0], names=("fc2",))], "names 'fc2'"), (2 * table, "named twice")):
        with pytest.raises(ConfigError, match=said):
            tarq.quantize(tarq.load_recognizer(model_folder), None, config, sensitivities=wrong)
    with pytest.raises(ConfigError, match="set it"):
        tarq.quantize(
            tarq.load_recognizer(model_folder), None, dataclasses.replace(config, target_bits=None), sensitivities=table
        )
    with pytest.raises(tarq.ModelError, match="needs calibration speech"):
        tarq.quantize(tarq.load_recognizer(model_folder), None, config)
