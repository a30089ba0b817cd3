"""Measure the tiles of `w4_linear` on the GPU that is here and write `kernels/w4_linear/regimes.json` from the figures.

    python3 -P benchmarks/tune_w4_linear.py [--json FILE] [--dry-run]

Every candidate tile and split is timed for every layer and number of tokens below: CUDA graphs over more layers than L2
holds, in float16, groups of 128. Each number of tokens then gets the regime (tiles, programs an SM, splits) that loses
least against the best candidate of each layer, on geometric average; where the library on expanded weights loses less,
the table ends. Other chips' entries stay. Afterwards `make triton-build` says whether what was chosen keeps its values
in registers in every form; a tile of which some form spills wants a limit, `"registers": 128` or more. `--json` keeps
what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path

import torch
import triton
from tarq.kernels.w4_linear.cuda import (
    BLOCK_K,
    DENSE,
    TABLE,
    WORDS,
    Plan,
    Prepacked,
    Variant,
    compilations,
    pick,
    w4_linear_cuda,
)
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.errors import OutOfResources

from tarq.bench.measure import GRAPH_CALLS, Call, copies_beyond_cache, medians, replayed

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LAYERS = ((1280, 1280), (5120, 1280), (1280, 5120), (4096, 4096), (16384, 16384))  # outputs, inputs
GROUP = 128

#: Rows of W and warps of a tile; stages; programs that share K.
GEMV_TILES, GEMV_STAGES = ((16, 4), (16, 8), (16, 16), (32, 4), (32, 8), (64, 4), (64, 8)), (2, 3, 4)
GEMM_TILES, GEMM_STAGES, SPLITS = ((64, 4), (128, 4), (128, 8)), (3, 4, 6), (1, 2, 4, 8, 16)

#: For each candidate of each problem; multiplications from which on a few calls are long enough.
SECONDS, LONG = 0.004, 10**10

#: What a regime is made of besides tiles; tiles of each width that a fit considers.
PROGRAMS_PER_SM, TILES_OF_A_WIDTH = (0.45, 0.9, 1.8, 3.6), 4

TABLE_FILE = Path(__file__).resolve().parent.parent / "kernels" / "w4_linear" / "regimes.json"

Problem = tuple[int, int, int]  # tokens, outputs, inputs
Times = Mapping[Problem, Mapping[Plan, float]]
Clock = Callable[[Problem, Iterable[Plan]], Mapping[Plan, float]]


# ---- candidates --------------------------------------------------------------------------------------------


def tiles(tokens: int) -> Iterator[Plan]:
    """Tiles worth a try: all the tokens in one as far as registers hold them, so that W is read once."""
    block_m = min(1 << (tokens - 1).bit_length(), 128)
    if block_m <= 16:
        for (block_n, warps), stages in product(GEMV_TILES, GEMV_STAGES):
            yield Plan("gemv", 1 if block_m == 1 else max(block_m, 8), block_n, warps, stages)
    for (block_n, warps), stages in product(GEMM_TILES, GEMM_STAGES):
        yield Plan("gemm", max(block_m, 8), block_n, warps, stages)


def candidates(tokens: int, inputs: int) -> Iterator[Plan]:
    """Tiles with their splits of K, and dense."""
    for plan in tiles(tokens):
        for split in SPLITS if plan.kernel == "gemm" else (1,):
            if split == 1 or 2 * split <= inputs // GROUP:
                yield plan._replace(split_k=split)
    yield DENSE


# ---- measuring ---------------------------------------------------------------------------------------------


class Machine:
    """Layers on the GPU, and the clock."""

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        self.layers: dict[tuple[int, int], list[Prepacked]] = {}
        for n, k in LAYERS:
            words, groups = (k // BLOCK_K.value, n, WORDS.value), (k // GROUP, n)
            self.layers[n, k] = [
                Prepacked(
                    torch.randint(-(2**31), 2**31, words, dtype=torch.int32, device=self.device),
                    (torch.rand(groups, device=self.device) * 0.02 + 0.005).half(),
                    None,
                )
                for _ in range(copies_beyond_cache(n * k // 2, self.device))
            ]

    def __call__(self, problem: Problem, plans: Iterable[Plan]) -> dict[Plan, float]:
        """Median seconds of each plan; those that need more than an SM has are left out.

        Raises:
            ValueError: a plan's result is not that of dense.
        """
        m, n, k = problem
        layers, x, bias = self.layers[n, k], *(torch.randn(*s, device=self.device).half() for s in ((m, k), (n,)))
        calls: dict[Plan, Call] = {}
        exact = self._run(x, bias, layers, DENSE, 0).float()
        for plan in plans:
            call = partial(self._run, x, bias, layers, plan)
            try:
                error = float((call(0).float() - exact).norm() / exact.norm())
            except OutOfResources:
                continue
            if not error < 2e-3:  # NaN neither
                raise ValueError(f"{plan} of {m} × {n} × {k} is off by {error:.1e}")
            calls[plan] = replayed(call, len(layers), self.device, 4 if m * n * k > LONG else GRAPH_CALLS)
        names = {str(i): plan for i, plan in enumerate(calls)}
        measured = medians({name: calls[plan] for name, plan in names.items()}, 1, SECONDS, self.device)
        return {plan: measured[name] for name, plan in names.items()}

    @staticmethod
    def _run(x: Tensor, bias: Tensor, layers: list[Prepacked], plan: Plan, copy: int) -> Tensor:
        return w4_linear_cuda(x, *layers[copy], bias, x.shape[1], GROUP, plan=plan)


def compile_all(capability: tuple[int, int], plans: Iterable[Plan]) -> None:
    """Fill Triton's cache in processes of their own."""
    entries = [(capability, plan) for plan in plans]
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 16)) as pool:
        pool.map(_compile, entries, chunksize=1)


