"""Scales of inputs: what can take them is found out, the model stays the same, and rounding gains by it."""

import pytest
import torch
from tarq.kernels.scheme import Scheme
from torch import nn
from torch.nn import functional as F

import tarq
from tarq.method.awq import RATIOS, input_scales
from tarq.method.registry import make_input_scales
from tarq.method.smoothquant import smoothing_scales
from tarq.report import Reporter
from tarq.walk.folding import find_scale_folds, fold_input_scales, scale_folds_of
from tarq.walk.inputs import BlockInputs, capture_inputs

CONFIG = tarq.TarqConfig.preset(
    "tarq", group_size=32, scale_dtype="float32", batch_size=3, samples=6, input_scales="awq", scale_rule="absmax"
)
CPU = torch.device("cpu")
#: Behind a GELU, or read by several blocks.
FIXED = (".fc2", "encoder_attn.k_proj", "encoder_attn.v_proj")


@pytest.fixture
def recognizer(model_folder):
    return uneven(tarq.load_recognizer(model_folder))


def uneven(recognizer):
    """Norms with outlier channels, as trained models have: there is something to scale."""
    generator = torch.Generator().manual_seed(0)
    for module in recognizer.model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data *= (2 * torch.rand(len(module.weight), generator=generator)).exp()
            module.bias.data += 0.1 * torch.randn(len(module.bias), generator=generator)
    return recognizer


def test_whisper_can_take_the_scales_of_all_but_fc2_and_what_several_blocks_read(recognizer, batches):
    found = find_scale_folds(recognizer, batches[0], CPU)
    linears = {n for n, m in recognizer.model.named_modules() if isinstance(m, nn.Linear) and ".layers." in n}
    assert linears - set(found) == {n for n in linears if n.endswith(FIXED)}
    block = recognizer.decoder.layers[1]
    path = "model.decoder.layers.1"
    for names, producer in (
        (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), block.self_attn_layer_norm),
        (("self_attn.out_proj",), block.self_attn.v_proj),
        (("encoder_attn.q_proj",), block.encoder_attn_layer_norm),
        (("encoder_attn.out_proj",), block.encoder_attn.v_proj),
        (("fc1",), block.final_layer_norm),
    ):
        for name in names:
            fold = found[f"{path}.{name}"]
            assert fold.producer is producer
            assert fold.readers == [block.get_submodule(n) for n in names]


@pytest.mark.parametrize("kind", ["awq", "smoothquant"])
def test_the_model_computes_what_it_did_with_scaled_weights(model_folder, recognizer, batches, kind):
    plain = uneven(tarq.load_recognizer(model_folder))
    notes = fold_input_scales(recognizer, batches, CONFIG, Reporter(), CPU, make_input_scales(kind))
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(recognizer.logits(batch), plain.logits(batch), rtol=1e-4, atol=1e-3)
    assert len(notes) == 32
    scaled = {name for name, note in notes.items() if note.startswith("its input is scaled")}
    assert {
        name for name in notes if not name.endswith(("fc2", "encoder_attn.k_proj", "encoder_attn.v_proj"))
    } == scaled
    name = "model.decoder.layers.1.fc1"
    moved = (recognizer.model.get_submodule(name).weight / plain.model.get_submodule(name).weight).detach()
    assert float((moved[0] / moved[-1] - 1).abs().max()) < 1e-3
    assert float(moved.max() / moved.min()) > 1.5


def test_what_could_not_be_scaled_is_in_the_report(model_folder, manifest):
    told = []

    class Hears(Reporter):
        def note(self, text):
            told.append(text)

    config = tarq.TarqConfig.preset("awq", group_size=32, samples=4, scale_rule="absmax")
    report = tarq.quantize(uneven(tarq.load_recognizer(model_folder)), manifest, config, reporter=Hears())
    notes = {layer.name: " ".join(layer.notes) for layer in report.layers}
    assert {name for name, note in notes.items() if "nothing in front" in note} == {
        name for name in notes if name.endswith(FIXED)
    }
    (text,) = [text for text in told if "nothing in front" in text]
    assert "model.decoder.layers.*.encoder_attn.k_proj" in text
    assert "model.encoder.layers.*.fc2" in text


class Toy(nn.Module):
    """A block with one way between two Linears."""

    def __init__(self, between, norm_after=False, width=16):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.between, self.norm_after = between, norm_after

    def forward(self, hidden):
        hidden = self.norm(hidden) if self.norm_after else hidden
        read = hidden if self.norm_after else self.norm(hidden)
        return hidden + self.second(self.between(self.first(read)))


@pytest.mark.parametrize(
    ("between", "norm_after", "found"),
    [
        (lambda x: x, False, {"first", "second"}),
        (F.relu, False, {"first", "second"}),  # what scales by a positive number passes
        (F.gelu, False, {"first"}),
        (F.silu, False, {"first"}),
        (lambda x: x.flip(-1), False, {"first"}),  # outputs that change places
        (lambda x: x.cumsum(1), False, {"first", "second"}),  # attention mixes rows, not columns
        (F.relu, True, {"second"}),  # the residual stream reads the norm, too
    ],
)
def test_a_block_says_itself_what_can_take_scales(between, norm_after, found):
    block, hidden = Toy(between, norm_after), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    before = {name: p.clone() for name, p in block.named_parameters()}
    with torch.no_grad():
        folds = dict(scale_folds_of(block, BlockInputs(hidden)))
        assert {name for names in folds for name in names} == found
        assert all(torch.equal(p, before[name]) for name, p in block.named_parameters())
        plain = block(hidden)
        for fold in folds.values():
            fold.apply(torch.linspace(0.5, 3, 16))
        torch.testing.assert_close(block(hidden), plain, rtol=1e-4, atol=1e-4)


