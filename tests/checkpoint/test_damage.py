"""Damaged folders are refused by name: every field, every kind of tensor, and no code of a folder ever runs."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tarq
from tarq.checkpoint.compressed_tensors import check_config
from tarq.errors import CheckpointError, ModelError, TarqError
from tarq.report import Report
from tarq.terminal.cli import report_error


@pytest.fixture(scope="module")
def saved(model_folder, tmp_path_factory):
    recognizer = tarq.load_recognizer(model_folder)
    report = tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn", group_size=32, symmetric=False))
    path = tmp_path_factory.mktemp("saved") / "out"
    tarq.save(recognizer, path, report)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(file, change):
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))


def change_tensor(folder, name, change):
    state = load_file(folder / "model.safetensors")
    state[name] = change(state[name])
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "SHA256SUMS").unlink(missing_ok=True)


LAYER = "model.decoder.layers.0.fc1"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"{LAYER}.weight_scale", lambda t: t.fill_(float("nan"))),
        (f"{LAYER}.weight_scale", lambda t: t.index_fill_(0, torch.tensor([3]), float("inf"))),
        (f"{LAYER}.weight_scale", lambda t: t.fill_(60_000)),
        (f"{LAYER}.bias", lambda t: t.fill_(float("-inf"))),
        ("model.decoder.layer_norm.weight", lambda t: t.index_fill_(0, torch.tensor([1]), float("nan"))),
        ("model.decoder.embed_tokens.weight", lambda t: t.index_fill_(0, torch.tensor([1]), float("nan"))),
        (f"{LAYER}.weight_packed", lambda t: t.to(torch.int64)),
        (f"{LAYER}.weight_packed", lambda t: t.view(torch.float32)),
        (f"{LAYER}.weight_zero_point", lambda t: t.float()),
        (f"{LAYER}.bias", lambda t: t.to(torch.int32)),
        (f"{LAYER}.weight_packed", lambda t: t[:, :-1].contiguous()),
        (f"{LAYER}.weight_scale", lambda t: t[:-1].contiguous()),
        (f"{LAYER}.bias", lambda t: t[:-1].contiguous()),
        (f"{LAYER}.weight_shape", lambda t: t + 1),
        ("model.encoder.conv1.weight", lambda t: t[:, :-1].contiguous()),
    ],
)
def test_a_damaged_tensor_is_named(copy, name, change):
    change_tensor(copy, name, change)
    with pytest.raises(CheckpointError) as caught:
        tarq.load(copy)
    assert name.removesuffix(".weight_scale") in str(caught.value)
    assert "ignore_mismatched_sizes" not in str(caught.value)


def test_tensors_that_are_missing_unknown_or_prefixed_are_named(copy):
    state = load_file(copy / "model.safetensors")
    (copy / "SHA256SUMS").unlink()
    for changed, named in (
        ({n: t for n, t in state.items() if n != f"{LAYER}.bias"}, f"{LAYER}.bias"),
        (state | {"stranger": torch.zeros(1)}, "stranger"),
        ({f"_orig_mod.{n}": t for n, t in state.items()}, "compile"),
        ({f"module.{n}": t for n, t in state.items()}, "DataParallel"),
    ):
        save_file(changed, copy / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=named):
            tarq.load(copy)


def test_one_flipped_bit_is_told_by_the_checksum(copy):
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the file that was saved .*delete SHA256SUMS"):
        tarq.load(copy)
    (copy / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(CheckpointError, match="SHA256SUMS is damaged"):
        tarq.load(copy)


def test_a_folder_without_checksums_loads(copy):
    """As folders of earlier versions and of other tools are."""
    (copy / "SHA256SUMS").unlink()
    edit(copy / "config.json", lambda c: c["quantization_config"].pop("dequantize"))
    assert tarq.load(copy).config.quantization_config["format"] == "pack-quantized"


def test_checksums_are_those_of_sha256sum(saved):
    import hashlib

    digest = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert (saved / "SHA256SUMS").read_text() == f"{digest}  model.safetensors\n"


WRONG = [None, "text", -1, 1.5, [], {}, True]


def test_every_field_of_a_quantization_config_is_looked_at(saved):
    config = json.loads((saved / "config.json").read_text())["quantization_config"]
    check_config(config)
    group, weights = ("config_groups", "group_0"), ("config_groups", "group_0", "weights")
    fields = [("config_groups",), ("ignore",), ("kv_cache_scheme",), ("quantization_status",), group, weights]
    fields += [(*group, "targets"), (*group, "input_activations")]
    fields += [(*weights, name) for name in config["config_groups"]["group_0"]["weights"]]
    nothing = ("null", "[]", "{}")
    harmless = {"ignore": nothing, "input_activations": nothing, "dynamic": nothing, "kv_cache_scheme": ("null",)}
    harmless |= {"symmetric": ("true",)}
    for path in fields:
        for wrong in WRONG:
            damaged = json.loads(json.dumps(config))
            inner = damaged
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = wrong
            if json.dumps(wrong) in harmless.get(path[-1], ()):
                check_config(damaged)
                continue
            with pytest.raises(CheckpointError):
                check_config(damaged)


HOSTILE = ["re:(a+)+$", "re:(a|a)*$", "re:(.*)*x", "re:.*.*.*.*y", "re:(a{1,9}){9}", "re:[", "re:(?P<", "re:(\\\\)*"]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_pattern_that_could_take_forever_is_refused_at_once(saved, pattern):
    config = json.loads((saved / "config.json").read_text())["quantization_config"]
    began = time.monotonic()
    for field in ("ignore", "targets"):
        damaged = json.loads(json.dumps(config))
        (damaged if field == "ignore" else damaged["config_groups"]["group_0"])[field] = [pattern]
        with pytest.raises(CheckpointError, match=field):
            check_config(damaged)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "pattern", ["re:.*lm_head", "re:visual.*", r"re:^(?:a\.b|c\.d)$", r"re:.*mlp\.(?:gate|up)_proj$"]
)
def test_patterns_people_write_are_taken(saved, pattern):
    config = json.loads((saved / "config.json").read_text())["quantization_config"]
    check_config(config | {"ignore": [pattern]})


@pytest.mark.parametrize(
    "field", ["d_model", "encoder_layers", "vocab_size", "model_type", "num_mel_bins", "architectures"]
)
@pytest.mark.parametrize("wrong", [None, "text", -1, 10**9, [], {}])
def test_a_damaged_field_of_config_json_is_an_error_of_ours(copy, field, wrong):
    edit(copy / "config.json", lambda c: c.update({field: wrong}))
    if (field, wrong) in (("architectures", None), ("architectures", [])):
        tarq.load(copy)  # says nothing, and nothing is needed
        return
    with pytest.raises(TarqError):
        tarq.load(copy)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00"])
def test_a_damaged_file_is_named(copy, file, content):
    (copy / file).write_text(content)
    with pytest.raises(ModelError, match=file.replace(".", r"\.")):
        tarq.load(copy)


def test_shards_that_are_missing_are_named(model_folder, tmp_path):
    model = tarq.load(model_folder)
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    tarq.load(tmp_path)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        tarq.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(CheckpointError, match="weight_map"):
        tarq.load(tmp_path)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_nothing_in_a_folder_is_run(saved, model_folder, tmp_path, monkeypatch):
    """Pickles, code beside the model, and configurations that name code: none runs, and nobody is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    names = ("AutoConfig", "AutoModelForSpeechSeq2Seq", "AutoFeatureExtractor", "AutoProcessor")
    code = {"auto_map": dict.fromkeys(names, "evil.E") | {"AutoTokenizer": ["evil.E", "evil.E"]}}
    for origin in (saved, model_folder):
        folder = Path(shutil.copytree(origin, tmp_path / origin.name))
        (folder / "evil.py").write_text("from pathlib import Path\nPath('exploded').touch()\nclass E: pass\n")
        for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
            edit(folder / file, lambda fields: fields.update(code))
        with (folder / "pytorch_model.bin").open("wb") as file:
            pickle.dump(Bomb(), file)
        tarq.load_recognizer(folder)
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"pytorch_model\.bin.*safetensors only.*save_pretrained"):
            tarq.load(folder)
        edit(folder / "config.json", lambda fields: fields.update(model_type="evil"))
        with pytest.raises(ModelError):
            tarq.load(folder)
    assert not (tmp_path / "exploded").exists()


