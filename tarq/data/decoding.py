"""Opening and decoding audio: by libsndfile directly, by libsndfile in parts, or by other programs."""

from __future__ import annotations

import mmap
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePath

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tarq.data import containers, ffmpeg, mp3
from tarq.errors import DataError

#: Seconds by which a segment may end after its file, and a file before the length in its header.
TOLERANCE = 0.1
#: Limits that no real recording exceeds; a damaged header may.
RATES = (1000, 1_000_000)
CHANNELS = 64
#: Samples that no recording has, not even one far beyond full scale (40 dB): floats that were never scaled.
LOUDEST = 100.0
#: No codec needs fewer bytes for a second of audio, not even for silence.
LEAST_BYTES_PER_SECOND = 4
#: Frames by the headers of formats that libsndfile alone reads here, where its log has them.
_FRAMES_BY_LOG = {
    "AVR": r"Frames\s*: (\d+)",
    "MAT4": r"Cols\s*: (\d+)",
    "MAT5": r"Cols\s*: (\d+)",
    "SVX": r"OneShotHiSamples\s*: (\d+)",
}
#: Samples of all channels decoded at a time: memory is never allocated by a header's claim.
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Encoded:
    """An audio file held in memory, as a row of a data set on the hub has it.

    Attributes:
        name: its name in messages.
        data: the file's bytes.
    """

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


Audio = str | Path | Encoded


Key = tuple[str, int, int] | None


class _Bytes(BytesIO):
    """Bytes in which a seek before the start, as a damaged header may cause, fails silently, as in a file."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return -1


@dataclass(frozen=True)
class DecodedAudio:
    """A decoded file or segment: mono, float32 [samples], at its own rate in Hz."""

    samples: NDArray[np.float32]
    rate: int
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


@dataclass(frozen=True)
class Readable:
    """A file that libsndfile reads directly, of ``size`` bytes; ``notes`` on its layout."""

    file: soundfile.SoundFile
    size: int
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Its length by its header."""
        return self.file.frames / self.file.samplerate


