"""What ``import tarq`` offers: quantize, save, load, transcribe, evaluate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer, PreTrainedModel

from tarq import distributed
from tarq.checkpoint import load as loading
from tarq.checkpoint import save as saving
from tarq.checkpoint.compressed_tensors import quantization_config
from tarq.checkpoint.source import first_line, located
from tarq.config import TarqConfig
from tarq.data.audio import read_audio
from tarq.data.corpora.registry import first_usable, load_utterances, sample_utterances
from tarq.data.intake import Intake
from tarq.data.utterance import Utterance
from tarq.errors import ModelError, TarqError
from tarq.linear import use_int8_activations
from tarq.method.metrics import Metric
from tarq.models.base import Recognizer
from tarq.models.registry import adapt, family_of, model_class
from tarq.models.types import Batch
from tarq.report import Report, Reporter, peak_memory
from tarq.scoring.run import Evaluation, by_language, evaluate_models
from tarq.speech.calibration import calibration_set
from tarq.speech.transcription import transcribe_waveforms
from tarq.version import __version__
from tarq.walk.walk import quantize_model

#: Speech: a corpus by its name (``tarq.data.corpora.registry.load_utterances``), or its utterances.
Data = str | Path | Sequence[Utterance]


def load(
    source: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """A model from a folder or the hub, ready to run; a tarq checkpoint's weights stay packed.

    Args:
        source: folder or hub id of a full-precision or a compressed-tensors ``pack-quantized`` checkpoint.
        dtype: of the computation; float32 on a CPU, elsewhere the stored dtype, when not given.
        device: where the model goes.

    Raises:
        ModelError: there is no usable model.
        CheckpointError: the checkpoint is damaged or of another format.
    """
    return loading.load_model(source, model_class, dtype=dtype, device=device)[0]


def load_recognizer(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    language: str = "en",
    int8_activations: bool = False,
    offload: bool = False,
) -> Recognizer:
    """A model with its tokenizer and feature extractor, or with its processor where its prompts need one.

    Args:
        source: folder or hub id, full precision or packed.
        dtype: of the computation; see :func:`load`.
        device: where the model goes.
        language: of the speech.
        int8_activations: round the inputs of layers of at most 4 bits to 8 bits, group by group: faster on a CPU, less
            exact.
        offload: leave the model in RAM, in the dtype it has on ``device``; for :func:`quantize` with ``offload``.

    Raises:
        ModelError: parts are missing, the family is not supported, or there is no layer to round inputs of.
        CheckpointError: the checkpoint is damaged.
    """
    if offload and dtype is None:
        dtype = loading.computing_dtype(source, device)
    recognizer = as_recognizer(source, language=language, dtype=dtype, device="cpu" if offload else device)
    if int8_activations and use_int8_activations(recognizer.model) == 0:
        raise ModelError(f"{source}: no layers of 4 bits or fewer, whose inputs int8_activations rounds; leave it off")
    return recognizer


def as_recognizer(
    model: PreTrainedModel | Recognizer | str | Path,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    *,
    processor: Any = None,
    language: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Recognizer:
    """Whatever stands for a model, behind the interface of its family, set to a language.

    Args:
        model: a recognizer, a transformers model, a folder or a hub id.
        tokenizer: found where the model comes from when not given.
        feature_extractor: likewise.
        processor: likewise; only audio-language models need one, and it holds the other two.
        language: of the speech; when not given, a recognizer keeps the one it has, and others begin with English.
        dtype: of the computation, of a model that is loaded here.
        device: of a model that is loaded here.

    Raises:
        ModelError: parts are missing or the family is not supported.
        CheckpointError: the checkpoint is damaged.
    """
    if isinstance(model, Recognizer):
        recognizer = model
    else:
        if isinstance(model, str | Path):
            source: str | Path = model
            loaded, stored_dtype = loading.load_model(source, model_class, dtype=dtype, device=device)
        else:
            source, loaded, stored_dtype = model.config._name_or_path, model, model.dtype
        family = family_of(loaded.config.model_type, type(loaded).__name__)
        if family.needs_processor:
            family.check_installed()
            processor = _part(source, "processor", processor, AutoProcessor)
            tokenizer, feature_extractor = processor.tokenizer, processor.feature_extractor
        else:
            tokenizer = _part(source, "tokenizer", tokenizer, AutoTokenizer)
            feature_extractor = _part(source, "feature_extractor", feature_extractor, AutoFeatureExtractor)
            processor = None
        try:
            recognizer = adapt(loaded, tokenizer, feature_extractor, stored_dtype, processor)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ModelError(
                f"{source}: the model's files do not fit together ({type(error).__name__}: {first_line(error)}); "
                "take config.json, generation_config.json and the tokenizer from the original model"
            ) from error
    if language is not None:
        recognizer.language = language
    return recognizer


def _part(source: str | Path, name: str, given: Any, auto: Any) -> Any:
    """The tokenizer, feature extractor or processor given, or the one that lies beside the model."""
    if given is not None:
        return given
    try:
        return auto.from_pretrained(located(source), trust_remote_code=False, local_files_only=True)
    except TarqError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, TypeError … for a missing file
        reason = first_line(error)
        raise ModelError(f"{source}: no usable {name} there ({reason}); pass {name}=… or add its files") from error


@distributed.together()
def quantize(
    model: PreTrainedModel | Recognizer,
    calibration: Data | Mapping[str, Data] | None,
    config: TarqConfig | None = None,
    *,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    processor: Any = None,
    metric: Metric | None = None,
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
        metric: takes the place of the one the configuration names: a weight for every position, say.
        offload: device that blocks go to one at a time to be quantized, while the model and its hidden states stay
            where the model is; None to quantize there.
        reporter: hears of progress.

    Returns:
        The report: configuration, versions, calibration, one record per layer, everything degraded.

    Raises:
        TarqError: a ModelError, DataError or CalibrationError; the model is then only partly quantized and
            should be loaded again.
    """
    config = config or TarqConfig()
    reporter = reporter or Reporter()
    recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor, language=config.language)
    if recognizer.is_quantized:
        raise ModelError("the model is quantized already: load the full-precision one")
    recognizer.model.eval()
    notes: list[str] = []
    device = recognizer.device if offload is None else torch.device(offload)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if device.type == "cpu" and recognizer.dtype == torch.float16:
        recognizer.model.float()
        notes.append("computed in float32: float16 is slow and overflows on a CPU")
    config = config.with_scale_dtype(recognizer.stored_dtype)
    batches: list[Batch] = []
    summary: dict[str, Any] = {}
    if config.needs_statistics:
        if calibration is None:
            raise ModelError(f"{config.method} needs calibration speech: pass a manifest or another corpus")
        with torch.no_grad():
            intake = Intake(config.max_bad)
            corpora = dict(calibration) if isinstance(calibration, Mapping) else {"speech": calibration}
            speech = {label: _utterances(data, intake) for label, data in corpora.items()}
            batches, summary, left_out = calibration_set(recognizer, speech, config, reporter, intake)
        names = {label: str(d) if isinstance(d, str | Path) else "utterances" for label, d in corpora.items()}
        summary["source"] = names if isinstance(calibration, Mapping) else names["speech"]
        notes += left_out
    if metric is not None:
        notes.append(f"metric given by the caller in place of the configuration's: {type(metric).__name__}")
    for note in notes:
        reporter.note(note)
    outside = recognizer.left_out()
    before = recognizer.linear_bytes()
    began = time.monotonic()
    layers = quantize_model(recognizer, batches, config, reporter, metric, device)
    recognizer.model.config.quantization_config = quantization_config(recognizer.model)
    peaks = distributed.gathered([peak_memory(device)])
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
        notes=notes,
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
    with distributed.together():
        if distributed.rank() == 0:
            saving.save(
                model.model, path, parts=model.parts, tokenizer=model.tokenizer, report=report, overwrite=overwrite
            )


