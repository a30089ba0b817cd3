"""What people wrap models in, feature extractors of nonsense, damaged weights: handled, or refused by name."""

import json
import shutil
import time

import pytest
import torch
from torch import nn

import tarq
from tarq.errors import CheckpointError, ModelError
from tarq.linear import QuantLinear

from .conftest import tone
from .families import character_tokenizer, make_wav2vec2

RTN = tarq.TarqConfig.preset("rtn", group_size=32)


@pytest.fixture
def model(model_folder):
    return tarq.load(model_folder)


def quantized(model, out):
    report = tarq.quantize(model, None, RTN)
    tarq.save(model, out, report)
    return tarq.load(out)


def packed(model):
    return {name for name, m in model.named_modules() if isinstance(m, QuantLinear)}


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: torch.compile(nn.DataParallel(m))])
def test_a_wrapped_model_is_its_own(model, model_folder, tmp_path, wrap):
    again = quantized(wrap(model), tmp_path / "out")
    plain = quantized(tarq.load(model_folder), tmp_path / "plain")
    assert packed(again) == packed(plain) == packed(model)
    assert all(torch.equal(a, plain.state_dict()[name]) for name, a in again.state_dict().items())


def test_parts_that_are_compiled_are_refused(model):
    model.model.encoder.layers[0].fc1 = torch.compile(model.model.encoder.layers[0].fc1)
    with pytest.raises(ModelError, match=r"model\.encoder\.layers\.0\.fc1 is compiled"):
        tarq.quantize(model, None, RTN)


def test_adapters_are_refused(model, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "m")
    (tmp_path / "m" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelError, match=r"PEFT adapter \(adapter_config\.json\).*merge_and_unload"):
        tarq.load(tmp_path / "m")
    model._hf_peft_config_loaded = True
    with pytest.raises(ModelError, match=r"carries PEFT adapters.*merge_and_unload"):
        tarq.quantize(model, None, RTN)


def test_hooks_that_would_be_lost_are_refused(model):
    layer = model.model.decoder.layers[1].fc2
    handle = layer.register_forward_hook(lambda *_: None)
    with pytest.raises(ModelError, match=r"model\.decoder\.layers\.1\.fc2 has forward hooks"):
        tarq.quantize(model, None, RTN)
    handle.remove()
    layer._hf_hook = object()
    with pytest.raises(ModelError, match=r"fc2 has accelerate's hooks \(device_map\)"):
        tarq.quantize(model, None, RTN)


class Doubled(nn.Linear):
    def forward(self, rows):
        return 2 * super().forward(rows)


def of_a_class_of_its_own(block):
    block.fc1.__class__ = Doubled


def with_another_forward(block):
    plain = block.fc1.forward
    block.fc1.forward = lambda rows: 2 * plain(rows)


def compiled_in_place(block):
    block.compile()


def quantized_by_torch(block):
    block.fc1 = torch.ao.nn.quantized.dynamic.Linear(8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_a_class_of_its_own, r"layers\.1\.fc1 has a forward of its own \(Doubled\).*fold it into"),
        (with_another_forward, r"layers\.1\.fc1 has a forward of its own \(Linear\)"),
        (compiled_in_place, r"layers\.1 is compiled in place"),
        (quantized_by_torch, r"layers\.1\.fc1\..* is no tensor but \w+, as of a layer that is quantized already"),
    ],
)
def test_what_a_packed_layer_would_not_do_is_refused(model, change, message):
    change(model.model.encoder.layers[1])
    with pytest.raises(ModelError, match=message):
        tarq.quantize(model, None, RTN)


def one_projection(layers):
    layers[0].self_attn.k_proj = layers[0].self_attn.v_proj = nn.Linear(128, 128)


def one_block(layers):
    layers[1] = layers[0]


def one_norm(layers):
    layers[1].final_layer_norm = layers[0].final_layer_norm


def one_weight(layers):
    layers[1].fc1.weight = nn.Parameter(layers[0].fc1.weight.data)


@pytest.mark.parametrize(
    ("share", "named"),
    [
        (one_projection, r"0\.self_attn\.k_proj\.weight and model\.encoder\.layers\.0\.self_attn\.v_proj\.weight"),
        (one_block, r"0\.self_attn\.k_proj\.weight and model\.encoder\.layers\.1\.self_attn\.k_proj\.weight"),
        (one_norm, r"0\.final_layer_norm\.weight and model\.encoder\.layers\.1\.final_layer_norm\.weight"),
        (one_weight, r"0\.fc1\.weight and model\.encoder\.layers\.1\.fc1\.weight"),
    ],
)
def test_a_layer_that_is_used_twice_is_refused_before_any_work(model, tmp_path, share, named):
    share(model.model.encoder.layers)
    with pytest.raises(ModelError, match=rf"{named} are one tensor.*copy\.deepcopy"):
        tarq.quantize(model, tmp_path / "there is no such file.jsonl", tarq.TarqConfig(group_size=32))
    with pytest.raises(ModelError, match="are one tensor"):
        tarq.plan(model, RTN)


def test_a_packed_layer_that_is_used_twice_is_not_saved(model, tmp_path):
    tarq.quantize(model, None, RTN)
    model.model.decoder.layers[1].fc2 = model.model.decoder.layers[0].fc2
    with pytest.raises(CheckpointError, match=r"0\.fc2\.\w+ and model\.decoder\.layers\.1\.fc2\.\w+ are one tensor"):
        tarq.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_linear_of_another_class_with_the_plain_forward_is_packed(model):
    layer = model.model.encoder.layers[1].fc1
    layer.__class__ = nn.modules.linear.NonDynamicallyQuantizableLinear
    tarq.quantize(model, None, RTN)
    assert "model.encoder.layers.1.fc1" in packed(model)


