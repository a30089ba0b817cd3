"""MP3 frame by frame: how much audio a file has, whatever its first frame states.

An MP3 has no header. Encoders put the number of frames into a first frame without sound (Xing, Info or VBRI); without
it a decoder guesses the length from the first bit rate, and libsndfile then stops where the guess ends; of concatenated
files it reads what the first one's count covers. Here the frames are counted, and if the file states a wrong number it
is split into parts, each given a first frame with the right one.

Source: ISO/IEC 11172-3, 2.4 and 13818-3, 2.4 (frame headers); the Xing header as LAME writes it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tarq.data.containers import Buffer, Layout, Part

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version bits
_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5
}


@dataclass(frozen=True)
class _Frame:
    """A frame of layer III: its start, its size in bytes (``whole``: all of them are there), and the count it states.

    ``counted`` is the number of frames that a Xing, Info or VBRI header states, 0 in one that states none, and None in
    a frame of sound.
    """

    at: int
    size: int
    whole: bool
    counted: int | None


def is_mp3(data: Buffer) -> bool:
    """Whether a file begins with a frame of MPEG audio, layer III, or with an ID3 tag that no FLAC follows."""
    if data[:3] == b"ID3":
        after = _after_tag(data, 0)
        return data[after : after + 4] != b"fLaC"
    return _header(data, 0) is not None


def layout(data: Buffer) -> Layout:
    """What an MP3 states about itself; empty if fewer than two frames are found."""
    runs: list[list[_Frame]] = []  # each begins at a counting frame, or after the one before is complete
    for frame in _frames(data):
        head = runs[-1][0] if runs else None
        # A few frames beyond the count come from the encoder; more are another file.
        complete = head is not None and head.counted and len(runs[-1]) - 1 >= head.counted + 3
        if head is None or frame.counted is not None or complete:
            runs.append([])
        runs[-1].append(frame)
    sounding = [[f for f in run if f.counted is None and f.whole] for run in runs]
    if sum(map(len, sounding)) < 2:
        return Layout()
    notes = []
    if not runs[-1][-1].whole:
        notes.append("the last MP3 frame is incomplete: the file may be cut short")
    # One frame more or less than counted is how encoders differ.
    short = [
        (len(s), run[0].counted) for run, s in zip(runs, sounding, strict=True) if (run[0].counted or 0) > len(s) + 1
    ]
    if short:
        held, stated = short[0]
        return Layout(held=held, stated=stated or 0)
    if len(runs) == 1 and runs[0][0].counted:
        return Layout(notes=tuple(notes))
    if len([run for run in sounding if run]) > 1:
        notes.insert(0, f"{len(runs)} MP3 files concatenated: all are read")
    else:
        notes.insert(0, "an MP3 that does not say its length: its frames were counted")
    parts = []
    for run, sound in zip(runs, sounding, strict=True):
        if sound and run[0].counted:
            parts.append(Part(b"", run[0].at, sound[-1].at + sound[-1].size))
        elif sound:
            parts.append(Part(_counting(data, sound[0], len(sound)), sound[0].at, sound[-1].at + sound[-1].size))
    return Layout(parts=tuple(parts), notes=tuple(notes))


def _frames(data: Buffer) -> Iterator[_Frame]:
    """The frames of layer III, in order; tags and other bytes are skipped."""
    at, synced = 0, False
    while at + 4 <= len(data):
        head = _header(data, at)
        # A frame at an unexpected place counts only if another follows.
        follows = head is not None and (synced or at + head >= len(data) or _header(data, at + head) is not None)
        if head is not None and follows:
            yield _Frame(at, head, at + head <= len(data), _counted(data, at, head))
            at, synced = at + head, True
            continue
        synced = False
        if data[at : at + 3] == b"ID3" and len(data) >= at + 10:
            at = _after_tag(data, at)
        elif data[at : at + 3] == b"TAG":
            at += 128
        else:
            found = data.find(b"\xff", at + 1)
            tag = data.find(b"ID3", at + 1, found) if found > 0 else -1
            at = tag if tag > 0 else found if found > 0 else len(data)


def _after_tag(data: Buffer, at: int) -> int:
    """Where an ID3v2 tag ends."""
    if len(data) < at + 10:
        return len(data)
    size = sum((data[at + 6 + i] & 0x7F) << 7 * (3 - i) for i in range(4))
    return at + 10 + size + (10 if data[at + 5] & 0x10 else 0)


def _header(data: Buffer, at: int) -> int | None:
    """Bytes of the frame of layer III that begins here; None if none does."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return None
    version, bits = data[at + 1] >> 3 & 3, data[at + 2]
    if version == 1 or bits >> 4 in (0, 15) or bits >> 2 & 3 == 3:
        return None
    return _size(version, bits)


def _size(version: int, bits: int) -> int:
    """Bytes of a frame, from its version bits and third byte."""
    rate, kbits = _RATES[version][bits >> 2 & 3], _KBITS[version == 3][bits >> 4]
    return (144 if version == 3 else 72) * kbits * 1000 // rate + (bits >> 1 & 1)


def _side(data: Buffer, at: int) -> int:
    """Bytes between the head of a frame (without checksum) and its sound."""
    mono = data[at + 3] >> 6 == 3
    if data[at + 1] >> 3 & 3 == 3:
        return 17 if mono else 32
    return 9 if mono else 17


def _counted(data: Buffer, at: int, size: int) -> int | None:
    place = at + 4 + _side(data, at)
    if data[place : place + 4] in (b"Xing", b"Info") and place + 12 <= len(data):
        flags, count = struct.unpack_from(">II", data, place + 4)
        return count if flags & 1 else 0
    if size > 54 and data[at + 36 : at + 40] == b"VBRI" and at + 54 <= len(data):
        return struct.unpack_from(">I", data, at + 50)[0]
    return None


def _counting(data: Buffer, first: _Frame, frames: int) -> bytes:
    """A silent frame like ``first`` whose Xing header counts the frames after it."""
    head = bytearray(data[first.at : first.at + 4])
    head[1] |= 1  # no checksum
    version = head[1] >> 3 & 3
    place = 4 + _side(data, first.at)
    # The smallest bit rate whose frame holds the header.
    bits = next(b for b in (k << 4 | head[2] & 0x0C for k in range(1, 15)) if _size(version, b) >= place + 12)
    head[2] = bits
    return bytes(head).ljust(place, b"\0") + (b"Xing" + struct.pack(">II", 1, frames)).ljust(
        _size(version, bits) - place, b"\0"
    )