def transcribe(
    model: PreTrainedModel | Recognizer | str | Path,
    audio: Sequence[str | Path],
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
        audio: files.
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
    recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor, language=language)
    waveforms = [read_audio(Path(a), recognizer.sampling_rate) for a in audio]
    reporter = reporter or Reporter()
    reporter.phase("transcribing", len(waveforms))
    return transcribe_waveforms(recognizer, waveforms, batch_size, reporter)


@distributed.together()
def evaluate(
    models: Mapping[str, PreTrainedModel | Recognizer | str | Path],
    data: Mapping[str, Data],
    *,
    intakes: Mapping[str, Intake] | None = None,
    reference: str | None = None,
    config: TarqConfig | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    samples: int | None = None,
    resamples: int = 10_000,
    decode: bool = True,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Score models on transcribed sets: word error rates, teacher-forced divergence, paired intervals.

    Utterances that state a ``language`` are prompted and scored in it; a set in several becomes one set a language.
    Where ``torch.distributed`` is initialised, every process calls this alike, and each runs a share of the batches.

    Args:
        models: label to model: a transformers model, a recognizer, a folder or a hub id.
        data: label to a corpus's name or to utterances.
        intakes: label to what has been left out while utterances were loaded; it goes on counting.
        reference: label of the full-precision model damage is measured against.
        config: normaliser, threshold, language, batch size and seed are read from it.
        device: where models that are loaded here go.
        dtype: their computation.
        samples: score a random sample of each set, drawn by the configuration's seed.
        resamples: of the bootstrap.
        decode: False for the teacher-forced figures only.
        reporter: hears of progress.

    Raises:
        TarqError: a model or a set is not usable.
    """
    config = config or TarqConfig()
    if reference is not None and reference not in models:
        raise ModelError(f"reference {reference!r} is none of the models {', '.join(models)}")
    recognizers = {
        label: as_recognizer(m, language=config.language, dtype=dtype, device=device) for label, m in models.items()
    }
    config.frequencies()  # refused now, not after the work is done
    reporter = reporter or Reporter()
    found = {label: (intakes or {}).get(label) or Intake(config.max_bad) for label in data}
    sets = {}
    for label, d in data.items():
        utterances = _utterances(d, found[label])
        reporter.phase(f"reading {label}")
        # Every file is looked at before any work is done, so that a broken one does not end it in the middle.
        if samples is not None:
            sets[label] = sample_utterances(utterances, samples, config.seed, intake=found[label])
        else:
            sets[label] = first_usable(utterances, max(len(utterances), 1), intake=found[label])
    parts = {label: by_language(label, utterances, config.language) for label, utterances in sets.items()}
    result = evaluate_models(
        recognizers,
        {name: some for spoken in parts.values() for name, some in spoken.items()},
        reference=reference,
        config=config,
        reporter=reporter,
        resamples=resamples,
        decode=decode,
    )
    for label, intake in found.items():
        for name in parts[label]:
            scores = result.sets[name]
            scores.bad, scores.left_out = dict(intake.bad), dict(intake.left_out)
            scores.notes = intake.notes() + scores.notes
    return result


def _utterances(data: Data, intake: Intake) -> Sequence[Utterance]:
    return load_utterances(data, intake) if isinstance(data, str | Path) else data