def test_scales_are_the_best_of_the_grid():
    """Every ratio by hand: from the inputs themselves, the outputs' error of each layer rounded to nearest."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 32, generator=g, dtype=torch.float64) * torch.linspace(-2, 2, 32, dtype=torch.float64).exp()
    x[:, 9] = 0
    weights = [torch.randn(m, 32, generator=g, dtype=torch.float64) for m in (8, 12)]
    s, ratio = input_scales(weights, x.T @ x, Scheme(3, 16), torch.float32)
    assert 0 < ratio < 0.95
    assert float(s.max() * s.min()) == pytest.approx(1)

    def error(s):
        total = 0.0
        for w in weights:
            groups = (w * s).view(len(w), 2, 16)
            scale = (groups.abs().amax(-1, keepdim=True) / 3.5).float().double()
            rounded = (torch.round(groups / scale).clamp(-4, 3) * scale).view_as(w) / s
            total += float(((w - rounded) @ x.T).square().sum())
        return total

    magnitude = x.square().mean(0).sqrt()
    errors = []
    for k in RATIOS:
        tried = magnitude.pow(k)
        tried[9] = magnitude[magnitude > 0].mean() ** k
        errors.append(error(tried))
    # A group's largest weight lies on a tie, so the last bit of a scale may count.
    assert error(s) == pytest.approx(min(errors), rel=0.02)
    assert error(s) < 0.98 * errors[0]


def test_smoothing_shares_outliers_between_inputs_and_weights():
    """Each largest input over each largest weight, by hand; at α = ½ they come out alike."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 12, generator=g, dtype=torch.float64) * torch.linspace(-3, 3, 12, dtype=torch.float64).exp()
    x[:, 4] = 0
    weights = [torch.randn(m, 12, generator=g, dtype=torch.float64) for m in (5, 7)]
    weights[0][:, 8], weights[1][:, 8] = 0, 0  # as small as can be told from none
    largest = x.abs().amax(0)
    for strength in (0.0, 0.5, 0.8, 1.0):
        s = smoothing_scales(weights, largest, strength)
        wanted = []
        for j in range(12):
            column = max(max(float(w[:, j].abs().max()) for w in weights), 1e-5)
            wanted.append(max(float(x[:, j].abs().max()) ** strength / column ** (1 - strength), 1e-5))
        ratio = s / torch.tensor(wanted, dtype=torch.float64)
        live = [j for j in range(12) if j != 4]
        torch.testing.assert_close(ratio[live], ratio[0].expand(11))
        assert float(s[live].max() * s[live].min()) == pytest.approx(1)
        assert float(s[4]) == 1
    s = smoothing_scales(weights, largest)
    smoothed, columns = (x / s).abs().amax(0), torch.cat(weights).mul(s).abs().amax(0)
    shared = [j for j in live if j != 8]
    torch.testing.assert_close(smoothed[shared] / columns[shared], (smoothed[0] / columns[0]).expand(10))
    assert torch.equal(smoothing_scales(weights, torch.zeros(12)), torch.ones(12))


def test_smoothing_takes_the_maxima_of_the_rows_that_count(model_folder, recognizer, batches):
    """The scales of one input, from what its Linear reads: rows that only fill a batch are left out."""
    name = "model.decoder.layers.1.fc1"
    plain = uneven(tarq.load_recognizer(model_folder))
    rows = []
    with capture_inputs(plain.model, [name], lambda _, tensor: rows.append(tensor)), torch.no_grad():
        for batch in batches:
            plain.logits(batch)
    exist = [batch.positions["decoder"].exists for batch in batches]
    assert not all(bool(each.all()) for each in exist)
    x = torch.cat([read[there] for read, there in zip(rows, exist, strict=True)])
    weight = plain.model.get_submodule(name).weight
    fold_input_scales(recognizer, batches, CONFIG, Reporter(), CPU, make_input_scales("smoothquant"))
    scaled = recognizer.model.get_submodule(name).weight
    torch.testing.assert_close(
        scaled.detach(), (weight * smoothing_scales([weight], x.abs().amax(0))).detach(), rtol=1e-4, atol=1e-6
    )


def test_scaled_norms_are_saved_and_loaded(model_folder, manifest, tmp_path, batches):
    recognizer = uneven(tarq.load_recognizer(model_folder))
    before = recognizer.decoder.layers[0].final_layer_norm.weight.detach().clone()
    report = tarq.quantize(
        recognizer, manifest, tarq.TarqConfig.preset("awq", group_size=32, samples=4, scale_rule="absmax")
    )
    tarq.save(recognizer, tmp_path / "out", report)
    again = tarq.load_recognizer(tmp_path / "out")
    norm = again.decoder.layers[0].final_layer_norm.weight
    assert float((norm / before - 1).detach().abs().max()) > 0.2
    torch.testing.assert_close(norm, recognizer.decoder.layers[0].final_layer_norm.weight, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        ours, theirs = recognizer.logits(batches[0]), again.logits(batches[0])
    assert float((ours - theirs).norm() / ours.norm()) < 0.01
