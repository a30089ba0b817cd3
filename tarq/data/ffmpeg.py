"""Audio that libsndfile does not read (AAC, M4A, MP4, WebM, WMA …), through ffmpeg or torchcodec if installed.

ffmpeg opens files of known containers only, from the disk alone: a playlist that names other files or addresses is not
followed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

#: Seconds after which ffmpeg is stopped.
TIMEOUT = 900
_CONTAINERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,gsm,matroska,"  # and not those
    "mov,mp3,mpeg,mpegts,ogg,rm,tta,voc,w64,wav,wv"  # that name other files: concat, dash, hls …
)
#: How files begin that torchcodec, which has no such list, is given: MP4 and its kin, Matroska, ASF, ADTS, AC-3, AMR,
#: AVI, CAF, WavPack, FLV.
_BEGINNINGS = re.compile(
    rb".{4}(?:ftyp|moov|mdat|wide|free|skip)|\x1aE\xdf\xa3|0&\xb2u|\xff[\xf0\xf1\xf8\xf9]|"
    rb"\x0bw|#!AMR|RIFF....AVI |caff|wvpk|FLV",
    re.S,
)
#: What ffmpeg says of packets that it drops; its exit status is 0 all the same.
_DAMAGE = re.compile(
    r"error (?:while decoding|submitting packet)[^\r\n]*|(?:packet |input )?corrupt\b[^\r\n]*|CRC mismatch", re.I
)
_DURATION = re.compile(r"^\s*Duration: (\d+):(\d+):(\d+(?:\.\d+)?)", re.M)


class DecoderError(Exception):
    """A decoder refused a file; the message says why."""


@dataclass(frozen=True)
class DecoderOutput:
    """A decoder's output.

    Attributes:
        samples: float32 [samples, channels].
        rate: in Hz.
        stated: seconds by the file's header; None if it states nothing reliable.
        decoder: its name.
        damage: what it could not decode and went on after, by its first message; empty where there was nothing.
    """

    samples: NDArray[np.float32]
    rate: int
    stated: float | None
    decoder: str
    damage: str = ""


def install_hint() -> str:
    """What to do if no decoder is installed."""
    return "install ffmpeg (or `pip install torchcodec`), or convert it to WAV, FLAC or Ogg"


def available() -> bool:
    """Whether there is a decoder for formats that libsndfile does not read."""
    return shutil.which("ffmpeg") is not None or find_spec("torchcodec") is not None


def decode(path: Path) -> DecoderOutput:
    """All of a file's first audio stream.

    Raises:
        DecoderError: there is no decoder, or it refuses the file.
    """
    binary = shutil.which("ffmpeg")
    if binary is not None:
        return _by_ffmpeg(binary, path)
    if find_spec("torchcodec") is not None:
        return _by_torchcodec(path)
    raise DecoderError("neither ffmpeg nor torchcodec is installed")


def _by_ffmpeg(binary: str, path: Path) -> DecoderOutput:
    with tempfile.TemporaryDirectory(prefix="tarq-audio-") as folder:
        made = Path(folder) / "decoded.wav"
        command = [binary, "-nostdin", "-hide_banner", "-v", "info", "-protocol_whitelist", "file,pipe"]
        command += ["-format_whitelist", _CONTAINERS, "-i", f"file:{path.absolute()}"]
        command += ["-map", "0:a:0", "-c:a", "pcm_f32le", "-rf64", "auto", "-f", "wav", f"file:{made}"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise DecoderError(f"ffmpeg was stopped after {TIMEOUT} s") from error
        except OSError as error:
            raise DecoderError(f"ffmpeg cannot be run ({error})") from error
        stderr = done.stderr.decode("utf-8", "replace")
        if done.returncode:
            if "matches no streams" in stderr:
                raise DecoderError("there is no audio stream in it")
            reasons = [line.strip() for line in stderr.splitlines() if line.strip()]
            raise DecoderError(
                f"ffmpeg: {reasons[-1].replace(f'file:{path.absolute()}: ', '') if reasons else 'failed'}"
            )
        try:
            samples, rate = soundfile.read(made, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise DecoderError("ffmpeg found no samples in it") from error
    match = _DURATION.search(stderr)
    # For a stream without a header (ADTS, MP3) ffmpeg only guesses.
    reliable = match is not None and "Estimating duration from bitrate" not in stderr
    hours, minutes, seconds = map(float, match.groups()) if match and reliable else (0.0, 0.0, 0.0)
    stated = hours * 3600 + minutes * 60 + seconds
    damage = _DAMAGE.search(stderr)
    return DecoderOutput(samples, rate, stated or None, "ffmpeg", damage[0].strip() if damage else "")


def _by_torchcodec(path: Path) -> DecoderOutput:
    data = path.read_bytes()
    if not _BEGINNINGS.match(data):
        raise DecoderError("it begins like no audio format that torchcodec is given")
    try:
        from torchcodec.decoders import AudioDecoder

        decoder = AudioDecoder(data)
        decoded = decoder.get_all_samples()
        stated = decoder.metadata.duration_seconds_from_header
    # What it raises depends on the version and on the FFmpeg libraries it finds.
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        raise DecoderError(f"torchcodec: {' '.join(str(error).split())[:200]}") from error
    samples = np.ascontiguousarray(decoded.data.numpy().T, dtype=np.float32)
    return DecoderOutput(samples, int(decoded.sample_rate), stated, "torchcodec")
