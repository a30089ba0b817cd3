"""What ``import tarq`` offers: plan, quantize, save, load, transcribe, iter_transcripts, evaluate, pool."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer, FeatureExtractionMixin, PreTrainedModel

from tarq import distributed
from tarq.checkpoint import load as loading
from tarq.checkpoint import save as saving
from tarq.checkpoint.compressed_tensors import quantization_config
from tarq.checkpoint.source import first_line, located
from tarq.config import TarqConfig
from tarq.data.audio import Audio, Encoded
from tarq.data.corpora.registry import load_utterances
from tarq.data.hub import is_dataset
from tarq.data.intake import Intake
from tarq.data.pools import read_ids
from tarq.data.sampling import first_usable, sample_utterances
from tarq.data.speech import DrawnPool, Speech, draw
from tarq.data.utterance import Utterance
from tarq.errors import DataError, ModelError, TarqError
from tarq.linear import slow_layers, use_int8_activations
from tarq.method.arms import Arms
from tarq.method.metrics import Metric
from tarq.method.residuals import Residual
from tarq.method.solvers import Solver
from tarq.models.base import Recognizer
from tarq.models.features import check_settings
from tarq.models.registry import adapt, family_of, model_class
from tarq.models.types import Batch
from tarq.models.wrappers import unwrapped
from tarq.planning import Plan, make_plan, shapes_only
from tarq.report import FILE_NAME, Report, Reporter, peak_memory
from tarq.scoring.run import Evaluation, by_language, evaluate_models
from tarq.speech.calibration import calibration_set
from tarq.speech.transcription import transcribe_files
from tarq.version import __version__
from tarq.walk.plan import check_fits, check_weights
from tarq.walk.plan import plan as plan_layers
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
    language: str | None = None,
    int8_activations: bool = False,
    offload: bool = False,
) -> Recognizer:
    """A model with its tokenizer and feature extractor, or with its processor where its prompts need one.

    Args:
        source: folder or hub id, full precision or packed.
        dtype: of the computation; see :func:`load`.
        device: where the model goes.
        language: of the speech; when not given, what the checkpoint itself names, or English.
        int8_activations: round the inputs of layers of at most 4 bits to 8 bits, group by group: faster on a CPU, less
            exact.
        offload: leave the model in RAM, in the dtype it has on ``device``; for :func:`quantize` with ``offload``.

    Raises:
        ModelError: parts are missing, the family is not supported, or no layer can round its inputs.
        CheckpointError: the checkpoint is damaged.
    """
    if offload and dtype is None:
        dtype = loading.computing_dtype(source, device)
    recognizer = as_recognizer(source, language=language, dtype=dtype, device="cpu" if offload else device)
    if int8_activations and not (rounding := use_int8_activations(recognizer.model)):
        raise ModelError(f"{source}: int8_activations can do nothing here: {rounding.told()}")
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
        language: of the speech; when not given, a recognizer keeps the one it has, and others begin with what
            the checkpoint itself names, or English.
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
            loaded = unwrapped(model)
            source, stored_dtype = loaded.config._name_or_path, loaded.dtype
        recognizer = _with_parts(loaded, source, stored_dtype, tokenizer, feature_extractor, processor)
    if language is not None:
        own = recognizer.own_language()
        if language == "en" and own not in (None, "en"):  # the default everywhere, so perhaps nobody asked for it
            raise ModelError(
                f"the model's generation_config.json says that it transcribes {own!r}, not 'en': pass language={own!r} "
                f"(--language {own}), or take forced_decoder_ids and language out of that file"
            )
        recognizer.language = language
    return recognizer


def _with_parts(
    loaded: PreTrainedModel,
    source: str | Path,
    stored_dtype: torch.dtype,
    tokenizer: Any,
    feature_extractor: Any,
    processor: Any,
    weights: bool = True,
) -> Recognizer:
    """A model with the parts its family needs, those given or those that lie beside it."""
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
        return adapt(loaded, tokenizer, feature_extractor, stored_dtype, processor, weights=weights)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{source}: the model's files do not fit together ({type(error).__name__}: {first_line(error)}); "
            "take config.json, generation_config.json and the tokenizer from the original model"
        ) from error


def _part(source: str | Path, name: str, given: Any, auto: Any) -> Any:
    """The tokenizer, feature extractor or processor given, or the one that lies beside the model."""
    if given is not None:
        return given
    try:
        folder = located(source)
        if auto is not AutoTokenizer:
            check_settings(FeatureExtractionMixin.get_feature_extractor_dict(folder)[0], source)
        return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except TarqError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, TypeError … for a missing file
        reason = first_line(error)
        raise ModelError(f"{source}: no usable {name} there ({reason}); pass {name}=… or add its files") from error


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
    # Whatever shapes and weights forbid is told before any audio is read.
    check_fits(plan_layers(recognizer, config))
    check_weights(recognizer, config)
    batches: list[Batch] = []
    summary: dict[str, Any] = {}
    if calibration is not None and arms.reads_audio:
        with torch.no_grad():
            corpora = dict(calibration) if isinstance(calibration, Mapping) else {"speech": calibration}
            intake = next((d.intake for d in corpora.values() if isinstance(d, Speech)), Intake(config.max_bad))
            speech = {label: _utterances(data, intake) for label, data in corpora.items()}
            batches, summary, left_out = calibration_set(recognizer, speech, config, reporter, intake)
        names = {label: _name(d) for label, d in corpora.items()}
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
    audio: Sequence[Audio],
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
        audio: files, by their paths or in memory (``tarq.data.audio.Encoded``).
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
    audio: Sequence[Audio],
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
    recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor, language=language)
    reporter = reporter or Reporter()
    reporter.phase("transcribing", len(audio))
    files = [a if isinstance(a, Encoded) else Path(a) for a in audio]
    yield from transcribe_files(recognizer, files, batch_size, reporter)


@distributed.raise_everywhere()
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
    found = {
        label: (intakes or {}).get(label) or getattr(d, "intake", None) or Intake(config.max_bad)
        for label, d in data.items()
    }
    sets, calibrated = {}, {}
    for label, d in data.items():
        utterances = _utterances(d, found[label])
        calibrated[label] = list(_calibrated_on(recognizers, utterances))
        reporter.phase(f"reading {label}")
        # Every file is looked at before any work is done, so that a broken one does not end it in the middle.
        if samples is not None:
            sets[label] = sample_utterances(utterances, samples, config.seed, intake=found[label])
        else:
            sets[label] = first_usable(utterances, max(len(utterances), 1), intake=found[label])
    parts = {label: by_language(label, utterances, config.language) for label, utterances in sets.items()}
    names = Counter(name for spoken in parts.values() for name in spoken)
    if twice := [name for name, times in names.items() if times > 1]:
        raise DataError(f"{twice[0]} names a set and a language's part of another: give sets other labels")
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
            result.sets[name] = replace(
                scores,
                bad=dict(intake.bad),
                left_out=dict(intake.left_out),
                notes=calibrated[label] + intake.notes() + scores.notes,
            )
    return result


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
    config = config or TarqConfig()
    named = dict(corpora) if isinstance(corpora, Mapping) else {"speech": corpora}
    intake = next((d.intake for d in named.values() if isinstance(d, Speech)), Intake(config.max_bad))
    speech = {
        label: d if isinstance(d, Speech) else Speech(_utterances(d, intake), _name(d), intake)
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
        recognizer = _with_parts(shapes, model, shapes.dtype, tokenizer, feature_extractor, processor, weights=False)
    else:
        recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor)
    return make_plan(recognizer, config or TarqConfig(), device)


def check_calibration(calibration: Data | Mapping[str, Data] | None, config: TarqConfig) -> None:
    """See that what a run is calibrated on, and by, is there: before a model is loaded.

    Raises:
        DataError: a file of ids or of word frequencies is not usable, or a language has no frequencies.
        ModelError: there is no calibration speech for a method that needs some.
    """
    if calibration is None or (not isinstance(calibration, str | Path) and len(calibration) == 0):
        raise ModelError(f"{config.method} needs calibration speech: pass a manifest or another corpus (--calibration)")
    config.frequencies()
    if config.ids is not None:
        read_ids(Path(config.ids))


def _calibrated_on(models: Mapping[str, Recognizer], utterances: Sequence[Utterance]) -> Iterator[str]:
    """Models whose calibration shares audio with a set, which flatters them."""
    for name, recognizer in models.items():
        folder = Path(str(recognizer.model.config._name_or_path))
        if not (folder / FILE_NAME).is_file():
            continue
        used = set(Report.read(folder).calibration.get("origins", ()))
        if seen := sum(u.origin in used for u in utterances):
            yield f"{name} was calibrated on {seen} of its {len(utterances)} utterances"


def _name(data: Data) -> str:
    """What a report calls speech: its corpus's name, where it has one."""
    return str(data) if isinstance(data, str | Path) else getattr(data, "source", "utterances")


def _utterances(data: Data, intake: Intake) -> Sequence[Utterance]:
    return load_utterances(data, intake) if isinstance(data, str | Path) or is_dataset(data) else data
