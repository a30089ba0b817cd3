"""Reading audio: any format libsndfile knows, any rate, any number of channels, whole files or segments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tarq.errors import DataError

#: File names ending so are taken for audio.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".sph", ".aif", ".aiff", ".au", ".caf", ".w64")
#: Seconds by which a segment may end after its file, and a file before what its header says.
TOLERANCE = 0.1
#: Frames of MP3 borrow bits from those before them, and Opus's decoder remembers: so many samples are decoded ahead
#: of a segment and dropped.
PREROLL = 16 * 1152


@dataclass(frozen=True)
class Encoded:
    """An audio file held in memory, as a row of a data set on the hub has it.

    Attributes:
        name: what messages call it.
        data: the file's bytes.
    """

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


Audio = str | Path | Encoded


def read_audio(
    audio: Audio, sampling_rate: int = 16000, start: float = 0.0, end: float | None = None
) -> NDArray[np.float32]:
    """The samples of an audio file or of a segment of it, mono, at ``sampling_rate``.

    Channels are averaged; another rate is resampled by soxr (high quality). A segment is sought, so what
    lies before and after it is not decoded (Ogg Vorbis excepted: libsndfile 1.2 seeks in it to the wrong place near
    the end of a file, so what lies before is decoded and dropped).

    Args:
        audio: a path, or a file in memory.
        sampling_rate: in Hz.
        start, end: of the segment, in seconds; to the end of the file where ``end`` is None.

    Returns:
        float32 [samples]; full scale is ±1.

    Raises:
        DataError: see ``check_audio``.
    """
    mono, rate = _samples(audio, sampling_rate, start, end)
    if rate != sampling_rate:
        mono = soxr.resample(mono, rate, sampling_rate)
    return np.ascontiguousarray(mono, dtype=np.float32)


def check_audio(
    audio: Audio, sampling_rate: int = 16000, start: float = 0.0, end: float | None = None, *, decode: bool = True
) -> None:
    """Find out now whether ``read_audio`` will fail.

    Args:
        decode: decode the whole file or segment and drop it; otherwise only the header is read, which shows whether
            there is audio where it should be, and not whether it can be decoded.

    Raises:
        DataError: the file is missing, unreadable, empty or cut short, the segment lies outside it, or it holds
            samples that are not finite.
    """
    if decode:
        _samples(audio, sampling_rate, start, end)
    else:
        with _opened(audio) as file:
            _bounds(audio, file, start, end)


def audio_duration(audio: Audio) -> float:
    """Seconds of audio in a file, read from its header alone.

    Raises:
        DataError: the file is missing or unreadable.
    """
    with _opened(audio) as file:
        return file.frames / file.samplerate


def _samples(audio: Audio, sampling_rate: int, start: float, end: float | None) -> tuple[NDArray[np.float32], int]:
    """Float32 [samples], mono, and their rate."""
    with _opened(audio) as file:
        rate = file.samplerate
        first, last = _bounds(audio, file, start, end)
        wanted = last - first
        ahead = _go_ahead_of(file, first)
        samples = file.read(wanted + ahead, dtype="float32", always_2d=True)[ahead:]
    if samples.shape[0] < wanted - TOLERANCE * rate:
        raise DataError(f"{audio}: the audio ends after {samples.shape[0]} of {wanted} samples; replace the file")
    mono = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DataError(f"{audio}: the audio holds samples that are not finite; encode it anew or remove it")
    if round(len(mono) * sampling_rate / rate) == 0:
        raise DataError(f"{audio}: {len(mono)} samples at {rate} Hz are too few to resample; remove it")
    return mono, rate


def _bounds(audio: Audio, file: soundfile.SoundFile, start: float, end: float | None) -> tuple[int, int]:
    """First sample of a segment, and the one after its last."""
    rate, frames = file.samplerate, file.frames
    if frames == 0:
        raise DataError(f"{audio}: the audio is empty (0 samples); remove it from the corpus")
    first = round(start * rate)
    last = frames if end is None else round(end * rate)
    if first >= frames or last > frames + TOLERANCE * rate:
        raise DataError(
            f"{audio}: the segment from {start:g} to {last / rate:g} s lies outside the file, which has "
            f"{frames / rate:g} s; the file is cut short or is another one: replace it"
        )
    return first, min(last, frames)


def _go_ahead_of(file: soundfile.SoundFile, frame: int) -> int:
    """Move to or ahead of a frame; how many frames ahead."""
    if file.subtype == "VORBIS":
        while file.tell() < frame and len(file.read(min(frame - file.tell(), PREROLL))):
            pass
        return 0
    ahead = min(frame, PREROLL) if file.format == "MP3" or file.subtype == "OPUS" else 0
    if frame:
        file.seek(frame - ahead)
    return ahead


@contextmanager
def _opened(audio: Audio) -> Iterator[soundfile.SoundFile]:
    """The file, opened; what libsndfile raises within the block becomes a DataError naming it."""
    if not isinstance(audio, Encoded) and not Path(audio).is_file():
        raise DataError(f"{audio}: there is no such audio file; correct the path")
    try:
        with soundfile.SoundFile(BytesIO(audio.data) if isinstance(audio, Encoded) else audio) as file:
            yield file
    # TypeError: soundfile's answer to a headerless file (.raw), whose rate nobody can know.
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        if _is_shortened(audio):
            raise DataError(
                f"{audio}: SPHERE audio compressed with shorten, which libsndfile does not read; convert it: "
                "sph2pipe -f wav"
            ) from error
        raise DataError(f"{audio}: not readable as audio ({error}); convert it to WAV, FLAC or Ogg") from error


def _is_shortened(audio: Audio) -> bool:
    """Whether a NIST SPHERE header names shorten compression (``sample_coding … embedded-shorten``)."""
    if isinstance(audio, Encoded):
        header = audio.data[:1024]
    else:
        with Path(audio).open("rb") as file:
            header = file.read(1024)
    return header.startswith(b"NIST_1A") and b"shorten" in header