def _compile(entry: tuple[tuple[int, int], Plan]) -> None:
    capability, plan = entry
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    variants = [Variant("fp16", "fp16", 1, False, partial) for partial in (False, True)]
    for _, kernel, signature, constexprs, attrs, options in compilations(capability, [plan], variants):
        source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attrs)
        triton.compile(source, target=target, options=options)


# ---- fitting -----------------------------------------------------------------------------------------------


def loss(regime: dict, problems: Times, sm_count: int) -> float:
    """Mean logarithm of the time of what a regime picks over the best candidate's; infinite if it was not measured."""
    total = 0.0
    for (m, n, k), times in problems.items():
        total += math.log(times.get(pick(regime, m, n, k, sm_count), math.inf) / min(times.values()))
    return total / len(problems)


def fit_regime(tokens: int, problems: Times, sm_count: int) -> dict:
    """The regime of one number of tokens that loses least: one tile, or a wide and a narrow one."""
    averages: dict[Plan, list[float]] = {}
    for times in problems.values():
        fastest: dict[Plan, float] = {}
        for plan, seconds in times.items():
            tile = plan._replace(split_k=1)
            if plan != DENSE:
                fastest[tile] = min(seconds, fastest.get(tile, math.inf))
        for tile, seconds in fastest.items():
            averages.setdefault(tile, []).append(math.log(seconds / min(times.values())))
    widths: dict[tuple[str, int], list[Plan]] = {}
    for tile in sorted(averages, key=lambda tile: (-len(averages[tile]), sum(averages[tile]))):
        widths.setdefault((tile.kernel, tile.block_n), []).append(tile)
    kept = [tile for group in widths.values() for tile in group[:TILES_OF_A_WIDTH]]
    choices = [[tile] for tile in kept]
    choices += [[wide, narrow] for wide, narrow in product(kept, kept) if wide.block_n > narrow.block_n]

    def regime(chosen: list[Plan], programs: float, split: int) -> dict:
        entries = [
            {name: value for name, value in tile._asdict().items() if name != "split_k" and value} for tile in chosen
        ]
        most_groups = 4 if tokens <= 64 else 1
        return {
            "max_m": tokens,
            "max_groups": most_groups,
            "programs_per_sm": programs,
            "max_split_k": split,
            "tiles": entries,
        }

    options = (regime(*option) for option in product(choices, PROGRAMS_PER_SM, SPLITS))
    return min(options, key=lambda option: (loss(option, problems, sm_count), len(option["tiles"])))


