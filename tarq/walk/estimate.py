"""A dry run: what quantizing a model will do and cost, from its shapes alone. No audio and no weights are read."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from tarq.arguments import Device
from tarq.config import TarqConfig
from tarq.errors import ModelError
from tarq.method.arms import Arms
from tarq.models.base import Recognizer
from tarq.report import size_text
from tarq.walk.plan import PlannedLayer, plan

#: Seconds of a typical calibration utterance (LibriSpeech's mean), and its tokens per second.
UTTERANCE, TOKENS_A_SECOND = 12.0, 3.5
#: Bytes of a process that has imported torch and transformers, before any model: measured, torch 2.13 on Linux.
PROCESS = 0.55e9
#: How much longer a run takes than its multiplications at the speed of one large matrix product: Whisper tiny.en, 8
#: utterances, took 3.3 (GPTQ) and 8.5 times as long (TARQ) on two busy cores; this is the geometric mean.
OVERHEAD = 5.0


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run; time is accurate to about a factor of two.

    Attributes:
        seconds: of the walk: the multiplications of the forward passes, moments, factors and sweeps, at the speed that
            one large matrix product reaches on the device now, times :data:`OVERHEAD`. Reading audio and saving
            are not included.
        ram_bytes: at the peak: :data:`PROCESS`, the weights in the computation dtype, hidden states of the
            calibration set, activations held within a block, moments and factors of the widest layer.
        utterances: number of calibration utterances: those there are, if they are fewer than asked for.
        utterance_seconds: their assumed length.
        asked: number of calibration utterances asked for.
    """

    seconds: float
    ram_bytes: float
    utterances: int
    utterance_seconds: float = UTTERANCE
    asked: int = 0


@dataclass(frozen=True)
class Plan:
    """The result of :func:`tarq.plan`.

    Attributes:
        model: folder or hub id.
        layers: every matrix, packed or left, in order.
        problems: what would stop the run or spoil its result; empty if there is nothing.
        parts: sizes that the tokenizer and feature extractor produce, and those that the model expects.
        estimate: time and memory.
        config: the run's configuration.
    """

    model: str
    layers: list[PlannedLayer]
    problems: list[str]
    parts: list[str]
    estimate: Estimate
    config: dict[str, Any]

    @property
    def bytes_before(self) -> int:
        """Bytes of the blocks' Linear weights on disk, as the report counts them."""
        return sum(layer.bytes_before for layer in self.layers if layer.stage)

    @property
    def bytes_after(self) -> int:
        """Bytes of the same weights after quantization."""
        return sum(layer.bytes_after for layer in self.layers if layer.stage)

    @property
    def ram_there(self) -> float | None:
        """Bytes of RAM of this machine; None if unknown."""
        try:
            return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        except (ValueError, OSError, AttributeError):
            return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"bytes_before": self.bytes_before, "bytes_after": self.bytes_after}


def make_plan(recognizer: Recognizer, config: TarqConfig, device: Device = "cpu", available: int | None = None) -> Plan:
    """See :func:`tarq.plan`.

    Args:
        available: how many calibration utterances there are; None if unknown.

    Raises:
        ModelError: the model is quantized already, or a name to ignore matches no layer.
    """
    if recognizer.is_quantized:
        raise ModelError("the model is quantized already: give the full-precision one")
    layers = plan(recognizer, config)
    problems = [f"{layer.name}: {layer.reason}" for layer in layers if not layer.fits]
    if not any(layer.group_size for layer in layers) and not problems:
        problems.append("no layer is left to quantize")
    samples = config.samples if available is None else min(config.samples, available)
    if reason := too_few(config.arms(), samples):
        problems.append(reason)
    source = str(recognizer.model.config._name_or_path)
    parts = _parts(recognizer)
    if config.target_bits is not None:
        sizes = [(math.prod(layer.shape), layer.bits) for layer in layers if layer.bits]
        more = sum((config.target_bits - bits) * weights for weights, bits in sizes) / 8
        if more > 0:
            parts.append(f"target_bits {config.target_bits:g}: up to {size_text(more)} more, by measured damage")
    estimate = _estimate(recognizer, layers, config, device, samples)
    return Plan(source, layers, problems, parts, estimate, config.to_dict())