def test_weights_without_values_are_refused(model, model_folder):
    model.model.encoder.layers[0].fc1.to("meta")
    with pytest.raises(ModelError, match=r"model\.encoder\.layers\.0\.fc1\.weight is on the meta device"):
        tarq.quantize(model, None, RTN)
    with torch.device("meta"):
        empty = type(model)(model.config)
    empty.config._name_or_path = str(model_folder)
    with pytest.raises(ModelError, match="is on the meta device"):
        tarq.transcribe(empty, [])


def test_a_model_of_another_quantization_is_refused(model):
    model.hf_quantizer, model.quantization_method = object(), "bitsandbytes"
    with pytest.raises(ModelError, match="is quantized already, by bitsandbytes"):
        tarq.quantize(model, None, RTN)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.encoder.layer_norm.bias", "model.decoder.embed_tokens.weight"])
def test_damaged_weights_are_named(model, name, value):
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value
    with pytest.raises(ModelError, match=f"{name} holds NaN or infinity"):
        tarq.quantize(model, None, RTN)


def test_double_precision(model, manifest):
    doubled = model.double()
    assert tarq.transcribe(doubled, [manifest.parent / "u3.wav"])[0] is not None
    report = tarq.quantize(doubled, manifest, tarq.TarqConfig(group_size=32, samples=2))
    assert "computed in float32: a checkpoint stores no float64" in report.notes
    assert {p.dtype for p in doubled.parameters()} == {torch.float32}


def test_a_model_in_training_mode_transcribes_as_in_evaluation(model, manifest):
    audio = [manifest.parent / "u3.wav"]
    expected = tarq.transcribe(model, audio)
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5
    assert tarq.transcribe(model.train(), audio) == expected


NONSENSE = [
    ("sampling_rate", 0), ("sampling_rate", -16000), ("sampling_rate", 10**12), ("sampling_rate", "16000"),
    ("feature_size", 0), ("feature_size", -80), ("feature_size", 10**9), ("hop_length", 0), ("hop_length", -160),
    ("n_fft", 0), ("n_fft", 10**10), ("chunk_length", 0), ("chunk_length", -2), ("chunk_length", 10**9),
    ("chunk_length", None), ("chunk_length", 2.5), ("padding_value", "x"), ("dither", float("nan")),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), NONSENSE)
def test_a_feature_extractor_of_nonsense_is_told_at_once(model_folder, tmp_path, field, value):
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {field: value}))
    began = time.monotonic()
    with pytest.raises(ModelError, match=f"the feature extractor's {field} must be a"):
        tarq.load_recognizer(folder)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature_size": 128}, r"makes 128 mel bins .*the model reads 80"),
        ({"chunk_length": 30}, r"makes windows of 3000 frames \(chunk_length 30 s at 16000 Hz.*the model reads 200"),
        ({"hop_length": 80}, r"makes windows of 400 frames .*hop_length 80.*the model reads 200"),
        ({"sampling_rate": 8000}, r"windows of 100 frames .*8000 Hz.*the model reads 200"),
    ],
)
def test_a_feature_extractor_of_another_model_is_told_before_audio(model_folder, tmp_path, fields, message):
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | fields))
    with pytest.raises(ModelError, match=message):
        tarq.load_recognizer(folder)


def test_words_added_to_the_tokenizer_alone_are_refused(model_folder):
    parts = tarq.load_recognizer(model_folder)
    parts.tokenizer.add_tokens(["Okonkwo"])
    with pytest.raises(ModelError, match=r"1 tokens beyond the model's \d+, such as 'Okonkwo'.*resize_token"):
        tarq.quantize(
            tarq.load(model_folder), None, RTN, tokenizer=parts.tokenizer, feature_extractor=parts.feature_extractor
        )


def test_special_tokens_beyond_a_ctc_model_are_no_matter(tmp_path):
    """Many fine-tunes were made before ``<s>`` and ``</s>`` were added to their tokenizer."""
    folder = make_wav2vec2(tmp_path / "m")
    tokenizer = character_tokenizer(tmp_path / "t")
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    parts = tarq.load_recognizer(folder)
    tarq.quantize(tarq.load(folder), None, RTN, tokenizer=tokenizer, feature_extractor=parts.feature_extractor)


def test_the_blank_is_the_tokenizers_where_the_model_names_none(tmp_path):
    folder = make_wav2vec2(tmp_path / "m")
    before = tarq.load_recognizer(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    again = tarq.load_recognizer(folder)
    assert again.blank == before.blank == 0
    with torch.no_grad():
        assert again.transcribe([tone(1.0)]) == before.transcribe([tone(1.0)])
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 999}))
    with pytest.raises(ModelError, match=r"pad_token_id is 999; it must be the CTC blank's id, below 32"):
        tarq.load_recognizer(folder)


def test_tokens_of_several_characters_are_written_as_one(tmp_path):
    """A vocabulary with digraphs: the longest token is taken, word delimiters beside it are kept."""
    letters = [*"ABCDEH", "CH", "SCH", "BED"]
    recognizer = tarq.load_recognizer(make_wav2vec2(tmp_path / "m", letters=letters))
    names = {i: token for token, i in recognizer.vocabulary.items()}
    text = "A CHAB SCHEDCH BEDBE"
    ids, spans = recognizer.tokens(text)
    assert [names[i] for i in ids] == ["A", "|", "CH", "A", "B", "|", "SCH", "E", "D", "CH", "|", "BED", "B", "E"]
    assert all(text[a:b] == names[i].replace("|", " ") for i, (a, b) in zip(ids, spans, strict=True))
    assert recognizer.tokenizer.decode(ids, group_tokens=False) == text
