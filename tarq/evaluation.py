"""Scoring models of any kind on transcribed sets: both are loaded and checked, then scored language by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tarq import distributed
from tarq.config import TarqConfig
from tarq.data.intake import Intake
from tarq.data.sampling import first_usable, sample_utterances
from tarq.data.speech import Data, utterances_of
from tarq.data.utterance import Utterance
from tarq.errors import DataError, ModelError
from tarq.models.base import Recognizer
from tarq.recognizers import as_recognizer
from tarq.report import FILE_NAME, Report, Reporter
from tarq.scoring.run import Evaluation, by_language, evaluate_models


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

    Utterances that state a ``language`` are prompted and scored in it; a set in several becomes one set per language.
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
    config = config or TarqConfig()
    if reference is not None and reference not in models:
        raise ModelError(f"reference {reference!r} is none of the models {', '.join(models)}")
    recognizers = {
        label: as_recognizer(m, language=config.language, dtype=dtype, device=device) for label, m in models.items()
    }
    config.frequencies()  # fails now, not after the work is done
    reporter = reporter or Reporter()
    found = {
        label: (intakes or {}).get(label) or getattr(d, "intake", None) or Intake(config.max_bad)
        for label, d in data.items()
    }
    sets, calibrated = {}, {}
    for label, d in data.items():
        utterances = utterances_of(d, found[label])
        calibrated[label] = list(_calibrated_on(recognizers, utterances))
        reporter.phase(f"reading {label}")
        # Every file is checked before any work is done, so that a broken one does not end the run midway.
        if samples is not None:
            sets[label] = sample_utterances(utterances, samples, config.seed, intake=found[label])
        else:
            sets[label] = first_usable(utterances, max(len(utterances), 1), intake=found[label])
    parts = {label: by_language(label, utterances, config.language) for label, utterances in sets.items()}
    names = Counter(name for spoken in parts.values() for name in spoken)
    if twice := [name for name, times in names.items() if times > 1]:
        raise DataError(f"{twice[0]} is the label of one set and of a language of another: use other labels")
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


def _calibrated_on(models: Mapping[str, Recognizer], utterances: Sequence[Utterance]) -> Iterator[str]:
    """Notes about models calibrated on audio of the set, whose scores are then too good."""
    for name, recognizer in models.items():
        folder = Path(str(recognizer.model.config._name_or_path))
        if not (folder / FILE_NAME).is_file():
            continue
        used = set(Report.read(folder).calibration.get("origins", ()))
        if seen := sum(u.origin in used for u in utterances):
            yield f"{name} was calibrated on {seen} of its {len(utterances)} utterances"
