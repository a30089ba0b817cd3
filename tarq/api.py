"""What ``import tarq`` offers: plan, quantize, save, load, transcribe, iter_transcripts, evaluate, pool."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tarq import distributed
from tarq.checkpoint import save as saving
from tarq.checkpoint.compressed_tensors import quantization_config
from tarq.config import TarqConfig, given_config
from tarq.data.audio import Audio, Encoded
from tarq.data.intake import Intake
from tarq.data.pools import read_ids
from tarq.data.speech import Data, DrawnPool, Speech, draw, name_of, utterances_of
from tarq.errors import ConfigError, DataError, ModelError
from tarq.evaluation import evaluate
from tarq.linear import slow_layers
from tarq.method.arms import Arms
from tarq.method.metrics import Metric
from tarq.method.residuals import Residual
from tarq.method.solvers import Solver
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.planning import Plan, make_plan, shapes_only
from tarq.recognizers import as_recognizer, load, load_recognizer, with_parts
from tarq.report import Report, Reporter, peak_memory
from tarq.speech.calibration import calibration_set
from tarq.speech.transcription import transcribe_files
from tarq.surroundings import plain_torch
from tarq.version import __version__
from tarq.walk.plan import check_fits, check_weights
from tarq.walk.plan import plan as plan_layers
from tarq.walk.walk import quantize_model

__all__ = [
    "as_recognizer",
    "check_calibration",
    "evaluate",
    "iter_transcripts",
    "load",
    "load_recognizer",
    "plan",
    "pool",
    "quantize",
    "save",
    "transcribe",
]


@distributed.raise_everywhere()
@plain_torch()
def quantize(
    model: PreTrainedModel | Recognizer,
    calibration: Data | Mapping[str, Data] | None,
    config: TarqConfig | None = None,
    *,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    processor: Any = None,
    metric: Metric | None = None,
    residual: Residual | None = None,
    solver: Solver | None = None,
    offload: str | torch.device | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Quantize the Linear layers of a speech model's blocks, in place.

    Where ``torch.distributed`` is initialised, every process calls this alike: each takes a share of the work and all
    end with the same model.

    Args:
        model: a transformers model (or a :class:`Recognizer`, which brings its own tokenizer).
        calibration: transcribed speech: a corpus by its name, utterances, or label to such for several corpora.
            None for a method that looks at the weights alone (``rtn``).
        config: what to do; TARQ at W4G128 by default.
        tokenizer: found where the model was loaded from when not given.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        metric: takes the place of the one the configuration names: a weight for every position, say
            (:class:`tarq.method.metrics.Metric`).
        residual: likewise: where the codes aim (:class:`tarq.method.residuals.Residual`).
        solver: likewise: how the codes are chosen (:class:`tarq.method.solvers.Solver`).
        offload: device that blocks go to one at a time to be quantized, while the model and its hidden states stay
            where the model is; None to quantize there.
        reporter: hears of progress.

    Returns:
        The report: configuration, versions, calibration, one record per layer, everything degraded.

    Raises:
        TarqError: a ModelError, DataError or CalibrationError; the model is then only partly quantized and
            should be loaded again.
    """
    config = given_config(config)
    reporter = reporter or Reporter()
    if isinstance(model, str | Path):
        raise ModelError(
            f"{model} is a name, and quantizing changes a model in place: give tarq.load_recognizer({model!r})"
        )
    for kind, given in (("metric", metric), ("residual", residual), ("solver", solver)):
        if isinstance(given, str | type):
            raise ConfigError(f"{kind} is {given!r}: give an object of your own, or name one in TarqConfig({kind}=…)")
    arms = Arms.of(config.to_dict(), metric, residual, solver)
    if arms.reads_audio:
        check_calibration(calibration, config)
    recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor, language=config.language)
    if recognizer.is_quantized:
        raise ModelError("the model is quantized already: load the full-precision one")
    recognizer.model.eval()
    notes: list[str] = []
    device = recognizer.device if offload is None else torch.device(offload)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    notes += recognizer.check()
    if device.type == "cpu" and recognizer.dtype == torch.float16:
        recognizer.model.float()
        notes.append("computed in float32: float16 is slow and overflows on a CPU")
    if recognizer.dtype == torch.float64:
        recognizer.model.float()
        notes.append("computed in float32: a checkpoint stores no float64")
    config = config.with_scale_dtype(recognizer.stored_dtype)
    # Whatever shapes and weights forbid is told before any audio is read.
    check_fits(plan_layers(recognizer, config))
    check_weights(recognizer, config)
    batches: list[Batch] = []
    summary: dict[str, Any] = {}
    if calibration is not None and arms.reads_audio:
        with torch.no_grad():
            corpora = dict(calibration) if isinstance(calibration, Mapping) else {"speech": calibration}
            intake = next((d.intake for d in corpora.values() if isinstance(d, Speech)), Intake(config.max_bad))
            speech = {label: utterances_of(data, intake) for label, data in corpora.items()}
            batches, summary, left_out = calibration_set(recognizer, speech, config, reporter, intake)
        names = {label: name_of(d) for label, d in corpora.items()}
        summary["source"] = names if isinstance(calibration, Mapping) else names["speech"]
        notes += left_out
    for kind, given in (("metric", metric), ("residual", residual), ("solver", solver)):
        if given is not None:
            notes.append(f"{kind} given by the caller in place of the configuration's: {type(given).__name__}")
    for note in notes:
        reporter.note(note)
    outside = recognizer.left_out()
    before = recognizer.linear_bytes()
    began = time.monotonic()
    layers = quantize_model(recognizer, batches, config, reporter, arms, device)
    for note in (slow := slow_layers(recognizer.model)):
        reporter.note(note)
    recognizer.model.config.quantization_config = quantization_config(recognizer.model)
    peaks = distributed.all_gather([peak_memory(device)])
    return Report(
        model=str(recognizer.model.config._name_or_path),
        config=config.to_dict(),
        versions={"tarq": __version__} | {p: version(p) for p in ("torch", "transformers", "numpy", "wordfreq")},
        calibration=summary,
        layers=layers,
        left_out=outside,
        sizes={"linear_bytes_before": before, "linear_bytes_after": recognizer.linear_bytes()},
        seconds=round(time.monotonic() - began, 2),
        memory={name: max(peak[name] for peak in peaks) for name in peaks[0]},
        processes=distributed.world(),
        notes=notes + slow,
    )


