"""Waveforms of any length to segments: as windows or as a whole, several at once, each as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from tarq import distributed
from tarq.models.base import Recognizer
from tarq.models.types import Segment
from tarq.speech.settings import Transcription
from tarq.speech.windows import windows
from tarq.torch_defaults import torch_defaults


@dataclass(frozen=True)
class _Row:
    """What a model hears at once: a whole recording, or a window of it.

    Attributes:
        place: its own index.
        file: index of the recording.
        waveform: [samples].
        start: seconds in the recording.
        last: whether nothing of the recording follows.
        language: of the speech; None for the recognizer's.
    """

    place: int
    file: int
    waveform: NDArray[np.float32]
    start: float
    last: bool
    language: str | None


@dataclass(frozen=True)
class Step:
    """What is newly known of a recording.

    Attributes:
        row: index of what the model hears at once.
        file: index of the recording.
        segments: in seconds of the recording, their texts with the space before them.
        until: seconds that are transcribed.
        done: whether this is all of the row.
        last: whether this is all of the recording.
    """

    row: int
    file: int
    segments: list[Segment]
    until: float
    done: bool
    last: bool


def decoded(
    recognizer: Recognizer,
    waveforms: Sequence[NDArray[np.float32]],
    config: Transcription,
    languages: Sequence[str | None],
) -> Iterator[Step]:
    """Transcribe waveforms; the steps of each are in order, and so are the waveforms.

    Where ``torch.distributed`` is initialised, every process must make the same call; each decodes a share.

    Args:
        waveforms: mono, at the recognizer's sampling rate, of any length.
        config: how; its language is not read.
        languages: of each; None for the recognizer's.

    Raises:
        ModelError: the model computes NaN or infinity, or a language is not the model's.
    """
    size = int(recognizer.window * recognizer.sampling_rate)
    own_times = config.timed and not recognizer.why_not("timestamps")
    whole = own_times if config.long_form is None else config.long_form == "sequential"
    rows: list[_Row] = []
    for file, (waveform, language) in enumerate(zip(waveforms, languages, strict=True)):
        pieces = [waveform] if whole else windows(waveform, size, recognizer.sampling_rate)
        first = 0
        for piece in pieces:
            start, first = first / recognizer.sampling_rate, first + len(piece)
            rows.append(_Row(len(rows), file, piece, start, first == len(waveform), language))
    batches = [
        alike[first : first + config.batch_size]
        for alike in (list(rows) for _, rows in groupby(rows, key=lambda row: row.language))
        for first in range(0, len(alike), config.batch_size)
    ]
    if distributed.world_size() == 1:
        steps = (step for batch in batches for step in _heard(recognizer, batch, config))
    else:
        own = [list(_heard(recognizer, batch, config)) for batch in distributed.shard(batches)]
        steps = (step for batch in distributed.all_gather(own) for step in batch)
    return _in_order(steps)


def _heard(recognizer: Recognizer, batch: Sequence[_Row], config: Transcription) -> Iterator[Step]:
    """The steps of rows of one language, in turn."""
    waveforms, rate = [row.waveform for row in batch], recognizer.sampling_rate
    ends = [row.start + len(row.waveform) / rate for row in batch]
    begun = [False] * len(batch)

    def of_row(i: int, segments: Sequence[Segment], done: bool) -> Step:
        placed = [_placed(segment, batch[i].start) for segment in segments]
        if placed and not begun[i]:  # windows are joined by a space; a model knows its own spaces only within one
            placed[0], begun[i] = replace(placed[0], text=f" {placed[0].text.lstrip()}"), True
        until = ends[i] if done else max((segment.end for segment in placed), default=batch[i].start)
        return Step(batch[i].place, batch[i].file, placed, until, done, done and batch[i].last)

    if not config.timed:
        with torch.no_grad(), torch_defaults():
            texts = recognizer.transcribe(waveforms, batch[0].language)
        for i, text in enumerate(texts):
            yield of_row(i, [Segment(0.0, ends[i] - batch[i].start, text)], done=True)
        return
    timed = recognizer.timed(waveforms, batch[0].language, config.words)
    open_rows = set(range(len(batch)))
    while open_rows:
        with torch.no_grad(), torch_defaults():
            found: list[list[Segment]] = next(timed, [[] for _ in batch])
        for i in sorted(open_rows):
            if not found[i]:
                open_rows.remove(i)
            yield of_row(i, found[i], done=not found[i])


def _placed(segment: Segment, start: float) -> Segment:
    words = segment.words and tuple(word.moved(start) for word in segment.words)
    return Segment(segment.start + start, segment.end + start, segment.text, words)


def _in_order(steps: Iterable[Step]) -> Iterator[Step]:
    """Steps of rows one after the other: those of a later one wait until all before it are done."""
    waiting: dict[int, list[Step]] = {}
    at = 0
    for step in steps:
        waiting.setdefault(step.row, []).append(step)
        while known := waiting.pop(at, None):
            yield from known
            if not known[-1].done:
                break
            at += 1
