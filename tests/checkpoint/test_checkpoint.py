"""Checkpoints: what other tools read, what comes back, and that nothing half-written stays."""

import errno
import json
import resource
import shutil

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

import tarq
from tarq.errors import CheckpointError, ModelError
from tarq.linear import QuantLinear


@pytest.fixture(scope="module")
def quantized(model_folder, manifest):
    """A quantized recognizer and its report."""
    recognizer = tarq.load_recognizer(model_folder)
    report = tarq.quantize(recognizer, manifest, tarq.TarqConfig(group_size=32))
    return recognizer, report


@pytest.fixture(scope="module")
def saved(quantized, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "out"
    tarq.save(quantized[0], path, quantized[1])
    return path


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}


def test_saved_and_loaded_models_agree_exactly(quantized, saved):
    model = tarq.load(saved)
    before, after = layers(quantized[0].model), layers(model)
    assert before.keys() == after.keys()
    for name, layer in before.items():
        assert torch.equal(layer.weight_packed, after[name].weight_packed)
        assert torch.equal(layer.weight_scale, after[name].weight_scale)
        assert layer.weight_scale.dtype == after[name].weight_scale.dtype == torch.float16
    features, ids = torch.randn(2, 80, 200), torch.tensor([[1, 2, 9], [1, 2, 30]])
    with torch.no_grad():
        ours = quantized[0].model(input_features=features, decoder_input_ids=ids).logits
        theirs = model(input_features=features, decoder_input_ids=ids).logits
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_survive_any_computation_dtype(saved, dtype):
    stored = load_file(saved / "model.safetensors")
    model = tarq.load(saved, dtype=dtype)
    assert model.model.encoder.layer_norm.weight.dtype == dtype
    for name, layer in layers(model).items():
        assert torch.equal(layer.weight_scale, stored[f"{name}.weight_scale"])
    with torch.no_grad():
        logits = model(
            input_features=torch.randn(1, 80, 200, dtype=dtype), decoder_input_ids=torch.tensor([[1, 2]])
        ).logits
    assert logits.dtype == dtype


def test_no_dense_weight_is_left_in_memory(saved):
    model = tarq.load(saved)
    packed = sum(m.packed_bytes() for m in layers(model).values())
    dense = sum(m.in_features * m.out_features * 2 for m in layers(model).values())
    assert packed < 0.35 * dense  # groups of 32: 4 + 16/32 bits a weight
    names = {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
    assert not any(f"{layer}.weight" in names for layer in layers(model))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8, 2, 3])
def test_compressed_tensors_decompresses_to_exactly_our_weights(model_folder, tmp_path, symmetric, bits):
    recognizer = tarq.load_recognizer(model_folder)
    config = tarq.TarqConfig.preset("rtn", group_size=32, symmetric=symmetric, bits=bits)
    tarq.quantize(recognizer, None, config)
    tarq.save(recognizer, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    entry = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"][
        "group_0"
    ]
    args = QuantizationArgs(**entry["weights"])
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=entry["format"])
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    for name, layer in layers(tarq.load(tmp_path / "out")).items():
        parts = {
            k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.") and "bias" not in k
        }
        weight = compressor.decompress(parts, scheme)["weight"]
        assert torch.equal(weight, layer.dequantize())
        assert weight.dtype == torch.float16


