"""Bands of the tail, from words to the moments of a layer, on the tiny Whisper."""

import dataclasses

import pytest
import torch

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import ConfigError
from tarq.method.arms import Arms
from tarq.method.bands import BandedRareBAL
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set
from tarq.walk.run import quantize_model
from tarq.words.rarity import zipf

CONFIG = tarq.TarqConfig.preset("tarq-bands", group_size=32, scale_dtype="float32", batch_size=3, samples=8)


@pytest.mark.parametrize(("threshold", "deepest"), [(3.0, 1), (4.0, 2)])
def test_each_row_is_in_the_band_of_its_word(recognizer, manifest, threshold, deepest):
    """At Zipf 3 the last of three bands has no word here, which is told."""
    config = dataclasses.replace(CONFIG, tail_threshold=threshold)
    batches, _, notes = calibration_set(recognizer, load_utterances(manifest), config, Reporter())
    texts, seen = {u.id: u.text for u in load_utterances(manifest)}, set()
    for batch in batches:
        rows = batch.positions["decoder"]
        for name, tail, band in zip(batch.ids, rows.tail, rows.band, strict=True):
            spans = recognizer.prompt(texts[name]).offsets[1:]  # a row is tagged by its target
            for t, (start, end) in enumerate(spans):
                start += len(texts[name][start:end]) - len(texts[name][start:end].lstrip())
                word = texts[name][texts[name].rfind(" ", 0, start) + 1 :].split(" ")[0] if start < end else "the"
                score = zipf(word)
                assert bool(tail[t]) == (score < threshold), word
                assert int(band[t]) == (score < threshold - 1) + (score < threshold - 2), word
                seen.add(int(band[t]) if tail[t] else -1)
    assert seen == {-1, *range(deepest + 1)}
    assert ("no word is below Zipf 1: that band of the tail is empty" in notes) == (deepest == 1)
    config = dataclasses.replace(config, tail_bands=1)
    plain, _, _ = calibration_set(recognizer, load_utterances(manifest), config, Reporter())
    for one, other in zip(batches, plain, strict=True):
        assert other.positions["decoder"].band is None
        assert torch.equal(one.positions["decoder"].tail, other.positions["decoder"].tail)
        assert torch.equal(one.targets, other.targets)


def test_a_layers_tail_is_made_of_its_bands(recognizer, manifest):
    """Of the first Linears of the decoder: what the metric sees is each row of the tail with its band's weight."""
    config = dataclasses.replace(CONFIG, tail_threshold=4.0)
    batches, _, _ = calibration_set(recognizer, load_utterances(manifest), config, Reporter())

    @dataclasses.dataclass(frozen=True)
    class Watches(BandedRareBAL):
        activations: bool = True

        def reassign(self, rows):
            if rows.layers[0].endswith("decoder.layers.0.self_attn.q_proj"):
                inputs.append(rows.inputs.double())
            return rows.tail, rows.weight

        def balance(self, parts):
            found.append((len(inputs), sum(part.hessian["tail"] for part in parts)))
            return super().balance(parts)

    inputs, found = [], []
    records = quantize_model(recognizer, batches, config, Reporter(), Arms.of(config.to_dict(), metric=Watches()))
    tail = next(moments for count, moments in found if count == len(batches))
    rows = [batch.positions["decoder"] for batch in batches]
    x, exists = torch.cat(inputs), torch.cat([r.exists.flatten() for r in rows])
    bands = torch.cat([r.band.flatten().where(r.tail.flatten(), torch.tensor(-1)) for r in rows])
    each = [x[exists & (bands == b)] for b in range(3)]
    each = [some.T @ some for some in each if len(some)]
    assert len(each) == 3
    mean = sum(float(h.trace()) for h in each) / len(each)
    torch.testing.assert_close(tail, sum(h * mean / float(h.trace()) for h in each), rtol=1e-4, atol=1e-3)
    assert {r.tail_positions for r in records if r.stage == "decoder" and "encoder_attn.k" not in r.name} >= {
        int((bands >= 0).sum())
    }


def test_bands_below_zipf_0_are_refused():
    with pytest.raises(ConfigError, match="tail_bands: 4 bands below Zipf 3 reach below 0"):
        tarq.TarqConfig(tail_bands=4)
    assert tarq.TarqConfig(tail_bands=4, tail_threshold=4.0).tail_bands == 4
