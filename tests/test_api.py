"""Calls of the Python interface as people make them: torch settings that do not matter, arguments that are refused."""

import contextlib
import re

import pytest
import torch

import tarq
from tarq.errors import ConfigError, DataError, ModelError, TarqError

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


#: Public function to its parameters, each with values that it does not take.
WRONG = {
    "allocate_bits": {"table": [None, 5, ["row"]], "target": ["4", None], "others": [[(1, "4")], 5]},
    "load": {"source": [None, 5, "", ["a", "b"]], "dtype": ["float16", torch.int8], "device": ["gpu", 1.5]},
    "load_recognizer": {"source": [None, torch.nn.Linear(2, 2)], "language": [5], "offload": ["cuda", None],
                        "int8_activations": [1], "dtype": [torch.float16.itemsize]},
    "quantize": {"model": [None, [], object()], "config": ["gptq", 5], "offload": [True, "gpu"], "reporter": [print],
                 "sensitivities": [[5], "table"],
                 "metric": [5, object], "residual": ["none"], "solver": [object()], "tokenizer": ["folder", str],
                 "feature_extractor": [5], "calibration": [{"a": 5}]},
    "plan": {"model": [None, 5, ""], "config": [{}], "device": [None, "gpu"], "tokenizer": [5]},
    "save": {"model": [None, {}], "path": [None, 5], "report": [{}, "report.json"], "overwrite": ["yes", None]},
    "transcribe": {"model": [5], "audio": [None, 5, {1: 2}], "language": [5], "reporter": [5], "batch_size": ["4"]},
    "iter_transcripts": {"model": [5], "audio": [None, object()], "language": [["en"]], "reporter": [5]},
    "timed_transcripts": {"model": [5], "audio": [None, [5]], "language": [["en"], "x"], "words": ["yes"],
                          "times": [1], "long_form": ["fast", 5], "vad": [None], "batch_size": [0, "4", True],
                          "on_segment": ["print"], "reporter": [5]},
    "evaluate": {"models": [None, {}, {1: "m"}, {"m": None}, ["m"]], "data": [None, {}, {"s": 5}, ["s"]],
                 "reference": [["full"], 5], "config": [{}], "device": ["gpu"], "dtype": ["float16"],
                 "samples": ["8", 1.5, True, 0], "resamples": [None, "many", 0, -1], "decode": ["no"],
                 "intakes": [[], {"s": {}}]},
    "pool": {"corpora": [None, 5, {"s": 5}], "config": ["uniform"], "max_duration": ["30", True], "reporter": [5]},
    "write_report": {"results": ["results.json", None, [5]], "out": [None, 5, ""], "audio": ["yes"], "data": ["speech"],
                     "base": [5], "title": [b"title"]},
}  # fmt: skip
CALLS = [(name, parameter, value) for name, of in WRONG.items() for parameter, them in of.items() for value in them]


def test_a_model_from_nowhere_needs_its_parts(model_folder, manifest, tmp_path, monkeypatch):
    """Neither the current folder's tokenizer nor its report are taken for the model's."""
    monkeypatch.chdir(model_folder)
    model = tarq.load(model_folder)
    model.config._name_or_path = ""
    with pytest.raises(ModelError, match=r"^the model does not say where .* its tokenizer is unknown: pass tokenizer="):
        tarq.quantize(model, None, RTN)
    with pytest.raises(ModelError, match=r"pass tokenizer="):
        tarq.transcribe(model, [manifest.parent / "u2.wav"])
    parts = tarq.load_recognizer(model_folder)
    given = {"tokenizer": parts.tokenizer, "feature_extractor": parts.feature_extractor}
    with pytest.raises(ModelError, match=r"^feature_extractor is <class"):
        tarq.quantize(model, None, RTN, **given | {"feature_extractor": type(given["feature_extractor"])})
    monkeypatch.setattr("tarq.recognizers.adapt", lambda *_, **__: {}["eos"])
    with pytest.raises(ModelError, match=r"^WhisperForConditionalGeneration: the model's files do not fit together"):
        tarq.quantize(model, None, RTN, **given)


