"""The only reader of audio: any format, rate and number of channels, whole files or segments.

A file is decoded to its end and compared with its header. libsndfile decodes the formats it knows. Where it would
silently read too little (streamed WAV, MP3 that does not state its length, concatenated files, chained Ogg), the file
is given to it in parts that it reads whole (``tarq.data.containers``, ``tarq.data.mp3``). Other formats go to ffmpeg or
torchcodec (``tarq.data.ffmpeg``). Anything unusual is reported in notes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tarq.data.decoding import (
    TOLERANCE,
    Audio,
    DecodedAudio,
    Encoded,
    Key,
    Readable,
    cut_short,
    key_of,
    open_audio,
    read_frames,
    to_mono,
)
from tarq.errors import DataError

__all__ = [
    "EXTERNAL_SUFFIXES",
    "SUFFIXES",
    "Audio",
    "AudioCheck",
    "Encoded",
    "audio_duration",
    "check_audio",
    "read_audio",
]

#: File suffixes of audio that libsndfile reads …
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".sph", ".aif", ".aiff", ".au", ".caf", ".w64")
#: … and of audio that ffmpeg or torchcodec reads.
EXTERNAL_SUFFIXES = (
    *(".m4a", ".m4b", ".mp4", ".mov", ".aac", ".webm", ".mka", ".mkv"),
    *(".wma", ".amr", ".3gp", ".wv", ".ac3"),
)
#: Samples decoded ahead of a segment and dropped: MP3 frames borrow bits from those before them, and Opus's decoder has
#: state.
PREROLL = 16 * 1152
#: Speech hardly fits in fewer bytes: a file that claims so is decoded before its stated length is trusted.
PLAUSIBLE_BYTES_PER_SECOND = 1000


@dataclass(frozen=True)
class AudioCheck:
    """The result of checking a file or segment.

    Attributes:
        seconds: its length.
        notes: what was unusual and how it was handled.
        decoded: its samples; None where its length was enough to go by.
    """

    seconds: float
    notes: tuple[str, ...] = ()
    decoded: DecodedAudio | None = field(default=None, compare=False, repr=False)


def read_audio(
    audio: Audio,
    sampling_rate: int = 16000,
    start: float = 0.0,
    end: float | None = None,
    *,
    notes: list[str] | None = None,
) -> NDArray[np.float32]:
    """The samples of an audio file or of a segment of it, mono, at ``sampling_rate``.

    Channels are averaged; where that cancels them (opposite phase), the loudest is taken. Another rate is resampled by
    soxr (high quality). A segment is sought, so what lies before and after it is not decoded (Ogg Vorbis excepted:
    libsndfile 1.2 seeks in it to the wrong place near the end of a file, so what lies before is decoded and dropped,
    as it is in GSM and G.72x, which cannot be sought in; and files that libsndfile does not read as they stand).

    Args:
        audio: a path, or a file in memory.
        sampling_rate: in Hz.
        start, end: of the segment, in seconds; to the end of the file if ``end`` is None.
        notes: receives what was unusual: the decoder, a length found by counting, the channel taken.

    Returns:
        float32 [samples]; full scale is ±1.

    Raises:
        DataError: the file is missing, not a regular file, not audio, unreadable, empty or truncated; its header claims
            more than the file can hold; the segment lies outside it; or samples are not finite.
    """
    with open_audio(audio) as found:
        decoded = _segment(audio, found, start, end)
    if notes is not None:
        notes.extend(decoded.notes)
    return resampled(audio, decoded, sampling_rate)


def resampled(audio: Audio, decoded: DecodedAudio, sampling_rate: int) -> NDArray[np.float32]:
    """What was decoded, float32 [samples] at ``sampling_rate`` Hz.

    Raises:
        DataError: nothing would be left; names ``audio``.
    """
    mono = decoded.samples
    if round(len(mono) * sampling_rate / decoded.rate) == 0:
        raise DataError(f"{audio}: {len(mono)} samples at {decoded.rate} Hz are too few to resample; remove it")
    if decoded.rate != sampling_rate:
        mono = soxr.resample(mono, decoded.rate, sampling_rate)
    return np.ascontiguousarray(mono, dtype=np.float32)


def check_audio(
    audio: Audio, start: float = 0.0, end: float | None = None, *, longest: float | None = None
) -> AudioCheck:
    """Check whether ``read_audio`` will fail, and how long the file or segment is.

    Args:
        longest: in seconds; audio that is longer by its header is not decoded.

    Raises:
        DataError: see ``read_audio``.
    """
    if longest is not None and end is not None and end - start > longest:
        return AudioCheck(end - start)
    with open_audio(audio) as found:
        _cache_duration(key_of(audio), found.seconds)
        believed = isinstance(found, DecodedAudio) or found.size > PLAUSIBLE_BYTES_PER_SECOND * found.seconds
        if longest is not None and found.seconds - start > longest and end is None and believed:
            return AudioCheck(found.seconds - start)
        decoded = _segment(audio, found, start, end)
    if not len(decoded.samples):
        raise DataError(f"{audio}: 0 samples between {start:g} and {end or 0:g} s; remove the segment")
    return AudioCheck(decoded.seconds, decoded.notes, decoded)


def audio_duration(audio: Audio) -> float:
    """Seconds of audio in a file: from its header if that can be trusted, otherwise by decoding.

    Raises:
        DataError: the file is missing, unreadable or cut short, or its header claims more than the file can hold.
    """
    key = key_of(audio)
    if key is not None and key in _DURATIONS:
        return _DURATIONS[key]
    with open_audio(audio) as found:
        _cache_duration(key, found.seconds)
        return found.seconds


#: Seconds of checked files, so that asking again opens nothing.
_DURATIONS: dict[Key, float] = {}


def _cache_duration(key: Key, seconds: float) -> None:
    if len(_DURATIONS) > 1 << 20:
        _DURATIONS.clear()
    if key is not None:
        _DURATIONS[key] = seconds


def _segment(audio: Audio, found: Readable | DecodedAudio, start: float, end: float | None) -> DecodedAudio:
    """A segment: mono, at the file's own rate."""
    if not (math.isfinite(start) and start >= 0 and (end is None or (math.isfinite(end) and end > start))):
        raise DataError(f"{audio}: there is no segment from {start:g} to {end} s; correct start and end")
    if isinstance(found, DecodedAudio):
        first, last = _bounds(audio, len(found.samples), found.rate, start, end)
        return DecodedAudio(found.samples[first:last], found.rate, found.notes)
    file = found.file
    first, last = _bounds(audio, file.frames, file.samplerate, start, end)
    preroll = _seek_with_preroll(file, first)
    mono, notes = to_mono(audio, read_frames(audio, file, last - first + preroll)[preroll:])
    if len(mono) < last - first - TOLERANCE * file.samplerate:
        raise cut_short(audio, (first + len(mono)) / file.samplerate, found.seconds)
    return DecodedAudio(mono, file.samplerate, (*found.notes, *notes))


def _bounds(audio: Audio, frames: int, rate: int, start: float, end: float | None) -> tuple[int, int]:
    """First sample of a segment, and the one after its last."""
    if frames == 0:
        raise DataError(f"{audio}: the audio is empty (0 samples); remove it from the corpus")
    first = round(start * rate)
    last = frames if end is None else round(end * rate)
    if first >= frames or last > frames + TOLERANCE * rate:
        raise DataError(
            f"{audio}: the segment from {start:g} to {last / rate:g} s lies outside the file, which has "
            f"{frames / rate:g} s; the file is truncated or the wrong one: replace it"
        )
    return first, min(last, frames)


def _seek_with_preroll(file: soundfile.SoundFile, frame: int) -> int:
    """Seek to a frame or before it; returns how many frames before."""
    if file.subtype == "VORBIS" or not file.seekable():
        while frame > 0 and (read := len(file.read(min(frame, PREROLL)))):
            frame -= read
        return 0
    preroll = min(frame, PREROLL) if file.format == "MP3" or file.subtype == "OPUS" else 0
    if frame:
        file.seek(frame - preroll)
    return preroll
