"""Time ``group_quantize`` of one layer: factor and sweep, against the reference and against GPTQModel.

    python -P benchmarks/bench_group_quantize.py --peer-python PEER_VENV/bin/python --json FILE

The peer (GPTQModel's ``GPTQ.quantize``) runs in its own interpreter on the same weight and Hessian, with as
many threads, taking turns with ours; times are medians, from the Hessian to codes and scales.
``loss / peer`` is our damped quadratic error over the peer's: about 1 says both did the same work.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

SHAPES = ((1280, 1280), (5120, 1280), (1280, 5120))

PEER = r"""
import json, sys, time
out, sys.stdout = sys.stdout, sys.stderr  # the peer logs to stdout
import torch, gptqmodel
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
torch.set_num_threads(int(sys.argv[1]))
version = f"GPTQModel {gptqmodel.__version__}, torch {torch.__version__}"
print(json.dumps({"version": version}), file=out, flush=True)
for line in sys.stdin:
    weight, hessian = torch.load(line.strip())
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    task = GPTQ(layer, QuantizeConfig(bits=4, group_size=128, sym=True, desc_act=False, act_group_aware=False,
                                      damp_percent=0.01))
    task.quantizer.configure(perchannel=True)
    task.H, task.nsamples = hessian, 128
    start = time.perf_counter()
    quantized = task.quantize(blocksize=128)[0]
    seconds = time.perf_counter() - start
    torch.save(quantized, line.strip() + ".out")
    print(json.dumps({"seconds": seconds}), file=out, flush=True)
"""


def problem(m: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of correlated inputs with a few outlier channels."""
    generator = torch.Generator().manual_seed(m + n)
    mixed = torch.randn(2 * n, n, generator=generator) @ torch.randn(n, n, generator=generator) / n**0.5
    x = mixed + 0.3 * torch.randn(2 * n, n, generator=generator)
    x[:, :: n // 8] *= 20
    return torch.randn(m, n, generator=generator).to(dtype) * 0.02, (x.mT @ x).to(dtype)


class Peer:
    """GPTQModel in its own interpreter; :meth:`run` has it quantize one saved problem."""

    def __init__(self, python: str, threads: int) -> None:
        self.process = subprocess.Popen(
            [python, "-c", PEER, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version = str(self._answer()["version"])

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the peer ended without an answer: does its interpreter import gptqmodel?")
        return json.loads(line)

    def run(self, saved: Path) -> float:
        """Seconds for the problem in ``saved``; its quantized weight is left in ``saved`` + ``.out``."""
        assert self.process.stdin is not None
        print(saved, file=self.process.stdin, flush=True)
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the interpreter."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(m: int, n: int, dtype: torch.dtype, rule: str, turns: int, peer: Peer | None, slow: bool) -> dict:
    """One record: our times, the peer's and the reference's on one problem."""
    from tarq.kernels.group_quantize import factorize, group_quantize
    from tarq.kernels.scheme import Scheme

    weight, hessian = problem(m, n, dtype)
    scheme = Scheme(scale_rule=rule)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "problem.pt"
        torch.save((weight.float(), hessian.float()), saved)
        factor_s, sweep_s, peer_s = [], [], []
        group_quantize(weight, factorize(hessian), scheme)
        for _ in range(turns):
            if peer:
                peer_s.append(peer.run(saved))
            start = time.perf_counter()
            factor = factorize(hessian)
            middle = time.perf_counter()
            quantized = group_quantize(weight, factor, scheme)
            factor_s.append(middle - start)
            sweep_s.append(time.perf_counter() - middle)
        loss_ratio = None
        if peer:
            precise = factorize(hessian.double())
            theirs = (weight - torch.load(f"{saved}.out")).double() @ precise.upper
            ours = (weight - quantized.dequantize()).double() @ precise.upper
            loss_ratio = float(ours.square().sum() / theirs.square().sum())
    reference_s = None
    if slow:
        start = time.perf_counter()
        group_quantize(weight, factorize(hessian, backend="reference"), scheme, backend="reference")
        reference_s = time.perf_counter() - start
    seconds = statistics.median(f + s for f, s in zip(factor_s, sweep_s, strict=True))
    peer_seconds = statistics.median(peer_s) if peer else None
    return {
        "op": "group_quantize",
        "shape": [m, n],
        "dtype": str(dtype).removeprefix("torch."),
        "scale_rule": rule,
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "backend": "native",
        "torch": torch.__version__,
        "turns": turns,
        "seconds": seconds,
        "factor_seconds": statistics.median(factor_s),
        "sweep_seconds": statistics.median(sweep_s),
        "reference_seconds": reference_s,
        "peer": peer.version if peer else None,
        "peer_seconds": peer_seconds,
        "ratio": peer_seconds / seconds if peer_seconds else None,
        "loss_over_peer": loss_ratio,
    }


def show(records: list[dict]) -> None:
    """The records as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="group_quantize: seconds per layer, W4 g128 (median)")
    for name in (
        "out × in",
        "dtype",
        "threads",
        "factor",
        "sweep",
        "ours",
        "reference",
        "peer",
        "ratio",
        "loss / peer",
    ):
        table.add_column(name, justify="right")
    for r in records:
        numbers = [r[k] for k in ("factor_seconds", "sweep_seconds", "seconds", "reference_seconds", "peer_seconds")]
        table.add_row(
            " × ".join(map(str, r["shape"])),
            r["dtype"],
            str(r["threads"]),
            *("–" if v is None else f"{v:.4f}" for v in numbers),
            "–" if r["ratio"] is None else f"{r['ratio']:.1f}×",
            "–" if r["loss_over_peer"] is None else f"{r['loss_over_peer']:.4f}",
        )
    Console(width=120).print(table)
    if records and records[0]["peer"]:
        print(f"peer: {records[0]['peer']}; here: torch {torch.__version__}")
    else:
        print("no peer: name an interpreter that imports gptqmodel with --peer-python")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of an environment with gptqmodel")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rule", choices=("absmax", "minmax", "mse"), default="absmax")
    parser.add_argument("--shapes", nargs="+", default=["x".join(map(str, s)) for s in SHAPES], metavar="OUTxIN")
    parser.add_argument("--reference", action="store_true", help="also time the reference on every shape")
    parser.add_argument("--json", type=Path, help="write the records here")
    options = parser.parse_args()

    records = []
    for threads in sorted(set(options.threads)):
        torch.set_num_threads(threads)
        peer = Peer(options.peer_python, threads) if options.peer_python else None
        for shape in options.shapes:
            m, n = map(int, shape.split("x"))
            slow = options.reference or n <= 1280
            records.append(measure(m, n, getattr(torch, options.dtype), options.rule, options.turns, peer, slow))
        if peer:
            peer.close()
    show(records)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(records, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
