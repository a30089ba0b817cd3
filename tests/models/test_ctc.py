"""CTC: characters and pieces, masked and unmasked padding, and where a path puts rare words."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2ForPreTraining,
)

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import CheckpointError, ModelError
from tarq.models.alignment import forced_path, rare_frames
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set, make_examples
from tarq.speech.styles import transcript_styles
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

from .conftest import CONFIG, tone
from .families import SIZE, STEM, make_hubert, make_parakeet, make_wav2vec2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "wav2vec2": make_wav2vec2(root / "wav2vec2"),
        "hubert": make_hubert(root / "hubert"),
        "parakeet": make_parakeet(root / "parakeet"),
    }


@pytest.fixture(scope="module", params=["wav2vec2", "hubert", "parakeet"])
def folder(folders, request):
    return folders[request.param]


@pytest.mark.slow
def test_round_trip(folder, manifest, tmp_path, round_trip):
    report = round_trip(folder, manifest, tmp_path / "out")
    blocks = 2 * (9 if folder.name == "parakeet" else 6)
    assert len(report.layers) == blocks
    head = "ctc_head" if folder.name == "parakeet" else "lm_head"
    assert report.left_out[head].startswith("the output head")
    if folder.name == "parakeet":
        pointwise = "encoder.layers.1.conv.pointwise_conv2"
        assert report.left_out[pointwise] == "a pointwise convolution: the checkpoint format packs Linear layers only"
    assert report.calibration["positions"]["encoder"]["tail"] > 0
    weighted = tarq.quantize(tarq.load_recognizer(folder), manifest, replace(CONFIG, samples=3, metric="rarebal"))
    assert all(r.lam > 1 for r in weighted.layers if "relative_k_proj" not in r.name)


def test_batches_do_not_change_the_statistics(folder, manifest, same_statistics):
    same_statistics(folder, manifest)


@pytest.mark.slow
def test_two_processes_quantize_as_one(folders, manifest, quantizes_as_one):
    quantizes_as_one(folders["parakeet"], manifest, "--batch-size 2")


def test_path_is_the_likeliest_of_all_that_spell_the_tokens():
    """Against every path of six frames, one by one."""
    rng = np.random.default_rng(0)
    for ids in ([1], [1, 2], [1, 1], [2, 1, 2]):
        scores = np.log(rng.dirichlet(np.ones(3), size=6)).astype(np.float32)
        spell = {
            path: scores[np.arange(6), path].sum()
            for path in itertools.product(range(3), repeat=6)
            if [k for k, _ in itertools.groupby(path) if k != 0] == ids
        }
        tokens, states = forced_path(scores, ids, blank=0)
        assert tuple(tokens) == max(spell, key=spell.get)
        labels = np.array([0, *(x for i in ids for x in (i, 0))])
        assert (labels[states] == tokens).all()
        assert (np.diff(states) >= 0).all()


def test_frames_within_a_rare_word_are_rare():
    """Tokens a, b, c of which b and c are one rare word: their frames and the blank between them."""
    states = np.array([0, 1, 2, 3, 4, 5, 6])  # blank a blank b blank c blank
    assert rare_frames(states, torch.tensor([False, True, True])).tolist() == [
        False, False, False, True, True, True, False,
    ]  # fmt: skip
    assert rare_frames(states, torch.tensor([True, False, True])).tolist() == [
        False, True, False, False, False, True, False,
    ]  # fmt: skip


def test_targets_spell_the_transcript(folders, manifest):
    recognizer = tarq.load_recognizer(folders["wav2vec2"])
    made = make_examples(recognizer, load_utterances(manifest)[:4], Rarity(Words()), Reporter())
    assert made.style == "upper case"
    batch = recognizer.collate(made.examples)
    for row, example in zip(batch.targets.tolist(), made.examples, strict=True):
        assert all(token == -100 for token in row[example.frames :])
        spelled = [k for k, _ in itertools.groupby(row[: example.frames]) if k != recognizer.blank]
        assert spelled == list(example.prompted.ids)
    tagged = calibration_set(recognizer, load_utterances(manifest), CONFIG, Reporter())[0]
    assert any(b.positions["encoder"].tail.any() for b in tagged)
    untagged = calibration_set(recognizer, load_utterances(manifest), replace(CONFIG, frame_tags="none"), Reporter())
    assert not any(b.positions["encoder"].tail.any() for b in untagged[0])


def test_characters_keep_their_places_in_the_text(folders):
    recognizer = tarq.load_recognizer(folders["wav2vec2"])
    text = " IT'S  A—ZEN TEA. "
    ids, spans = recognizer.tokens(text)
    letters = {i: c for c, i in recognizer.tokenizer.get_vocab().items()}
    assert "".join(letters[i] for i in ids) == "IT'S|AZEN|TEA"
    assert all(text[a:b] == letters[i] or letters[i] == "|" for i, (a, b) in zip(ids, spans, strict=True))
    styles = transcript_styles(recognizer, ["a mixed House", "by the river", "THE WHITE HOUSE"])
    assert styles == {False: "upper case", True: "upper case"}


def test_greedy_transcripts_collapse_repeats_and_blanks(folders):
    recognizer = tarq.load_recognizer(folders["wav2vec2"])
    vocabulary = recognizer.tokenizer.get_vocab()
    path = [vocabulary[c] for c in ("<pad>", "L", "L", "<pad>", "L", "|", "|", "A", "<pad>", "B")]
    scores = torch.nn.functional.one_hot(torch.tensor([path]), len(vocabulary)).float()
    assert recognizer.decode((scores, torch.tensor([9]))) == ["LL A"]


def test_transcripts_that_do_not_fit_their_frames_are_left_out(folders, manifest, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", tone(0.2), 16000)
    lines = [{"audio": "a.wav", "id": "long", "text": "MISSISSIPPI " * 30}, {"audio": "a.wav", "id": "x", "text": "是"}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recognizer = tarq.load_recognizer(folders["wav2vec2"])
    made = make_examples(recognizer, load_utterances(tmp_path), Rarity(Words()), Reporter())
    assert made.examples == []
    assert "long: " in made.notes[0]
    assert "frames are needed" in made.notes[0]
    assert "has no token for any character" in made.notes[1]


def test_scores_between_full_and_quantized(folders, manifest):
    """Teacher-forced divergence counts every frame within the audio once."""
    folder = folders["wav2vec2"]
    quantized = tarq.load_recognizer(folder)
    tarq.quantize(quantized, None, tarq.TarqConfig.preset("rtn", group_size=32))
    scores = tarq.evaluate({"full": folder, "rtn": quantized}, {"s": manifest}, reference="full", resamples=20)
    figures = scores.sets["s"].models["rtn"].figures
    assert figures["kl_rare"].value > 0
    assert figures["kl_common"].value > 0


def test_a_checkpoint_may_lack_what_only_training_reads(folders, tmp_path):
    """facebook/wav2vec2-base-960h has no ``masked_spec_embed``."""
    shutil.copytree(folders["hubert"], tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    del tensors["hubert.masked_spec_embed"]
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    tarq.load(tmp_path / "m")
    del tensors["lm_head.bias"]
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"do not fit config\.json.*lm_head\.bias"):
        tarq.load(tmp_path / "m")


def test_a_model_without_head_is_refused(tmp_path):
    config = Wav2Vec2Config(num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, **STEM, **SIZE)
    Wav2Vec2ForPreTraining(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'Wav2Vec2ForPreTraining'; of this family tarq takes Wav2Vec2ForCTC"):
        tarq.load(tmp_path)