def test_transformers_alone_loads_it(saved, quantized):
    """Plain ``from_pretrained`` finds a compressed-tensors checkpoint, not random weights."""
    model = WhisperForConditionalGeneration.from_pretrained(saved, dtype=torch.float32).eval()
    features, ids = torch.randn(1, 80, 200), torch.tensor([[1, 2, 9]])
    with torch.no_grad():
        ours = quantized[0].model(input_features=features, decoder_input_ids=ids).logits
        theirs = model(input_features=features, decoder_input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


def test_mixed_group_sizes_survive(model_folder, tmp_path):
    recognizer = tarq.load_recognizer(model_folder)
    config = tarq.TarqConfig.preset("rtn", group_size=256)  # fc2 has 256 inputs, everything else 128
    report = tarq.quantize(recognizer, None, config)
    assert {r.group_size for r in report.layers} == {256, 64}
    assert any("group size 64" in note for r in report.layers for note in r.notes)
    tarq.save(recognizer, tmp_path / "out", report)
    before, after = layers(recognizer.model), layers(tarq.load(tmp_path / "out"))
    assert {n: m.scheme.group_size for n, m in before.items()} == {n: m.scheme.group_size for n, m in after.items()}
    WhisperForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_ignored_layers_are_named(model_folder, tmp_path):
    recognizer = tarq.load_recognizer(model_folder)
    tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn", group_size=32, ignore=("model.encoder.layers.1",)))
    tarq.save(recognizer, tmp_path / "out")
    model = tarq.load(tmp_path / "out")
    assert isinstance(model.model.encoder.layers[1].fc1, torch.nn.Linear)
    assert not any("encoder.layers.1" in name for name in layers(model))


def test_the_report_says_how_it_was_made(quantized, saved):
    report = tarq.Report.read(saved)
    assert report.config == quantized[1].config
    assert tarq.TarqConfig.from_dict(report.config) == tarq.TarqConfig(group_size=32, scale_dtype="float16")
    assert report.calibration["ids"] == [u for u in report.calibration["ids"] if u.startswith("u")]
    assert report.calibration["rare_word_share"] > 0
    assert report.versions["tarq"] == tarq.__version__
    assert len(report.layers) == 32
    assert report.left_out == {"proj_out": "the output head, tied to the token embedding"}
    assert report.sizes["checkpoint_bytes"] == (saved / "model.safetensors").stat().st_size
    assert report.sizes["linear_bytes_after"] < report.sizes["linear_bytes_before"]


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_nothing(quantized, saved, tmp_path, monkeypatch, trouble):
    path = tmp_path / "out"
    shutil.copytree(saved, path)
    before = {p.name: p.read_bytes() for p in path.iterdir()}

    def fail(*args, **kwargs):
        raise trouble

    monkeypatch.setattr(type(quantized[0].tokenizer), "save_pretrained", fail)  # after the weights are written
    expected = CheckpointError if isinstance(trouble, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if isinstance(trouble, OSError) else None):
        tarq.save(quantized[0], path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_a_really_full_disk_leaves_nothing(saved, tmp_path):
    """The system's own limit on file sizes stands in for the disk: safetensors has an error of its own for it."""
    model = tarq.load_recognizer(saved)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # Python ignores the signal
    try:
        with pytest.raises(CheckpointError, match="could not write"):
            tarq.save(model, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed(quantized, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tarq.save(quantized[0], tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_tied_weights_are_written_once(saved):
    names = load_file(saved / "model.safetensors")
    assert "model.decoder.embed_tokens.weight" in names
    assert "proj_out.weight" not in names
    assert names["model.decoder.embed_tokens.weight"].dtype == torch.float16


def test_a_plain_model_is_saved_with_what_it_needs_to_transcribe(model_folder, manifest, tmp_path):
    model = WhisperForConditionalGeneration.from_pretrained(model_folder)
    assert model.dtype == torch.float16
    report = tarq.quantize(model, manifest, tarq.TarqConfig(group_size=32, samples=3))
    assert model.dtype == torch.float32
    assert any("float32" in note for note in report.notes)
    assert report.config["scale_dtype"] == "float16"
    assert report.model == str(model_folder)
    assert report.calibration["source"] == str(manifest)
    tarq.save(model, tmp_path / "out", report)
    assert len(tarq.transcribe(tmp_path / "out", [manifest.parent / "u0.wav"])) == 1


def test_saving_a_full_precision_model_is_refused(model_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"run tarq\.quantize first"):
        tarq.save(tarq.load(model_folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantizing_twice_is_refused(saved, manifest):
    with pytest.raises(ModelError, match="quantized already"):
        tarq.quantize(tarq.load_recognizer(saved), manifest)


def test_damaged_checkpoints_are_named(saved, tmp_path):
    def damaged(change):
        path = tmp_path / change.__name__
        shutil.copytree(saved, path)
        change(path)
        return path

    def truncated(path):
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def unknown_format(path):
        edit(path, lambda q: q.update(format="marlin-24"))

    def no_groups(path):
        edit(path, lambda q: q.pop("config_groups"))

    def other_group_size(path):
        edit(path, lambda q: q["config_groups"]["group_0"]["weights"].update(group_size=64))

    def edit(path, change):
        config = json.loads((path / "config.json").read_text())
        change(config["quantization_config"])
        (path / "config.json").write_text(json.dumps(config))

    for change in (truncated, unknown_format, no_groups, other_group_size):
        with pytest.raises(CheckpointError, match=r"load the weights|tarq loads|not usable|do not fit"):
            tarq.load(damaged(change))


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        tarq.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper", "architectures": ["Whisperer"]}))
    with pytest.raises(ModelError, match="Whisperer"):
        tarq.load(tmp_path)


def test_a_folder_without_report(tmp_path):
    with pytest.raises(CheckpointError, match=r"tarq_report\.json does not exist"):
        tarq.Report.read(tmp_path)
    (tmp_path / "tarq_report.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a tarq report"):
        tarq.Report.read(tmp_path)
