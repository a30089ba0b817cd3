"""Frames tagged by cross-attention: shapes, padding, batches, and whether the tags mean anything on a real model."""

from dataclasses import replace

import pytest
import torch

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.data.sampling import select_utterances
from tarq.errors import ModelError
from tarq.models.alignment import alignment_scores
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set, make_examples
from tarq.words.normalize import get_normalizer
from tarq.words.rarity import rare_counts
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

from .conftest import CONFIG

ALIGNED = replace(CONFIG, metric="rarebal", frame_tags="aligned", samples=8)


@pytest.fixture(scope="module")
def recognizer(model_folder):
    return tarq.load_recognizer(model_folder)


def tags_of(recognizer, manifest, batch_size):
    batches = calibration_set(
        recognizer, load_utterances(manifest), replace(ALIGNED, batch_size=batch_size), Reporter()
    )
    return {
        u: (tail, padding)
        for b in batches[0]
        for u, tail, padding in zip(b.ids, b.positions["encoder"].tail, b.positions["encoder"].padding, strict=True)
    }


def test_tags_lie_within_the_audio_and_do_not_depend_on_the_batch(recognizer, manifest):
    one, many = tags_of(recognizer, manifest, 1), tags_of(recognizer, manifest, 8)
    assert one.keys() == many.keys()
    for name, (tail, padding) in one.items():
        assert tail.shape == (100,)
        assert not (tail & padding).any()
        assert torch.equal(tail, many[name][0])
    tagged = sum(int(tail.sum()) for tail, _ in one.values())
    heard = sum(int((~padding).sum()) for _, padding in one.values())
    assert 0 < tagged < heard
    assert not any(tail.any() for tail, _ in (one["u2"], one["u4"]))  # nothing rare is said there
    assert recognizer.model.config._attn_implementation == "sdpa"


def test_each_frame_takes_the_token_that_stands_out_there():
    """Two heads over three tokens; the second also looks at frame 0 whatever is said."""
    first = torch.tensor([[0.8, 0.2, 0.0, 0.0], [0.1, 0.7, 0.1, 0.1], [0.0, 0.0, 0.1, 0.9]])
    habit = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0], [0.9, 0.0, 0.0, 0.1]])
    long = torch.stack([first, habit]).repeat_interleave(8, dim=-1)
    assert alignment_scores(long, 7).argmax(0).tolist()[4::8] in ([0, 1, 1, 2], [0, 1, 2, 2])


def test_tags_reach_the_statistics_and_the_report(model_folder, manifest):
    recognizer = tarq.load_recognizer(model_folder)
    report = tarq.quantize(recognizer, manifest, ALIGNED)
    assert report.calibration["positions"]["encoder"]["tail"] > 0
    encoder = [r for r in report.layers if r.stage == "encoder"]
    assert all(r.tail_positions == report.calibration["positions"]["encoder"]["tail"] for r in encoder)
    assert all(r.lam > 0 and r.lam != 1 for r in encoder)
    cross = [r for r in report.layers if "encoder_attn.k_proj" in r.name]
    assert all(r.tail_positions == encoder[0].tail_positions for r in cross)
    assert report.config["frame_tags"] == "aligned"
    # This model's generation config names no alignment heads.
    assert sum("by all its heads" in note for note in report.notes) == 1


def test_alignment_heads_of_the_checkpoint_are_used(model_folder, manifest):
    recognizer = tarq.load_recognizer(model_folder)
    every = tags_of(recognizer, manifest, 8)
    recognizer.model.generation_config.alignment_heads = [[1, 2]]
    chosen = tags_of(recognizer, manifest, 8)
    assert any(not torch.equal(every[name][0], chosen[name][0]) for name in every)
    # As distilled checkpoints have them: some or all of the teacher's, of layers that are gone.
    for heads, expected in (([[1, 2], [10, 17], [0, 99]], chosen), ([[10, 17]], every)):
        recognizer.model.generation_config.alignment_heads = heads
        assert bool(recognizer.frame_tags_note) == (expected is every)
        tags = tags_of(recognizer, manifest, 8)
        assert all(torch.equal(tags[name][0], expected[name][0]) for name in every)


def test_families_that_cannot_tell_say_so(recognizer, manifest, monkeypatch):
    from tarq.models.base import Recognizer

    monkeypatch.setattr(type(recognizer), "frame_tags", Recognizer.frame_tags)
    with pytest.raises(ModelError, match="cannot align words to frames"):
        tarq.quantize(recognizer, manifest, ALIGNED)


@pytest.mark.slow
@pytest.mark.assets
def test_silencing_tagged_frames_hurts_rare_words_most(assets):
    """On the real model: with the tagged stretches silent, rare words become far less likely than with other
    stretches of the same number and lengths silent."""
    recognizer = tarq.load_recognizer(assets / "whisper-tiny-relearned")
    pool = select_utterances(load_utterances(assets / "speech" / "librispeech_train"), ["in_training=false"])
    pool = [u for u in pool if rare_counts(u.text or "", get_normalizer("english"))[1] and 4 < u.seconds() < 15][:10]
    made = make_examples(recognizer, pool, Rarity(Words()), Reporter())
    losses = {"heard": 0.0, "tagged": 0.0, "elsewhere": 0.0}
    with torch.no_grad():
        for utterance, example in zip(made.utterances, made.examples, strict=True):
            batch = recognizer.collate([example])
            tags = recognizer.frame_tags(batch)["encoder"][0, : example.frames]
            assert 0 < tags.sum() < example.frames / 2
            silent = {
                "heard": torch.zeros_like(tags),
                "tagged": tags,
                "elsewhere": tags.roll(example.frames // 2) & ~tags,
            }
            wave = torch.from_numpy(utterance.waveform())
            for name, frames in silent.items():
                mute = frames.repeat_interleave(320)[: len(wave)]
                features, _ = recognizer.audio_inputs(wave.masked_fill(mute, 0).numpy())
                scores = recognizer.logits(replace(batch, features=recognizer.stack([features]))).log_softmax(-1)
                target = scores.gather(-1, batch.targets.clamp_min(0)[..., None])[..., 0]
                losses[name] -= float(target[batch.rare_target].sum())
    assert losses["tagged"] - losses["heard"] > 2 * (losses["elsewhere"] - losses["heard"])
