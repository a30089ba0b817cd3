"""The score table: teacher-forced divergence against the formula, pairing, lost words."""

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

import tarq
from tarq.data import audio
from tarq.data.cached import AudioBudget, CachedUtterance
from tarq.data.corpora.registry import load_utterances
from tarq.errors import DataError, ModelError
from tarq.report import Reporter
from tarq.scoring.divergence import Divergence, divergence
from tarq.scoring.entities import score_entities
from tarq.scoring.figures import BANDED, FIGURES, Measured, ratios
from tarq.scoring.outputs import _pieces
from tarq.scoring.run import evaluate_models
from tarq.scoring.sets import ScoredSet
from tarq.scoring.words import biased_counts, score_words
from tarq.words.bands import NAMES
from tarq.words.normalize import Normalizer, get_normalizer
from tarq.words.rarity import is_rare
from tarq.words.settings import Words

WORD_RATES = [figure.name for figure in FIGURES if figure.source == "words"]
DIVERGENCES = [figure.name for figure in FIGURES if figure.source == "divergence"]


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


def test_damage_by_band_is_what_a_hand_reckons():
    """Three words and an end, a vocabulary of two: full precision is sure by 3 to 1 of token 0, the other by 1 to 1."""
    p, q = torch.tensor([3.0, 1.0]).log().expand(1, 5, 2), torch.zeros(1, 5, 2)
    targets = torch.tensor([[0, 0, 1, 0, -100]])
    zipf = torch.tensor([[0.0, 2.5, 2.99, math.nan, 2.5]], dtype=torch.float64)
    result = divergence(p, q, targets, zipf < 3, zipf)
    assert list(result) == ["rare", "common", *NAMES]
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    lost = {0: math.log(1.5), 1: math.log(0.5)}  # the likelihood of a true token falls from 3/4, or rises from 1/4
    wanted = {
        "rare": [0, 0, 1],
        "common": [0],
        "Zipf 0–1": [0],
        "Zipf 2–3": [0, 1],
        "no word": [0],
    }
    for kind, sums in result.items():
        tokens = wanted.get(kind, [])
        assert sums.positions.tolist() == [len(tokens)]
        assert sums.kl[0] == pytest.approx(len(tokens) * kl, abs=1e-6)
        assert sums.delta_nll[0] == pytest.approx(sum(lost[token] for token in tokens), abs=1e-6)


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


def test_bands_add_up_to_rare_and_common(evaluation):
    targets = evaluation.targets
    bands = [name for name in NAMES if targets[name]]
    assert targets["no word"] >= 8  # the ends
    assert {"Zipf 1–2", "Zipf 6+"} < set(bands)
    for model in ("2 bits", "8 bits"):
        figures = evaluation.models[model].figures
        assert {name for name in figures if " " in name} == {f"{f} {b}" for f in ("kl", "delta_nll") for b in bands}
        for figure in ("kl", "delta_nll"):
            total = sum(targets[b] * figures[f"{figure} {b}"].value for b in bands)
            parts = (targets[kind] * figures[f"{figure}_{kind}"].value for kind in ("rare", "common"))
            assert total == pytest.approx(sum(parts))
            below = sum(targets[b] * figures[f"{figure} {b}"].value for b in bands if b in NAMES[:3])
            assert below == pytest.approx(targets["rare"] * figures[f"{figure}_rare"].value)
    assert "kl Zipf 6+" in evaluation.differences["8 bits − 2 bits"]


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
        monkeypatch.setattr(recognizer, "decode", lambda audio, _, said=said: [said[float(a.sum())] for a in audio])
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