def test_a_tilde_is_the_home_folder(model_folder, manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(manifest.parent)
    (tmp_path / "model").symlink_to(model_folder)
    (tmp_path / "speech").symlink_to(manifest.parent)
    recognizer = tarq.load_recognizer("~/model")
    tarq.save(recognizer, "~/out", tarq.quantize(recognizer, None, RTN))
    assert tarq.evaluate({"q": "~/out"}, {"s": "~/speech"}, samples=1, resamples=9).sets["s"].utterances == 1
    tarq.plan("~/model", RTN)
    with pytest.raises(DataError, match="no such file or folder"):
        tarq.pool("~nobody-of-this-name/speech")
    assert not list(manifest.parent.glob("~*"))


def test_every_public_function_is_called_wrongly():
    functions = {name for name in tarq.__all__ if callable(getattr(tarq, name)) and name[0].islower()}
    assert functions == WRONG.keys()


@pytest.mark.parametrize(("name", "parameter", "value"), CALLS, ids=[f"{n}-{p}-{v!r:.20}" for n, p, v in CALLS])
def test_arguments_of_wrong_types_are_named(request, manifest, tmp_path, name, parameter, value):
    folder = request.getfixturevalue("model_folder")
    model = tarq.load(folder) if name in ("quantize", "save") else folder
    right = {
        "allocate_bits": {"table": [tarq.Sensitivity(("a",), 8, {4: 1.0})], "target": 4.0},
        "load": {"source": folder},
        "load_recognizer": {"source": folder},
        "quantize": {"model": model, "calibration": manifest, "config": CONFIG},
        "plan": {"model": model},
        "save": {"model": model, "path": tmp_path / "out"},
        "transcribe": {"model": model, "audio": [manifest.parent / "u2.wav"]},
        "iter_transcripts": {"model": model, "audio": [manifest.parent / "u2.wav"]},
        "timed_transcripts": {"model": model, "audio": [manifest.parent / "u2.wav"]},
        "evaluate": {"models": {"m": model}, "data": {"s": manifest}},
        "pool": {"corpora": manifest},
        "write_report": {"results": [tmp_path / "results.json"], "out": tmp_path / "report"},
    }[name]
    with pytest.raises(TarqError) as error:
        list(getattr(tarq, name)(**right | {parameter: value}) or ())
    assert not str(error.value).startswith(":")
    said = {"model": "transformers model|name of a model", "models": "model", "data": "speech|data"}
    said |= dict.fromkeys(("corpora", "calibration"), "speech")
    assert re.search(said.get(parameter, parameter), str(error.value))
    assert not list(tmp_path.iterdir())


def test_models_and_sets_to_evaluate_have_labels(model_folder, manifest):
    with pytest.raises(ConfigError, match="data must be a mapping"):
        tarq.evaluate({"a": model_folder}, manifest)
    with pytest.raises(ConfigError, match="models must be a mapping"):
        tarq.evaluate(model_folder, {"a": manifest})


def test_progress_is_told_to_a_reporter_of_ones_own(model_folder, manifest):
    """Phases with their steps, every layer and every note; an exception of its own ends the run."""

    class Seen(tarq.Reporter):
        def __init__(self):
            self.phases, self.layers, self.steps, self.notes = [], [], 0, []

        def phase(self, text, total=None):
            self.phases.append((text, total))

        def start(self, layers):
            self.phase("walk", layers)

        def layer(self, record):
            self.layers.append(record.name)

        def advance(self, steps=1):
            self.steps += steps

        def note(self, text):
            self.notes.append(text)

    seen = Seen()
    recognizer = tarq.load_recognizer(model_folder)
    config = tarq.TarqConfig.preset("tarq", group_size=32, protect=["Zyx"])
    report = tarq.quantize(recognizer, manifest, config, reporter=seen)
    assert seen.layers == [layer.name for layer in report.layers]
    assert ("walk", len(seen.layers)) in seen.phases
    assert ("reading audio", 8) in seen.phases
    assert seen.steps >= 8
    assert seen.notes == report.notes
    assert any("do not occur in the calibration speech" in note for note in seen.notes)

    class Stopping(tarq.Reporter):
        def layer(self, record):
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        tarq.quantize(tarq.load_recognizer(model_folder), manifest, config, reporter=Stopping())
