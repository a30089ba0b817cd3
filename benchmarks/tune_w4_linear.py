"""Measure the tiles of `w4_linear` on the GPU that is here and write `kernels/w4_linear/regimes.json` from the figures.

    python3 -P benchmarks/tune_w4_linear.py [--json FILE] [--dry-run]
    python3 -P benchmarks/tune_w4_linear.py --from FILE          fit to what was measured before; needs no GPU

Every candidate tile and split is timed for every layer and number of tokens below: CUDA graphs over more layers than L2
holds, in float16, groups of 128. The table then has the fastest for each, or one that is 1 % slower where that saves a
tile. Other chips' entries stay. Afterwards `make triton-build` says whether what was chosen keeps its values in
registers in every form; a tile of which some form spills wants a limit, `"registers": 128` or more.

What measures is a process of its own, which says which plan it is at. Should a plan end it (a kernel may crash the
card's context), the plan is named, kept out, and another process goes on. `--json` keeps what was measured, problem by
problem.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tarq.kernels.w4_linear import PackedWeight, get
from tarq.kernels.w4_linear.triton.plan import DENSE, TABLE, Plan, pick
from torch import Tensor

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LAYERS = ((1280, 1280), (5120, 1280), (1280, 5120), (4096, 4096), (16384, 16384))  # outputs, inputs
GROUP = 128

#: Rows of W and warps of a tile; stages; programs that share K.
GEMV_TILES, GEMV_STAGES = ((16, 4), (16, 8), (16, 16), (32, 4), (32, 8), (64, 4), (64, 8)), (2, 3, 4)
GEMM_TILES, GEMM_STAGES, SPLITS = ((64, 4), (128, 4), (128, 8)), (3, 4, 6), (1, 2, 4, 8, 16)

#: For each candidate of each problem; multiplications from which on a few calls are long enough.
SECONDS, LONG = 0.004, 10**10

#: What a plan may lose, so that layers share a tile: each is a kernel to compile.
TOLERANCE = 0.01

#: What `make triton-build` found of tiles of which some form spills, by chip, kernel, tokens, rows and warps: registers
#: it may use, where the assembler took fewer than it needs, or groups in a K block that there is room for.
LIMITS = {
    ("90", "gemv", 1, 16, 8): {"registers": 128},
    ("90", "gemm", 64, 128, 4): {"max_groups": 2},
}

ROOT = Path(__file__).resolve().parent.parent
TABLE_FILE = ROOT / "kernels" / "w4_linear" / "regimes.json"

Problem = tuple[int, int, int]  # tokens, outputs, inputs
Times = dict[Problem, dict[Plan, float]]
PROBLEMS: tuple[Problem, ...] = tuple((m, n, k) for m in TOKENS for n, k in LAYERS)


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


def compile_all(capability: tuple[int, int], plans: Iterable[Plan]) -> None:
    """Fill Triton's cache in processes of their own."""
    entries = [(capability, plan) for plan in plans]
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, 16)) as pool:
        pool.map(_compile, entries, chunksize=1)


def _compile(entry: tuple[tuple[int, int], Plan]) -> None:
    variants = runpy.run_path(str(Path(__file__).with_name("triton_variants.py")))
    capability, plan = entry
    forms = [variants["Variant"]("fp16", "fp16", 1, False, partial) for partial in (False, True)]
    for one in variants["of_w4_linear"](capability, [plan], forms):
        variants["compiled"](one, capability)


# ---- measuring ---------------------------------------------------------------------------------------------