def save(
    model: PreTrainedModel | Recognizer,
    path: str | Path,
    report: Report | None = None,
    *,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    processor: Any = None,
    overwrite: bool = False,
) -> None:
    """Write a compressed-tensors ``pack-quantized`` checkpoint, with the report beside it.

    Of several processes, which must all call this, the first writes.

    Args:
        model: quantized, or a :class:`Recognizer` around it.
        path: folder to write; it appears only when it is complete.
        report: of the quantization.
        tokenizer: saved along; found where the model was loaded from when not given.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        overwrite: replace an existing checkpoint; a folder that holds anything else is left alone.

    Raises:
        CheckpointError: the folder may not be written, the model holds numbers that are not finite, or writing
            failed; nothing is left behind.
        ModelError: the tokenizer or feature extractor is not found.
    """
    # Without tokenizer and feature extractor nobody could transcribe with what is written.
    if not isinstance(model, Recognizer):
        model = as_recognizer(model, tokenizer, feature_extractor, processor=processor)
    with distributed.raise_everywhere():
        if distributed.rank() == 0:
            saving.save(
                model.model, path, parts=model.parts, tokenizer=model.tokenizer, report=report, overwrite=overwrite
            )


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
    """Greedy transcripts of audio files of any length, format and rate.

    Args:
        model: a transformers model, a recognizer, a folder or a hub id.
        audio: files, by their paths or in memory (``tarq.data.audio.Encoded``); one alone will do.
        tokenizer: found where the model was loaded from when not given.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        language: of the speech; likewise.
        batch_size: windows a forward pass takes at once.
        reporter: hears of progress.

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


def iter_transcripts(
    model: PreTrainedModel | Recognizer | str | Path,
    audio: Iterable[Audio],
    *,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    processor: Any = None,
    language: str | None = None,
    batch_size: int = 4,
    reporter: Reporter | None = None,
) -> Iterator[tuple[Path | Encoded, str | DataError]]:
    """:func:`transcribe` file by file: each with its transcript as it is done, or with why it cannot be read.

    Args:
        model: see :func:`transcribe`, like all others.
        audio: files.
        tokenizer: found where the model was loaded from when not given.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        language: of the speech; likewise.
        batch_size: windows a forward pass takes at once.
        reporter: hears of progress.

    Raises:
        ModelError: the model is not usable.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size!r}: give a whole number of at least 1")
    files = _files(audio)
    recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor, language=language)
    reporter = reporter or Reporter()
    reporter.phase("transcribing", len(files))
    yield from transcribe_files(recognizer, files, batch_size, reporter)


