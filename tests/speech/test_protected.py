"""Words that a run is to protect: tagged whatever their frequency, counted, told, and scored by themselves."""

import dataclasses

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tarq
from tarq.data.corpora.registry import load_utterances
from tarq.errors import ConfigError, DataError
from tarq.presets import PRESETS
from tarq.quantization import check_protect
from tarq.report import Reporter
from tarq.speech.calibration import calibration_set, make_examples
from tarq.terminal.cli import app
from tarq.walk.identity import identity
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

LISTED = ("day", "the river", "Zyx")


@pytest.fixture(scope="module")
def recognizer(model_folder):
    return tarq.load_recognizer(model_folder)


def words_of(recognizer, ids):
    return recognizer.tokenizer.decode([int(i) for i in ids]).split()


def test_protected_words_are_in_the_tail_and_not_called_rare(recognizer, manifest):
    made = make_examples(recognizer, load_utterances(manifest), Rarity(Words(protect=LISTED)), Reporter())
    plain = make_examples(recognizer, load_utterances(manifest), Rarity(Words()), Reporter())
    seen = set()
    for text, example, without in zip(made.texts, made.examples, plain.examples, strict=True):
        assert without.protected is None
        assert torch.equal(example.rare, without.rare)
        assert torch.equal(example.tail, (example.rare | example.protected)[1:])
        found = words_of(recognizer, np.array(example.prompted.ids)[example.protected.numpy()])
        assert found == (["the", "river"] if "river" in text else ["day"] * text.split().count("day"))
        seen |= set(found)
    assert seen == {"day", "the", "river"}


def test_every_position_of_a_batch_knows_it(recognizer, manifest):
    made = make_examples(recognizer, load_utterances(manifest), Rarity(Words(protect=LISTED)), Reporter())
    batch = recognizer.collate(made.examples)
    for b, example in enumerate(made.examples):
        count = len(example.prompted.ids) - 1
        assert torch.equal(batch.protected_target[b, :count], example.protected[1:])
        assert not batch.protected_target[b, count:].any()
    assert torch.equal(batch.tail_target, batch.rare_target | batch.protected_target)
    assert not (batch.protected_target & (batch.targets == -100)).any()
    plain = recognizer.collate(
        make_examples(recognizer, load_utterances(manifest), Rarity(Words()), Reporter()).examples
    )
    assert plain.protected_target is None
    assert plain.tail_target is plain.rare_target


def test_the_report_counts_every_entry_and_names_those_that_never_occur(recognizer, manifest, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(LISTED))
    texts = [u.text.lower().split() for u in load_utterances(manifest)]
    config = tarq.TarqConfig(protect=str(path), metric="rarebal")
    batches, summary, notes = calibration_set(recognizer, load_utterances(manifest), config, Reporter())
    found = summary["protected"]
    assert found["file"] == "names.txt"
    assert found["entries"]["day"] == sum(words.count("day") for words in texts) > 1
    assert found["entries"]["the river"] == 1
    assert found["entries"]["Zyx"] == 0
    assert (
        "1 of the 3 entries of names.txt do not occur in the calibration speech and so are not protected: Zyx" in notes
    )
    tail = summary["positions"]["decoder"]["tail"]
    plain = calibration_set(recognizer, load_utterances(manifest), tarq.TarqConfig(), Reporter())[1]
    assert "protected" not in plain
    assert tail > plain["positions"]["decoder"]["tail"] > 0
    assert tail == sum(int(batch.tail_target.sum()) for batch in batches)


def test_only_protected_words_are_the_tail_below_every_frequency(recognizer, manifest):
    config = tarq.TarqConfig(protect=LISTED, tail_threshold=0.0, metric="rarebal")
    batches, _, _ = calibration_set(recognizer, load_utterances(manifest), config, Reporter())
    for batch in batches:
        assert not batch.rare_target.any()
        assert torch.equal(batch.positions["decoder"].tail, batch.protected_target)


def test_bands_hold_protected_words_by_their_frequency(recognizer, manifest):
    """A common one is in the first band, which is nearest to it."""
    config = tarq.TarqConfig(protect=LISTED, metric="rarebal-bands", tail_bands=3)
    batches, _, _ = calibration_set(recognizer, load_utterances(manifest), config, Reporter())
    bands = torch.cat([b.positions["decoder"].band[b.protected_target & ~b.rare_target] for b in batches])
    assert bands.tolist() == [0] * len(bands)
    assert len(bands) > 1
    assert any(b.positions["decoder"].band[b.rare_target].max() > 0 for b in batches if b.rare_target.any())


