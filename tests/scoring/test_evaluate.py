"""The score table: teacher-forced divergence against the formula, pairing, lost words."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import DataError, ModelError
from tarq.scoring.divergence import divergence
from tarq.scoring.figures import DIVERGENCES, WORD_RATES


def test_divergence_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 5, 7, generator=generator), torch.randn(2, 5, 7, generator=generator)
    targets = torch.tensor([[-100, 1, 2, 3, -100], [-100, 4, 5, 6, 0]])
    rare = torch.tensor([[True, False, True, False, True], [False, True, True, False, False]])
    result = divergence(p, q, targets, rare)
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    for kind, wanted in (("rare", [[2], [1, 2]]), ("common", [[1, 3], [3, 4]])):
        for b, positions in enumerate(wanted):
            kl = sum(float((p[b, t] * (p[b, t] / q[b, t]).log()).sum()) for t in positions)
            nll = sum(float((p[b, t, targets[b, t]] / q[b, t, targets[b, t]]).log()) for t in positions)
            assert result[kind].kl[b] == pytest.approx(kl, rel=1e-5)
            assert result[kind].delta_nll[b] == pytest.approx(nll, rel=1e-5)
            assert result[kind].positions[b] == len(positions)


@pytest.fixture(scope="module")
def evaluation(model_folder, manifest):
    full = tarq.load_recognizer(model_folder)
    quantized = {}
    for bits in (2, 8):
        recognizer = tarq.load_recognizer(model_folder)
        tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn", group_size=32, bits=bits))
        quantized[f"{bits} bits"] = recognizer
    return tarq.evaluate({"full": full} | quantized, {"made up": manifest}, reference="full", resamples=500).sets[
        "made up"
    ]


def test_every_model_gets_every_figure(evaluation):
    assert set(evaluation.models) == {"full", "2 bits", "8 bits"}
    for name, model in evaluation.models.items():
        wanted = set(WORD_RATES) if name == "full" else set(WORD_RATES) | set(DIVERGENCES)
        assert wanted <= set(model.figures)
        for interval in model.figures.values():
            assert not interval.low > interval.value
        assert model.counts["all"]["words"] == evaluation.words > evaluation.rare_words > 0
        assert len(model.hypotheses) == 8


def test_more_bits_do_less_damage(evaluation):
    two, eight = (evaluation.models[f"{b} bits"].figures for b in (2, 8))
    assert 0 < eight["kl_common"].value < 0.2 * two["kl_common"].value
    assert 0 < eight["kl_rare"].value < 0.2 * two["kl_rare"].value
    difference = evaluation.differences["8 bits − 2 bits"]["kl_common"]
    assert difference.value == pytest.approx(eight["kl_common"].value - two["kl_common"].value)
    assert difference.high < 0
    assert difference.sign_flips == 0


def test_every_pair_is_compared(evaluation):
    assert set(evaluation.differences) == {"2 bits − full", "8 bits − full", "8 bits − 2 bits"}
    assert "wer" in evaluation.differences["2 bits − full"]
    assert "kl_rare" not in evaluation.differences["2 bits − full"]


def test_scores_do_not_depend_on_the_batch(model_folder, manifest):
    recognizer = tarq.load_recognizer(model_folder)
    tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn", group_size=32))

    def figures(batch_size):
        config = dataclasses.replace(tarq.TarqConfig(), batch_size=batch_size)
        models = {"full": tarq.load_recognizer(model_folder), "rtn": recognizer}
        result = tarq.evaluate(models, {"s": manifest}, reference="full", config=config, resamples=100, decode=False)
        return result.sets["s"].models["rtn"].figures

    one, all_at_once = figures(1), figures(8)
    for name, interval in one.items():
        assert interval.value == pytest.approx(all_at_once[name].value, rel=1e-3, abs=1e-5)
        assert interval.low == pytest.approx(all_at_once[name].low, rel=1e-3, abs=1e-5)


def test_lost_and_regained_words(model_folder, manifest, monkeypatch):
    utterances = load_utterances(manifest)
    full, other = tarq.load_recognizer(model_folder), tarq.load_recognizer(model_folder)
    spoken = {float(full.audio_inputs(u.waveform())[0]["input_features"].sum()): u.text for u in utterances}
    for recognizer, word, heard in ((full, "eigenvalue", "item value"), (other, "Okonkwo", "a conquest")):
        said = {key: text.replace(word, heard) for key, text in spoken.items()}
        monkeypatch.setattr(recognizer, "encode", lambda features: features["input_features"])
        monkeypatch.setattr(recognizer, "logits", lambda batch, audio: torch.zeros(*batch.input_ids.shape, 512))
        monkeypatch.setattr(recognizer, "decode", lambda audio, said=said: [said[float(a.sum())] for a in audio])
    scores = tarq.evaluate({"full": full, "q": other}, {"s": utterances}, reference="full", resamples=50).sets["s"]
    assert [w.word for w in scores.models["q"].lost] == ["okonkwo"]
    assert [w.word for w in scores.models["q"].regained] == ["eigenvalue"]
    assert "a conquest" in scores.models["q"].lost[0].quantized


def test_words_without_a_reference_model(model_folder, manifest):
    scores = tarq.evaluate({"m": model_folder}, {"s": manifest}, resamples=50).sets["s"]
    assert "wer" in scores.models["m"].figures
    assert "kl_rare" not in scores.models["m"].figures
    assert np.isfinite(scores.models["m"].figures["wer"].value)


def test_a_rate_without_denominator_is_null_in_json(model_folder, manifest):
    common = [dataclasses.replace(u, text="it was a good day") for u in load_utterances(manifest)]
    result = tarq.evaluate({"m": model_folder}, {"s": common}, resamples=50)
    assert np.isnan(result.sets["s"].models["m"].figures["rare_wer"].value)
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text)["sets"]["s"]["models"]["m"]["figures"]["rare_wer"]["value"] is None


def test_transformers_models_are_taken_as_they_are(model_folder, manifest):
    scores = tarq.evaluate({"m": tarq.load(model_folder)}, {"s": manifest}, samples=2, resamples=20)
    assert scores.sets["s"].utterances == 2


def test_large_sets_are_read_in_pieces(model_folder, manifest, monkeypatch):
    def figures():
        models = {"full": tarq.load_recognizer(model_folder), "rtn": quantized}
        scores = tarq.evaluate(models, {"s": manifest}, reference="full", resamples=50).sets["s"]
        return scores.models["rtn"]

    quantized = tarq.load_recognizer(model_folder)
    tarq.quantize(quantized, None, tarq.TarqConfig.preset("rtn", group_size=32))
    whole = figures()
    monkeypatch.setattr("tarq.scoring.outputs.PIECE", 3)
    pieces = figures()
    assert pieces.hypotheses == whole.hypotheses
    for name, interval in whole.figures.items():
        assert pieces.figures[name].value == pytest.approx(interval.value, rel=1e-3, abs=1e-5, nan_ok=True)
        assert pieces.figures[name].low == pytest.approx(interval.low, rel=1e-3, abs=1e-5, nan_ok=True)


def test_models_of_other_vocabularies_are_refused(model_folder, manifest):
    other = tarq.load_recognizer(model_folder)
    other.model.config.vocab_size = 500
    with pytest.raises(ModelError, match="o cannot be compared with m: vocab_size is 500"):
        tarq.evaluate({"m": tarq.load_recognizer(model_folder), "o": other}, {"s": manifest}, reference="m")


def test_bad_calls(model_folder, manifest):
    with pytest.raises(ModelError, match="reference 'x'"):
        tarq.evaluate({"m": model_folder}, {"s": manifest}, reference="x")
    silent = [dataclasses.replace(u, text=None) for u in load_utterances(manifest)]
    with pytest.raises(DataError, match="no transcript to score against: u0"):
        tarq.evaluate({"m": model_folder}, {"s": silent})