def fit(times: Times, sm_count: int) -> list[dict]:
    """Regimes in rising order of ``max_m``, up to the last number of tokens at which they lose less than dense does."""
    regimes = []
    for tokens in sorted({m for m, _, _ in times}):
        problems = {problem: found for problem, found in times.items() if problem[0] == tokens}
        dense = sum(math.log(found[DENSE] / min(found.values())) for found in problems.values()) / len(problems)
        regime = fit_regime(tokens, problems, sm_count)
        ours = loss(regime, problems, sm_count)
        print(f"{tokens:4} tokens: ours lose {math.expm1(ours):.1%}, dense loses {math.expm1(dense):.1%}; {regime}")
        if dense <= ours:
            break
        regimes.append(regime)
    return regimes


def overlap(regimes: list[dict], problems: Iterable[Problem], time: Clock, sm_count: int) -> None:
    """Mark the tiles that are faster, on geometric average, launched dependently on the kernel before."""
    gains: dict[tuple[int, int], list[float]] = {}
    for m, n, k in problems:
        index = next((i for i, regime in enumerate(regimes) if m == regime["max_m"]), None)
        if index is None:
            continue
        plan = pick(regimes[index], m, n, k, sm_count)
        position = [tile["block_n"] for tile in regimes[index]["tiles"]].index(plan.block_n)
        other = plan._replace(overlap=True)
        times = time((m, n, k), [plan, other])
        gains.setdefault((index, position), []).append(math.log(times[plan] / times[other]))
        print(f"{m:4} × {n} × {k}: {times[plan] * 1e6:.1f} µs, overlapped {times[other] * 1e6:.1f}", flush=True)
    for (index, position), gain in gains.items():
        if sum(gain) > 0:
            regimes[index]["tiles"][position]["overlap"] = True


# ---- the table ---------------------------------------------------------------------------------------------


def write(table: Mapping[str, dict], path: Path) -> None:
    """One line a tile, as a person would read it."""
    chips = []
    for chip, entry in sorted(table.items(), key=lambda item: int(item[0])):
        lines = []
        for regime in entry["regimes"]:
            head = json.dumps({name: value for name, value in regime.items() if name != "tiles"})[:-1]
            inner = ",\n".join(f"        {json.dumps(tile)}" for tile in regime["tiles"])
            lines.append(f'      {head}, "tiles": [\n{inner}\n      ]}}')
        about = f'"measured": {json.dumps(entry["measured"])},\n    "basis": {json.dumps(entry["basis"])}'
        joined = ",\n".join(lines)
        chips.append(f'  {json.dumps(chip)}: {{\n    {about},\n    "regimes": [\n{joined}\n    ]\n  }}')
    path.write_text("{\n" + ",\n".join(chips) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also keep what was measured")
    parser.add_argument("--dry-run", action="store_true", help="do not write the table")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no NVIDIA GPU, or torch does not see it")
    properties = torch.cuda.get_device_properties(0)
    capability, sm_count = (properties.major, properties.minor), properties.multi_processor_count
    problems = [(m, n, k) for m in TOKENS for n, k in LAYERS]
    plans = dict.fromkeys(plan for m in TOKENS for plan in tiles(m))
    compile_all(capability, plans)
    with torch.inference_mode():
        machine, times = Machine(), {}
        for m, n, k in problems:
            found = times[m, n, k] = machine((m, n, k), candidates(m, k))
            plan = min(found, key=found.__getitem__)
            print(f"{m:4} × {n} × {k}: {found[plan] * 1e6:7.1f} µs {plan}, dense {found[DENSE] * 1e6:.1f}", flush=True)
        regimes = fit(times, sm_count)
        if capability >= (9, 0):
            overlap(regimes, problems, machine, sm_count)
    if options.json:
        rows = [
            {"tokens": m, "outputs": n, "inputs": k, **plan._asdict(), "seconds": seconds}
            for (m, n, k), found in times.items()
            for plan, seconds in found.items()
        ]
        options.json.write_text(json.dumps(rows, indent=0))
    entry = {
        "measured": {
            "device": properties.name,
            "sm_count": sm_count,
            "torch": torch.__version__,
            "triton": triton.__version__,
        },
        "basis": "fitted to the measured times of benchmarks/tune_w4_linear.py",
        "regimes": regimes,
    }
    if not options.dry_run:
        write(TABLE | {f"{properties.major}{properties.minor}": entry}, TABLE_FILE)
        print("wrote", TABLE_FILE)


if __name__ == "__main__":
    main()
