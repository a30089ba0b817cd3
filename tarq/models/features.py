"""Checks of a feature extractor's settings, by themselves and against the model, before any audio is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tarq.errors import ModelError

#: Sizes in a feature extractor's file: plausible minimum and maximum. An extractor is built from them at once, filters
#: included, so that absurd values would exhaust memory before any other check.
RANGES = {
    "sampling_rate": (1000, 384_000),
    "feature_size": (1, 1024),
    "hop_length": (1, 65_536),
    "n_fft": (2, 65_536),
    "win_length": (1, 65_536),
    "chunk_length": (1, 3600),
    "n_window": (1, 65_536),
    "min_length": (0, 10_000_000),
}
#: Other numbers, which must be finite.
NUMBERS = ("padding_value", "dither", "preemphasis")


def check_settings(settings: Mapping[str, Any], source: Any) -> None:
    """Check that a feature extractor can be built from its file.

    Raises:
        ModelError: a size is out of range; names it and its range.
    """
    for name, (least, most) in RANGES.items():
        value = settings.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ModelError(
                f"{source}: the feature extractor's {name} must be a whole number from {least} to {most}, "
                f"not {value!r}: take preprocessor_config.json from the original checkpoint"
            )
    for name in NUMBERS:
        value = settings.get(name, 0.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < float("inf"):
            raise ModelError(f"{source}: the feature extractor's {name} must be a number, not {value!r}")


def check_fits(extractor: Any, *, bins: int, frames: int | None = None) -> None:
    """Check that a feature extractor's output fits a model.

    Args:
        extractor: the feature extractor.
        bins: mel bins the model reads; 1 for one that reads the waveform.
        frames: frames of a window, for a model with fixed windows.

    Raises:
        ModelError: it does not; names both numbers.
    """
    made = getattr(extractor, "feature_size", None)
    if made != bins:
        raise ModelError(
            f"the feature extractor makes {made} mel bins ({type(extractor).__name__}.feature_size), the model reads "
            f"{bins}: take preprocessor_config.json from the original checkpoint, or pass feature_extractor=…"
        )
    if frames is None:
        return
    window = getattr(extractor, "n_samples", 0) // extractor.hop_length
    if window != frames:
        seconds = getattr(extractor, "chunk_length", None)
        raise ModelError(
            f"the feature extractor makes windows of {window} frames (chunk_length {seconds}"
            f" s at {extractor.sampling_rate} Hz, hop_length {extractor.hop_length}), the model reads {frames}: take "
            "preprocessor_config.json from the original checkpoint, or pass feature_extractor=…"
        )
