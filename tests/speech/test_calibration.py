"""From utterances to examples: what is left out and why, transcripts, tags."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import CalibrationError, DataError
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set, make_examples, with_tags
from tarq.speech.styles import transcript_styles
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

CONFIG = tarq.TarqConfig(group_size=32)


@pytest.fixture(scope="module")
def recognizer(model_folder):
    return tarq.load_recognizer(model_folder)


def manifest_of(folder, *rows):
    """A manifest of made-up audio; a row is (text, seconds)."""
    lines = []
    for i, (text, seconds) in enumerate(rows):
        soundfile.write(folder / f"{i}.wav", 0.1 * np.sin(np.arange(int(16000 * seconds)) / 9).astype("f4"), 16000)
        lines.append(json.dumps({"audio": f"{i}.wav", "id": str(i)} | ({} if text is None else {"text": text})))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return load_utterances(folder)


def examples(recognizer, *texts, folder, tail_positions="target", **options):
    utterances, rarity = manifest_of(folder, *((t, 1.0) for t in texts)), Rarity(Words(**options))
    return make_examples(recognizer, utterances, rarity, Reporter(), tail_positions=tail_positions).examples


def tokens(recognizer, example, flags):
    ids = example.prompted.ids[1:]
    return [recognizer.tokenizer.decode([i]).strip() for i, flag in zip(ids, flags.tolist(), strict=True) if flag]


def test_rare_words_are_tagged_through_the_tokenizer(recognizer, tmp_path):
    (example,) = examples(recognizer, "doctor Okonkwo sells the house", folder=tmp_path)
    assert "".join(tokens(recognizer, example, example.rare[1:])) == "Okonkwo"
    assert example.prompted.ids[:2] == (1, 2)
    assert example.prompted.ids[-1] == 0
    assert len(example.tail) == len(example.prompted.ids) - 1


@pytest.mark.parametrize(("options", "rare"), [({}, ""), ({"tail_threshold": 4.0}, "abbey"), ({"own": True}, "house")])
def test_what_is_rare_is_the_configurations_to_say(recognizer, tmp_path, options, rare):
    if options.pop("own", False):
        (tmp_path / "own.tsv").write_text("the\t900000\nabbey\t100000\n")
        options["word_frequencies"] = str(tmp_path / "own.tsv")
    (example,) = examples(recognizer, "the abbey house", folder=tmp_path, **options)
    assert "".join(tokens(recognizer, example, example.rare[1:])) == rare


def test_a_target_is_rare_where_its_own_token_is(recognizer, tmp_path):
    """Not the one that is read there: rare and common damage are told apart by it."""
    made = examples(recognizer, "the Okonkwo house", "Zyzzogeton sells", "the river", folder=tmp_path)
    batch = recognizer.collate(made)
    for b, words in enumerate(("Okonkwo", "Zyzzogeton", "")):
        of_rare = batch.targets[b, batch.rare_target[b]].tolist()
        assert "".join(recognizer.tokenizer.decode([i]).strip() for i in of_rare) == words


def test_the_longest_sequence_the_decoder_takes_is_taken(recognizer, tmp_path):
    (example,) = examples(recognizer, "the house", folder=tmp_path)
    limit = recognizer.max_target_tokens

    def reason(count):
        prompted = dataclasses.replace(example.prompted, ids=(5,) * count)
        return recognizer.reason_to_skip(dataclasses.replace(example, prompted=prompted))

    assert reason(limit) == ""
    assert reason(limit + 1) == f"{limit + 1} tokens, the decoder takes {limit}"


def test_tags_of_frames_stand_beside_those_of_tokens(recognizer, tmp_path):
    batch = recognizer.collate(examples(recognizer, "the Okonkwo house", folder=tmp_path))
    before = {stage: rows.tail for stage, rows in batch.positions.items()}
    first = torch.zeros_like(before["decoder"])
    first[:, 0] = True
    tagged = with_tags(batch, {"decoder": first})
    assert before["decoder"].any()
    assert not before["decoder"][:, 0].any()
    assert torch.equal(tagged.positions["decoder"].tail, before["decoder"] | first)
    assert torch.equal(tagged.positions["encoder"].tail, before["encoder"])


def test_a_position_is_tagged_by_target_input_or_either(recognizer, tmp_path):
    tails = {}
    for mode in ("target", "input", "either"):
        folder = tmp_path / mode
        folder.mkdir()
        (example,) = examples(recognizer, "the Okonkwo house", folder=folder, tail_positions=mode)
        tails[mode] = example.tail.tolist()
    assert tails["input"][1:] == tails["target"][:-1]
    assert tails["either"] == [a or b for a, b in zip(tails["input"], tails["target"], strict=True)]


def test_prompt_tokens_are_neither_rare_nor_scored(recognizer, tmp_path):
    made = examples(recognizer, "Okonkwo", "the committee met by the river", folder=tmp_path)
    batch = recognizer.collate(made)
    assert (batch.targets[:, 0] == -100).all()  # the prompt's own second token
    assert batch.targets[0, 1] == made[0].prompted.ids[2]
    last = len(made[0].prompted.ids) - 2
    assert batch.targets[0, last] == 0  # the end token is scored
    assert (batch.targets[0, last + 1 :] == -100).all()
    assert batch.positions["decoder"].exists.sum(1).tolist() == [len(e.tail) for e in made]
    assert not batch.positions["encoder"].tail.any()


def test_frames_within_the_audio(recognizer, tmp_path):
    made = make_examples(
        recognizer, manifest_of(tmp_path, ("the house", 0.5), ("the river", 2.0)), Rarity(Words()), Reporter()
    )
    assert [e.frames for e in made.examples] == [25, 100]  # 20 ms a position
    padding = recognizer.collate(made.examples).positions["encoder"].padding
    assert padding.sum(1).tolist() == [75, 0]


def test_what_does_not_fit_is_left_out_with_a_note(recognizer, tmp_path):
    utterances = manifest_of(
        tmp_path, ("the house", 1.0), ("", 1.0), ("the river", 2.5), ("the very long town " * 20, 1.0)
    )
    batches, summary, notes = calibration_set(recognizer, utterances, CONFIG, Reporter())
    assert summary["ids"] == ["0"]
    assert sum(len(b.ids) for b in batches) == 1
    assert any("empty transcript" in n for n in notes)
    assert any("at most 2 s" in n for n in notes)
    assert any("3: " in n and "tokens" in n for n in notes)


def test_nothing_usable(recognizer, tmp_path):
    with pytest.raises(CalibrationError, match="transcripts self"):
        calibration_set(recognizer, manifest_of(tmp_path, ("", 1.0), (" ", 1.0)), CONFIG, Reporter())
    with pytest.raises(DataError, match=r"max_duration=2\.0"):
        calibration_set(recognizer, manifest_of(tmp_path, ("the house", 3.0)), CONFIG, Reporter())


def test_missing_transcripts_are_made_by_the_model(recognizer, tmp_path, monkeypatch):
    asked = []

    def transcribe(waveforms, language):
        asked.extend(len(w) for w in waveforms)
        return ["by the river" for _ in waveforms]

    monkeypatch.setattr(recognizer, "transcribe", transcribe)
    made = make_examples(
        recognizer, manifest_of(tmp_path, ("the house", 1.0), (None, 0.5)), Rarity(Words()), Reporter()
    )
    assert (made.texts, made.self_transcribed, asked) == (["the house", "by the river"], 1, [8000])
    assert "1 of 2 utterances have no transcript: the model's own is used instead" in made.notes[0]
    utterances = manifest_of(tmp_path, ("the house", 1.0), ("", 0.5))
    made = make_examples(recognizer, utterances, Rarity(Words()), Reporter(), transcripts="self")
    assert (made.texts, made.self_transcribed) == (["by the river"] * 2, 2)
    assert made.notes == []  # it was asked for


def test_capitals_are_lowered(recognizer, tmp_path):
    assert transcript_styles(recognizer, ["NORTHANGER ABBEY", "THE HOUSE", "I"]) == {True: "lower case"}
    assert transcript_styles(recognizer, ["Northanger Abbey", "the house", "1984"]) == {False: "as written"}
    assert transcript_styles(recognizer, []) == {}
    made = make_examples(recognizer, manifest_of(tmp_path, ("THE OKONKWO HOUSE", 1.0)), Rarity(Words()), Reporter())
    assert made.texts == ["the okonkwo house"]
    assert "".join(tokens(recognizer, made.examples[0], made.examples[0].rare[1:])) == "okonkwo"


def test_a_pool_of_corpora_with_and_without_capitals(recognizer, tmp_path, monkeypatch):
    """Each transcript by its own kind; the model's own are left as they are, and so is an abbreviation."""
    monkeypatch.setattr(recognizer, "transcribe", lambda waveforms, language: ["By The RIVER" for _ in waveforms])
    texts = ("THE OKONKWO HOUSE", "Daniel Okonkwo", None, "She sells", "By the river")
    made = make_examples(recognizer, manifest_of(tmp_path, *((t, 1.0) for t in texts)), Rarity(Words()), Reporter())
    assert made.texts == ["the okonkwo house", "Daniel Okonkwo", "By The RIVER", "She sells", "By the river"]
    assert made.style == "lower case / as written"
    three = manifest_of(tmp_path, ("NASA", 1.0), ("By NASA", 1.0), ("the House", 1.0))
    made = make_examples(recognizer, three, Rarity(Words()), Reporter())
    assert (made.texts, made.style) == (["NASA", "By NASA", "the House"], "as written")


