"""Metrics, residuals and solvers of one's own: the walk gives each what it asks for and does what it returns."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

import tarq
from tarq.errors import CalibrationError, ModelError
from tarq.linear import QuantLinear
from tarq.method.arms import Arms
from tarq.method.metrics import Plain
from tarq.method.residuals import LeastSquares, absorbed_mean
from tarq.method.solvers import Sweep
from tarq.report import Reporter
from tarq.walk.run import gather_moments, quantize_model

CONFIG = tarq.TarqConfig(group_size=32, scale_dtype="float32", batch_size=3, samples=6)
FC2 = "model.decoder.layers.1.fc2"


def run(recognizer, batches, config=CONFIG, **given):
    return {
        r.name: r for r in quantize_model(recognizer, batches, config, Reporter(), Arms.of(config.to_dict(), **given))
    }


def test_a_metric_may_ask_for_activations(recognizer, batches):
    """One that drops loud rows, layer by layer: what it returns is what is counted."""

    @dataclasses.dataclass(frozen=True)
    class Quiet(Plain):
        activations: bool = True

        def reassign(self, rows):
            assert rows.inputs.shape[0] == len(rows.weight) == len(rows.utterance)
            assert rows.gradients is None
            norm = rows.inputs.norm(dim=1)
            kept[rows.layers[-1]] = kept.get(rows.layers[-1], 0) + int((rows.weight * (norm < norm.median()) > 0).sum())
            return rows.tail, rows.weight * (norm < norm.median())

    kept = {}
    records = run(recognizer, batches, metric=Quiet())
    assert len(kept) == 2 * 4 + 2 * 7  # also the encoder's output, for each block that reads it
    assert all(records[name].positions == count for name, count in kept.items())


def test_a_metric_may_ask_for_gradients(model_folder, recognizer, batches):
    """Squared norms of the weighted loss's gradient at each output, row by row, from the full-precision model."""

    @dataclasses.dataclass(frozen=True)
    class ByGradient(Plain):
        gradients: bool = True

        def target_weight(self, rare, share):
            assert 0 < share < 1
            return 1.0 + 2.0 * rare

        def reassign(self, rows):
            if rows.layers[0] == FC2:
                seen.append(rows.gradients)
            return rows.tail, rows.weight * rows.gradients.sqrt()

    seen, expected = [], []
    run(recognizer, batches, metric=ByGradient())
    plain = tarq.load_recognizer(model_folder)
    outputs = []
    plain.decoder.layers[1].fc2.register_forward_hook(lambda m, a, out: outputs.append(out))
    for batch in batches:
        logits = plain.logits(batch)
        losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        loss = (losses * (1.0 + 2.0 * batch.rare_target.flatten())).sum()
        expected.append(torch.autograd.grad(loss, outputs[-1])[0].flatten(0, 1).square().sum(1))
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6 * float(theirs.max()))
        assert (theirs > 0).any()
    assert all(p.requires_grad for p in recognizer.model.parameters())
    assert not any(p.grad is not None for p in recognizer.model.parameters())


def test_a_solver_may_ask_for_the_output_side(recognizer, batches):
    @dataclasses.dataclass(frozen=True)
    class Watches(Sweep):
        output_moments: bool = True

        def quantize(self, targets, statistics, scheme, scale_dtype, outputs=None):
            for target, moments in zip(targets, outputs, strict=True):
                assert moments.shape == (len(target), len(target))
                assert torch.equal(moments, moments.T)
                traces.append(float(moments.trace()))
            return super().quantize(targets, statistics, scheme, scale_dtype)

    traces = []
    run(recognizer, batches, solver=Watches())
    assert len(traces) == 32
    assert min(traces) > 0


def test_gradients_come_with_their_mean_over_the_whole_set(recognizer, batches):
    """Over the rows that have any, of all Linears of an input together."""

    @dataclasses.dataclass(frozen=True)
    class ByGradient(Plain):
        gradients: bool = True

        def reassign(self, rows):
            given.setdefault(rows.layers[0], []).append((rows.gradients, rows.gradient_scale))
            return rows.tail, rows.weight

    given = {}
    run(recognizer, batches, metric=ByGradient())
    for name, seen in given.items():
        norms, scales = torch.cat([g for g, _ in seen]), {scale for _, scale in seen}
        assert len(scales) == 1, name
        if name.endswith(("fc1", "fc2", "out_proj")):  # one Linear alone
            assert scales.pop() == pytest.approx(float(norms[norms > 0].double().mean()), rel=1e-4)


@pytest.mark.parametrize("asks", ["gradients", "attention"])
def test_what_needs_the_whole_model_refuses_an_offloaded_one(recognizer, batches, asks):
    metric = type("Asks", (Plain,), {asks: True})()
    arms = Arms.of(CONFIG.to_dict(), metric=metric)
    with pytest.raises(ModelError, match=rf"asks for {asks} needs the whole model.*offload"):
        quantize_model(recognizer, batches, CONFIG, Reporter(), arms, torch.device("meta"))