@contextmanager
def open_audio(audio: Audio) -> Iterator[Readable | DecodedAudio]:
    """The file, opened once: as a libsndfile file, or decoded if it cannot be read piece by piece.

    Raises:
        DataError: see ``read_audio``; also what libsndfile raises within the block.
    """
    if isinstance(audio, Encoded):
        with _examined(audio, audio.data, _Bytes(audio.data)) as found:
            yield found
        return
    try:
        descriptor = os.open(audio, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise DataError(f"{audio}: there is no such audio file; correct the path") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"{audio}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            what = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe, socket or device"
            raise DataError(f"{audio}: {what}, not an audio file; give a file (save a pipe's output to one first)")
        if about.st_size == 0:
            raise DataError(f"{audio}: the file is empty (0 bytes): get it again")
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data, _examined(audio, data, descriptor) as found:
            yield found
    finally:
        os.close(descriptor)


@contextmanager
def _examined(audio: Audio, data: containers.Buffer, source: BytesIO | int) -> Iterator[Readable | DecodedAudio]:
    if (what := containers.not_audio(data)) is not None:
        raise DataError(f"{audio}: not readable as audio: {what}")
    found = mp3.layout(data) if mp3.is_mp3(data) else containers.layout(data)
    if found.damage:
        raise DataError(f"{audio}: {found.damage}; get it again, or convert what there is to WAV, FLAC or Ogg")
    if found.parts:
        yield _decoded_parts(audio, key_of(audio), found, data)
        return
    file = _soundfile(source)
    if file is None:
        # libsndfile refuses some files for being cut (CAF); another program would silently read a part of them.
        if found.held and found.held < found.stated:
            raise DataError(
                f"{audio}: {found.held} of the {found.stated} bytes of audio that its header states are there: it is "
                "cut short; get it anew"
            )
        if _is_shortened(data):
            raise DataError(
                f"{audio}: SPHERE audio compressed with shorten, which libsndfile does not read; convert it: "
                "sph2pipe -f wav"
            )
        yield _decoded_externally(audio, key_of(audio))
        return
    with file:
        _check_header(audio, file, len(data), found)
        try:
            yield Readable(file, len(data), found.notes)
        except (soundfile.SoundFileError, OSError) as error:
            raise DataError(f"{audio}: not readable as audio ({error}); convert it to WAV, FLAC or Ogg") from error


def _soundfile(source: BytesIO | int) -> soundfile.SoundFile | None:
    """None if libsndfile does not know the format."""
    try:
        return soundfile.SoundFile(source, closefd=False)
    # TypeError: raised by soundfile for a headerless file (.raw), whose rate is unknown.
    except (soundfile.SoundFileError, OSError, TypeError):
        return None


def _check_header(audio: Audio, file: soundfile.SoundFile, size: int, found: containers.Layout) -> None:
    """Refuse implausible headers, and files that hold less than they state."""
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise DataError(
            f"{audio}: its header states {file.samplerate} Hz, which no recording has; it is damaged: get it again"
        )
    if file.channels > CHANNELS:
        raise DataError(
            f"{audio}: its header states {file.channels} channels, and up to {CHANNELS} are read; get it again, or "
            "extract one channel"
        )
    seconds = file.frames / file.samplerate
    if seconds > size / LEAST_BYTES_PER_SECOND + 1:
        raise DataError(
            f"{audio}: its header states {seconds:.3g} s of audio, which its {size} bytes cannot hold; it is damaged: "
            "get it again"
        )
    lesser = _FRAMES_BY_LOG.get(file.format)
    stated_by_tag = max(map(int, re.findall(lesser, file.extra_info)), default=0) / file.samplerate if lesser else 0.0
    if stated_by_tag - seconds > TOLERANCE:
        raise cut_short(audio, seconds, stated_by_tag)
    if "truncated file" in file.extra_info:  # VOC
        raise DataError(f"{audio}: it ends before its last block does: it is cut short; get it anew")
    if found.held and found.held < found.stated:
        stated = seconds * found.stated / found.held
        # An MP3 states its length in frames, and libsndfile trusts it.
        held, stated = (seconds * found.held / found.stated, seconds) if file.format == "MP3" else (seconds, stated)
        if stated - held > TOLERANCE:
            raise cut_short(audio, held, stated)


def _is_shortened(data: containers.Buffer) -> bool:
    """Whether a NIST SPHERE header names shorten compression (``sample_coding … embedded-shorten``)."""
    head = bytes(data[:1024])
    return head.startswith(b"NIST_1A") and b"shorten" in head


def _decoded_parts(audio: Audio, key: Key, found: containers.Layout, data: containers.Buffer) -> DecodedAudio:
    """Parts decoded one after the other; the last file's result is kept for its other segments."""
    if key is not None and _LAST.get(key) is not None:
        return _LAST[key]
    pieces: list[NDArray[np.float32]] = []
    notes: list[str] = list(found.notes)
    rate = 0
    for part in found.parts:
        encoded = part.of(data)
        file = _soundfile(_Bytes(encoded))
        if file is None:
            raise DataError(f"{audio}: not readable as audio from byte {part.start} on; convert it to WAV, FLAC or Ogg")
        with file:
            _check_header(audio, file, len(encoded), containers.Layout())
            mono, more = to_mono(audio, read_frames(audio, file, file.frames))
            if len(mono) < file.frames - TOLERANCE * file.samplerate:
                raise cut_short(audio, len(mono) / file.samplerate, file.frames / file.samplerate)
            rate = rate or file.samplerate
            pieces.append(mono if file.samplerate == rate else soxr.resample(mono, file.samplerate, rate))
        notes += [note for note in more if note not in notes]
    return _kept(key, DecodedAudio(np.concatenate(pieces), rate, tuple(notes)))


def _decoded_externally(audio: Audio, key: Key) -> DecodedAudio:
    """A file that libsndfile cannot read, decoded by another program."""
    if key is not None and _LAST.get(key) is not None:
        return _LAST[key]
    if not ffmpeg.available():
        raise DataError(
            f"{audio}: not readable as audio (libsndfile does not know its format); {ffmpeg.install_hint()}"
        )
    try:
        if isinstance(audio, Encoded):
            with tempfile.TemporaryDirectory(prefix="tarq-audio-") as folder:
                path = Path(folder) / f"audio{PurePath(audio.name).suffix[:8]}"
                path.write_bytes(audio.data)
                decoded = ffmpeg.decode(path)
        else:
            decoded = ffmpeg.decode(Path(audio))
    except ffmpeg.DecoderError as error:
        raise DataError(
            f"{audio}: not readable as audio ({error}); get it again, or convert it to WAV, FLAC or Ogg"
        ) from error
    seconds = len(decoded.samples) / decoded.rate
    # Frames of AAC are up to 0.05 s long, and its encoders add one or two ahead.
    if decoded.stated is not None and decoded.stated - seconds > TOLERANCE + 0.05:
        raise cut_short(audio, seconds, decoded.stated)
    mono, notes = to_mono(audio, decoded.samples)
    damage = (f"damaged, so some of it may be missing ({decoded.decoder}: {decoded.damage})",) if decoded.damage else ()
    return _kept(key, DecodedAudio(mono, decoded.rate, (f"decoded by {decoded.decoder}", *damage, *notes)))


#: The last file that was decoded as a whole: a talk's segments follow one another.
_LAST: dict[Key, DecodedAudio] = {}


def _kept(key: Key, whole: DecodedAudio) -> DecodedAudio:
    if key is not None:
        _LAST.clear()
        _LAST[key] = whole
    return whole


def read_frames(audio: Audio, file: soundfile.SoundFile, frames: int) -> NDArray[np.float32]:
    """Float32 [samples, channels]: up to so many frames, fewer where the file ends before."""
    blocks: list[NDArray[np.float32]] = []
    block, begin = max(_BLOCK // file.channels, 1), file.tell() if file.seekable() else 0
    while frames > 0:
        asked = min(frames, block)
        try:
            blocks.append(file.read(asked, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError as error:
            held = (begin + sum(map(len, blocks)) + _decodable(file, begin + sum(map(len, blocks)))) / file.samplerate
            raise cut_short(audio, held, file.frames / file.samplerate) from error
        frames -= asked
        if len(blocks[-1]) < asked:
            break
    return np.concatenate(blocks) if blocks else np.zeros((0, file.channels), np.float32)


def _decodable(file: soundfile.SoundFile, start: int) -> int:
    """About how many frames from ``start`` on can be decoded in a damaged file."""
    count = 0
    try:
        file.seek(start)
        while len(file.read(4096)) == 4096:
            count += 4096
    except soundfile.LibsndfileError:
        pass
    return count


def to_mono(audio: Audio, samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The mean of the channels, or the loudest if the mean cancels them, with a note.

    Args:
        samples: float32 [samples, channels].
    """
    if not np.isfinite(samples).all():
        raise DataError(f"{audio}: the audio has samples that are not finite; encode it anew or remove it")
    if len(samples) and (peak := float(np.abs(samples).max())) > LOUDEST:
        raise DataError(
            f"{audio}: samples of up to {peak:.3g}, where full scale is 1: unscaled or damaged; divide "
            "them by their full scale (32768 of 16 bits) and write it anew"
        )
    channels = samples.shape[1]
    mono = samples.mean(axis=1, dtype=np.float32)
    if channels == 1 or not len(mono):
        return mono, ()
    power = samples.var(axis=0, dtype=np.float64)
    # Uncorrelated channels leave Σ power / channels²; a tenth of it is cancellation.
    if power.sum() / channels**2 > 10 * max(float(mono.var(dtype=np.float64)), 1e-14):
        loudest = int((power >= 0.99 * power.max()).argmax())  # the first one in a tie
        return np.ascontiguousarray(samples[:, loudest]), (
            f"its {channels} channels are in opposite phase and cancel each other: only channel {loudest + 1} is taken",
        )
    return mono, ()


def cut_short(audio: Audio, held: float, stated: float) -> DataError:
    return DataError(
        f"{audio}: the audio ends after {held:.2f} of the {stated:.2f} s that its header states: it is cut short or "
        "damaged; get it again"
    )


def key_of(audio: Audio) -> Key:
    """A file's current identity; None if it is in memory or cannot be queried."""
    if isinstance(audio, Encoded):
        return None
    try:
        about = os.stat(audio)
    except (OSError, ValueError):
        return None
    return str(audio), about.st_mtime_ns, about.st_size
