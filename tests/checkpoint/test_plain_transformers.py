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

import tarq

#: Reads a job from standard input, writes transcripts as its last line.
PROGRAM = """
import json, sys
import soundfile, torch, transformers

job = json.loads(sys.stdin.read())
folder, audio = job["folder"], job["audio"]
rate = 16000
waves = [soundfile.read(a, dtype="float32")[0] for a in audio]
said = {}
dtype = getattr(torch, job["dtype"])
if job["auto"]:
    model = getattr(transformers, job["auto"]).from_pretrained(folder, dtype=dtype).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = []
    for wave in waves:
        inputs = extractor(wave, sampling_rate=rate, return_tensors="pt")
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        with torch.no_grad():
            if job["auto"] == "AutoModelForCTC":
                ids = model(**inputs).logits.argmax(-1)
                texts += tokenizer.batch_decode(ids)
            else:
                ids = model.generate(**inputs)
                texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    said["generate"] = texts
if job["pipeline"]:
    pipe = transformers.pipeline("automatic-speech-recognition", model=folder, dtype=dtype)
    said["pipeline, samples"] = [pipe(wave)["text"] for wave in waves]
    said["pipeline, file"] = [pipe(a)["text"] for a in audio[:1]] if job["files"] else []
assert not any(name.split(".")[0] == "tarq" for name in sys.modules)
print(json.dumps(said))
"""


def plain(folder: Path, audio: list[Path], auto: str, *, dtype: str = "float32", pipeline: bool = True, files=False):
    """Transcripts of a process without tarq, by the way they were asked for."""
    job = {"folder": str(folder), "audio": list(map(str, audio)), "auto": auto, "dtype": dtype, "pipeline": pipeline}
    job["files"] = files
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def words(texts: list[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def audio_of(manifest: Path, count: int) -> list[Path]:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [manifest.parent / row["audio"] for row in rows[:count]]


#: How the pipeline reads files.
FFMPEG = shutil.which("ffmpeg") is not None


@pytest.mark.parametrize("sizes", ["one group size", "mixed group sizes"])
def test_whisper(model_folder, manifest, tmp_path, sizes):
    shutil.copytree(model_folder, tmp_path / "model")
    fields = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    # The pipeline asks for a method that only Whisper's own class of tokenizer has.
    fields["tokenizer_class"] = "WhisperTokenizer"
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(fields))
    recognizer = tarq.load_recognizer(tmp_path / "model")
    size = 32 if sizes == "one group size" else 256  # which does not divide all widths
    report = tarq.quantize(recognizer, None, tarq.TarqConfig.preset("rtn", group_size=size))
    assert (len({layer.group_size for layer in report.layers}) > 1) == (size == 256)
    tarq.save(recognizer, tmp_path / "out", report)
    audio = audio_of(manifest, 2)
    own = words(tarq.transcribe(tmp_path / "out", audio))
    assert any(own)
    said = plain(tmp_path / "out", audio, "AutoModelForSpeechSeq2Seq", files=FFMPEG)
    assert words(said["generate"]) == own
    assert words(said["pipeline, samples"]) == own
    assert words(said["pipeline, file"]) == own[: len(said["pipeline, file"])]
