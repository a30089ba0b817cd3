"""The testbed's splits: which sentence is said by whom, as waveforms, as clips, or as features to train on."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
from speech import RATE, WINDOW, generator, say, speaker
from text import TEXT, sentences
from transformers import WhisperFeatureExtractor

OPUS_COMPRESSION = 0.95  # libsndfile's scale; about 20 kbit/s at 16 kHz


@dataclass(frozen=True)
class Line:
    """One utterance to be made."""

    split: str
    index: int
    text: str
    voices: str  # "seen" or "unseen"

    @property
    def id(self) -> str:
        return f"{self.split}-{self.index:05d}"


def splits() -> dict[str, dict]:
    """Splits by name: ``utterances``, ``voices``."""
    return tomllib.loads((TEXT / "splits.toml").read_text())


@cache
def lines(split: str) -> list[Line]:
    """A split's utterances. Small splits draw first, so a larger training set changes none of them."""
    count, voices = splits()[split]["utterances"], splits()[split]["voices"]
    before = [name for name, other in splits().items() if (other["utterances"], name) < (count, split)]
    texts = sentences(split, count, avoid={line.text for name in before for line in lines(name)})
    return [Line(split, i, text, voices) for i, text in enumerate(texts)]


def more_lines(name: str, count: int, voices: str) -> list[Line]:
    """Utterances of a further set: sentences no split holds; with the test splits' words if so named ("test…")."""
    avoid = {line.text for split in splits() for line in lines(split)}
    return [Line(name, i, text, voices) for i, text in enumerate(sentences(name, count, avoid=avoid))]


def render(line: Line) -> tuple[np.ndarray, str]:
    """An utterance's waveform (float32, 16 kHz) and its espeak-ng voice.

    One longer than the model's window is said again, faster.
    """
    rng = generator(line.split, line.index)
    who = speaker(rng, line.voices)
    while len(wave := say(line.text, who, rng)) > WINDOW * RATE:
        who = replace(who, words_per_minute=who.words_per_minute + 20)
    return wave, who.voice


def encode(wave: np.ndarray) -> io.BytesIO:
    """A waveform as the bytes of a clip, Ogg Opus."""
    clip = io.BytesIO()
    soundfile.write(clip, wave, RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION)
    clip.seek(0)
    return clip


def _clip(line: Line) -> tuple[bytes, dict]:
    """An utterance's clip, and its row of the manifest."""
    wave, voice = render(line)
    row = {"id": line.id, "audio": f"{line.id}.ogg", "text": line.text, "duration": round(len(wave) / RATE, 3)}
    return encode(wave).getvalue(), row | {"speaker": voice, "voices": line.voices}


def write_clips(chosen: Iterable[Line], folder: Path, *, processes: int) -> None:
    """Write Ogg Opus clips and a ``manifest.jsonl`` that ``tarq`` reads, in place of any that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.ogg"):
        old.unlink()
    rows = []
    for clip, row in _parallel(_clip, chosen, processes):
        (folder / row["audio"]).write_bytes(clip)
        rows.append(json.dumps(row) + "\n")
    (folder / "manifest.jsonl").write_text("".join(rows))


def _parallel(make: Callable, chosen: Iterable[Line], processes: int) -> Iterator:
    """``make`` of each line, in their order, by several processes."""
    with get_context("spawn").Pool(processes, initializer=_one_thread) as pool:
        yield from pool.imap(make, chosen, chunksize=16)


@cache
def feature_extractor() -> WhisperFeatureExtractor:
    """Whisper's log-mel features over the testbed's window."""
    return WhisperFeatureExtractor(feature_size=80, chunk_length=int(WINDOW))


def _features(line: Line) -> np.ndarray:
    """Log-mel frames of the utterance alone, without the window's padding: float16 (frames, 80)."""
    wave, _ = render(line)
    features = feature_extractor()(wave, sampling_rate=RATE, return_tensors="np").input_features[0]
    return features[:, : -(-len(wave) // 160)].T.astype(np.float16)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def write_features(split: str, folder: Path, *, processes: int) -> None:
    """Synthesize a split into ``SPLIT.npy`` (all frames, 80) and ``SPLIT.json`` (lengths and texts)."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = lines(split)
    made = list(_parallel(_features, chosen, processes))
    np.save(folder / f"{split}.npy", np.concatenate(made))
    index = {"lengths": [len(f) for f in made], "texts": [line.text for line in chosen]}
    (folder / f"{split}.json").write_text(json.dumps(index))


def read_features(split: str, folder: Path) -> tuple[list[np.ndarray], list[str]]:
    """Frames and text of each utterance of a split that :func:`write_features` wrote."""
    index = json.loads((folder / f"{split}.json").read_text())
    frames = np.load(folder / f"{split}.npy")
    return np.split(frames, np.cumsum(index["lengths"])[:-1]), index["texts"]
