"""What other people's code makes of a saved folder, in a process that never imports tarq: ``generate`` and
``pipeline`` give tarq's own transcripts, for every family."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jiwer
import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, pipeline

import tarq
from tarq.checkpoint.save import _state_decoding
from tarq.linear import QuantLinear
from tarq.words.normalize import get_normalizer

from .families import FAMILIES, LANGUAGES, START, TASKS, TIMES, byte_level_tokenizer, lively

TASK = "automatic-speech-recognition"

#: What a user's own program does.
PROGRAM = """
import sys
import soundfile, torch, transformers

def answer(folder, audio=(), generate=False, pipeline=False, files=False, inputs=None, auto=None):
    waves = [soundfile.read(a, dtype="float32")[0] for a in audio]
    said = {}
    if generate:
        model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        said["generate"] = []
        for wave in waves:
            features = extractor(wave, sampling_rate=16000, return_tensors="pt")["input_features"]
            ids = model.generate(features.to(model.dtype))
            said["generate"] += tokenizer.batch_decode(ids, skip_special_tokens=True)
    if pipeline:
        pipe = transformers.pipeline("automatic-speech-recognition", model=folder)
        said["pipeline, samples"] = [pipe(wave)["text"] for wave in waves]
        said["pipeline, file"] = [pipe(a)["text"] for a in audio[:1]] if files else []
    if inputs:  # of a processor, made before
        model = getattr(transformers, auto).from_pretrained(folder).eval()
        given = torch.load(inputs)
        with torch.no_grad():
            ids = model.generate(**given) if auto != "AutoModelForCTC" else model(**given).logits.argmax(-1)
        said["ids"] = ids.tolist()
    assert not any(name.split(".")[0] == "tarq" for name in sys.modules)
    return said
