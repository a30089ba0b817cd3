"""A whole run of quantization, and its plan: from a model and speech to the quantized model's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tarq import distributed
from tarq.arguments import Device, checked_arguments
from tarq.checkpoint.compressed_tensors import quantization_config
from tarq.checkpoint.unfinished import Part, UnfinishedRun
from tarq.config import TarqConfig, given_config
from tarq.data.pools import read_ids
from tarq.data.speech import Data, Speech, speech_by_label
from tarq.errors import CalibrationError, ConfigError, ModelError
from tarq.files import expanded
from tarq.method.allocation import Sensitivity
from tarq.method.arms import Arms
from tarq.method.metrics import Metric
from tarq.method.residuals import Residual
from tarq.method.solvers import Solver
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.recognizers import as_recognizer, shapes_of
from tarq.report import Report, Reporter, peak_memory, versions
from tarq.speech.calibration import calibration_set, with_transcripts
from tarq.torch_defaults import torch_defaults
from tarq.walk.counted import CountedBatches
from tarq.walk.estimate import Plan, make_plan, too_few
from tarq.walk.identity import identity
from tarq.walk.plan import check_fits, check_weights
from tarq.walk.plan import plan as plan_layers
from tarq.walk.reparametrize import reparametrize
from tarq.walk.run import quantize_model
from tarq.walk.sensitivity import measure, settle_bits


@checked_arguments("model", "calibration", "config")
@distributed.raise_everywhere()
@torch_defaults()
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
    sensitivities: Sequence[Sensitivity] | None = None,
    offload: Device | None = None,
    resume: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Quantize the Linear layers of a speech model's blocks, in place.

    Where ``torch.distributed`` is initialised, every process must make the same call: each takes a share of the work,
    and all end with the same model.

    Args:
        model: a transformers model (or a :class:`Recognizer`, which brings its own tokenizer).
        calibration: transcribed speech: the path or name of a corpus, utterances, or a mapping from label to either for
            several corpora. None for a method that needs the weights alone (``rtn``).
        config: of the run; the method ``refined`` at W4G128 by default.
        tokenizer: by default the one where the model was loaded from.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        metric: how positions are weighted (:class:`tarq.method.metrics.Metric`); replaces the configuration's.
        residual: the target of the codes (:class:`tarq.method.residuals.Residual`); replaces the configuration's.
        solver: how codes are chosen (:class:`tarq.method.solvers.Solver`); replaces the configuration's.
        sensitivities: what each width of each layer does, to spend ``config.target_bits`` by
            (:class:`tarq.method.allocation.Sensitivity`); measured on the calibration speech by default.
        offload: device that blocks are moved to, one at a time, to be quantized, while the model and its hidden states
            stay where the model is; None to quantize there.
        resume: a folder that keeps each block once it is finished. If the run is stopped, the same call goes on from
            there, with the same result to the bit. It stays until the checkpoint is written: give it to :func:`save`.
        reporter: receives progress.

    Returns:
        The report: configuration, versions, calibration, one record per layer, and everything degraded.

    Raises:
        TarqError: a ModelError, DataError or CalibrationError; the model is then only partly quantized and
            should be loaded again. A ResumeError: what is in ``resume`` is of another run, or damaged. An OutputError:
            it cannot be written.
    """
    config = given_config(config)
    reporter = reporter or Reporter()
    if isinstance(model, str | Path):
        raise ModelError(
            f"{model} is a name, and quantizing changes a model in place: give tarq.load_recognizer({model!r})"
        )
    arms = Arms.of(config.to_dict(), metric, residual, solver)
    check_protect(config, arms)
    if resume is not None:
        _check_resumable(arms, metric=metric, residual=residual, solver=solver)
    measured = config.target_bits is not None and sensitivities is None
    if sensitivities is not None and config.target_bits is None:
        raise ConfigError("sensitivities are for target_bits: set it")
    if arms.reads_audio or measured:
        check_calibration(calibration, config)
    recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor, language=config.language)
    if recognizer.is_quantized:
        name = recognizer.model.config._name_or_path or type(recognizer.model).__name__
        raise ModelError(f"{name}: the model is quantized already: load the full-precision one")
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
    planned = plan_layers(recognizer, config)
    check_fits(planned)
    check_weights(recognizer, config)
    batches: list[Batch] = []
    summary: dict[str, Any] = {}
    if calibration is not None and (arms.reads_audio or measured or arms.reparametrized):
        with torch.no_grad():
            speech = speech_by_label(calibration, config.max_bad)
            check_enough(speech, config, arms)
            intake = next(iter(speech.values())).intake
            batches, summary, left_out = calibration_set(recognizer, speech, config, reporter, intake)
        names = {label: corpus.source for label, corpus in speech.items()}
        summary["source"] = names if isinstance(calibration, Mapping) else names["speech"]
        notes += left_out
        counted = CountedBatches(batches, config.max_positions, arms.residual.folds, config.seed).summary()
        for kind, count in counted.items():
            summary["positions"][kind]["counted"] = count
            notes.append(f"{kind}: statistics over {count:,} positions, max_positions being {config.max_positions:,}")
    for kind, given in (("metric", metric), ("residual", residual), ("solver", solver)):
        if given is not None:
            notes.append(f"{kind} given by the caller in place of the configuration's: {type(given).__name__}")
    if arms.reparametrized and not batches:
        notes.append("not reparametrized: it is tested on calibration speech, and none is given")
    for note in notes:
        reporter.note(note)
    outside = recognizer.left_out()
    before = recognizer.linear_bytes()
    run = UnfinishedRun(reporter)
    with ExitStack() as stack:
        if resume is not None:
            reporter.phase("hashing the inputs")
            made = identity(recognizer, batches, config, device, sensitivities)
            blocks = sum(len(stage.blocks) for stage in recognizer.stages())
            stack.enter_context(run.kept_in(expanded(resume), made, blocks))
        changed: dict[str, str] = {}
        if arms.reparametrized and batches:
            layers_to_quantize = [layer.name for layer in planned if layer.group_size is not None]
            changed = reparametrize(
                recognizer, batches[0], arms.reparametrized, layers_to_quantize, reporter, device, run
            )
        settled = config
        if config.target_bits is not None:
            table = sensitivities
            if table is None:
                table = _measured(run, recognizer, batches, config, reporter, device)
            settled, note = settle_bits(recognizer, table, config)
            notes.append(note)
            reporter.note(note)
        layers = quantize_model(recognizer, batches, settled, reporter, arms, device, changed, run)
    for note in (slow := recognizer.slow_layers()):
        reporter.note(note)
    recognizer.model.config.quantization_config = quantization_config(recognizer.model)
    peaks = distributed.all_gather([peak_memory(device)])
    return Report(
        model=str(recognizer.model.config._name_or_path),
        config=config.to_dict(),
        versions=versions(),
        calibration=summary,
        layers=layers,
        left_out=outside,
        sizes={"linear_bytes_before": before, "linear_bytes_after": recognizer.linear_bytes()},
        seconds=round(run.seconds(), 2),
        memory={name: max(peak[name] for peak in peaks) for name in peaks[0]},
        processes=distributed.world_size(),
        notes=notes + slow,
    )


