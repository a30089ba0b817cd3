"""One utterance: what every corpus loader returns."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import langcodes
import numpy as np
from numpy.typing import NDArray

from tarq.data.audio import AudioCheck, Encoded, audio_duration, check_audio, read_audio
from tarq.errors import DataError
from tarq.words.normalize import primary_language

#: ISO 639's codes for speech in an unknown, in several, in some other and in no language.
NO_LANGUAGE = ("und", "mul", "mis", "zxx")


@dataclass(frozen=True)
class Utterance:
    """An utterance: a whole file or a segment of a longer one, with what is known about it.

    Attributes:
        id: unique within its corpus.
        audio: the audio file, on disk or in memory.
        text: the reference transcript, by the conventions of its corpus; None if there is none. An empty string is a
            transcript: nothing is said.
        duration: seconds, if the corpus states them; otherwise ``seconds()`` reads the file.
        speaker: the speaker, if known.
        entities: the names and terms in the transcript, if the corpus marks them.
        extra: other fields of the corpus, for selecting utterances.
        start, end: the segment of the file, in seconds; the whole file if ``end`` is None and ``start`` 0.

    Raises:
        DataError: the id is empty, or a time is negative, not finite, or out of order.
    """

    id: str
    audio: Path | Encoded
    text: str | None = None
    duration: float | None = None
    speaker: str | None = None
    entities: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise DataError(f"{self.audio}: the utterance has an empty id; give it one, or leave the id out")
        for name, given in (("duration", self.duration), ("start", self.start), ("end", self.end)):
            if given is not None and not (math.isfinite(given) and given >= 0):
                raise DataError(f"{self.id}: {name!r} is {given}; give seconds, or leave it out")
        if self.end is not None and self.end <= self.start:
            raise DataError(f"{self.id}: 'end' is {self.end:g}, not after 'start', {self.start:g}; correct the segment")

    def waveform(self, sampling_rate: int = 16000, notes: list[str] | None = None) -> NDArray[np.float32]:
        """The audio: float32 [samples], mono, at ``sampling_rate`` Hz. Raises DataError (``read_audio``)."""
        return read_audio(self.audio, sampling_rate, self.start, self.end, notes=notes)

    def check(self, longest: float | None = None) -> AudioCheck:
        """Decode the audio, and compare its length with what the corpus states.

        Args:
            longest: in seconds; an utterance stated to be longer is not decoded.

        Raises:
            DataError: the audio cannot be read (``read_audio``), or is shorter than stated.
        """
        stated = self.duration
        if stated is not None and longest is not None and stated > longest:
            return AudioCheck(stated)
        checked = check_audio(self.audio, self.start, self.end, longest=longest)
        if stated is None or self.start or self.end is not None:
            return checked
        # Manifests round, some to whole seconds, and MP3 lengths may include the encoder's padding.
        tolerance = max(0.5 if stated == round(stated) else 0.25, 0.01 * stated)
        if checked.seconds < stated - tolerance:
            raise DataError(
                f"{self.audio}: it has {checked.seconds:.2f} s of audio where the corpus states {stated:.2f} s: it is "
                "truncated or the wrong file; get it again, or correct the duration"
            )
        if checked.seconds > stated + 2 * tolerance:
            return replace(checked, notes=(*checked.notes, "longer than the corpus states: all of it is used"))
        return checked

    def seconds(self) -> float:
        """Its length: as stated, by its segment, or by its file. Raises DataError if the file is unreadable."""
        if self.duration is not None:
            return self.duration
        return (audio_duration(self.audio) if self.end is None else self.end) - self.start

    @property
    def origin(self) -> str:
        """Identity of the audio, whatever its id: a short digest of file and segment, for a report."""
        file = str(self.audio) if isinstance(self.audio, Encoded) else str(self.audio.resolve())
        return hashlib.sha256(f"{file} {self.start} {self.end}".encode()).hexdigest()[:16]


def language_of(utterance: Utterance, default: str) -> str:
    """The language an utterance states (``en`` of ``en-US``), or the run's."""
    return primary_language(str(utterance.extra.get("language") or default))


@cache
def stated_language(stated: str) -> str | None:
    """The tag of a language as a corpus states it: ``de_de`` as it is, ``de`` for ``German``; None otherwise."""
    first = re.split("[-_]", stated)[0]
    if langcodes.tag_is_valid(first):
        return None if first.lower() in NO_LANGUAGE else stated
    # langcodes knows names only with the data of another package. Imported here: transformers takes a second to import.
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return TO_LANGUAGE_CODE.get(stated.lower())


def check_ids(where: str, utterances: Sequence[Utterance]) -> None:
    """Check that ids are unique, since scores and samples are keyed by id.

    Raises:
        DataError: an id occurs twice; names the set (``where``) and the id.
    """
    counts = Counter(utterance.id for utterance in utterances)
    if len(counts) < len(utterances):
        name, times = counts.most_common(1)[0]
        raise DataError(f"{where}: id {name!r} occurs {times} times; ids must differ")
