"""Transcribing on a CPU, end to end, against what people use now: speed, memory, size, word errors.

    python -m benchmarks.transcription MODEL=CHECKPOINT … --speech FOLDER --json FILE

Each contender runs in a process of its own and transcribes the same recordings one after the other (batch 1, greedy, no
timestamps). Rounds are interleaved; a figure is the median over rounds. Times are processor seconds of one thread for a
second of audio, since machines are shared. A contender whose package or model file is missing is left out, by name.

Peers' model files are made with their own converters: ``--peer NAME=PATH`` for ``faster-whisper int8``,
``faster-whisper float32``, ``whisper.cpp f16`` and so on; any name that begins with a peer's takes its runner.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Transcribe = Callable[[NDArray[np.float32]], str]
SAMPLING_RATE = 16000


# --- contenders: what each loads, and how it transcribes one recording ---


def transformers(path: str, dtype: str) -> Transcribe:
    import torch
    from transformers import AutoProcessor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    processor = AutoProcessor.from_pretrained(path)
    language = {"language": "en", "task": "transcribe"} if model.generation_config.is_multilingual else {}

    def transcribe(waveform: NDArray[np.float32]) -> str:
        features = processor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        with torch.no_grad():
            ids = model.generate(features.to(model.dtype), num_beams=1, **language)
        return processor.batch_decode(ids, skip_special_tokens=True)[0]

    return transcribe


def tarq(path: str, how: str) -> Transcribe:
    import torch

    from tarq import load_recognizer

    dtype, *options = how.split()
    recognizer = load_recognizer(path, dtype=getattr(torch, dtype), **dict.fromkeys(options, True))

    def transcribe(waveform: NDArray[np.float32]) -> str:
        with torch.no_grad():
            return recognizer.transcribe([waveform])[0]

    return transcribe


def faster_whisper(path: str, compute_type: str) -> Transcribe:
    from faster_whisper import WhisperModel

    model = WhisperModel(path, device="cpu", compute_type=compute_type, cpu_threads=1, num_workers=1)

    def transcribe(waveform: NDArray[np.float32]) -> str:
        segments, _ = model.transcribe(
            waveform,
            language="en",
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
        )
        return "".join(segment.text for segment in segments)

    return transcribe


def whisper_cpp(path: str, _: str) -> Transcribe:
    from pywhispercpp.model import Model

    model = Model(
        path,
        n_threads=1,
        language="en",
        no_timestamps=True,
        no_context=True,
        single_segment=True,
        print_progress=False,
        print_realtime=False,
        temperature_inc=0.0,
        greedy={"best_of": 1},
    )

    def transcribe(waveform: NDArray[np.float32]) -> str:
        padded = np.pad(
            waveform, (0, max(0, SAMPLING_RATE * 11 // 10 - len(waveform)))
        )  # it refuses less than a second
        return "".join(segment.text for segment in model.transcribe(padded))

    return transcribe


RUNNERS: dict[str, Callable[[str, str], Transcribe]] = {
    "transformers": transformers,
    "tarq": tarq,
    "faster-whisper": faster_whisper,
    "whisper.cpp": whisper_cpp,
}
PACKAGES = {
    "transformers": "transformers",
    "tarq": "torch",
    "faster-whisper": "ctranslate2",
    "whisper.cpp": "pywhispercpp",
}
#: Of each model in full precision, and of its checkpoint.
OURS = {
    "transformers": ("float32", "bfloat16"),
    "tarq": (
        "float32",
        "float32 packed_head",
        "bfloat16",
        "bfloat16 packed_head",
        "float32 int8_activations packed_head",
    ),
}


# --- one contender's process ---


def work(name: str, path: str, audio: str) -> None:
    """Load, say so, then transcribe all recordings whenever a line comes in."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    peer, _, how = name.partition(" ")
    began = time.process_time()
    try:
        import torch

        torch.set_num_threads(1)
    except ImportError:
        pass
    transcribe = RUNNERS[peer](path, how)
    with np.load(audio) as file:
        waveforms = [file[key] for key in file]
    print(json.dumps({"load": time.process_time() - began}), file=said, flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        texts = [transcribe(waveform) for waveform in waveforms]
        took = time.process_time() - began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": took, "texts": texts, "memory": memory}), file=said, flush=True)


class Contender:
    """A process that transcribes when asked."""

    def __init__(self, name: str, path: Path, audio: Path) -> None:
        self.name, self.path, self.rounds = name, path, []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.transcription", "--work", name, str(path), str(audio)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        self.load = self._answer()["load"]

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} stopped with exit code {self.process.wait()}; see above")
        return json.loads(line)