@dataclasses.dataclass(frozen=True)
class ByAttention(Plain):
    """Keeps what each group is given."""

    attention: bool = True
    given: dict = dataclasses.field(default_factory=dict)

    def reassign(self, rows):
        self.given.setdefault(rows.layers[-1], []).append(rows.attention)
        return rows.tail, rows.weight


def test_a_metric_may_ask_for_attention(model_folder, recognizer, batches):
    """Each row's share of the block's self-attention, or of the cross-attention that reads it, in full precision."""
    metric = ByAttention()
    run(recognizer, batches, metric=metric)
    assert recognizer.model.config._attn_implementation == "sdpa"
    plain = tarq.load_recognizer(model_folder)
    plain.model.set_attn_implementation("eager")
    for i, batch in enumerate(batches):
        with torch.no_grad():
            out = plain.model(
                **plain.on_device(batch.features), decoder_input_ids=batch.input_ids, output_attentions=True
            )
        decoder = "model.decoder.layers.1"
        for names, weights in (
            (("model.encoder.layers.0.self_attn.v_proj", "model.encoder.layers.0.fc2"), out.encoder_attentions[0]),
            ((f"{decoder}.self_attn.v_proj", f"{decoder}.encoder_attn.q_proj", FC2), out.decoder_attentions[1]),
            ((f"{decoder}.encoder_attn.v_proj",), out.cross_attentions[1]),
        ):
            for name in names:
                torch.testing.assert_close(metric.given[name][i], weights.sum((1, 2)).flatten(), rtol=1e-4, atol=1e-4)


def test_layers_whose_attention_is_not_known_say_so(recognizer, batches):
    """One block whose attention keeps its weights to itself: its positions count alike, and its report says so."""
    attention = recognizer.model.model.encoder.layers[0].self_attn
    forward = type(attention).forward
    attention.forward = lambda *args, **kwargs: (forward(attention, *args, **kwargs)[0], None)
    metric = ByAttention()
    records = run(recognizer, batches, metric=metric)
    noted = {name for name, record in records.items() if any("no attention is known" in note for note in record.notes)}
    assert noted == {name for name in records if name.startswith("model.encoder.layers.0.")}
    assert noted >= {name for name, given in metric.given.items() if given[0] is None} != set()


def test_a_model_that_shows_no_attention_is_refused(recognizer, batches, monkeypatch):
    monkeypatch.setattr(type(recognizer.model), "set_attn_implementation", lambda self, kind: None)
    with pytest.raises(ModelError, match="no attention weights: take another metric"):
        run(recognizer, batches, metric=ByAttention())


@dataclasses.dataclass(frozen=True)
class MeanInBias(LeastSquares):
    """Least squares about the mean, which the bias takes up."""

    first_moments: bool = True

    def centres(self, layer):
        return layer.bias is not None

    def bias(self, layer, w_hat, statistics):
        return absorbed_mean(layer, w_hat, statistics) if self.centres(layer) else None


def test_a_residual_may_change_the_bias(model_folder, recognizer, batches):
    """Then the mean output of a layer is that of full precision, to the bit of rounding."""
    full = tarq.load_recognizer(model_folder)
    run(recognizer, batches, metric=Plain(), residual=MeanInBias())

    def mean_output(r):
        rows = []
        handle = r.decoder.layers[1].fc2.register_forward_hook(lambda m, a, out: rows.append(out))
        with torch.no_grad():
            for batch in batches:
                r.logits(batch)
        handle.remove()
        kept = [out[b.positions["decoder"].exists] for out, b in zip(rows, batches, strict=True)]
        return torch.cat(kept).mean(0)

    before, after = mean_output(full), mean_output(recognizer)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    k_proj = recognizer.decoder.layers[1].self_attn.k_proj
    assert isinstance(k_proj, QuantLinear)
    assert k_proj.bias is None
    assert not torch.equal(recognizer.decoder.layers[1].fc2.bias, full.decoder.layers[1].fc2.bias)


def test_arms_are_named_in_the_report_and_taken_by_quantize(recognizer, manifest):
    report = tarq.quantize(recognizer, manifest, CONFIG, residual=MeanInBias(), solver=Sweep(damp=0.05))
    assert "residual given by the caller in place of the configuration's: MeanInBias" in report.notes
    assert "solver given by the caller in place of the configuration's: Sweep" in report.notes
    assert {layer.damp for layer in report.layers} == {0.05}