def test_the_list_changes_what_is_quantized(model_folder, manifest):
    """Under a metric that weighs the tail."""
    weights = []
    for protect in (None, LISTED):
        recognizer = tarq.load_recognizer(model_folder)
        config = tarq.TarqConfig.preset("tarq", group_size=32, protect=protect)
        report = tarq.quantize(recognizer, manifest, config)
        assert report.config["protect"] == (None if protect is None else list(protect))
        assert tarq.TarqConfig.from_dict(report.config).protect == config.protect
        weights.append(recognizer.model.model.decoder.layers[1].fc2.dequantize())
    assert not torch.equal(*weights)


def test_a_bad_list_ends_a_run_before_its_model_is_read(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xe9")
    with pytest.raises(DataError, match=r"names.txt:1: not UTF-8"):
        tarq.quantize(object(), "nowhere", tarq.TarqConfig.preset("tarq", protect=path))


@pytest.mark.parametrize("method", PRESETS)
def test_a_list_that_would_do_nothing_is_refused(method):
    """By name, before anything is read; the metrics that do weigh the tail take it."""
    config = tarq.TarqConfig.preset(method, protect=LISTED)
    weighed = ("rarebal", "rarebal-bands", "rarebal-gated", "random", "common", "gradient")
    if config.metric in weighed:
        check_protect(config, config.arms())
        return
    with pytest.raises(ConfigError, match=rf"protect .*no effect.*metric {config.metric}.*--metric rarebal"):
        tarq.quantize(object(), "nowhere", config)
    with pytest.raises(ConfigError, match="no effect"):
        tarq.plan("nowhere", config)
    check_protect(dataclasses.replace(config, target_bits=4.5), config.arms())  # widths are chosen by the tail's loss


def test_the_command_refuses_it_before_the_model(tmp_path):
    (tmp_path / "n.txt").write_text("day")
    said = CliRunner().invoke(app, ["quantize", "gone", str(tmp_path / "o"), "--protect", str(tmp_path / "n.txt")])
    assert said.exit_code == 1
    assert "has no effect here" in " ".join(said.output.split())


def test_a_run_goes_on_with_the_same_list_wherever_it_is_kept(recognizer, manifest, tmp_path):
    """What tags its list gives decides, not the file's name."""
    found = []
    for name, entries in (("a", "day"), ("b", "day\n# the same"), ("a", "the river")):
        path = tmp_path / name
        path.write_text(entries)
        config = tarq.TarqConfig(protect=path, metric="rarebal")
        batches, _, _ = calibration_set(recognizer, load_utterances(manifest), config, Reporter())
        found.append(identity(recognizer, batches, config, torch.device("cpu")))
    assert found[0] == found[1]
    assert found[0]["utterances"] != found[2]["utterances"]
    assert found[0]["setting"] == found[2]["setting"]


@pytest.fixture(scope="module")
def scored(model_folder, manifest):
    other = tarq.load_recognizer(model_folder)
    tarq.quantize(other, None, tarq.TarqConfig.preset("rtn", group_size=32, bits=2))
    models = {"full": tarq.load_recognizer(model_folder), "two": other}
    config = tarq.TarqConfig(protect=LISTED)
    return tarq.evaluate(models, {"s": manifest}, reference="full", config=config, resamples=100).sets["s"]


def test_protected_words_are_scored_by_themselves(scored, model_folder, manifest):
    texts = [u.text.lower().split() for u in load_utterances(manifest)]
    number = sum(words.count("day") for words in texts) + 2
    assert scored.protected["entries"] == {"day": number - 2, "the river": 1, "Zyx": 0}
    assert "1 of the 3 entries of the protected words do not occur in this set: Zyx" in scored.notes
    for model in scored.models.values():
        assert model.counts["protected"]["words"] == number
        assert model.breakdown["kinds"]["protected"]["words"] == number
    two = scored.models["two"].figures
    assert two["kl_protected"].value > 0
    assert {"protected_wer", "protected_miss_rate", "delta_nll_protected"} <= set(two)
    assert "protected_wer" in scored.differences["two − full"]
    assert scored.targets["protected"] >= number
    plain = tarq.evaluate({"full": model_folder}, {"s": manifest}, resamples=10).sets["s"]
    assert plain.protected == {}
    assert not any("protected" in name for name in plain.models["full"].figures)
    assert plain.models["full"].figures["rare_wer"].value == scored.models["full"].figures["rare_wer"].value


def test_protected_words_that_were_lost_are_named(model_folder, manifest, monkeypatch):
    """Though none of them is rare."""
    heard = {"full": "the house", "two": "the horse"}
    models = {name: tarq.load_recognizer(model_folder) for name in heard}
    for name, model in models.items():
        monkeypatch.setattr(model, "decode_forced", lambda batch, *rest, text=heard[name]: [text] * len(batch.ids))
    config = tarq.TarqConfig(protect=["house"])
    found = tarq.evaluate(models, {"s": manifest}, reference="full", config=config, resamples=10).sets["s"]
    assert {w.word for w in found.models["two"].protected_lost} == {"house"}
    assert found.models["two"].protected_regained == []
    assert found.models["two"].lost == []