class LayerTimer:
    """Layers on the GPU and their timing, in a process that may crash."""

    def __init__(self) -> None:
        from tarq.bench.measure import copies_beyond_cache

        self.device = torch.device("cuda")
        self.layers: dict[tuple[int, int], list[PackedWeight]] = {}
        for n, k in LAYERS:
            self.layers[n, k] = [
                get("triton").prepack(
                    PackedWeight(
                        torch.randint(-(2**31), 2**31, (n, k // 8), dtype=torch.int32, device=self.device),
                        (torch.rand(n, k // GROUP, device=self.device) * 0.02 + 0.005).half(),
                        None,
                        torch.randn(n, device=self.device).half(),
                        k,
                        GROUP,
                    )
                )
                for _ in range(copies_beyond_cache(n * k // 2, self.device))
            ]

    def measure(self, problem: Problem, skip: Sequence[Plan]) -> dict[str, Any]:
        """Median seconds of each plan but those to skip; those that need more than an SM has are left out.

        Returns:
            ``done``: plans with seconds; ``wrong``: plans whose result is not that of dense.
        """
        from triton.runtime.errors import OutOfResources

        from tarq.bench.measure import GRAPH_CALLS, Call, medians, replayed

        m, n, k = problem
        layers, x = self.layers[n, k], torch.randn(m, k, device=self.device).half()
        calls: dict[Plan, Call] = {}
        wrong = []
        exact = self._run(x, layers, DENSE, 0).float()
        for plan in candidates(m, k):
            if plan in skip:
                continue
            call = partial(self._run, x, layers, plan)
            say(at=plan)
            try:
                error = float((call(0).float() - exact).norm() / exact.norm())
            except OutOfResources:
                continue
            if not error < 2e-3:  # NaN neither
                wrong.append([plan, error])
                continue
            calls[plan] = replayed(call, len(layers), self.device, 4 if m * n * k > LONG else GRAPH_CALLS)

        def named(plan: Plan) -> Call:
            def timed(copy: int) -> object:
                say(at=plan)
                return calls[plan](copy)

            return timed

        names = {str(i): plan for i, plan in enumerate(calls)}
        measured = medians({name: named(plan) for name, plan in names.items()}, 1, SECONDS, self.device)
        return {"done": [[plan, measured[name]] for name, plan in names.items()], "wrong": wrong}

    @staticmethod
    def _run(x: Tensor, layers: list[PackedWeight], plan: Plan, copy: int) -> Tensor:
        from tarq.kernels.w4_linear.triton.launch import w4_linear_triton

        return w4_linear_triton(x, layers[copy], plan)


def say(**news: Any) -> None:
    """A line to the process that waits for it."""
    print(json.dumps(news), flush=True)


def work() -> None:
    """Measure the problems that lines of standard input name, and answer with lines."""
    with torch.inference_mode():
        machine = LayerTimer()
        for line in sys.stdin:
            job = json.loads(line)
            problem = tuple(job["problem"])
            say(**machine.measure(problem, [Plan(*plan) for plan in job["skip"]]))  # type: ignore[arg-type]


def measure_all(
    problems: Iterable[Problem], command: Sequence[str], device: Mapping[str, Any], keep: Path | None = None
) -> dict[str, Any]:
    """Have a worker measure problem by problem; one that dies is replaced, and the plan it was at left out from then.

    Args:
        problems: what to measure.
        command: starts a worker that runs :func:`work`.
        device: from :func:`device`.
        keep: written after each problem.

    Returns:
        ``device`` as given; ``done``: plans with seconds by ``"tokens,outputs,inputs"``; ``wrong``: problem, plan and
        error; ``bad``: problem and plan at which a worker died.

    Raises:
        SystemExit: a worker died without being at a plan.
    """
    record: dict[str, Any] = {"device": device, "done": {}, "wrong": [], "bad": []}
    worker: subprocess.Popen | None = None
    for problem in problems:
        key = ",".join(map(str, problem))
        while key not in record["done"]:
            if worker is None:
                worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert worker.stdin
            assert worker.stdout
            try:
                skip = [plan for _, plan in record["bad"]]
                worker.stdin.write(json.dumps({"problem": problem, "skip": skip}) + "\n")
                worker.stdin.flush()
            except BrokenPipeError:
                pass  # it died before; its last line tells
            at = None
            for line in worker.stdout:
                news = json.loads(line)
                if "done" in news:
                    record["done"][key] = news["done"]
                    record["wrong"] += [[key, *each] for each in news["wrong"]]
                    break
                at = news["at"]
            else:
                code, worker = worker.wait(), None
                if at is None:
                    sys.exit(f"tune: the process that measures ended with {code} before {key}")
                print(f"tune: {Plan(*at)} ended the process ({code}) at {key}; going on without it", flush=True)
                record["bad"].append([key, at])
        if keep:
            keep.write_text(json.dumps(record, separators=(",", ":")) + "\n")
        plan, seconds = min(record["done"][key], key=lambda entry: entry[1])
        print(f"{key:>18}: {seconds * 1e6:7.1f} µs {Plan(*plan)}", flush=True)
    if worker:
        worker.communicate()
    return record


def times_of(record: Mapping[str, Any]) -> Times:
    """What :func:`measure_all` returns, or its file holds, by problem and plan."""
    return {
        tuple(map(int, key.split(","))): {Plan(*plan): seconds for plan, seconds in found}  # type: ignore[misc]
        for key, found in record["done"].items()
    }


# ---- fitting -----------------------------------------------------------------------------------------------


def fit_regime(tokens: int, times: Times, chip: str) -> dict[str, Any]:
    """The regime of one number of tokens: a plan for each layer, of as few tiles as lose :data:`TOLERANCE` at most."""
    allowed = {
        (n, k): {plan: s for plan, s in found.items() if s <= (1 + TOLERANCE) * min(found.values())}
        for (m, n, k), found in times.items()
        if m == tokens
    }
    kept: list[Plan] = []
    left = dict(allowed)
    while left:
        # The tile that serves most of the layers that have none, and of those the one that loses least.
        loss: dict[Plan, list[float]] = {}
        for found in left.values():
            best: dict[Plan, float] = {}
            for plan, seconds in found.items():
                tile = plan._replace(split_k=1)
                best[tile] = min(best.get(tile, 1.0 + TOLERANCE), seconds / min(found.values()))
            for tile, ratio in best.items():
                loss.setdefault(tile, []).append(ratio)
        kept.append(min(loss, key=lambda tile: (-len(loss[tile]), sum(loss[tile]))))
        left = {layer: f for layer, f in left.items() if not any(p._replace(split_k=1) in kept for p in f)}
    layers = []
    for (n, k), found in allowed.items():
        plan = min((p for p in found if p._replace(split_k=1) in kept), key=found.__getitem__)
        layers.append({"outputs": n, "inputs": k, **stated(plan), **LIMITS.get((chip, *plan[:4]), {})})
    return {"max_m": tokens, "max_groups": 4 if tokens <= 64 else 1, "layers": layers}


def stated(plan: Plan) -> dict[str, Any]:
    """The fields of a plan that are not at their defaults."""
    return {name: value for name, value in plan._asdict().items() if value and (name, value) != ("split_k", 1)}


def fit(times: Times, chip: str) -> list[dict[str, Any]]:
    """Regimes in rising order of ``max_m``, up to the last number of tokens at which some layer is not dense."""
    regimes = [fit_regime(tokens, times, chip) for tokens in sorted({m for m, _, _ in times})]
    while regimes and all(layer["kernel"] == "dense" for layer in regimes[-1]["layers"]):
        regimes.pop()
    return regimes


def losses(regimes: Sequence[dict[str, Any]], times: Times, sm_count: int) -> dict[Problem, float]:
    """By how much what is picked is slower than the best candidate, by problem."""
    found = {}
    for (m, n, k), plans in times.items():
        regime = next((regime for regime in regimes if m <= regime["max_m"]), None)
        plan = DENSE if regime is None else pick(regime, sm_count, m, n, k, sm_count)._replace(registers=None)
        found[m, n, k] = plans[plan] / min(plans.values()) - 1
    return found


# ---- the table ---------------------------------------------------------------------------------------------


def write(table: Mapping[str, dict], path: Path) -> None:
    """One line a layer, as a person would read it."""
    chips = []
    for chip, entry in sorted(table.items(), key=lambda item: int(item[0])):
        lines = []
        for regime in entry["regimes"]:
            head = json.dumps({name: value for name, value in regime.items() if name != "layers"})[:-1]
            inner = ",\n".join(f"        {json.dumps(layer)}" for layer in regime["layers"])
            lines.append(f'      {head}, "layers": [\n{inner}\n      ]}}')
        about = ",\n".join(f"    {json.dumps(n)}: {json.dumps(v)}" for n, v in entry.items() if n != "regimes")
        joined = ",\n".join(lines)
        chips.append(f'  {json.dumps(chip)}: {{\n{about},\n    "regimes": [\n{joined}\n    ]\n  }}')
    path.write_text("{\n" + ",\n".join(chips) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also keep what was measured")
    parser.add_argument("--from", dest="source", type=Path, help="fit to what --json kept, without a GPU")
    parser.add_argument("--dry-run", action="store_true", help="do not write the table")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    if options.source:
        record = json.loads(options.source.read_text())
    elif torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        compile_all(capability, dict.fromkeys(plan for m in TOKENS for plan in tiles(m)))
        record = measure_all(PROBLEMS, [sys.executable, "-P", __file__, "--worker"], device(), options.json)
    else:
        parser.error("there is no NVIDIA GPU, or torch does not see it; --from FILE fits to what was measured on one")
    times, found = times_of(record), record["device"]
    regimes = fit(times, found["capability"])
    worst = losses(regimes, times, found["sm_count"])
    slowest = max(worst, key=worst.__getitem__)
    print(f"{len(worst)} problems; the most that is lost: {worst[slowest]:.1%} at {slowest}")
    entry = {
        "measured": {name: found[name] for name in ("device", "torch", "triton")},
        "basis": "the fastest candidates of benchmarks/tune_w4_linear.py",
        "sm_count": found["sm_count"],
        "regimes": regimes,
    }
    if not options.dry_run:
        write(TABLE | {found["capability"]: entry}, TABLE_FILE)
        print("wrote", TABLE_FILE)


def device() -> dict[str, Any]:
    """What the figures depend on."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


if __name__ == "__main__":
    main()