def test_a_solver_that_reads_no_audio_needs_no_calibration(recognizer):
    @dataclasses.dataclass(frozen=True)
    class Blind(Sweep):
        reads_audio: bool = False

        def quantize(self, targets, statistics, scheme, scale_dtype, outputs=None):
            assert statistics is None
            from tarq.method.solvers import RoundToNearest

            return RoundToNearest().quantize(targets, None, scheme, scale_dtype)

    config = dataclasses.replace(CONFIG, residual="none")
    report = tarq.quantize(recognizer, None, config, solver=Blind())
    assert len(report.layers) == 32


def test_a_layer_without_weights_and_one_without_input_are_noted(recognizer, batches):
    """A pruned v_proj: its own weights are zero, and so is what the projection behind it reads."""
    attention = recognizer.decoder.layers[0].self_attn
    attention.v_proj.weight.data.zero_()
    attention.v_proj.bias.data.zero_()
    records = run(recognizer, batches)
    path = "model.decoder.layers.0.self_attn"
    assert "all its weights are zero" in records[f"{path}.v_proj"].notes
    assert records[f"{path}.v_proj"].loss == 0
    assert any("its input is zero on all calibration speech" in n for n in records[f"{path}.out_proj"].notes)
    assert records[f"{path}.out_proj"].dead_columns == 128
    with torch.no_grad():
        assert torch.isfinite(recognizer.logits(batches[0])).all()


def test_a_metric_without_any_weight_is_refused(recognizer, batches):
    class Nothing(Plain):
        def assign(self, tail, exists, key):
            return tail, torch.zeros(len(tail))

    with pytest.raises(CalibrationError, match=r"q_proj.*Nothing gives weight 0 to every position"):
        run(recognizer, batches, metric=Nothing())


TOO_LARGE = r"float16 scales cannot hold.*set scale_dtype to bfloat16 or float32; or keep the layer in full precision"


@pytest.mark.parametrize("solver", ["sweep", "rtn"])
def test_scales_that_the_checkpoint_cannot_hold_are_refused(recognizer, batches, solver):
    recognizer.decoder.layers[1].fc2.weight.data *= 1e8
    config = tarq.TarqConfig.preset("rtn", group_size=32) if solver == "rtn" else CONFIG
    config = dataclasses.replace(config, scale_dtype="float16")
    with pytest.raises(CalibrationError, match=rf"^{FC2}: .*{TOO_LARGE}"):
        run(recognizer, batches, config)


def test_scales_of_a_solver_of_ones_own_are_seen_to_as_well(recognizer, batches):
    @dataclasses.dataclass(frozen=True)
    class Loud(Sweep):
        def quantize(self, targets, statistics, scheme, scale_dtype, outputs=None):
            swept = super().quantize(targets, statistics, scheme, scale_dtype)
            return [dataclasses.replace(q, scales=torch.full_like(q.scales, 6e4)) for q in swept]

    config = dataclasses.replace(CONFIG, scale_dtype="float16")
    with pytest.raises(CalibrationError, match=rf"layers\.0\.self_attn\.\w_proj: .*{TOO_LARGE}"):
        run(recognizer, batches, config, solver=Loud())


@pytest.mark.parametrize(("scale_dtype", "noted"), [("float16", True), ("bfloat16", False)])
def test_scales_too_small_for_the_checkpoint_are_noted(recognizer, scale_dtype, noted):
    recognizer.decoder.layers[1].fc2.weight.data[:3] *= 1e-6
    config = tarq.TarqConfig.preset("rtn", group_size=32, scale_dtype=scale_dtype)
    notes = {r.name: r.notes for r in quantize_model(recognizer, [], config, Reporter())}
    assert (notes[FC2] == ["24 of 1024 scales are too small for float16: set scale_dtype to bfloat16"]) == noted
    assert not any(texts for name, texts in notes.items() if name != FC2)


def test_a_solver_may_ask_for_the_cross_moment(recognizer, batches):
    """GPTAQ's kind: the target is the weight itself, and the solver reads H_Δ."""

    @dataclasses.dataclass(frozen=True)
    class Asks(Sweep):
        paired: bool = True

        def quantize(self, targets, statistics, scheme, scale_dtype, outputs=None):
            drifts.append(float(statistics.moments.cross.norm()))
            return super().quantize(targets, statistics, scheme, scale_dtype)

    drifts = []
    run(recognizer, batches, dataclasses.replace(CONFIG, residual="none"), solver=Asks())
    assert drifts.count(0) == 2  # nothing quantized is in front of the encoder's first layers, and of the decoder's
    assert drifts[0] == 0


def test_gathering_moments_changes_no_weight(recognizer, batches):
    before = {name: tensor.clone() for name, tensor in recognizer.model.state_dict().items()}
    moments = gather_moments(recognizer, batches, dataclasses.replace(CONFIG, residual="none"))
    assert len(moments) == 2 * 4 + 2 * 7  # the encoder's output, once, under the names of each block's readers
    assert all(torch.equal(before[name], tensor) for name, tensor in recognizer.model.state_dict().items())
