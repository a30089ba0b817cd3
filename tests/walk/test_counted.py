"""More speech than an encoder needs: which batches count, and what the others are for."""

import dataclasses

import pytest
import torch

import tarq
from tarq.models.types import Batch, Positions
from tarq.report import Reporter
from tarq.walk.counted import CountedBatches
from tarq.walk.run import gather_moments, quantize_model

CONFIG = tarq.TarqConfig.preset("refined", group_size=32, scale_dtype="float32", batch_size=2)


def batches_of(*rows, utterances=2):
    """Batches whose utterances have so many frames each; one token each."""
    none = torch.zeros(0)
    return [
        Batch(
            ids=tuple(f"{i}-{j}" for j in range(utterances)),
            features={},
            input_ids=none,
            targets=none,
            rare_target=none,
            positions={
                "encoder": Positions.of_frames([count] * utterances, max(rows)),
                "decoder": Positions.of_frames([1] * utterances, 1),
            },
        )
        for i, count in enumerate(rows)
    ]


@pytest.mark.parametrize("most", [None, 80, 79, 41, 40, 39, 20, 7, 1])
def test_batches_are_drawn_within_the_limit(most):
    batches = batches_of(*[10] * 4)
    counted = CountedBatches(batches, most).of("encoder")
    assert len(counted) == (4 if most is None else max(1, most // 20))
    assert CountedBatches(batches, most).summary().get("encoder", 80) == 20 * len(counted)


def test_a_limit_cuts_only_positions_that_exceed_it():
    counted = CountedBatches(batches_of(*[10] * 4), 40)
    assert counted.of("decoder") == {0, 1, 2, 3} > counted.of("encoder")
    assert counted.summary() == {"encoder": 40}
    assert all(counted.anywhere(index) for index in range(4))


def test_another_seed_draws_others():
    batches = batches_of(*[10] * 30)
    draws = {CountedBatches(batches, 200, seed=seed).of("encoder") for seed in range(5)}
    assert len(draws) == 5
    assert CountedBatches(batches, 200, seed=1).of("encoder") == CountedBatches(batches, 200, seed=1).of("encoder")


def test_what_only_pads_a_batch_is_no_position():
    assert CountedBatches(batches_of(10, 3, 2), 30).of("encoder") == {0, 1, 2}


def test_every_fold_keeps_an_utterance():
    batches = batches_of(*[10] * 8, utterances=1)
    for seed in range(10):
        for folds in (2, 3):
            counted = CountedBatches(batches, 1, folds, seed).of("encoder")
            assert {index % folds for index in counted} == set(range(folds))


def limited(batches, share):
    """A limit that so much of the encoder's positions exceed, and all of the decoder's do not."""
    rows = CountedBatches(batches, None).rows("encoder")
    tokens = CountedBatches(batches, None).rows("decoder")
    most = int(sum(rows.values()) * share)
    assert sum(tokens.values()) <= most
    return most


def test_the_encoder_counts_some_batches_and_the_decoder_all(recognizer, batches):
    """The moments are those of a walk over the batches that count, for what reads encoder positions, and of one over
    all for the rest."""
    plain = dataclasses.replace(CONFIG, residual="none", max_positions=None)
    some = dataclasses.replace(plain, max_positions=limited(batches, 0.6))
    counted = CountedBatches(batches, some.max_positions).of("encoder")
    assert 0 < len(counted) < len(batches)
    every = gather_moments(recognizer, batches, plain)
    those = gather_moments(recognizer, [batches[i] for i in sorted(counted)], plain)
    for name, (moments,) in gather_moments(recognizer, batches, some).items():
        reads_audio = "encoder.layers" in name or "encoder_attn.k_proj" in name
        (expected,) = (those if reads_audio else every)[name]
        assert moments.positions == expected.positions, name
        for got, wanted in zip(moments.sums(), expected.sums(), strict=True):
            assert torch.equal(got, wanted), name


def test_batches_beyond_the_limit_still_reach_the_decoder_on_both_paths(model_folder, batches):
    """With and without memory for activations."""
    found = []
    for memory in (4.0, 0.0):
        recognizer = tarq.load_recognizer(model_folder)
        config = dataclasses.replace(CONFIG, max_positions=limited(batches, 0.6), activation_memory=memory)
        records = quantize_model(recognizer, batches, config, Reporter())
        found.append((records, recognizer.model.state_dict()))
    (records, weights), (_, again) = found
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    decoder = {r.positions for r in records if "decoder.layers.1.fc1" in r.name}
    assert decoder == {sum(CountedBatches(batches, None).rows("decoder").values())}


def test_a_run_says_how_much_counts(model_folder, manifest, batches):
    config = dataclasses.replace(CONFIG, max_positions=limited(batches, 0.6))
    report = tarq.quantize(tarq.load_recognizer(model_folder), manifest, config)
    used = report.calibration["positions"]["encoder"]["counted"]
    assert used <= config.max_positions
    assert f"encoder: statistics over {used:,} positions, max_positions being {config.max_positions:,}" in report.notes
    assert {r.positions for r in report.layers if r.stage == "encoder"} == {used}
    assert "counted" not in report.calibration["positions"]["decoder"]
