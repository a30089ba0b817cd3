"""The demonstration: one model, three methods, one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tarq import api
from tarq.config import PRESETS, TarqConfig
from tarq.data.utterance import Utterance
from tarq.report import Reporter
from tarq.scoring.run import Evaluation


@dataclass(frozen=True)
class Size:
    """How many utterances a demonstration takes."""

    samples: int  # calibrated on
    scored: int
    batch_size: int


WHOLE, QUICK = Size(samples=64, scored=200, batch_size=64), Size(samples=16, scored=40, batch_size=64)
#: For a model of one's own, of any size.
OWN = Size(samples=24, scored=24, batch_size=4)
BITS = (4, 3)
#: Calibration utterances at once, at most: what a few of them come to within a block stays in the caches.
CALIBRATION_BATCH = 8


def scoring_dtype(device: str | torch.device) -> torch.dtype | None:
    """bfloat16 on a CPU that multiplies it natively (half of the time); otherwise what :func:`tarq.load` chooses."""
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if torch.device(device).type == "cpu" and native() else None


def demonstrate(
    model: str,
    calibration: Sequence[Utterance],
    data: Mapping[str, Sequence[Utterance]],
    config: TarqConfig,
    reporter: Reporter,
    *,
    bits: Sequence[int] = BITS,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Evaluation, dict[str, int]]:
    """Quantize a model with RTN, GPTQ and TARQ, save, load again, score all.

    Args:
        model: full-precision model, folder or hub id.
        calibration: utterances to calibrate on.
        data: label to other utterances, with transcripts, to score on.
        config: samples, batch size (:data:`CALIBRATION_BATCH` at most in calibration), seed and group size are read
            from it.
        reporter: hears of progress.
        bits: widths, each with all three methods.
        device: where the models run.
        dtype: of the scored models' computation, :func:`scoring_dtype`'s choice when not given; calibration
            computes as :func:`tarq.load` chooses.

    Returns:
        The scores, and the bytes of each model's Linear weights.

    Raises:
        TarqError: the model or the data are not usable.
    """
    dtype = dtype or scoring_dtype(device)
    where: dict[str, Any] = {"device": device, "language": config.language}
    models = {"full precision": api.load_recognizer(model, dtype=dtype, **where)}
    calibrating = replace(config, batch_size=min(config.batch_size, CALIBRATION_BATCH))
    with TemporaryDirectory(prefix="tarq-demo-") as folder:
        for width in bits:
            for method in ("rtn", "gptq", "tarq"):
                recognizer = api.load_recognizer(model, **where)
                chosen = replace(calibrating, bits=width, **PRESETS[method])
                report = api.quantize(recognizer, calibration, chosen, reporter=reporter)
                name = f"{method.upper()} W{width}"
                out = Path(folder) / name
                api.save(recognizer, out, report)
                models[name] = api.load_recognizer(out, dtype=dtype, **where)
        scores = api.evaluate(models, data, reference="full precision", config=config, reporter=reporter)
    sizes = {name: recognizer.linear_bytes() for name, recognizer in models.items()}
    return scores, sizes
