"""Calls of the Python interface as people make them: surroundings that do not matter, arguments that are refused."""

import contextlib
import re

import pytest
import torch

import tarq
from tarq.errors import ConfigError, DataError, ModelError

CONFIG = tarq.TarqConfig(group_size=32, samples=4)
RTN = tarq.TarqConfig.preset("rtn", group_size=32)


def codes(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def quantized(model_folder, speech, config=CONFIG):
    model = tarq.load(model_folder)
    tarq.quantize(model, speech, config)
    return codes(model)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.fixture(scope="module")
def plain(model_folder, manifest):
    model = tarq.load(model_folder)
    tarq.quantize(model, manifest, CONFIG)
    return codes(model), tarq.transcribe(model, [manifest.parent / "u5.wav"])


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.bfloat16),
        lambda: default_device("meta"),
        lambda: torch.inference_mode(),
    ],
    ids=["autocast", "float64", "bfloat16", "meta", "inference"],
)
def test_what_torch_is_set_to_does_not_matter(model_folder, manifest, plain, around):
    with around():
        before = torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")
        model = tarq.load(model_folder)
        tarq.quantize(model, manifest, CONFIG)
        texts = tarq.transcribe(model, [manifest.parent / "u5.wav"])
        assert (torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu")) == before
    found = codes(model)
    assert found.keys() == plain[0].keys()
    assert all(torch.equal(found[name], value) for name, value in plain[0].items())
    assert texts == plain[1]


@pytest.mark.parametrize("form", [tuple, iter, lambda found: (one for one in found)])
def test_utterances_come_in_any_form(model_folder, manifest, plain, form):
    found = quantized(model_folder, form(tarq.pool(manifest, CONFIG).utterances))
    assert all(torch.equal(found[name], value) for name, value in plain[0].items())


@pytest.mark.parametrize("speech", [["a.wav"], [{"audio": "a.wav"}], b"a.jsonl", 5, iter([7])])
def test_what_is_no_speech_is_refused(model_folder, speech):
    with pytest.raises(DataError, match="give the name of a corpus, or"):
        quantized(model_folder, speech)


@pytest.mark.parametrize("config", ["gptq", {"bits": 4}, tarq.TarqConfig])
def test_what_is_no_configuration_is_refused(model_folder, manifest, config):
    with pytest.raises(ConfigError, match="give a TarqConfig, such as") as refused:
        quantized(model_folder, manifest, config)
    advised = eval(str(refused.value).rpartition("such as ")[2], {"TarqConfig": tarq.TarqConfig})  # it works as written
    assert advised == tarq.TarqConfig.preset("gptq", bits=4)
    with pytest.raises(ConfigError, match="give a TarqConfig"):
        tarq.pool(manifest, config)


@pytest.mark.parametrize("kind", ["metric", "residual", "solver"])
def test_parts_of_a_method_are_objects(model_folder, manifest, kind):
    with pytest.raises(ConfigError, match=f"{kind} is 'plain': give an object"):
        tarq.quantize(tarq.load(model_folder), manifest, CONFIG, **{kind: "plain"})


@pytest.mark.parametrize("model", [None, torch.nn.Linear(4, 4), 7])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ModelError, match="is no transformers model"):
        tarq.quantize(model, None, RTN)


def test_a_folder_is_not_quantized_in_place(model_folder):
    with pytest.raises(ModelError, match=r"give tarq\.load_recognizer"):
        tarq.quantize(model_folder, None, RTN)


def test_one_file_alone_is_transcribed(model_folder, manifest):
    model, file = tarq.load(model_folder), manifest.parent / "u2.wav"
    texts = tarq.transcribe(model, [file])
    assert texts == tarq.transcribe(model, file) == tarq.transcribe(model, str(file))
    assert texts == tarq.transcribe(model, (one for one in [file]))


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_batches_hold_at_least_one(model_folder, manifest, size):
    with pytest.raises(ConfigError, match=re.escape(f"batch_size is {size!r}")):
        tarq.transcribe(model_folder, [manifest.parent / "u2.wav"], batch_size=size)


@pytest.mark.parametrize("audio", [[torch.zeros(9)], [b"RIFF"], [None]])
def test_what_is_no_file_is_refused(model_folder, audio):
    with pytest.raises(DataError, match="give paths"):
        tarq.transcribe(model_folder, audio)


def test_models_and_sets_to_evaluate_have_labels(model_folder, manifest):
    with pytest.raises(ConfigError, match="data must be a mapping"):
        tarq.evaluate({"a": model_folder}, manifest)
    with pytest.raises(ConfigError, match="models must be a mapping"):
        tarq.evaluate(model_folder, {"a": manifest})