def _files(audio: Iterable[Audio]) -> list[Path | Encoded]:
    """Files by path or in memory, of one or of several."""
    given = [audio] if isinstance(audio, str | Path | Encoded) else list(audio)
    for one in given:
        if not isinstance(one, str | Path | Encoded):
            raise DataError(
                f"audio holds {type(one).__name__}: give paths, or tarq.data.audio.Encoded(NAME, BYTES) of a file in "
                "memory; write samples to a WAV file first (soundfile.write)"
            )
    return [one if isinstance(one, Encoded) else Path(one) for one in given]


def pool(
    corpora: Data | Mapping[str, Data],
    config: TarqConfig | None = None,
    *,
    max_duration: float | None = 30.0,
    reporter: Reporter | None = None,
) -> DrawnPool:
    """Draw a calibration pool and count its rare words; its ``utterances`` are calibration for :func:`quantize`.

    Args:
        corpora: transcribed speech: a corpus by its name, utterances, or label to such for several corpora.
        config: ``pool``, ``ids``, ``samples``, ``seed``, ``max_bad`` and what says which words are rare are read
            from it.
        max_duration: longer utterances are left out (seconds); None takes any.
        reporter: hears of progress.

    Raises:
        DataError: a corpus is not usable, or the kind of pool does not go with the number of corpora.
    """
    config = given_config(config)
    named = dict(corpora) if isinstance(corpora, Mapping) else {"speech": corpora}
    intake = next((d.intake for d in named.values() if isinstance(d, Speech)), Intake(config.max_bad))
    speech = {
        label: d if isinstance(d, Speech) else Speech(utterances_of(d, intake), name_of(d), intake)
        for label, d in named.items()
    }
    return draw(speech, config, max_duration=max_duration, reporter=reporter)


def plan(
    model: PreTrainedModel | Recognizer | str | Path,
    config: TarqConfig | None = None,
    *,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    processor: Any = None,
    device: str | torch.device = "cpu",
) -> Plan:
    """What :func:`quantize` will do to a model: each layer's group size or why it is left, sizes, time, memory.

    Only shapes are looked at: of a folder or a hub id no weights are loaded, and no audio is read.

    Args:
        model: a transformers model, a recognizer, a folder or a hub id.
        config: of the run; TARQ at W4G128 by default.
        tokenizer: found where the model comes from when not given.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        device: whose speed and memory the estimate is for.

    Raises:
        ModelError: there is no usable model, it is quantized already, or a name to ignore matches no layer.
    """
    if isinstance(model, str | Path):
        shapes = shapes_only(model)
        recognizer = with_parts(shapes, model, shapes.dtype, tokenizer, feature_extractor, processor, weights=False)
    else:
        recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor)
    return make_plan(recognizer, given_config(config), device)


def check_calibration(calibration: Data | Mapping[str, Data] | None, config: TarqConfig) -> None:
    """See that what a run is calibrated on, and by, is there: before a model is loaded.

    Raises:
        DataError: a file of ids or of word frequencies is not usable, or a language has no frequencies.
        ModelError: there is no calibration speech for a method that needs some.
    """
    if calibration is None or (
        isinstance(calibration, Sized) and not isinstance(calibration, str) and not len(calibration)
    ):
        raise ModelError(f"{config.method} needs calibration speech: pass a manifest or another corpus (--calibration)")
    config.frequencies()
    if config.ids is not None:
        read_ids(Path(config.ids))