def too_few(arms: Arms, utterances: int) -> str:
    """Why the residual needs more calibration utterances; empty if it does not, or if there are none at all."""
    folds = arms.residual.folds
    if not 0 < utterances < folds:
        return ""
    return (
        f"the residual {type(arms.residual).__name__} needs at least {folds} calibration utterances, not {utterances}: "
        "add some, or take residual='least-squares'"
    )


def _parts(recognizer: Recognizer) -> list[str]:
    """Sizes that the tokenizer and feature extractor produce beside what the model expects; checked elsewhere."""
    found = []
    rows = getattr(recognizer.model.config.get_text_config(decoder=True), "vocab_size", None)
    if rows is not None:
        tokens = max(recognizer.tokenizer.get_vocab().values(), default=-1) + 1
        found.append(f"vocabulary: the tokenizer has {tokens} tokens, the model {rows} rows")
    read = getattr(recognizer.model.config, "num_mel_bins", None)
    if read is not None:
        made = getattr(recognizer.feature_extractor, "feature_size", read)
        found.append(f"mel bins: the feature extractor makes {made}, the model reads {read}")
    return found


def _estimate(
    recognizer: Recognizer, layers: list[PlannedLayer], config: TarqConfig, device: Device, samples: int
) -> Estimate:
    packed = [layer for layer in layers if layer.group_size]
    parameters = sum(p.numel() for p in recognizer.model.parameters())
    on_cpu = torch.device(device).type == "cpu"
    size = 4 if on_cpu else recognizer.stored_dtype.itemsize
    if not packed or not config.needs_statistics:
        return Estimate(parameters * 1e-8, PROCESS + parameters * size, 0)
    rows = _rows(recognizer)
    arms = config.arms()
    paired, folds = 1 + arms.paired, arms.residual.folds
    parts = folds * (config.tail_bands if arms.bands else 1)
    multiplications = 0.0
    input_bytes: dict[str, float] = {}  # bytes of the inputs of a block's Linears, by block
    inputs: set[tuple[str, int]] = set()
    for layer in packed:
        out, width = layer.shape
        count = rows.get(layer.stage, rows["decoder"]) * samples
        multiplications += (paired + 1) * count * out * width  # each path once; the quantized one again per group
        count = min(count, config.max_positions or count)
        parent = layer.name.rpartition(".")[0]
        if (parent, width) not in inputs:  # q, k and v share one set of moments
            inputs.add((parent, width))
            multiplications += paired * count * width**2 + (1 + folds) * width**3
            block = parent.rpartition(".")[0]
            input_bytes[block] = input_bytes.get(block, 0.0) + count * width * size
        multiplications += 3 * out * width**2
    widest = max(layer.shape[1] for layer in packed)
    tallest = max(layer.shape[0] for layer in packed)
    kinds = paired + arms.residual.drift_moments  # H, H_Δ, and the drift's own
    moments = parts * 2 * kinds * widest**2 * 8 + (4 * widest**2 + 3 * tallest * widest) * 4
    narrow = min(layer.shape[1] for layer in packed)
    hidden = paired * 2 * samples * max(rows.values()) * narrow * size
    activations = min(config.activation_memory * 1e9, max(input_bytes.values())) if paired == 2 else 0.0
    ram = PROCESS + parameters * size + moments + hidden + activations
    return Estimate(OVERHEAD * multiplications / _speed(device), ram, samples, asked=config.samples)


def _rows(recognizer: Recognizer) -> dict[str, float]:
    """Stage to the number of rows of a typical utterance."""
    silence = np.zeros(int(min(UTTERANCE, recognizer.window) * recognizer.sampling_rate), np.float32)
    _, frames = recognizer.audio_inputs(silence)
    # A model with a fixed window computes all of it.
    encoder = float(getattr(recognizer.model.config, "max_source_positions", None) or frames)
    tokens = TOKENS_A_SECOND * UTTERANCE
    names = [stage.name for stage in recognizer.stages()]
    # With cross-attention, audio is not in the decoder's rows.
    cross_attends = any(stage.reads for stage in recognizer.stages())
    return dict.fromkeys(names, encoder) | {"decoder": tokens if cross_attends else tokens + frames}


def _speed(device: Device, width: int = 1024) -> float:
    """Multiplications per second of a large float32 matrix product, measured for a tenth of a second."""
    a = torch.ones(width, width, device=device)
    a @ a
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 0.1:
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize()
        count += 1
    return count * width**3 / (time.perf_counter() - began)
