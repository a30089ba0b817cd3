"""What other people's code makes of a saved folder, in a process that never imports tarq: ``generate`` and
``pipeline`` give tarq's own transcripts, for every family."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

import tarq
from tarq.linear import QuantLinear

#: Reads a job from standard input, writes transcripts as its last line.
PROGRAM = """
import json, sys
import soundfile, torch, transformers

job = json.loads(sys.stdin.read())
folder, audio = job["folder"], job["audio"]
waves = [soundfile.read(a, dtype="float32")[0] for a in audio]
said = {}
if job["generate"]:
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    said["generate"] = []
    for wave in waves:
        features = extractor(wave, sampling_rate=16000, return_tensors="pt")["input_features"]
        said["generate"] += tokenizer.batch_decode(model.generate(features.to(model.dtype)), skip_special_tokens=True)
if job["pipeline"]:
    pipe = transformers.pipeline("automatic-speech-recognition", model=folder)
    said["pipeline, samples"] = [pipe(wave)["text"] for wave in waves]
    said["pipeline, file"] = [pipe(a)["text"] for a in audio[:1]] if job["files"] else []
if job["inputs"]:  # of a processor, made before
    model = getattr(transformers, job["auto"]).from_pretrained(folder).eval()
    inputs = torch.load(job["inputs"])
    with torch.no_grad():
        ids = model.generate(**inputs) if job["auto"] != "AutoModelForCTC" else model(**inputs).logits.argmax(-1)
    said["ids"] = ids.tolist()
assert not any(name.split(".")[0] == "tarq" for name in sys.modules)
print(json.dumps(said))
"""


def plain(folder: Path, audio: list[Path] = (), **job: object) -> dict[str, list]:
    """What a process without tarq makes of a folder, by the way it was asked."""
    fields = {"generate": False, "pipeline": False, "files": FFMPEG, "inputs": None, "auto": None}
    fields |= {"folder": str(folder), "audio": list(map(str, audio))} | job
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        input=json.dumps(fields),
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def words(texts: list[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def precise(size: int) -> tarq.TarqConfig:
    """Stored in float32: what half precision rounds would tip the scales of random models, which tie."""
    return tarq.TarqConfig.preset("rtn", group_size=size, scale_dtype="float32")


def audio_of(manifest: Path, count: int) -> list[Path]:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [manifest.parent / row["audio"] for row in rows[:count]]


#: How the pipeline reads files.
FFMPEG = shutil.which("ffmpeg") is not None


@pytest.mark.parametrize("size", [32, 256])  # 256 does not divide all widths, so that groups differ
def test_whisper(model_folder, manifest, tmp_path, size):
    shutil.copytree(model_folder, tmp_path / "model")
    fields = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    # The pipeline asks for a method that only Whisper's own class of tokenizer has.
    fields["tokenizer_class"] = "WhisperTokenizer"
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(fields))
    recognizer = tarq.load_recognizer(tmp_path / "model")
    report = tarq.quantize(recognizer, None, precise(size))
    assert (len({layer.group_size for layer in report.layers}) > 1) == (size == 256)
    tarq.save(recognizer, tmp_path / "out", report)
    assert any("repeated" in note for note in report.notes) == (size == 256)
    audio = audio_of(manifest, 2)
    again = tarq.load_recognizer(tmp_path / "out")
    sizes = {n: m.scheme.group_size for n, m in recognizer.model.named_modules() if isinstance(m, QuantLinear)}
    assert sizes == {n: m.scheme.group_size for n, m in again.model.named_modules() if isinstance(m, QuantLinear)}
    own = words(tarq.transcribe(again, audio))
    assert any(own)
    said = plain(tmp_path / "out", audio, generate=True, pipeline=True)
    assert words(said["generate"]) == own
    assert words(said["pipeline, samples"]) == own
    assert words(said["pipeline, file"]) == own[: len(said["pipeline, file"])]


#: How a user loads a family; transcripts of the others are those of ``generate`` as it is.
AUTO = {"whisper": "AutoModelForSpeechSeq2Seq", "moonshine": "AutoModelForSpeechSeq2Seq"}
AUTO |= {"wav2vec2": "AutoModelForCTC", "hubert": "AutoModelForCTC", "parakeet": "AutoModelForCTC"}


@pytest.mark.parametrize("name", ["moonshine", "wav2vec2", "hubert", "parakeet", "voxtral", "qwen3_asr", "qwen2_audio"])
def test_every_family(name, manifest, tmp_path):
    families = pytest.importorskip("models.families", reason="the families' tiny models")
    family = next(f for f in families.FAMILIES if f.name == name)
    family.make(tmp_path / "model")
    recognizer = tarq.load_recognizer(tmp_path / "model")
    tarq.save(recognizer, tmp_path / "out", tarq.quantize(recognizer, None, precise(32)))
    again = tarq.load_recognizer(tmp_path / "out")
    wave = soundfile.read(audio_of(manifest, 1)[0], dtype="float32")[0]
    inputs = family.inputs(again, wave)
    torch.save(inputs, tmp_path / "inputs.pt")
    said = plain(tmp_path / "out", inputs=str(tmp_path / "inputs.pt"), auto=AUTO.get(name, "AutoModelForMultimodalLM"))
    with torch.no_grad():
        ids = again.model.generate(**inputs) if family.generates else again.model(**inputs).logits.argmax(-1)
    assert said["ids"] == ids.tolist()


@pytest.mark.assets
@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-base"])
def test_official_whisper(name, assets, tmp_path):
    folder = Path(os.environ.get("TARQ_MODELS", "")) / name
    if not os.environ.get("TARQ_MODELS") or not folder.is_dir():
        pytest.skip(f"no {name}: set TARQ_MODELS to the folder that holds it")
    recognizer = tarq.load_recognizer(folder)
    tarq.save(recognizer, tmp_path / "out", tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn")))
    audio = audio_of(assets / "speech" / "librispeech_dev" / "manifest.jsonl", 4)[2:]
    # In the dtype the folder is stored in, as plain transformers loads it.
    own = words(tarq.transcribe(tarq.load_recognizer(tmp_path / "out", dtype=torch.float16), audio))
    said = plain(tmp_path / "out", audio, generate=True, pipeline=True)
    assert words(said["generate"]) == own
    assert words(said["pipeline, samples"]) == own
    assert words(said["pipeline, file"]) == own[: len(said["pipeline, file"])]