@pytest.mark.assets
def test_a_lower_case_tokenizer_gets_lower_case(assets):
    recognizer = tarq.load_recognizer(assets / "whisper-tiny-relearned")
    text = "Author of the danger trail, Philip Steels, etc."
    assert transcript_styles(recognizer, [text]) == {False: "lower case"}


def test_unreadable_audio_is_named(recognizer, tmp_path):
    utterances = manifest_of(tmp_path, ("the house", 1.0))
    (tmp_path / "0.wav").write_bytes(b"no audio at all")
    with pytest.raises(DataError, match=r"0\.wav"):
        calibration_set(recognizer, utterances, CONFIG, Reporter())


def test_samples_are_drawn_by_the_seed(recognizer, manifest):
    def ids(seed, samples=3):
        config = dataclasses.replace(CONFIG, seed=seed, samples=samples)
        return calibration_set(recognizer, load_utterances(manifest), config, Reporter())[1]["ids"]

    assert ids(0) == ids(0)
    assert len(ids(0)) == 3
    assert any(ids(0) != ids(seed) for seed in (1, 2, 3))


def test_broken_audio_is_left_out_up_to_a_limit(recognizer, tmp_path):
    utterances = manifest_of(tmp_path, ("the house", 1.0), ("the river", 1.0), ("the town", 1.0))
    (tmp_path / "1.wav").write_bytes(b"no audio at all")
    config = dataclasses.replace(CONFIG, max_bad=1, samples=3)
    summary, notes = calibration_set(recognizer, utterances, config, Reporter())[1:]
    assert sorted(summary["ids"]) == ["0", "2"]
    assert list(summary["bad"]) == ["1"]
    assert "1 broken files left out: 1" in notes


def test_the_pool_is_in_the_report(recognizer, manifest):
    config = dataclasses.replace(CONFIG, pool="r-top", samples=2)
    summary = calibration_set(recognizer, load_utterances(manifest), config, Reporter())[1]
    assert summary["pool"]["kind"] == "r-top"
    assert summary["pool"]["candidates"] == 8
    assert summary["pool"]["rho"]["mean"] == pytest.approx(summary["rare_word_share"], abs=0.1)
    assert summary["word_frequencies"] == {"wordfreq": "en"}
    halves = {"a": load_utterances(manifest)[:4], "b": load_utterances(manifest)[4:]}
    config = dataclasses.replace(CONFIG, pool="r-cross", samples=2)
    crossed = calibration_set(recognizer, halves, config, Reporter())[1]
    assert sorted(crossed["ids"]) == sorted(summary["ids"])
