"""Speech of the testbed: espeak-ng's voices at 16 kHz, with noise and reverberation, one seed an utterance."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from functools import cache

import numpy as np
import soundfile
import soxr
from text import SEED, TEXT

RATE = 16_000
WINDOW = 6.0  # seconds the model hears at once; no utterance is longer


class SynthesizerMissing(RuntimeError):
    """espeak-ng is not installed."""


@dataclass(frozen=True)
class Speaker:
    """Who says an utterance, how, and where."""

    voice: str  # espeak-ng's accent+variant
    words_per_minute: int
    pitch: int
    signal_to_noise: float | None  # dB; None without noise
    noise_slope: float
    reverberation_time: float | None  # s; None without reverberation
    direct_to_reverberant: float  # dB


@cache
def _voices() -> dict:
    return tomllib.loads((TEXT / "voices.toml").read_text())


def require_synthesizer() -> str:
    """espeak-ng's version.

    Raises:
        SynthesizerMissing: it is not on the PATH, or lacks a voice (it would silently take another).
    """
    if shutil.which("espeak-ng") is None:
        raise SynthesizerMissing(
            "espeak-ng is needed to rebuild the testbed and is not on the PATH: apt install espeak-ng"
            " (the shipped model and clips need nothing: tarq demo)"
        )

    def ask(*question: str) -> str:
        return subprocess.run(["espeak-ng", *question], capture_output=True, text=True, check=True).stdout

    known = set(ask("--voices=en").split()) | {f.removeprefix("!v/") for f in ask("--voices=variant").split()}
    for group in ("seen", "unseen"):
        for name in _voices()[group]["accents"] + _voices()[group]["variants"]:
            if name not in known:
                raise SynthesizerMissing(f"this espeak-ng has no voice {name!r}, which text/voices.toml names")
    return re.search(r"\d+\.[\d.]+\S*", ask("--version"))[0]


def generator(split: str, index: int) -> np.random.Generator:
    """The random generator of one utterance."""
    return np.random.default_rng([SEED, *split.encode(), index])


def speaker(rng: np.random.Generator, group: str) -> Speaker:
    """A speaker of ``seen`` or ``unseen`` voices."""
    voices, ranges = _voices()[group], _voices()["ranges"]

    def between(name: str) -> float:
        return float(rng.uniform(*ranges[name]))

    accent = voices["accents"][rng.integers(len(voices["accents"]))]
    variant = voices["variants"][rng.integers(len(voices["variants"]))]
    return Speaker(
        voice=f"{accent}+{variant}",
        words_per_minute=round(between("words_per_minute")),
        pitch=round(between("pitch")),
        signal_to_noise=between("signal_to_noise") if rng.random() < ranges["noisy"] else None,
        noise_slope=between("noise_slope"),
        reverberation_time=between("reverberation_time") if rng.random() < ranges["echoing"] else None,
        direct_to_reverberant=between("direct_to_reverberant"),
    )


def say(text: str, who: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Synthesize an utterance.

    Args:
        text: words to say.
        who: the voice and the room.
        rng: source of the noise and of the room's response.

    Returns:
        float32 waveform at 16 kHz, peak 0.5.

    Raises:
        RuntimeError: espeak-ng failed, with its own words.
    """
    options = ["-v", who.voice, "-s", str(who.words_per_minute), "-p", str(who.pitch), "--stdout", "--", text]
    done = subprocess.run(["espeak-ng", *options], capture_output=True)
    if done.returncode or not done.stdout:
        raise RuntimeError(f"espeak-ng -v {who.voice} failed: {done.stderr.decode().strip()}")
    # A stream has no length in its header, and libsndfile wants one.
    wave, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    wave = _trim(soxr.resample(wave, rate, RATE))
    lead, trail = rng.integers(RATE // 20, RATE // 5, 2)
    wave = np.pad(wave, (lead, trail))
    if who.reverberation_time is not None:
        wave = _reverberate(wave, who.reverberation_time, who.direct_to_reverberant, rng)
    if who.signal_to_noise is not None:
        wave = _add_noise(wave, who.signal_to_noise, who.noise_slope, rng)
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


def _trim(wave: np.ndarray, floor: float = 1e-3) -> np.ndarray:
    """The part between the first and the last sample above the floor."""
    loud = np.flatnonzero(np.abs(wave) > floor)
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave


def _reverberate(wave: np.ndarray, time: float, direct: float, rng: np.random.Generator) -> np.ndarray:
    """Add a room's tail: noise that decays by 60 dB in ``time`` seconds, ``direct`` dB below the direct sound."""
    t = np.arange(int(time * RATE)) / RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / time)
    tail[: RATE // 200] = 0  # the first 5 ms are the direct sound's
    tail *= 10 ** (-direct / 20) / np.linalg.norm(tail)
    size = len(wave) + len(tail) - 1
    return wave + np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)[: len(wave)]


def _add_noise(wave: np.ndarray, ratio: float, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Add steady noise whose power falls as frequency to the ``slope``, ``ratio`` dB below the speech."""
    spectrum = np.fft.rfft(rng.standard_normal(len(wave)))
    frequency = np.maximum(np.fft.rfftfreq(len(wave), 1 / RATE), 50)
    noise = np.fft.irfft(spectrum * frequency ** (-slope / 2), len(wave))
    return wave + noise * (10 ** (-ratio / 20) * np.linalg.norm(wave) / np.linalg.norm(noise))
