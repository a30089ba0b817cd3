"""What ``import tarq`` offers: plan, quantize, save, load, transcribe, iter_transcripts, evaluate, pool."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tarq import distributed
from tarq.checkpoint import save as saving
from tarq.checkpoint.compressed_tensors import quantization_config
from tarq.config import TarqConfig
from tarq.data.audio import Audio, Encoded
from tarq.data.intake import Intake
from tarq.data.pools import read_ids
from tarq.data.speech import Data, DrawnPool, Speech, draw, name_of, utterances_of
from tarq.errors import DataError, ModelError
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

    Where ``torch.distributed`` is initialised, every process must make the same call: each takes a share of the work,
    and all end with the same model.

    Args:
        model: a transformers model (or a :class:`Recognizer`, which brings its own tokenizer).
        calibration: transcribed speech: the path or name of a corpus, utterances, or a mapping from label to either for
            several corpora. None for a method that needs the weights alone (``rtn``).
        config: of the run; TARQ at W4G128 by default.
        tokenizer: by default the one where the model was loaded from.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        metric: how positions are weighted (:class:`tarq.method.metrics.Metric`); replaces the configuration's.
        residual: the target of the codes (:class:`tarq.method.residuals.Residual`); replaces the configuration's.
        solver: how codes are chosen (:class:`tarq.method.solvers.Solver`); replaces the configuration's.
        offload: device that blocks are moved to, one at a time, to be quantized, while the model and its hidden states
            stay where the model is; None to quantize there.
        reporter: receives progress.

    Returns:
        The report: configuration, versions, calibration, one record per layer, and everything degraded.

    Raises:
        TarqError: a ModelError, DataError or CalibrationError; the model is then only partly quantized and
            should be loaded again.
    """
    config = config or TarqConfig()
    reporter = reporter or Reporter()
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
    # Raise what shapes and weights forbid before any audio is read.
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

    With several processes, all must call this; the first one writes.

    Args:
        model: the quantized model, or a :class:`Recognizer` around it.
        path: folder to write; it appears only when it is complete.
        report: of the quantization.
        tokenizer: saved along; by default the one where the model was loaded from.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        overwrite: replace an existing checkpoint; a folder that holds anything else is left alone.

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
            saving.save(
                model.model, path, parts=model.parts, tokenizer=model.tokenizer, report=report, overwrite=overwrite
            )


def transcribe(
    model: PreTrainedModel | Recognizer | str | Path,
    audio: Sequence[Audio],
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
        audio: files, by their paths or in memory (``tarq.data.audio.Encoded``).
        tokenizer: by default the one where the model was loaded from.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        language: of the speech; likewise.
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


def iter_transcripts(
    model: PreTrainedModel | Recognizer | str | Path,
    audio: Sequence[Audio],
    *,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    processor: Any = None,
    language: str | None = None,
    batch_size: int = 4,
    reporter: Reporter | None = None,
) -> Iterator[tuple[Path | Encoded, str | DataError]]:
    """:func:`transcribe` file by file: yields each file with its transcript, or with the error if it cannot be read.

    Args:
        model: a transformers model, a recognizer, a folder or a hub id.
        audio: files, by their paths or in memory (``tarq.data.audio.Encoded``).
        tokenizer: by default the one where the model was loaded from.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        language: of the speech; likewise.
        batch_size: windows per forward pass.
        reporter: receives progress.

    Raises:
        ModelError: the model is not usable.
    """
    recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor, language=language)
    reporter = reporter or Reporter()
    reporter.phase("transcribing", len(audio))
    files = [a if isinstance(a, Encoded) else Path(a) for a in audio]
    yield from transcribe_files(recognizer, files, batch_size, reporter)


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
    config = config or TarqConfig()
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

    Only shapes are used: for a folder or a hub id no weights are loaded, and no audio is read.

    Args:
        model: a transformers model, a recognizer, a folder or a hub id.
        config: of the run; TARQ at W4G128 by default.
        tokenizer: by default the one where the model comes from.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        device: the device to estimate speed and memory for.

    Raises:
        ModelError: there is no usable model, it is quantized already, or a name to ignore matches no layer.
    """
    if isinstance(model, str | Path):
        shapes = shapes_only(model)
        recognizer = with_parts(shapes, model, shapes.dtype, tokenizer, feature_extractor, processor, weights=False)
    else:
        recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor)
    return make_plan(recognizer, config or TarqConfig(), device)


def check_calibration(calibration: Data | Mapping[str, Data] | None, config: TarqConfig) -> None:
    """Check that a run's calibration speech and word lists are usable, before a model is loaded.

    Raises:
        DataError: a file of ids or of word frequencies is not usable, or a language has no frequencies.
        ModelError: a method needs calibration speech and there is none.
    """
    if calibration is None or (not isinstance(calibration, str | Path) and len(calibration) == 0):
        raise ModelError(f"{config.method} needs calibration speech: pass a manifest or another corpus (--calibration)")
    config.frequencies()
    if config.ids is not None:
        read_ids(Path(config.ids))
