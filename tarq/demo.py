"""The demonstration: one model, three methods, one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from . import api
from .config import PRESETS, TarqConfig
from .data.utterance import Utterance
from .report import Reporter
from .scoring.evaluate import Evaluation


def demonstrate(
    model: str,
    calibration: Sequence[Utterance],
    scored: Sequence[Utterance],
    config: TarqConfig,
    reporter: Reporter,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Evaluation, dict[str, int]]:
    """Quantize a model with RTN, GPTQ and TARQ, save, load again, score all four.

    Args:
        model: full-precision model, folder or hub id.
        calibration: utterances to calibrate on.
        scored: other utterances, with transcripts.
        config: samples, batch size, seed, bits and group size are read from it.
        reporter: hears of progress.
        device: where the models run.
        dtype: of their computation.

    Returns:
        The scores, and the bytes of each model's Linear weights.

    Raises:
        TarqError: the model or the data are not usable.
    """
    where: dict[str, Any] = {"device": device, "dtype": dtype, "language": config.language}
    models = {"full precision": api.load_recognizer(model, **where)}
    with TemporaryDirectory(prefix="tarq-demo-") as folder:
        for method in ("rtn", "gptq", "tarq"):
            recognizer = api.load_recognizer(model, **where)
            report = api.quantize(recognizer, calibration, replace(config, **PRESETS[method]), reporter=reporter)
            out = Path(folder) / method
            api.save(recognizer, out, report)
            models[method] = api.load_recognizer(out, **where)
        scores = api.evaluate(models, {"demo": scored}, reference="full precision", config=config, reporter=reporter)
    sizes = {name: recognizer.linear_bytes() for name, recognizer in models.items()}
    return scores, sizes