def test_every_figure_is_told_once(evaluation):
    names = [figure.name for figure in FIGURES]
    assert len(set(names)) == len({figure.title for figure in FIGURES}) == len(names)
    # ΔNLL stands beside KL wherever KL stands.
    for kind in ("rare", "common"):
        kl, nll = (next(f for f in FIGURES if f.name == f"{name}_{kind}") for name in ("kl", "delta_nll"))
        assert (kl.shown, kl.compared) == (nll.shown, nll.compared) == (True, True)
    model = evaluation.models["2 bits"]
    thresholds = {"rare_wer_zipf_2", "rare_wer_zipf_4"}
    banded = {figure.name for band in NAMES if evaluation.targets[band] for figure in BANDED[band]}
    asked = {f.name for f in FIGURES if f.source in ("words", "divergence")}  # neither entities nor protected words
    assert set(model.figures) == asked | thresholds | banded
    wer = next(figure for figure in FIGURES if figure.name == "wer")
    assert (wer.text(0.12345), wer.text(-0.01, "+"), wer.text(float("nan"))) == ("12.35", "-1.00", "–")
    assert next(f for f in FIGURES if f.name == "kl_rare").text(0.01, "+") == "+0.0100"


def test_every_figure_is_the_ratio_its_name_says():
    references = ["the quokka saw a dog", "northanger abbey was cold"]
    hypotheses = ["the quota saw big a dog", "northanger was cold quokka quokka"]
    normalizer = get_normalizer("none")
    divergences = {
        kind: Divergence(np.array([kl, kl]), np.array([nll, 0.0]), np.array([1, 3]))
        for kind, kl, nll in (("rare", 0.4, 1.2), ("common", 0.1, -0.2))
    }
    entities = score_entities(references, hypotheses, [["quokka"], ["northanger"]], normalizer=normalizer)
    words = score_words(references, hypotheses, normalizer=normalizer, thresholds=(3.0, 4.0))
    divergences["protected"] = Divergence(np.array([0.3, 0.0]), np.array([-0.6, 0.0]), np.array([2, 0]))
    protected = words.counts(np.array([word == "abbey" for some in words.references for word in some]))
    found = ratios(Measured(words, entities, divergences, protected), (3.0, 4.0))
    values = {name: np.sum(ratio.numerator) / np.sum(ratio.denominator) for name, ratio in found.items()}
    assert values == pytest.approx({
        "wer": 5 / 9,  # one substitution, one deletion (abbey), three insertions
        "rare_wer": 1 / 2,  # quokka, northanger; what is inserted goes to common words
        "rare_miss_rate": 1 / 2,
        "common_wer": 4 / 7,
        "insertions": 3 / 9,
        "looping": 0.0,
        "b_wer": 3 / 2,  # quokka, and the two that were inserted
        "protected_wer": 1.0,  # abbey is lost
        "protected_miss_rate": 1.0,
        "ne_wer": 1 / 2,
        "ne_fnr": 1 / 2,
        "delta_nll_rare": 1.2 / 4,
        "kl_rare": 0.8 / 4,
        "delta_nll_common": -0.2 / 4,
        "kl_common": 0.2 / 4,
        "delta_nll_protected": -0.6 / 2,
        "kl_protected": 0.3 / 2,
        "rare_wer_zipf_4": 2 / 3,  # and abbey
    })  # fmt: skip


def test_b_wer_is_that_of_the_rare_words(evaluation, manifest):
    scores = evaluation.models["2 bits"]
    texts = {u.id: u.text for u in load_utterances(manifest)}
    words = score_words(
        list(texts.values()), [scores.hypotheses[name] for name in texts], normalizer=get_normalizer("english")
    )
    rare = {word for reference in words.references for word in reference if is_rare(word)}
    assert "reykjavik" in rare
    assert "river" not in rare
    assert scores.figures["b_wer"].value == pytest.approx(biased_counts(words, rare)[0].error_rate)


def test_the_same_model_twice_does_no_damage(model_folder, manifest):
    one = tarq.load_recognizer(model_folder)
    scores = tarq.evaluate({"a": one, "b": one}, {"s": manifest}, reference="a", resamples=20).sets["s"]
    assert [scores.models["b"].figures[f].value for f in DIVERGENCES] == [0, 0, 0, 0]
    assert {(d.value, d.low, d.high, d.sign_flips) for d in scores.differences["b − a"].values()} == {(0, 0, 0, 1)}
    assert scores.models["b"].lost == scores.models["b"].regained == []


@pytest.fixture
def decoded(monkeypatch):
    """Audio file to how often it was decoded."""
    times, decode = Counter(), audio._segment
    monkeypatch.setattr(audio, "_segment", lambda file, *rest: times.update([str(file)]) or decode(file, *rest))
    return times


