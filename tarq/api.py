"""What ``import tarq`` offers: plan, quantize, save, load, transcribe, iter_transcripts, evaluate, pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tarq import distributed
from tarq.arguments import Device, checked_arguments
from tarq.checkpoint.folder import check_place, check_writable
from tarq.checkpoint.save import save as save_checkpoint
from tarq.checkpoint.source import expand_home
from tarq.checkpoint.unfinished import discard
from tarq.config import Pool, TarqConfig, given_config
from tarq.data.audio import Audio, Encoded
from tarq.data.intake import Intake
from tarq.data.speech import Data, DrawnPool, draw, speech_by_label
from tarq.errors import ConfigError, DataError, ModelError
from tarq.files import expanded
from tarq.models.base import Recognizer
from tarq.models.types import Segment
from tarq.quantization import check_calibration, check_protect, plan, quantize
from tarq.recognizers import as_recognizer, load, load_recognizer
from tarq.report import Report, Reporter
from tarq.scoring.run import Evaluation, evaluate_models
from tarq.scoring.sets import read_sets
from tarq.speech.settings import AUTO, Transcription
from tarq.speech.transcript import Transcript
from tarq.speech.transcription import audio_files, timed_files, transcribe_files
from tarq.torch_defaults import torch_defaults
from tarq.words.settings import Words

__all__ = [
    "as_recognizer",
    "check_calibration",
    "check_output",
    "check_protect",
    "evaluate",
    "iter_transcripts",
    "load",
    "load_recognizer",
    "plan",
    "pool",
    "quantize",
    "save",
    "timed_transcripts",
    "transcribe",
]


@checked_arguments("model")
def save(
    model: PreTrainedModel | Recognizer,
    path: str | Path,
    report: Report | None = None,
    *,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    processor: Any = None,
    overwrite: bool = False,
    resume: str | Path | None = None,
) -> None:
    """Write a compressed-tensors ``pack-quantized`` checkpoint, with the report beside it.

    With several processes, all must call this; the first one writes.

    Args:
        model: the quantized model, or a :class:`Recognizer` around it.
        path: folder to write; it appears only when it is complete.
        report: of the quantization.
        tokenizer: saved along; by default the one where the model was loaded from.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        overwrite: replace an existing checkpoint; a folder that holds anything else is left alone.
        resume: the folder that :func:`quantize` kept finished blocks in; it is removed once the checkpoint is written.

    Raises:
        CheckpointError: the folder may not be written, the model holds numbers that are not finite, or writing
            failed; nothing is left behind.
        ModelError: the tokenizer or feature extractor was not found.
    """
    # Without tokenizer and feature extractor the checkpoint could not transcribe.
    if not isinstance(model, Recognizer):
        model = as_recognizer(model, tokenizer, feature_extractor, processor=processor)
    with distributed.raise_everywhere():
        if distributed.rank() == 0:
            save_checkpoint(
                model.model,
                expanded(path),
                parts=model.parts,
                tokenizer=model.tokenizer,
                report=report,
                overwrite=overwrite,
            )
            if resume is not None:
                discard(expanded(resume))


@checked_arguments("model", "audio", "batch_size")
def transcribe(
    model: PreTrainedModel | Recognizer | str | Path,
    audio: Iterable[Audio],
    *,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    processor: Any = None,
    language: str | None = None,
    batch_size: int = 4,
    reporter: Reporter | None = None,
) -> list[str]:
    """Greedy transcripts of audio files of any length, format and sampling rate.

    Args:
        model: a transformers model, a recognizer, a folder or a hub id.
        audio: files, by their paths or in memory (``tarq.data.audio.Encoded``); one alone will do.
        tokenizer: found where the model was loaded from when not given.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        language: of the speech, ``"auto"`` to detect it (multilingual Whisper); likewise.
        batch_size: windows per forward pass.
        reporter: receives progress.

    Returns:
        One transcript per file, in the order given.

    Raises:
        DataError: a file cannot be read.
        ModelError: the model is not usable.
    """
    texts = []
    parts = {"tokenizer": tokenizer, "feature_extractor": feature_extractor, "processor": processor}
    for _, text in iter_transcripts(model, audio, **parts, language=language, batch_size=batch_size, reporter=reporter):
        if isinstance(text, DataError):
            raise text
        texts.append(text)
    return texts


@checked_arguments("model", "audio", "batch_size")
def iter_transcripts(
    model: PreTrainedModel | Recognizer | str | Path,
    audio: Iterable[Audio],
    *,
    language: str | None = None,
    batch_size: int = 4,
    on_segment: Callable[[Path | Encoded, Segment], None] | None = None,
    reporter: Reporter | None = None,
    **parts: Any,
) -> Iterator[tuple[Path | Encoded, str | DataError]]:
    """:func:`transcribe` file by file: yields each file with its transcript, or with the error if it cannot be read.

    Args:
        model, audio, language, batch_size, reporter: see :func:`transcribe`.
        on_segment: is called with the file and the text of each window as soon as it is known, in order.
        parts: ``tokenizer``, ``feature_extractor``, ``processor``; likewise.

    Raises:
        ModelError: the model is not usable.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size!r}: give a whole number of at least 1")
    files = audio_files(audio)
    recognizer = as_recognizer(model, **parts, language=None if language == AUTO else language)
    detected = AUTO if language == AUTO else None
    yield from transcribe_files(recognizer, files, batch_size, reporter or Reporter(), detected, on_segment)


