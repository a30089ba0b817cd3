"""Speed targets ("bars") for a CPU and a GPU, compared with the records of a run.

On a GPU, the speed-ups of a packed layer over float16 are the best published for an H100 by Marlin, tinygemm and
gemlite at that number of rows of a 4096 × 4096 layer. One line per bar of what ``tarq bench --json`` wrote:

    python -P benchmarks/bars.py FILE.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tarq.bench.measure import Record

#: On a GPU, rows: speed-up over float16.
PUBLISHED = {1: 2.32, 8: 1.66, 16: 1.63, 64: 0.74}

#: Outputs and inputs of the layers they apply to: that layer, and Whisper-large's.
LAYERS = ([4096, 4096], [1280, 1280], [5120, 1280], [1280, 5120])

#: Share of the memory bandwidth that one row of a layer too large for any cache should reach.
BANDWIDTH, LARGE = 0.8, [1, 16384, 16384]

#: On a CPU, layers of which one row is held against other packed ones; the layer that is read from memory.
ROW_LAYERS, COLD = ([1280, 1280], [4096, 4096]), [4096, 4096]

#: From so many rows on, the time over that of the fastest dense layer, at most; of both dtypes of dense layers.
DENSE_ROWS, DENSE_RATIO, DENSE = 16, 1.1, ("float32 linear", "bfloat16 linear")

#: Times faster than torch's float32 Gram matrix; the four sums' time over two of its products, and one layer's over the
#: products and the Cholesky it cannot avoid, at most.
CPU_GRAM, FOUR_SUMS, UNAVOIDABLE = 1.6, 0.9, 1.5

#: Times faster than the products of float32 copies, at this many inputs; than a Python iteration a column; than the
#: fused sweep.
GRAM, GRAM_INPUTS, LOOP, FUSED = 8.0, 5120, 20.0, 1.0


@dataclass(frozen=True)
class Verdict:
    """A bar, its target and the measured value; more is better, unless ``at_most``."""

    bar: str
    wanted: float
    measured: float
    at_most: bool = False

    @property
    def reached(self) -> bool:
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted


def verdicts(records: Sequence[Record]) -> Iterator[Verdict]:
    """Every bar that the records cover."""
    yield from _of_gpu([r for r in records if "capability" in r])
    yield from _of_cpu([r for r in records if "capability" not in r])


def _of_cpu(records: Sequence[Record]) -> Iterator[Verdict]:
    for r in records:
        op, shape, variant, peer = r["op"], r["shape"], r["variant"], r["peer"]
        what = f"{op} {'×'.join(map(str, shape))} {variant}, {r['threads']} threads"
        if op == "w4_linear" and shape[0] == 1 and shape[1:] in ROW_LAYERS and r["copies"] == 1:
            if (variant, peer) in (
                ("float32", "torch int4pack (bfloat16)"),
                ("int8 activations", "onnxruntime level 4"),
            ):
                yield Verdict(f"{what}, times as fast as {peer}", 1.0, 1 / r["ratio"])
        elif op == "w4_linear" and shape == [1, *COLD] and peer == DENSE[0]:
            yield Verdict(f"{what}, share of the bandwidth", BANDWIDTH, r["roofline"])
        elif op == "w4_linear" and shape[0] >= DENSE_ROWS and peer == DENSE[0] and variant in ("float32", "bfloat16"):
            dense = [s for s in records if _same(r, s) and s["peer"] in DENSE]
            yield Verdict(f"{what}, over the best linear", DENSE_RATIO, max(s["ratio"] for s in dense), at_most=True)
        elif op == "gram" and variant == "symmetric" and peer in ("torch XᵀX", "torch XᵀX of float32 copies"):
            yield Verdict(f"{what} of {r['dtype']}, times as fast as {peer}", CPU_GRAM, 1 / r["ratio"])
        elif op == "gram, four sums":
            yield Verdict(f"{what}, over {peer}", FOUR_SUMS, r["ratio"], at_most=True)
        elif op == "group_quantize" and peer == "torch Cholesky and products":
            yield Verdict(f"{what}, over {peer}", UNAVOIDABLE, r["ratio"], at_most=True)


def _same(one: Record, other: Record) -> bool:
    return all(one[name] == other[name] for name in ("op", "shape", "variant", "threads", "copies"))


def _of_gpu(records: Sequence[Record]) -> Iterator[Verdict]:
    for r in records:
        op, shape, peer, faster = r["op"], r["shape"], r["peer"], 1 / r["ratio"]
        size = "×".join(map(str, shape))
        if op == "w4_linear" and r["variant"] == "float16" and shape[1:] in LAYERS and shape[0] in PUBLISHED:
            if peer == "float16 linear":
                yield Verdict(f"w4_linear {size}, speed-up over float16", PUBLISHED[shape[0]], faster)
            elif peer.startswith("gemlite"):
                yield Verdict(f"w4_linear {size}, times as fast as {peer}", 1.0, faster)
        elif op == "w4_linear" and r["variant"] == "bfloat16" and shape[1:] in LAYERS and "int4pack" in peer:
            yield Verdict(f"w4_linear {size}, times as fast as {peer}", 1.0, faster)
        elif op == "w4_linear" and shape == LARGE and peer == f"{r['variant']} linear":
            yield Verdict(f"w4_linear {size} {r['variant']}, share of the bandwidth", BANDWIDTH, r["roofline"])
        elif op == "gram" and shape[1] == GRAM_INPUTS and r["variant"] == "symmetric" and "float32 copies" in peer:
            yield Verdict(f"gram {size} {r['dtype']}, times as fast as {peer}", GRAM, faster)
            exactness = r["error_of_float32_copies"] / r["error"]
            yield Verdict(f"gram {size} {r['dtype']}, error of float32 copies over ours", 1.0, exactness)
        elif op.startswith("group_quantize") and "sweep" in peer:
            wanted = LOOP if "Python" in peer else FUSED
            yield Verdict(f"{op} {size}, times as fast as the {peer}", wanted, faster)


if __name__ == "__main__":
    for verdict in verdicts(json.loads(Path(sys.argv[1]).read_text())):
        answer = "reached    " if verdict.reached else "NOT reached"
        print(f"{answer}  {verdict.bar}: {verdict.measured:.2f} of {verdict.wanted:.2f}")