def test_audio_is_decoded_once_and_a_text_normalised_once(model_folder, manifest, monkeypatch, decoded):
    normalised, normalizer = Counter(), get_normalizer("english")

    def apply(text):
        normalised.update([text])
        return normalizer.apply(text)

    monkeypatch.setattr(
        "tarq.words.settings.Words.text_normalizer", lambda *_: Normalizer("counted", apply), raising=True
    )
    utterances = load_utterances(manifest)
    utterances[1] = dataclasses.replace(utterances[1], text="")  # not teacher-forced, so transcribed on its own
    utterances[2] = dataclasses.replace(utterances[2], entities=("river",))
    models = {name: tarq.load_recognizer(model_folder) for name in "ab"}
    tarq.evaluate(models, {"s": utterances}, reference="a", resamples=20)
    assert decoded == {str(u.audio): 1 for u in utterances}
    assert {normalised[u.text] for u in utterances} == {1}


def test_audio_is_held_within_its_limit(model_folder, manifest, monkeypatch, decoded):
    utterances = load_utterances(manifest)
    sizes = [u.waveform().nbytes for u in utterances]
    decoded.clear()
    monkeypatch.setattr("tarq.data.cached.LIMIT", sizes[0] + sizes[1])  # the others are longer than what is left
    limited = tarq.evaluate({"a": model_folder}, {"s": utterances}, resamples=20)
    assert decoded == {str(u.audio): 1 if i < 2 else 2 for i, u in enumerate(utterances)}
    monkeypatch.setattr("tarq.data.cached.LIMIT", 1e9)
    assert tarq.evaluate({"a": model_folder}, {"s": utterances}, resamples=20) == limited


def test_calibration_audio_is_decoded_once(model_folder, manifest, decoded):
    config = tarq.TarqConfig.preset("gptq", group_size=32, samples=4)
    tarq.quantize(tarq.load_recognizer(model_folder), manifest, config)
    assert sorted(decoded.values()) == [1] * 4


def test_held_audio_moves_with_its_room(manifest):
    room, (first, *_) = AudioBudget(1e6), load_utterances(manifest)
    held = CachedUtterance.of(first, room, 8000)
    assert held.check() == first.check()
    assert room.used == held.waveforms[8000].nbytes
    np.testing.assert_array_equal(held.waveforms[8000], first.waveform(8000))
    moved = CachedUtterance.of(held)
    assert (room.used, held.waveforms, list(moved.waveforms)) == (0, {}, [8000])
    assert CachedUtterance.of(first, AudioBudget(0)).waveform().size == first.waveform().size