@checked_arguments("model", "audio")
def timed_transcripts(
    model: PreTrainedModel | Recognizer | str | Path,
    audio: Iterable[Audio],
    *,
    language: str | None = None,
    words: bool = False,
    times: bool = True,
    long_form: str | None = None,
    vad: bool = False,
    batch_size: int = 4,
    on_segment: Callable[[Path | Encoded, Segment], None] | None = None,
    reporter: Reporter | None = None,
    **parts: Any,
) -> Iterator[tuple[Path | Encoded, Transcript | DataError]]:
    """Transcribe file by file with times: yields each file with its transcript, or with why it cannot be read.

    Whisper writes timestamps, by which its segments are made; a segment of another model is a window of its audio.

    Args:
        model, audio: see :func:`transcribe`.
        language: of the speech; ``"auto"`` detects it for each file (multilingual Whisper).
        times: False if windows will do as segments, which is faster: Whisper then writes no timestamps.
        words: with the times of words: Whisper by cross-attention, CTC models by their best path.
        long_form: how audio longer than the model's window is transcribed: ``"windows"`` cuts it at quiet places and
            decodes several at once; ``"sequential"`` goes by Whisper's timestamps, as transformers' ``generate`` does,
            and is the default where the model writes timestamps.
        vad: leave out what is not speech, found by Silero VAD (the package ``silero-vad``).
        batch_size: windows decoded at once, and files read ahead.
        on_segment: is called with the file and each segment as soon as it is known, in order; its text keeps the space
            that separates it from the one before.
        reporter: receives progress.
        parts: ``tokenizer``, ``feature_extractor``, ``processor``; see :func:`transcribe`.

    Yields:
        each file and its transcript: text, segments with start and end in seconds, and the language.

    Raises:
        ConfigError: an argument has a value that is not allowed, or the voice detector is not installed.
        ModelError: the model is not usable, or cannot do what is asked.
    """
    how: dict[str, Any] = {"times": times, "words": words, "long_form": long_form, "vad": vad}
    config = Transcription(language=language, batch_size=batch_size, **how)
    files = audio_files(audio)
    recognizer = as_recognizer(model, **parts, language=None if language == AUTO else language)
    yield from timed_files(recognizer, files, config, reporter or Reporter(), on_segment)