"""


@pytest.fixture(scope="module")
def plain(answering) -> Iterator[Callable[..., dict[str, list]]]:
    """What a process without tarq makes of a folder, by the way it was asked."""
    with answering(PROGRAM, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1") as ask:
        yield lambda folder, audio, **job: ask(folder=str(folder), audio=list(map(str, audio)), files=FFMPEG, **job)


def words(texts: list[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def precise(size: int, symmetric: bool = False) -> tarq.TarqConfig:
    """With zero points, as by default; in float32: what half precision rounds tips the scales of random models."""
    return tarq.TarqConfig.preset("rtn", group_size=size, symmetric=symmetric, scale_dtype="float32")


def audio_of(manifest: Path, count: int) -> list[Path]:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [manifest.parent / row["audio"] for row in rows[:count]]


#: How the pipeline reads files.
FFMPEG = shutil.which("ffmpeg") is not None


@pytest.fixture
def multilingual(tmp_path) -> Path:
    """A random Whisper whose special tokens lie as in the hub's: behind all text, no-timestamps before the times.

    ``pipeline`` takes every id behind no-timestamps for a time.
    """
    special = [*START, *LANGUAGES, *TASKS, "<|notimestamps|>"]
    fast = byte_level_tokenizer([])
    fast.add_special_tokens({"eos_token": START[0], "extra_special_tokens": special[1:]})
    fast.add_tokens(TIMES)
    ids = {token: fast.convert_tokens_to_ids(token) for token in special}
    end, plain_id = ids[START[0]], ids["<|notimestamps|>"]
    config = WhisperConfig(
        vocab_size=len(fast), d_model=128, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=352, decoder_ffn_dim=352, max_source_positions=100,
        max_target_positions=64, decoder_start_token_id=ids[START[1]], bos_token_id=end, eos_token_id=end,
        pad_token_id=end, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = lively(WhisperForConditionalGeneration(config))
    generation = model.generation_config
    generation._from_model_config = False
    generation.is_multilingual, generation.no_timestamps_token_id, generation.max_length = True, plain_id, 24
    generation.suppress_tokens = list(range(end + 1, len(fast)))
    generation.lang_to_id = {"<|en|>": ids["<|en|>"]}  # the one it can detect, and the one tarq takes by default
    generation.task_to_id = {task.strip("<|>"): ids[task] for task in TASKS}
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    # The pipeline asks for a method that only Whisper's own class of tokenizer has.
    fields["tokenizer_class"] = "WhisperTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [32, 256])  # 256 does not divide all widths, so that groups differ
def test_whisper(plain, multilingual, manifest, tmp_path, size, symmetric):
    recognizer = tarq.load_recognizer(multilingual)
    report = tarq.quantize(recognizer, None, precise(size, symmetric))
    assert (len({layer.group_size for layer in report.layers}) > 1) == (size == 256)
    tarq.save(recognizer, tmp_path / "out", report)
    assert any("repeated" in note for note in report.notes) == (size == 256)
    audio = audio_of(manifest, 2)
    again = tarq.load_recognizer(tmp_path / "out")
    sizes = {n: m.scheme.group_size for n, m in recognizer.model.named_modules() if isinstance(m, QuantLinear)}
    assert sizes == {n: m.scheme.group_size for n, m in again.model.named_modules() if isinstance(m, QuantLinear)}
    own = words(tarq.transcribe(again, audio))
    assert all(own)
    said = plain(tmp_path / "out", audio, generate=True, pipeline=True)
    assert words(said["generate"]) == own
    assert words(said["pipeline, samples"]) == own
    assert words(said["pipeline, file"]) == own[: len(said["pipeline, file"])]


@pytest.mark.parametrize(
    ("stated", "task"),
    [
        ({}, "transcribe"),
        ({"task": "translate"}, "translate"),
        ({"language": "de"}, None),  # generate transcribes then
        ({"forced_decoder_ids": [[1, None], [2, 7]]}, None),  # which a task would silence
        ({"is_multilingual": False}, None),  # generate would refuse one
        ({"task_to_id": None}, None),
    ],
)
@pytest.mark.parametrize("beams", [None, 3])
def test_what_decoding_is_stated(tmp_path, stated, task, beams):
    """A task where none would be asked for, and the beams; nothing that is stated changes."""
    fields = {"task_to_id": {"transcribe": 7, "translate": 8}, "is_multilingual": True, "num_beams": beams} | stated
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(fields))
    _state_decoding(file, {})
    found = json.loads(file.read_text())
    assert found == fields | {"num_beams": beams or 1} | ({"task": task} if task else {})
    file.write_text(json.dumps(fields))
    _state_decoding(file, {"forced_decoder_ids": [[1, None], [2, 7]]})
    assert json.loads(file.read_text()).get("task") == fields.get("task")


#: How a user loads a family. Audio-language models take what their processor makes of audio and a request.
AUTO = {"whisper": "AutoModelForSpeechSeq2Seq", "moonshine": "AutoModelForSpeechSeq2Seq"}
AUTO |= {"wav2vec2": "AutoModelForCTC", "hubert": "AutoModelForCTC", "parakeet": "AutoModelForCTC"}


# Whisper has a test of its own, above.
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES[1:], ids=lambda family: family.name)
def test_every_family(plain, family, manifest, tmp_path):
    family.make(tmp_path / "model")
    recognizer = tarq.load_recognizer(tmp_path / "model")
    tarq.save(recognizer, tmp_path / "out", tarq.quantize(recognizer, None, precise(32)))
    again = tarq.load_recognizer(tmp_path / "out")
    assert again.is_quantized
    audio = audio_of(manifest, 1)
    wave = soundfile.read(audio[0], dtype="float32")[0]
    inputs = family.inputs(again, wave)
    torch.save(inputs, tmp_path / "inputs.pt")
    auto, piped = AUTO.get(family.name, "AutoModelForMultimodalLM"), family.name in AUTO
    said = plain(tmp_path / "out", audio, inputs=str(tmp_path / "inputs.pt"), auto=auto, pipeline=piped)
    with torch.no_grad():
        ids = again.model.generate(**inputs) if family.generates else again.model(**inputs).logits.argmax(-1)
    assert said["ids"] == ids.tolist()
    if piped:
        pipe = pipeline(TASK, model=again.model, tokenizer=again.tokenizer, feature_extractor=again.feature_extractor)
        assert said["pipeline, samples"] == [pipe(wave)["text"]] != [""]
    else:  # nor does it make anything of the full-precision model
        with pytest.raises((RuntimeError, KeyError)):
            pipeline(TASK, model=str(tmp_path / "model"))(wave)


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-base"])
def test_official_whisper(plain, name, symmetric, assets, tmp_path):
    folder = Path(os.environ.get("TARQ_MODELS", "")) / name
    if not os.environ.get("TARQ_MODELS") or not folder.is_dir():
        pytest.skip(f"no {name}: set TARQ_MODELS to the folder that holds it")
    recognizer = tarq.load_recognizer(folder)
    config = tarq.TarqConfig.preset("rtn", symmetric=symmetric)
    tarq.save(recognizer, tmp_path / "out", tarq.quantize(recognizer, None, config))
    lines = (assets / "speech" / "librispeech_dev" / "manifest.jsonl").read_text().splitlines()
    short = [row for row in map(json.loads, lines) if 3 < row["duration"] < 5][:3]
    audio = [assets / "speech" / "librispeech_dev" / row["audio"] for row in short]
    own = words(tarq.transcribe(tmp_path / "out", audio))
    normalize = get_normalizer("basic")
    assert jiwer.wer([normalize(row["text"]) for row in short], [normalize(text) for text in own]) < 0.3
    said = plain(tmp_path / "out", audio, generate=True, pipeline=True)
    assert words(said["generate"]) == own
    assert words(said["pipeline, samples"]) == own
    assert words(said["pipeline, file"]) == own[: len(said["pipeline, file"])]