def test_much_audio_is_held_in_pieces_by_its_length(manifest, monkeypatch):
    utterances = load_utterances(manifest)  # 0.6, 0.78, 0.96 … 1.86 s
    monkeypatch.setattr("tarq.scoring.outputs.PIECE_SECONDS", 2.0)
    pieces = [[u.id for u in piece] for piece in _pieces(utterances)]
    assert pieces == [["u0", "u1"], ["u2"], ["u3"], ["u4"], ["u5"], ["u6"], ["u7"]]
    monkeypatch.setattr("tarq.scoring.outputs.PIECE_SECONDS", 1e9)
    monkeypatch.setattr("tarq.scoring.outputs.PIECE", 3)
    assert [len(piece) for piece in _pieces(utterances)] == [3, 3, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("reference", [None, "full"])
def test_damaged_weights_are_refused_by_name(model_folder, manifest, value, reference):
    damaged = tarq.load_recognizer(model_folder)
    tarq.quantize(damaged, None, tarq.TarqConfig.preset("rtn", group_size=32))
    damaged.model.model.encoder.layers[1].fc1.weight_scale[3, 0] = value
    models = {"full": tarq.load_recognizer(model_folder), "bad": damaged}
    with pytest.raises(ModelError, match=r"bad: model\.encoder\.layers\.1\.fc1\.weight_scale holds NaN or infinity"):
        tarq.evaluate(models, {"s": manifest}, reference=reference)
    with torch.no_grad():
        models["full"].model.model.decoder.layers[0].fc2.bias[0] = value
    with pytest.raises(ModelError, match=r"full: model\.decoder\.layers\.0\.fc2\.bias holds NaN"):
        tarq.evaluate(models, {"s": manifest}, reference=reference)


def test_logits_that_overflow_are_refused_by_name(model_folder, manifest, monkeypatch):
    models = {name: tarq.load_recognizer(model_folder) for name in ("full", "q")}
    logits = models["q"].logits
    overflowing = lambda batch, audio: logits(batch, audio).index_fill(0, torch.tensor([1]), float("inf"))  # noqa: E731
    monkeypatch.setattr(models["q"], "logits", overflowing)
    with pytest.raises(ModelError, match=r"q: its logits for u\d are not finite: .* float32"):
        tarq.evaluate(models, {"s": manifest}, reference="full")


def test_sets_with_few_rare_words_say_so(model_folder, manifest):
    utterances = load_utterances(manifest)
    scores = tarq.evaluate({"m": model_folder}, {"s": utterances}, resamples=20).sets["s"]
    assert any("rare words in 4 of 8 utterances only" in note for note in scores.notes)
    common = [dataclasses.replace(u, text="it was a good day") for u in utterances]
    full = tarq.load_recognizer(model_folder)
    result = tarq.evaluate({"m": full, "q": full}, {"s": common}, reference="m", resamples=20)
    assert "no rare words in this set: rare figures have no value" in result.sets["s"].notes
    figures = result.to_dict()["sets"]["s"]["models"]["q"]["figures"]
    assert figures["kl_rare"] == {"value": None, "low": None, "high": None}
    assert figures["kl_common"]["value"] == 0


def test_words_are_counted_without_decoding(model_folder, manifest):
    models = {name: tarq.load_recognizer(model_folder) for name in ("full", "q")}
    options = {"reference": "full", "resamples": 20}
    whole = tarq.evaluate(models, {"s": manifest}, **options).sets["s"]
    forced = tarq.evaluate(models, {"s": manifest}, decode=False, **options).sets["s"]
    assert (forced.words, forced.rare_words) == (whole.words, whole.rare_words) == (68, 7)
    assert "wer" not in forced.models["q"].figures


def test_one_id_in_two_sets_is_two_utterances(model_folder, manifest):
    utterances = load_utterances(manifest)
    other = [dataclasses.replace(u, id="u0") for u in utterances[5:6]]
    sets = tarq.evaluate({"m": model_folder}, {"a": utterances, "b": other}, resamples=20).sets
    assert sets["b"].models["m"].hypotheses["u0"] == sets["a"].models["m"].hypotheses["u5"]
    with pytest.raises(DataError, match="b: id 'u0' occurs 2 times"):
        tarq.evaluate({"m": model_folder}, {"a": utterances, "b": other * 2}, resamples=20)


def test_labels_that_would_hide_a_set_are_refused(model_folder, manifest):
    utterances = load_utterances(manifest)
    mixed = [
        dataclasses.replace(u, extra={"language": code}) for u, code in zip(utterances, ["en", "de"] * 4, strict=True)
    ]
    with pytest.raises(DataError, match=r"x \(en\) is the label of one set and of a language of another"):
        tarq.evaluate({"m": model_folder}, {"x": mixed, "x (en)": utterances}, resamples=20)


def test_bad_calls(model_folder, manifest):
    with pytest.raises(ModelError, match="reference 'x'"):
        tarq.evaluate({"m": model_folder}, {"s": manifest}, reference="x")
    silent = [dataclasses.replace(u, text=None) for u in load_utterances(manifest)]
    with pytest.raises(DataError, match="no transcript to score against: u0"):
        tarq.evaluate({"m": model_folder}, {"s": silent})
    with pytest.raises(ModelError, match="no models to score"):
        tarq.evaluate({}, {"s": manifest})
    with pytest.raises(DataError, match="none of 0 utterances qualifies"):
        tarq.evaluate({"m": model_folder}, {"s": []})
    one = tarq.load_recognizer(model_folder)
    with pytest.raises(DataError, match="s: no utterances to score"):
        evaluate_models(
            {"m": one}, {"s": ScoredSet([], "en")}, reference=None, words=Words(), batch_size=4, reporter=Reporter()
        )