def _check_resumable(arms: Arms, **given: object) -> None:
    """Check that it can be seen whether a later run is the same, and that files can hold what the solver makes.

    Raises:
        ConfigError: it cannot, or they cannot.
    """
    for kind in (kind for kind, arm in given.items() if arm is not None):
        raise ConfigError(
            f"resume: the {kind} is given as an object, of which a later run cannot see whether it is the same: name "
            "one in the configuration, or leave resume out"
        )
    if not arms.storable:
        raise ConfigError(
            f"resume: the solver {type(arms.solver).__name__} makes more than codes and scales, which no file holds: "
            "leave resume out"
        )


def _measured(
    run: UnfinishedRun,
    recognizer: Recognizer,
    batches: Sequence[Batch],
    config: TarqConfig,
    reporter: Reporter,
    device: torch.device,
) -> list[Sensitivity]:
    """What each width of each layer does, measured now or by an earlier run."""

    def part() -> Part:
        return Part({}, {"rows": [asdict(row) for row in measure(recognizer, batches, config, reporter, device)]})

    return [
        Sensitivity(tuple(row["names"]), row["weights"], {int(bits): d for bits, d in row["damage"].items()})
        for row in run.once("sensitivities", part).record["rows"]
    ]


@checked_arguments("model", "config", "calibration")
def plan(
    model: PreTrainedModel | Recognizer | str | Path,
    config: TarqConfig | None = None,
    *,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    processor: Any = None,
    device: Device = "cpu",
    calibration: Data | Mapping[str, Data] | None = None,
) -> Plan:
    """What :func:`quantize` will do to a model: each layer's group size or why it is left, sizes, time, memory.

    Only shapes are used: for a folder or a hub id no weights are loaded, and no audio is read. Time and memory are for
    the utterances asked for, or for all of the calibration speech where that has fewer.

    Args:
        model: a transformers model, a recognizer, a folder or a hub id.
        config: of the run; the method ``refined`` at W4G128 by default.
        tokenizer: by default the one where the model comes from.
        feature_extractor: likewise.
        processor: likewise; see :func:`as_recognizer`.
        device: the device to estimate speed and memory for.
        calibration: as :func:`quantize` takes it; only its transcripts are counted.

    Raises:
        ModelError: there is no usable model, it is quantized already, or a name to ignore matches no layer.
        DataError: the calibration speech is not usable.
    """
    config = given_config(config)
    check_protect(config, config.arms())
    available = None if calibration is None else _available(calibration, config)
    if isinstance(model, str | Path):
        recognizer = shapes_of(model, tokenizer, feature_extractor, processor)
    else:
        recognizer = as_recognizer(model, tokenizer, feature_extractor, processor=processor)
    return make_plan(recognizer, config, device, available)


