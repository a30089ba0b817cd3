"""The CPU kernels of ``gram`` beside each other and beside torch's product, on the shapes of Whisper's layers.

Processor time, medians of turns taken one after the other: other processes on the machine count little. Several
threads cannot be timed so beside busy ones, since those that wait for the others count as well.

    python -P benchmarks/bench_gram_isas.py --json FILE
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tarq.kernels.gram import gram
from torch import Tensor

from tarq.bench.gram import product, upcast
from tarq.bench.measure import device_name, threads
from tarq.files import write_json
from tarq.version import __version__

SHAPES = ((4000, 384), (48_000, 384), (12_000, 512), (4000, 1280), (12_000, 1280), (8000, 1536), (6000, 2048))
DTYPES = (torch.float32, torch.bfloat16)
VECTORS, TILES = "avx512", "avx512_amx"


def forced(isa: str, call: Callable[[], Tensor]) -> Tensor:
    """A call with the kernels of one instruction set."""
    os.environ["TARQ_CPU_ISA"] = isa
    try:
        return call()
    finally:
        del os.environ["TARQ_CPU_ISA"]


def contestants(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    """By name: ours with tiles and with float32 vectors, without and with weights, and torch's own."""
    ours = {"": lambda: gram(x), ", weighted": lambda: gram(x, weight=weight)}
    calls = {f"{isa}{kind}": partial(forced, isa, call) for isa in (TILES, VECTORS) for kind, call in ours.items()}
    calls["torch"] = partial(product, x, x)
    if x.dtype != torch.float32:
        calls["torch, float32 copies"] = partial(upcast, x, x)
    return calls


def median_times(calls: dict[str, Callable[[], Tensor]], turns: int) -> dict[str, float]:
    """Median seconds of processor time, after a turn that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if turn:
                times[name].append(time.process_time() - began)
    return {name: statistics.median(of) for name, of in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if TILES not in torch.ops.tarq.cpu_isas():
        parser.error(f"this machine has no {TILES}")
    records: list[dict[str, Any]] = []
    for rows, n in SHAPES:
        for dtype in DTYPES:
            x, weight = torch.randn(rows, n).to(dtype), torch.rand(rows)
            for count in options.threads:
                with threads(count):
                    seconds = median_times(contestants(x, weight), options.turns)
                ratios = {name: seconds[TILES] / took for name, took in seconds.items() if "weighted" not in name}
                ratios[f"{VECTORS}, weighted"] = seconds[f"{TILES}, weighted"] / seconds[f"{VECTORS}, weighted"]
                records.append(
                    {"op": "gram", "shape": [rows, n], "dtype": str(dtype).removeprefix("torch."), "threads": count}
                    | {"processor_seconds": seconds, "ratios": ratios, "device": device_name(x.device)}
                    | {"tarq": __version__, "torch": torch.__version__, "turns": options.turns}
                )
                shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if name != TILES)
                print(f"{rows} x {n} {dtype}, {count} threads: tiles' time over that of {shown}", flush=True)
    if options.json:
        write_json(options.json, records)


if __name__ == "__main__":
    main()
