"""Reading audio: any format libsndfile knows, any rate, any number of channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tarq.errors import DataError


def read_audio(path: str | Path, sampling_rate: int = 16000) -> NDArray[np.float32]:
    """The samples of an audio file, mono, at ``sampling_rate``.

    Channels are averaged; another rate is resampled by soxr (high quality).

    Args:
        path: an audio file.
        sampling_rate: in Hz.

    Returns:
        float32 [samples]; full scale is ±1.

    Raises:
        DataError: the file is missing, unreadable or empty, or holds samples that are not finite.
    """
    path = Path(path)
    with _named(path):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if samples.shape[0] == 0:
        raise DataError(f"{path}: the audio is empty (0 samples); remove it from the corpus")
    mono = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DataError(f"{path}: the audio holds samples that are not finite; encode it anew or remove it")
    if rate != sampling_rate:
        mono = soxr.resample(mono, rate, sampling_rate)
        if mono.size == 0:
            raise DataError(f"{path}: {samples.shape[0]} samples at {rate} Hz are too few to resample; remove it")
    return np.ascontiguousarray(mono, dtype=np.float32)


def audio_duration(path: str | Path) -> float:
    """Seconds of audio in a file, read from its header alone.

    Raises:
        DataError: the file is missing or unreadable.
    """
    path = Path(path)
    with _named(path):
        info = soundfile.info(path)
    return info.frames / info.samplerate


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns what libsndfile raises within the block into a DataError naming the file."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such audio file; correct the path")
    try:
        yield
    # TypeError: soundfile's answer to a headerless file (.raw), whose rate nobody can know.
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise DataError(f"{path}: not readable as audio ({error}); convert it to WAV, FLAC or Ogg") from error