def _available(calibration: Data | Mapping[str, Data], config: TarqConfig) -> int:
    """How many utterances a run has to draw from; their length is not looked at."""
    usable = with_transcripts(speech_by_label(calibration, config.max_bad), config.transcripts)
    return len(read_ids(expanded(config.ids))) if config.ids is not None else sum(map(len, usable.values()))


def check_calibration(calibration: Data | Mapping[str, Data] | None, config: TarqConfig) -> None:
    """Check that a run's calibration speech and word lists are usable, before a model is loaded.

    Raises:
        DataError: a file of ids, of word frequencies or of words to protect is not usable, or a language has no
            frequencies.
        ModelError: a method needs calibration speech and there is none.
        CalibrationError: of loaded speech there is less than the residual needs.
    """
    if calibration is None or (
        isinstance(calibration, Sized) and not isinstance(calibration, str) and not len(calibration)
    ):
        raise ModelError(f"{config.method} needs calibration speech: pass a manifest or another corpus (--calibration)")
    config.frequencies()
    config.protected()
    if config.ids is not None:
        read_ids(expanded(config.ids))
    if isinstance(calibration, Mapping) and all(isinstance(speech, Speech) for speech in calibration.values()):
        check_enough(calibration, config, config.arms())


def check_protect(config: TarqConfig, arms: Arms) -> None:
    """Check that words to protect make a difference to a run.

    Raises:
        ConfigError: nothing in it asks which positions are in the tail.
    """
    if config.protect is None or arms.reads_tail or config.target_bits is not None:
        return
    raise ConfigError(
        f"protect (--protect) has no effect here: the method weighs all positions alike (metric {config.metric}, "
        f"solver {config.solver}); choose a metric that weighs the tail, such as rarebal (--metric rarebal), or leave "
        "it out. evaluate scores the same words by themselves either way"
    )


def check_enough(speech: Mapping[str, Data], config: TarqConfig, arms: Arms) -> None:
    """Check that each fold of the residual gets an utterance, before any audio is read.

    Raises:
        CalibrationError: there are fewer utterances than folds.
    """
    there = _available(speech, config)
    if reason := too_few(arms, there if config.ids is not None else min(there, config.samples)):
        raise CalibrationError(reason)
