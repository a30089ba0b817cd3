"""Transcribing audio of any length: split into windows at quiet places, decoded in batches, joined again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tarq import distributed
from tarq.data.audio import Audio, Encoded, read_audio
from tarq.errors import DataError
from tarq.models.base import Recognizer
from tarq.report import Reporter
from tarq.torch_defaults import torch_defaults

#: The last part of a window, in seconds, in which the quietest place to cut is searched.
SEARCH = 5.0
#: Seconds of audio over which loudness is measured.
FRAME = 0.02


def windows(waveform: NDArray[np.float32], size: int, sampling_rate: int) -> list[NDArray[np.float32]]:
    """Cut a waveform into pieces of at most ``size`` samples, each cut at the quietest moment near its end.

    The last two pieces are cut near their middle: a short piece that is left over makes recognizers invent words.

    Args:
        waveform: [samples].
        size: largest piece, in samples.
        sampling_rate: samples per second.
    """
    pieces = []
    frame, search = max(1, round(FRAME * sampling_rate)), round(SEARCH * sampling_rate)
    while len(waveform) > size:
        if len(waveform) <= 2 * size:
            least, end = len(waveform) - size, min(size, len(waveform) // 2 + search // 2)
        else:
            least, end = size // 2, size
        first = max(end - search, least)
        tail = waveform[first:end]
        tail = tail[: len(tail) // frame * frame].reshape(-1, frame)
        quietest = int(np.square(tail).sum(axis=1).argmin()) if len(tail) else 0
        cut = min(first + quietest * frame + frame // 2, end)
        pieces.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*pieces, waveform]


@torch_defaults()
def transcribe_waveforms(
    recognizer: Recognizer,
    waveforms: Sequence[NDArray[np.float32]],
    batch_size: int,
    reporter: Reporter,
    language: str | None = None,
) -> list[str]:
    """Greedy transcripts; audio longer than the model's window is cut at quiet places.

    Args:
        waveforms: mono, at the recognizer's sampling rate, of any length.
        batch_size: windows decoded at once.
        reporter: receives each utterance.
        language: of the speech; the recognizer's by default.

    Raises:
        ModelError: the model computes NaN or infinity, or the language is not the model's.
    """
    size = int(recognizer.window * recognizer.sampling_rate)
    cut = [windows(w, size, recognizer.sampling_rate) for w in waveforms]
    flat = [piece for pieces in cut for piece in pieces]
    batches = [flat[start : start + batch_size] for start in range(0, len(flat), batch_size)]
    own: list[list[str]] = []
    shown = 0
    with torch.no_grad():
        for i, batch in enumerate(distributed.shard(batches), start=1):
            own.append(recognizer.transcribe(batch, language))
            done = len(waveforms) * i // len(distributed.shard(batches))
            reporter.advance(done - shown)
            shown = done
    remaining = (text for texts in distributed.all_gather(own) for text in texts)
    return [" ".join(filter(None, (next(remaining) for _ in pieces))) for pieces in cut]


def transcribe_files(
    recognizer: Recognizer,
    paths: Sequence[Path | Encoded],
    batch_size: int,
    reporter: Reporter,
    language: str | None = None,
) -> Iterator[tuple[Path | Encoded, str | DataError]]:
    """Yield each file with its transcript, or with the error if it cannot be read, in order, as they are done.

    Args:
        paths: audio of any length, format and sampling rate.
        batch_size: windows decoded at once, and files read ahead.
        reporter: receives each file.
        language: of the speech; the recognizer's by default.

    Raises:
        ModelError: the model computes NaN or infinity, or the language is not the model's.
    """
    for start in range(0, len(paths), batch_size):
        results: dict[int, str | DataError] = {}
        waveforms: dict[int, NDArray[np.float32]] = {}
        for i, path in enumerate(paths[start : start + batch_size], start=start):
            notes: list[str] = []
            try:
                waveforms[i] = read_audio(path, recognizer.sampling_rate, notes=notes)
            except DataError as error:
                results[i] = error
                reporter.advance()
            for note in notes:
                reporter.note(f"{path.name}: {note}")
        texts = transcribe_waveforms(recognizer, list(waveforms.values()), batch_size, reporter, language)
        results |= dict(zip(waveforms, texts, strict=True))
        for i in sorted(results):
            yield paths[i], results[i]


def audio_files(audio: Iterable[Audio]) -> list[Path | Encoded]:
    """Files by path or in memory, of one or of several."""
    given = [audio] if isinstance(audio, str | Path | Encoded) or not isinstance(audio, Iterable) else list(audio)
    for one in given:
        if not isinstance(one, str | Path | Encoded):
            raise DataError(
                f"audio holds {type(one).__name__}: give paths, or tarq.data.audio.Encoded(NAME, BYTES) of a file in "
                "memory; write samples to a WAV file first (soundfile.write)"
            )
    return [one if isinstance(one, Encoded) else Path(one) for one in given]