def test_an_adapter_is_not_a_model(copy):
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="merge_and_unload"):
        tarq.load(copy)


def test_a_missing_path_is_told_as_a_path_and_an_offline_id_at_once(tmp_path, monkeypatch):
    began = time.monotonic()
    for path in (tmp_path / "nowhere", "./nowhere", "a/b/c", "~/nowhere"):
        with pytest.raises(ModelError, match="no such folder"):
            tarq.load(path)
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="is a file"):
        tarq.load(tmp_path / "file")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="hub cannot be reached"):
        tarq.load("nobody/nothing-there")
    assert time.monotonic() - began < 15


def test_the_dtype_is_the_files_own(model_folder, tmp_path):
    for number, stated in enumerate((None, "float32")):
        folder = Path(shutil.copytree(model_folder, tmp_path / f"m{number}"))
        edit(folder / "config.json", lambda fields, stated=stated: fields.update(dtype=stated))
        recognizer = tarq.load_recognizer(folder)
        assert recognizer.stored_dtype == torch.float16
        assert recognizer.linear_bytes() == tarq.load_recognizer(model_folder).linear_bytes()
        tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn", group_size=32))
        tarq.save(recognizer, folder.with_suffix(".w4"))
        stored = load_file(folder.with_suffix(".w4") / "model.safetensors")
        assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}


