"""``quantization_config=TarqQuantConfig(…)`` of transformers' ``from_pretrained``: the same as ``tarq.quantize``."""

import pytest
import torch
import transformers

import tarq
from tarq.errors import ConfigError, ModelError

CONFIG = tarq.TarqConfig.preset("tarq", group_size=32, samples=4)


@pytest.fixture(scope="module")
def plain(model_folder, manifest):
    model = tarq.load(model_folder)
    report = tarq.quantize(model, manifest, CONFIG)
    return model, report


@pytest.mark.parametrize(
    "loader", [transformers.WhisperForConditionalGeneration, transformers.AutoModelForSpeechSeq2Seq]
)
def test_the_model_is_what_quantize_makes(loader, model_folder, manifest, plain, tmp_path):
    wanted = tarq.TarqQuantConfig(manifest, CONFIG)
    model = loader.from_pretrained(model_folder, quantization_config=wanted, dtype=torch.float32)
    expected, report = plain
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert model.tarq_report.calibration["ids"] == report.calibration["ids"]
    tarq.save(model, tmp_path / "out", model.tarq_report)
    again = tarq.load(tmp_path / "out")
    assert all(torch.equal(again.state_dict()[name].float(), theirs[name].float()) for name in again.state_dict())


def test_it_transcribes_and_is_not_quantized_twice(model_folder, manifest):
    rtn = tarq.TarqConfig.preset("rtn", group_size=32)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        model_folder, quantization_config=tarq.TarqQuantConfig(config=rtn)
    )
    assert len(tarq.transcribe(model, [manifest.parent / "u0.wav"])) == 1
    with pytest.raises(ModelError, match="quantized already"):
        tarq.quantize(model, None, rtn)


def test_errors_are_tarqs_own(model_folder, tmp_path):
    with pytest.raises(ModelError, match="needs calibration speech"):
        transformers.WhisperForConditionalGeneration.from_pretrained(
            model_folder, quantization_config=tarq.TarqQuantConfig(config=CONFIG)
        )
    with pytest.raises(ConfigError, match="give a TarqConfig"):
        tarq.TarqQuantConfig(config={"bits": 4})


def test_it_can_be_printed(manifest):
    assert '"bits": 4' in repr(tarq.TarqQuantConfig(manifest, CONFIG))