@checked_arguments("models", "data", "config")
@distributed.raise_everywhere()
@torch_defaults()
def evaluate(
    models: Mapping[str, PreTrainedModel | Recognizer | str | Path],
    data: Mapping[str, Data],
    *,
    intakes: Mapping[str, Intake] | None = None,
    reference: str | None = None,
    config: TarqConfig | None = None,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    samples: int | None = None,
    resamples: int = 10_000,
    decode: bool = True,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Score models on transcribed sets: word error rates, teacher-forced divergence, paired intervals.

    Utterances that state a ``language`` are prompted and scored in it; a set in several becomes one set per language.
    All audio is checked before anything is scored. It is decoded once, while it fits into 1 GB
    (:data:`tarq.data.cached.LIMIT`: 4.3 hours at 16 kHz); what does not is decoded again.
    Where ``torch.distributed`` is initialised, every process must make the same call; each runs a share of the batches.

    Args:
        models: label to model: a transformers model, a recognizer, a folder or a hub id.
        data: label to a corpus's name or to utterances.
        intakes: label to the record of what was left out while utterances were loaded; it keeps counting.
        reference: label of the full-precision model to measure damage against.
        config: normaliser, threshold, language, batch size and seed are read from it.
        device: of models that are loaded here.
        dtype: computation dtype of models that are loaded here.
        samples: score a random sample of each set, drawn by the configuration's seed.
        resamples: number of bootstrap resamples.
        decode: False for the teacher-forced figures only.
        reporter: receives progress.

    Raises:
        TarqError: a model or a set is not usable.
    """
    config = given_config(config)
    for kind, named in (("models", models), ("data", data)):
        if not isinstance(named, Mapping) or not all(isinstance(label, str) for label in named):
            raise ConfigError(f"{kind} must be a mapping from label to one: {kind}={{'NAME': …}}")
    if not models:
        raise ModelError("no models to score: give at least one")
    if not data:
        raise DataError("no speech to score models on: give at least one set")
    if reference is not None and reference not in models:
        raise ModelError(f"reference {reference!r} is none of the models {', '.join(models)}")
    for kind, count in (("samples", samples), ("resamples", resamples)):
        if count is not None and count < 1:
            raise ConfigError(f"{kind} is {count}: give a whole number of at least 1")
    recognizers = {
        label: as_recognizer(m, language=config.language, dtype=dtype, device=device) for label, m in models.items()
    }
    config.frequencies()  # fails now, not after the work is done
    reporter = reporter or Reporter()
    sets = read_sets(
        data, recognizers, config.language, config.part(Pool), reporter, intakes=intakes or {}, samples=samples
    )
    return evaluate_models(
        recognizers,
        sets,
        reference=reference,
        words=config.part(Words),
        batch_size=config.batch_size,
        reporter=reporter,
        seed=config.seed,
        resamples=resamples,
        decode=decode,
    )


@checked_arguments("corpora", "config")
def pool(
    corpora: Data | Mapping[str, Data],
    config: TarqConfig | None = None,
    *,
    max_duration: float | None = 30.0,
    reporter: Reporter | None = None,
) -> DrawnPool:
    """Draw a calibration pool and count its rare words; pass its ``utterances`` to :func:`quantize`.

    Args:
        corpora: transcribed speech: the path or name of a corpus, utterances, or a mapping from label to either for
            several corpora.
        config: ``pool``, ``ids``, ``samples``, ``seed``, ``max_bad`` and the fields that define rare words are read
            from it.
        max_duration: longer utterances are left out (seconds); None takes any.
        reporter: receives progress.

    Raises:
        DataError: a corpus is not usable, or the kind of pool does not fit the number of corpora.
    """
    config = given_config(config)
    speech = speech_by_label(corpora, config.max_bad)
    return draw(speech, config.part(Pool), config.part(Words), max_duration=max_duration, reporter=reporter)


def check_output(path: str | Path, model: str | Path, *, overwrite: bool = False) -> None:
    """Check that :func:`save` will be able to write a checkpoint: before a model is loaded.

    Args:
        path: folder to write.
        model: the full-precision model, whose folder is left alone.
        overwrite: replace an existing checkpoint.

    Raises:
        CheckpointError: the folder may not be written.
        OutputError: it cannot be made.
    """
    check_writable(expanded(path), overwrite, expand_home(model))
    check_place(expanded(path))