def test_numbers_that_are_not_finite_are_not_saved(model_folder, tmp_path):
    for name, value in (("model.decoder.layer_norm.bias", float("nan")), ("model.encoder.conv1.bias", 1e6)):
        recognizer = tarq.load_recognizer(model_folder)
        tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn", group_size=32))
        with torch.no_grad():
            recognizer.model.get_parameter(name)[2] = value
        with pytest.raises(CheckpointError, match=f"not saved.*{name}"):
            tarq.save(recognizer, tmp_path / "out")
    recognizer = tarq.load_recognizer(model_folder)
    tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn", group_size=32))
    recognizer.model.get_submodule(LAYER).weight_scale.fill_(60_000)
    with pytest.raises(CheckpointError, match=f"{LAYER} stands for weights beyond float16's range.*bfloat16"):
        tarq.save(recognizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_beside_the_model_go_along(model_folder, tmp_path):
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    vocabulary = tarq.load_recognizer(folder).tokenizer.get_vocab()
    kept = {"normalizer.json": '{"colour": "color"}', "vocab.json": json.dumps(vocabulary), "merges.txt": "#"}
    kept |= {"chat_template.jinja": "{{ x }}", "added_tokens.json": '{"<|endoftext|>": 0}'}
    for name, text in (kept | {"training_args.bin": "x", "notes.txt": "x", "code.py": "x"}).items():
        (folder / name).write_text(text)
    recognizer = tarq.load_recognizer(folder)
    tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn", group_size=32))
    tarq.save(recognizer, tmp_path / "out")
    assert {n: (tmp_path / "out" / n).read_text() for n in kept} == kept
    assert not any((tmp_path / "out" / n).exists() for n in ("training_args.bin", "notes.txt", "code.py"))
    # another tokenizer's vocabulary is not the model's own
    (folder / "vocab.json").write_text('{"other": 0}')
    tarq.save(recognizer, tmp_path / "again")
    assert not (tmp_path / "again" / "vocab.json").exists()
    assert not (tmp_path / "again" / "merges.txt").exists()


def test_beams_are_stated_only_where_nothing_else_is(model_folder, tmp_path):
    recognizer = tarq.load_recognizer(model_folder)
    tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn", group_size=32))
    for beams, expected in ((None, 1), (5, 5)):
        recognizer.model.generation_config.num_beams = beams
        tarq.save(recognizer, tmp_path / f"out{beams}")
        assert json.loads((tmp_path / f"out{beams}" / "generation_config.json").read_text())["num_beams"] == expected


@pytest.mark.parametrize("field", ["layers", "config", "versions", "notes", "seconds", "processes", "model"])
def test_a_damaged_report_is_named(copy, field):
    for wrong in ({"layers": [3]}, {"layers": [{}]}, {field: None}, {field: True}, {field: object}):
        if wrong == {"seconds": None}:
            continue
        value = "text" if field not in ("model",) else 3
        change = {field: value} if wrong.get(field) is object else wrong
        shutil.copy(copy / "tarq_report.json", copy / "kept")
        edit(copy / "tarq_report.json", lambda fields, change=change: fields.update(change))
        with pytest.raises(CheckpointError, match="not a tarq report"):
            Report.read(copy)
        shutil.copy(copy / "kept", copy / "tarq_report.json")
    Report.read(copy)


def test_a_newer_report_is_read_and_says_what_is_not(copy):
    def change(fields):
        fields["versions"]["tarq"] = "99.0"
        fields["weather"] = "fine"
        fields["layers"][0]["mood"] = 3

    edit(copy / "tarq_report.json", change)
    report = Report.read(copy)
    assert report.layers[0].name
    assert any("tarq 99.0" in note and "mood, weather" in note for note in report.notes)


@pytest.mark.parametrize("value", [[], "gptq", 4, True])
def test_a_quantization_config_of_another_kind_is_named(copy, value):
    edit(copy / "config.json", lambda fields: fields.update(quantization_config=value))
    with pytest.raises(ModelError, match=r"config\.json: quantization_config is no object"):
        tarq.load(copy)


def test_weights_under_another_name_are_named(copy):
    (copy / "model.safetensors").rename(copy / "model.fp16.safetensors")
    with pytest.raises(ModelError, match=r"there is model\.fp16\.safetensors: if it is the model's, rename it"):
        tarq.load(copy)


def test_a_checkpoint_is_not_quantized_again(copy):
    with pytest.raises(ModelError, match=rf"{copy.name}: the model is quantized already"):
        tarq.quantize(tarq.load_recognizer(copy), None, tarq.TarqConfig.preset("rtn", group_size=32))


def test_a_report_is_strict_json():
    text = Report(seconds=float("nan"), calibration={"rare": float("inf")}).to_json()
    read = json.loads(text, parse_constant=pytest.fail)
    assert read["seconds"] is None
    assert read["calibration"] == {"rare": None}


def test_what_lies_behind_an_error_is_shown_on_demand(copy, monkeypatch, capsys):
    """Files that do not fit together are told in one line; the fault in them stays its cause."""
    monkeypatch.setattr("tarq.recognizers.adapt", lambda *_, **__: {}["lang_to_id"])
    with pytest.raises(ModelError, match=r"do not fit together \(KeyError: 'lang_to_id'\)") as caught:
        tarq.load_recognizer(copy)
    assert isinstance(caught.value.__cause__, KeyError)
    report_error(caught.value)
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("TARQ_DEBUG", "1")
    report_error(caught.value)
    assert "KeyError: 'lang_to_id'\n\nThe above exception was the direct cause" in capsys.readouterr().err
