"""tarq: tail-aware 4-bit quantization for speech recognizers.

``tarq.quantize(model, calibration)``, ``tarq.save``, ``tarq.load``, ``tarq.transcribe``, ``tarq.evaluate``;
``tarq.plan`` for a dry run, ``tarq.pool`` for calibration utterances, ``tarq.write_report`` for a page of results.
Names are imported on first use, so ``import tarq`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tarq.kernels import openmp
from tarq.version import __version__

openmp.set_passive_wait()  # before anything imports torch

if TYPE_CHECKING:
    from tarq.api import (
        evaluate,
        iter_transcripts,
        load,
        load_recognizer,
        plan,
        pool,
        quantize,
        save,
        timed_transcripts,
        transcribe,
    )
    from tarq.config import TarqConfig
    from tarq.errors import (
        CalibrationError,
        CheckpointError,
        ConfigError,
        DataError,
        ModelError,
        OutputError,
        ResumeError,
        TarqError,
    )
    from tarq.from_pretrained import TarqQuantConfig
    from tarq.linear import QuantLinear
    from tarq.method.allocation import Sensitivity, allocate_bits
    from tarq.models.types import Segment, Word
    from tarq.report import Report, Reporter
    from tarq.reports.make import write_report
    from tarq.speech.transcript import Transcript

_HOME = {
    "api": (
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
    ),
    "config": ("TarqConfig",),
    "errors": (
        "CalibrationError",
        "CheckpointError",
        "ConfigError",
        "DataError",
        "ModelError",
        "OutputError",
        "ResumeError",
        "TarqError",
    ),
    "from_pretrained": ("TarqQuantConfig",),
    "linear": ("QuantLinear",),
    "models.types": ("Segment", "Word"),
    "method.allocation": ("Sensitivity", "allocate_bits"),
    "report": ("Report", "Reporter"),
    "reports.make": ("write_report",),
    "speech.transcript": ("Transcript",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ModelError",
    "OutputError",
    "QuantLinear",
    "Report",
    "Reporter",
    "ResumeError",
    "Segment",
    "Sensitivity",
    "TarqConfig",
    "TarqError",
    "TarqQuantConfig",
    "Transcript",
    "Word",
    "__version__",
    "allocate_bits",
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
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tarq' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
