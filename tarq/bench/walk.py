"""Where the time of a quantization goes: one pass over a model, by part (:mod:`tarq.timing`).

The model is the user's, or Whisper's architecture in a named size with random weights and the packaged tokenizer. Its
speed does not depend on what the weights are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from tarq import testbed
from tarq.bench.measure import CLOCKS, Record, device_name
from tarq.config import TarqConfig
from tarq.data.utterance import Utterance
from tarq.errors import ConfigError
from tarq.models.base import Recognizer
from tarq.quantization import quantize
from tarq.recognizers import as_recognizer, load_recognizer
from tarq.report import Reporter, versions
from tarq.timing import Timer


@dataclass(frozen=True)
class Size:
    """A size of Whisper: hidden width, heads, layers of encoder and decoder, mel bins."""

    width: int
    heads: int
    layers: tuple[int, int]
    mel_bins: int = 80


#: The sizes that OpenAI published, by name.
SIZES = {
    "whisper-tiny": Size(384, 6, (4, 4)),
    "whisper-base": Size(512, 8, (6, 6)),
    "whisper-small": Size(768, 12, (12, 12)),
    "whisper-medium": Size(1024, 16, (24, 24)),
    "whisper-large-v3": Size(1280, 20, (32, 32), 128),
    "whisper-large-v3-turbo": Size(1280, 20, (32, 4), 128),
}


def load(model: str, device: str, dtype: torch.dtype | None, blocks: int | None = None) -> Recognizer:
    """A model to time: random weights in a size of :data:`SIZES`, or the checkpoint of a folder or a hub id.

    Args:
        model: name of a size, folder or hub id.
        device: where it runs.
        dtype: of the computation; by default float32 on a CPU, elsewhere the checkpoint's, or bfloat16.
        blocks: of a named size, build so many blocks a stage.

    Raises:
        ConfigError: ``blocks`` for a checkpoint.
        TarqError: the checkpoint is not usable.
    """
    if model in SIZES and not Path(model).exists():
        dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
        return random_recognizer(SIZES[model], device, dtype, blocks)
    if blocks is not None:
        raise ConfigError(f"blocks is for random weights in a named size ({', '.join(SIZES)}): {model} has its own")
    return load_recognizer(model, device=device, dtype=dtype)


def random_recognizer(size: Size, device: str, dtype: torch.dtype, blocks: int | None = None) -> Recognizer:
    """Whisper in a size with random weights, the packaged model's tokenizer, and windows of 30 s."""
    packaged = testbed.model()
    encoder, decoder = (layers if blocks is None else min(blocks, layers) for layers in size.layers)
    sizes: dict[str, Any] = {f"{part}_attention_heads": size.heads for part in ("encoder", "decoder")}
    sizes |= {f"{part}_ffn_dim": 4 * size.width for part in ("encoder", "decoder")}
    sizes |= {"encoder_layers": encoder, "decoder_layers": decoder, "num_mel_bins": size.mel_bins}
    config = WhisperConfig.from_pretrained(
        packaged, d_model=size.width, max_source_positions=1500, max_target_positions=448, **sizes
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = WhisperForConditionalGeneration(config)
    torch.nn.Module.to(model, dtype)  # its own to() is not typed
    return as_recognizer(
        model, AutoTokenizer.from_pretrained(packaged), WhisperFeatureExtractor(feature_size=size.mel_bins)
    )


def run(
    recognizer: Recognizer,
    speech: Sequence[Utterance] | Mapping[str, Sequence[Utterance]],
    config: TarqConfig,
    name: str,
    reporter: Reporter | None = None,
    clock: str = "wall",
) -> Record:
    """Quantize a model in place and say where the time went.

    Args:
        recognizer: the full-precision model.
        speech: to calibrate on.
        config: of the run.
        name: of the model, for the record.
        reporter: receives progress.
        clock: of :data:`~tarq.bench.measure.CLOCKS`.

    Returns:
        A record: what was done on which device by which versions, ``seconds`` of all and of each of its ``parts`` (on
        a GPU also ``host_parts``, by the host's clock), ``rows`` of the stages' hidden states, ``rows_per_second``
        without reading audio, and :attr:`tarq.report.Report.memory`.

    Raises:
        TarqError: as :func:`tarq.quantize`.
    """
    device = recognizer.device
    dtype = str(recognizer.dtype).removeprefix("torch.")
    timer, now = Timer(device, CLOCKS[clock]), CLOCKS[clock]
    began = now()
    with timer.running():
        report = quantize(recognizer, speech, config, reporter=reporter)
    parts = timer.seconds()
    seconds = now() - began
    rows = {
        stage: sum(count for kind, count in counts.items() if kind != "tail")  # which the others hold
        for stage, counts in report.calibration.get("positions", {}).items()
    }
    record: Record = {
        "op": "walk",
        "model": name,
        "method": config.method,
        "config": report.config,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "clock": clock,
        "device": device_name(device),
        "versions": versions(),
        "utterances": report.calibration.get("utterances", 0),
        "audio_seconds": report.calibration.get("seconds", 0.0),
        "layers": sum(not layer.skipped for layer in report.layers),
        "seconds": seconds,
        "parts": parts,
        "rows": rows,
        "rows_per_second": sum(rows.values()) / (seconds - parts.get("audio and features", 0.0)),
        "memory": report.memory,
    }
    return record | ({"host_parts": timer.host_seconds()} if device.type == "cuda" else {})


def show(console: Console, records: Sequence[Record]) -> None:
    """A table a record: its parts in falling order of time."""
    for r in records:
        host = r.get("host_parts")
        table = Table(
            title=f"{r['model']}, {r['method']}, {r['utterances']} utterances, {r['threads']} threads, {r['dtype']}",
            title_justify="left",
            header_style="bold",
        )
        for heading in ("part", "seconds", "share", *(("host seconds",) if host else ())):
            table.add_column(heading, justify="left" if heading == "part" else "right")
        for name, seconds in sorted(r["parts"].items(), key=lambda item: -item[1]):
            more = (f"{host[name]:.2f}",) if host else ()
            table.add_row(name, f"{seconds:.2f}", f"{seconds / r['seconds']:.0%}", *more)
        table.add_section()
        table.add_row("all", f"{r['seconds']:.2f}", "", *(("",) if host else ()))
        console.print(table)
        memory = [f"{r['memory']['ram_peak_bytes'] / 1e9:.2f} GB of RAM at the peak"]
        if "device_peak_bytes" in r["memory"]:
            memory.append(f"{r['memory']['device_peak_bytes'] / 1e9:.2f} GB of the GPU's memory")
        rows = ", ".join(f"{stage} {count:,}" for stage, count in r["rows"].items())
        console.print(
            f"{r['layers']} layers; {r['rows_per_second']:,.0f} rows per second ({rows}); {', '.join(memory)}",
            highlight=False,
        )
        console.print(f"{r['device']}; {r['clock']} time", highlight=False)