def size(path: Path) -> int:
    """Bytes of a model's weights."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.suffix in (".safetensors", ".bin")]
    return sum(file.stat().st_size for file in files)


# --- all of them ---


def measure(contenders: Sequence[tuple[str, Path]], audio: Path, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Rounds of all contenders of one model, interleaved."""
    running = []
    for name, path in contenders:
        try:
            running.append(Contender(name, path, audio))
        except RuntimeError as error:
            print(f"left out: {error}", file=sys.stderr)
    for _ in range(rounds):
        for one in running:
            one.go()
    rows = []
    for one in running:
        one.close()
        took = [r["seconds"] / seconds for r in one.rounds]
        rows.append(
            {
                "contender": one.name,
                "load_s": round(one.load, 2),
                "cpu_s_per_audio_s": round(statistics.median(took), 5),
                "all_rounds": [round(t, 5) for t in took],
                "memory_gb": round(one.rounds[-1]["memory"], 3),
                "bytes": size(one.path),
                "texts": one.rounds[-1]["texts"],
            }
        )
    return rows


def scored(rows: list[dict[str, Any]], references: Sequence[str]) -> None:
    """Add word error rates, in percent."""
    from tarq.scoring.words import score_words
    from tarq.words.normalize import get_normalizer

    normalizer = get_normalizer("english")
    for row in rows:
        scores = score_words(references, row["texts"], normalizer=normalizer, thresholds=[3.0])
        row["wer"] = round(100 * scores.plain.error_rate, 2)


def table(model: str, rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| {model} | processor s per s of audio | WER % | weights MB | peak memory GB | load s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['contender']} | {row['cpu_s_per_audio_s']:.4f} | {row['wer']:.2f} | {row['bytes'] / 1e6:.0f} "
        f"| {row['memory_gb']:.2f} | {row['load_s']:.1f} |"
        for row in sorted(rows, key=lambda r: r["cpu_s_per_audio_s"])
    ]
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:5])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL=CHECKPOINT", help="full precision, and quantized by tarq")
    parser.add_argument("--speech", required=True, type=Path, help="a corpus with transcripts")
    parser.add_argument("--peer", action="append", default=[], metavar="MODEL:NAME=PATH")
    parser.add_argument("--utterances", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()

    from tarq.data.audio import read_audio
    from tarq.data.corpora.registry import load_utterances
    from tarq.data.sampling import sample_utterances

    utterances = sample_utterances([u for u in load_utterances(asked.speech) if u.text], asked.utterances, 0)
    waveforms = [read_audio(u.audio, SAMPLING_RATE) for u in utterances]
    audio = Path("build/transcription.npz")
    audio.parent.mkdir(exist_ok=True)
    np.savez(audio, *waveforms)
    seconds = sum(map(len, waveforms)) / SAMPLING_RATE
    results: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": 1, "cores": os.cpu_count()},
        "versions": {name: _version(package) for name, package in PACKAGES.items()},
        "speech": {"corpus": asked.speech.name, "ids": [u.id for u in utterances], "seconds": round(seconds, 1)},
        "rounds": asked.rounds,
        "models": {},
    }
    for pair in asked.models:
        full, _, checkpoint = pair.partition("=")
        name = Path(full).name
        contenders = [(f"transformers {how}", Path(full)) for how in OURS["transformers"]]
        contenders += [(f"tarq {how}", Path(checkpoint)) for how in OURS["tarq"]]
        for peer in asked.peer:
            place, _, path = peer.partition("=")
            model, _, title = place.partition(":")
            contenders += [(title, Path(path))] if model == name else []
        rows = measure(contenders, audio, seconds, asked.rounds)
        scored(rows, [u.text or "" for u in utterances])
        results["models"][name] = rows
        print(table(name, rows), flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(results, indent=1, ensure_ascii=False))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
