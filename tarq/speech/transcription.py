"""Transcribing audio files of any length, one after the other, each segment as soon as it is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tarq.data.audio import Audio, Encoded, read_audio
from tarq.errors import DataError, ModelError
from tarq.models.base import Ability, Recognizer
from tarq.models.types import Segment
from tarq.report import Reporter
from tarq.speech.decoding import decoded
from tarq.speech.settings import AUTO, Transcription
from tarq.speech.transcript import Transcript, transcript_of, within
from tarq.speech.voice import Speech, VoiceDetector
from tarq.torch_defaults import torch_defaults

File = Path | Encoded
#: How an address begins; one letter would be a drive.
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+")


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
    found: list[list[Segment]] = [[] for _ in waveforms]
    for step in decoded(recognizer, waveforms, Transcription(batch_size=batch_size), [language] * len(waveforms)):
        found[step.file] += step.segments
        if step.last:
            reporter.advance()
    return [transcript_of(segments, None).text for segments in found]


def transcribe_files(
    recognizer: Recognizer,
    paths: Sequence[File],
    batch_size: int,
    reporter: Reporter,
    language: str | None = None,
    on_segment: Callable[[File, Segment], None] | None = None,
) -> Iterator[tuple[File, str | DataError]]:
    """:func:`timed_files` without times: yields each file with its text, or with why it cannot be read."""
    config = Transcription(language=language, batch_size=batch_size)
    for path, result in timed_files(recognizer, paths, config, reporter, on_segment):
        yield path, result.text if isinstance(result, Transcript) else result


def timed_files(
    recognizer: Recognizer,
    paths: Sequence[File],
    config: Transcription,
    reporter: Reporter,
    on_segment: Callable[[File, Segment], None] | None = None,
) -> Iterator[tuple[File, Transcript | DataError]]:
    """Yield each file with its transcript, or with the error if it cannot be read, in order, as they are done.

    Args:
        paths: audio of any length, format and sampling rate.
        config: how.
        reporter: receives each file; of a single one, each second.
        on_segment: receives each segment as soon as it is known, in the order of files and times; its text keeps the
            space that separates it from the one before.

    Raises:
        ConfigError: the voice detector is not installed.
        ModelError: the model computes NaN or infinity, the language is not the model's, or it cannot do what is asked.
    """
    for note in check_abilities(recognizer, config):
        reporter.note(note)
    detector = VoiceDetector() if config.vad else None
    alone = len(paths) == 1
    if not alone:
        reporter.phase("transcribing", len(paths))
    for first in range(0, len(paths), config.batch_size):
        group = [_read(path, recognizer, reporter, detector) for path in paths[first : first + config.batch_size]]
        spoken = [one for one in group if len(one.waveform)]
        _choose_languages(recognizer, group, config.language, reporter)
        if alone and spoken:
            reporter.phase(f"transcribing {paths[0].name}", round(spoken[0].seconds))
        steps = decoded(recognizer, [one.waveform for one in spoken], config, [one.language for one in spoken])
        for recording in group:
            segments: list[Segment] = []
            done = 0
            for step in steps if len(recording.waveform) else ():
                for segment in map(recording.placed, step.segments):
                    segments.append(segment)
                    if on_segment is not None and segment.text.strip():
                        on_segment(recording.file, segment)
                if alone:
                    reporter.advance(round(step.until) - done)
                    done = round(step.until)
                if step.last:
                    break
            if not alone or recording.error:
                reporter.advance()
            yield recording.file, recording.error or transcript_of(segments, recording.language)


@dataclass
class _Recording:
    """A file as it was read.

    Attributes:
        file: where it lies.
        waveform: [samples] of the speech in it; none if it could not be read, or if nobody speaks.
        seconds: the length of the whole file.
        speech: where the waveform lies in the file, if silence was left out.
        language: of the speech; None for a model that is told none.
        error: why it could not be read.
    """

    file: File
    waveform: NDArray[np.float32]
    seconds: float = 0.0
    speech: Speech | None = None
    language: str | None = None
    error: DataError | None = None

    def placed(self, segment: Segment) -> Segment:
        """A segment of the waveform at its time in the file, and not beyond the file's end."""
        return within(segment if self.speech is None else self.speech.in_recording(segment), self.seconds)


def _read(file: File, recognizer: Recognizer, reporter: Reporter, detector: VoiceDetector | None) -> _Recording:
    notes: list[str] = []
    try:
        waveform = read_audio(file, recognizer.sampling_rate, notes=notes)
    except DataError as error:
        return _Recording(file, np.empty(0, dtype=np.float32), error=error)
    finally:
        for note in notes:
            reporter.note(f"{file.name}: {note}")
    speech = detector.speech(waveform, recognizer.sampling_rate) if detector else None
    seconds = len(waveform) / recognizer.sampling_rate
    return _Recording(file, waveform if speech is None else speech.waveform, seconds, speech)


def _choose_languages(
    recognizer: Recognizer, recordings: Sequence[_Recording], language: str | None, reporter: Reporter
) -> None:
    """Set the language of each recording: the one asked for, a detected one, or the recognizer's."""
    told = None if recognizer.frames_only else recognizer.language
    for recording in recordings:
        recording.language = (language or told) if language != AUTO else None
        if language == AUTO and len(recording.waveform):
            with torch.no_grad(), torch_defaults():
                (recording.language,) = recognizer.detect_language([recording.waveform])
            reporter.note(f"{recording.file.name}: language {recording.language}, detected")


def check_abilities(recognizer: Recognizer, config: Transcription) -> list[str]:
    """Check that a model can do what is asked, before any audio is read.

    Returns:
        notes on what is less exact.

    Raises:
        ModelError: it cannot; names the option and what to do.
    """
    wanted: list[tuple[bool, Ability, str]] = [
        (config.words, "words", "leave words (--words) out"),
        (config.long_form == "sequential", "timestamps", "take long_form windows (--long-form windows)"),
        (config.language == AUTO, "language", "name the language (--language CODE), or leave it out"),
    ]
    for asked, ability, mend in wanted:
        if asked and (reason := recognizer.why_not(ability)):
            raise ModelError(f"{reason}: {mend}")
    notes = []
    if config.timed and (reason := recognizer.why_not("timestamps")):
        notes.append(f"{reason}: each segment is a window of at most {recognizer.window:g} s")
    if config.words and recognizer.word_times_note:
        notes.append(recognizer.word_times_note)
    return notes


def audio_files(audio: Iterable[Audio]) -> list[File]:
    """Files by path or in memory, of one or of several.

    Raises:
        DataError: one is neither.
    """
    given = [audio] if isinstance(audio, str | Path | Encoded) or not isinstance(audio, Iterable) else list(audio)
    for one in given:
        if not isinstance(one, str | Path | Encoded):
            raise DataError(
                f"audio holds {type(one).__name__}: give paths, or tarq.data.audio.Encoded(NAME, BYTES) of a file in "
                "memory; write samples to a WAV file first (soundfile.write)"
            )
        if not isinstance(one, Encoded) and ADDRESS.match(str(one)):
            raise DataError(f"{one} is an address, and nothing is downloaded here: fetch it first and give the file")
    return [one if isinstance(one, Encoded) else Path(one) for one in given]
