"""The length of an audio file by its container, without decoding.

libsndfile reads what it can and reports nothing: of a truncated WAV it returns what is left, of a chained Ogg the first
link, of a streamed WAV whose size was never filled in nothing. So the length that a file states is read here and
compared with the data it has. MP3 has its own module (``tarq.data.mp3``).

Sources: Multimedia Programming Interface 1.0 (RIFF), RFC 3533 (Ogg), RFC 9639 (FLAC), EBU Tech 3306 (RF64), and the
formats' own descriptions for AIFF, AU, CAF, W64 and NIST SPHERE.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from mmap import mmap

Buffer = bytes | mmap

#: Placeholder sizes written when the length is not known yet: these values, and any from the last one up (sox, ffmpeg,
#: arecord).
_STREAMED = 0x7FFF0000
#: First bytes of files that are not audio despite their name, and what they are.
_NO_AUDIO = {
    b"version https://git-lfs": "a Git LFS pointer in place of the file: run `git lfs pull`",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"%PDF": "a PDF document: replace it by the audio",
    b"\x89PNG": "a picture: put the audio in its place",
    b"\xff\xd8\xff": "a picture: put the audio in its place",
}
_PAGE = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:!doctype|html|head|body|error|\w+response)", re.I | re.S
)


@dataclass(frozen=True)
class Part:
    """A part of a file that is decoded as a separate file: ``head``, then the bytes from ``start`` to ``stop``."""

    head: bytes
    start: int
    stop: int

    def of(self, data: Buffer) -> bytes:
        """The bytes to decode."""
        return self.head + data[self.start : self.stop]


@dataclass(frozen=True)
class Layout:
    """What a file states about itself.

    Attributes:
        parts: to decode one after the other; none if the file is decoded as it is.
        held, stated: how much audio there is and how much the file states, both in bytes, pages or frames; 0 if it
            states nothing.
        damage: damage that cannot be skipped; empty if there is none.
        notes: what is unusual and how it is handled.
    """

    parts: tuple[Part, ...] = ()
    held: int = 0
    stated: int = 0
    damage: str = ""
    notes: tuple[str, ...] = ()


def not_audio(data: Buffer) -> str | None:
    """What a file without audio is, and the fix; None if its first bytes do not show it."""
    head = bytes(data[:1024])
    if not head:
        return "the file is empty (0 bytes): get it again"
    for magic, what in _NO_AUDIO.items():
        if head.startswith(magic):
            return f"it is {what}"
    if _PAGE.match(head.removeprefix(b"\xef\xbb\xbf")):
        return "it is a web page (HTML or XML), as a failed download leaves it: get it again"
    if not any(head) and not any(data[len(data) // 2 : len(data) // 2 + 1024]):
        return "it holds nothing but zeros, as an unfinished download does: get it again"
    return None


def layout(data: Buffer) -> Layout:
    """What a file in a known format states; empty for other formats."""
    kinds = {
        b"RIFF": _riff,
        b"RF64": _riff,
        b"RIFX": _riff,
        b"OggS": _ogg,
        b"fLaC": _flac,
        b"FORM": _aiff,
        b".snd": _au,
        b"riff": _w64,
        b"caff": _caf,
        b"NIST": _nist,
    }
    reader = kinds.get(bytes(data[:4]))
    try:
        return Layout() if reader is None else reader(data)
    except (struct.error, ValueError, IndexError):  # the header itself is truncated: the decoder reports it
        return Layout()


def _riff(data: Buffer) -> Layout:
    """WAV: the data chunk's size against the file's; placeholders of streamed WAV; WAV files concatenated."""
    order = ">" if data[:4] == b"RIFX" else "<"
    at, wide, align = 12, 0, 0
    while at + 8 <= len(data):
        kind, size = bytes(data[at : at + 4]), struct.unpack_from(f"{order}I", data, at + 4)[0]
        if kind == b"ds64":
            wide = struct.unpack_from("<Q", data, at + 16)[0]
        elif kind == b"fmt ":
            align = struct.unpack_from(f"{order}H", data, at + 20)[0]
        elif kind == b"data":
            break
        at += 8 + size + size % 2
    else:
        return Layout()
    begin, rest = at + 8, len(data) - at - 8
    if size == 0xFFFFFFFF and wide:
        size = wide
    if (size == 0 and rest > 0) or (size >= _STREAMED and size > rest):
        note = "streamed WAV, whose header does not say its length: read to the end"
        if size >= _STREAMED:
            return Layout(notes=(note,))  # libsndfile reads to the end
        whole = rest - rest % max(align, 1)
        head = bytes(data[: at + 4]) + struct.pack(f"{order}I", min(whole, 0xFFFFFFFE))
        return Layout(parts=(Part(head, begin, begin + whole),), notes=(note,))
    end = begin + size + size % 2
    if bytes(data[end : end + 4]) == b"RIFF" and bytes(data[end + 8 : end + 12]) == b"WAVE":
        return _concatenated(data, _starts(data, re.compile(rb"RIFF.{4}WAVE", re.S)), "WAV")
    trailing = len(data) - end
    if (
        trailing > max(size // 10, 4096)
        and not re.fullmatch(rb"[\x20-\x7e]{4}", data[end : end + 4])
        and any(data[end:])
    ):
        return Layout(held=size + trailing, stated=size, damage=f"{trailing} more bytes follow than its header states")
    return Layout(held=rest, stated=size)


def _starts(data: Buffer, pattern: re.Pattern[bytes]) -> list[int]:
    return [match.start() for match in pattern.finditer(data)]


def _concatenated(data: Buffer, starts: list[int], kind: str) -> Layout:
    """Concatenated files of one kind."""
    parts = tuple(Part(b"", a, b) for a, b in zip(starts, [*starts[1:], len(data)], strict=True))
    inner = layout(parts[-1].of(data))
    note = f"{len(parts)} {kind} files concatenated: all are read"
    return Layout(parts, inner.held, inner.stated, inner.damage, (note,))


def _ogg(data: Buffer) -> Layout:
    """Ogg: its links (chained streams), missing pages, and whether the last page is whole."""
    links: list[int] = []
    numbers: dict[int, int] = {}  # by stream: the last page's number
    at, first_pages, ended, lost = 0, False, False, 0
    while at + 27 <= len(data):
        if data[at : at + 4] != b"OggS":
            found = data.find(b"OggS", at)
            if found < 0:
                break
            lost, at = lost + 1, found
            continue
        flags, stream, number = data[at + 5], *struct.unpack_from("<II", data, at + 14)
        if flags & 2 and not first_pages:  # all streams of a link begin before any other page
            links.append(at)
            numbers.clear()
        first_pages = bool(flags & 2)
        ended = bool(flags & 4)
        lost += stream in numbers and number != numbers[stream] + 1
        numbers[stream] = number
        segments = data[at + 26]
        size = 27 + segments + sum(data[at + 27 : at + 27 + segments])
        if at + size > len(data):
            return Layout(damage=f"it is cut short: its last page has {len(data) - at} of {size} bytes")
        at += size
    else:
        if len(data) > at and data[at : at + 4] == b"OggS":
            return Layout(damage="it is cut short within the head of its last page")
    if lost:
        return Layout(damage=f"pages are missing or damaged in {lost} places")
    notes = () if ended else ("Ogg without a mark of its end, as recorders of streams leave it: read to the last page",)
    if len(links) < 2:
        return Layout(notes=notes)
    chained = _concatenated(data, links, "Ogg")
    return Layout(parts=chained.parts, notes=(f"{len(links)} chained Ogg streams: all are read", *notes))


def _flac(data: Buffer) -> Layout:
    """FLAC: joined files, and streams that do not say their length (total samples 0), found by their last frame."""
    starts = [m.start() for m in re.finditer(rb"fLaC[\x00\x80]\x00\x00\x22", data)]
    if len(starts) > 1:
        return _concatenated(data, starts, "FLAC")
    fields = int.from_bytes(data[18:26], "big")  # rate 20, channels 3, bits 5, total 36
    if fields & (1 << 36) - 1:
        return Layout()
    total = _last_flac_sample(data)
    if not total:
        return Layout()
    head = bytes(data[:18]) + (fields | total).to_bytes(8, "big")
    return Layout(
        parts=(Part(head, 26, len(data)),),
        notes=("streamed FLAC, whose header does not say its length: read to the last frame",),
    )


def _last_flac_sample(data: Buffer) -> int:
    """Samples up to the end of the last frame, by its header (RFC 9639, 9.1); 0 where none is found."""
    blocks = {1: 192, **{k: 576 << (k - 2) for k in range(2, 6)}, **{k: 256 << (k - 8) for k in range(8, 16)}}
    usual = int.from_bytes(data[8:10], "big")
    at = len(data)
    while (at := data.rfind(b"\xff", 42, at)) >= 0:
        head = bytes(data[at : at + 16])
        if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1 or head[2] & 15 == 15:
            continue
        coded = 1 if head[4] < 0x80 else 8 - (head[4] ^ 0xFF).bit_length()
        code, end = head[2] >> 4, 4 + coded
        if not code or coded > 7 or (coded == 1 and head[4] >= 0x80):
            continue
        number = head[4] & (0x7F >> (coded if coded > 1 else 0))
        for byte in head[5:end]:
            number = number << 6 | byte & 0x3F
        extra = {6: 1, 7: 2}.get(code, 0)
        size = int.from_bytes(head[end : end + extra], "big") + 1 if extra else blocks.get(code, 0)
        end += extra + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
        if end < len(head) and _crc8(head[:end]) == head[end]:
            return (number if head[1] & 1 else number * usual) + size
    return 0


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 7) & 0xFF if crc & 0x80 else crc << 1
    return crc


def _aiff(data: Buffer) -> Layout:
    at = 12
    while at + 8 <= len(data):
        size = struct.unpack_from(">I", data, at + 4)[0]
        if data[at : at + 4] == b"SSND":
            return Layout(held=len(data) - at - 8, stated=0 if size >= _STREAMED else size)
        at += 8 + size + size % 2
    return Layout()


def _au(data: Buffer) -> Layout:
    begin, size = struct.unpack_from(">II", data, 4)
    return Layout() if size == 0xFFFFFFFF else Layout(held=len(data) - begin, stated=size)


def _w64(data: Buffer) -> Layout:
    at = 40
    while at + 24 <= len(data):
        size = struct.unpack_from("<Q", data, at + 16)[0]
        if data[at : at + 4] == b"data":
            return Layout(held=len(data) - at, stated=0 if size >= 1 << 62 else size)
        if size < 24:
            break
        at += (size + 7) // 8 * 8
    return Layout()


def _caf(data: Buffer) -> Layout:
    at = 8
    while at + 12 <= len(data):
        size = struct.unpack_from(">q", data, at + 4)[0]
        if data[at : at + 4] == b"data":
            return Layout(held=len(data) - at - 12, stated=max(size, 0))
        if size < 0:
            break
        at += 12 + size
    return Layout()


def _nist(data: Buffer) -> Layout:
    size = int(data[8:16])
    head = bytes(data[:size])
    if b"shorten" in head:
        return Layout()
    fields = {key: int(value) for key, value in re.findall(rb"(\w+) -i (\d+)", head)}
    count, width = fields.get(b"sample_count", 0), fields.get(b"sample_n_bytes", 0)
    return Layout(held=len(data) - size, stated=count * width * fields.get(b"channel_count", 1))
