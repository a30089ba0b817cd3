"""Cases of ``group_quantize``: one layer from its Hessian to codes and scales, factorisation included.

Peers: the Cholesky and the matrix product that any such sweep needs, by torch; the textbook sweep, a Python loop over
columns (on a CPU, small layers only); GPTQModel's ``GPTQ.quantize`` in a separate interpreter that has
it; on a GPU, :mod:`~tarq.bench.fused_sweep`, which also takes layers of one shape together. A refined
layer's peer is the same layer not refined.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tarq.bench.measure import Call, Case, Record, Shape, calling
from tarq.kernels.group_quantize import Quantized, factorize, group_quantize, group_quantize_layers, group_refine
from tarq.kernels.group_quantize.reference import textbook_sweep
from tarq.kernels.scheme import Scheme

SHAPES = ((1280, 1280), (5120, 1280), (1280, 5120))  # outputs, inputs
QUICK_SHAPES = ((1280, 1280),)
LAYERS = 8  # taken together on a GPU
PASSES = 4  # of the refinement

_PEER = r"""
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


class GPTQModelPeer:
    """GPTQModel in a separate interpreter, on the same weight and Hessian, with the same number of threads.

    Raises:
        RuntimeError: the interpreter does not import gptqmodel.
    """

    def __init__(self, python: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [python, "-c", _PEER, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version = str(self._answer()["version"])

    def _answer(self) -> Record:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the peer ended without an answer: can its interpreter import gptqmodel?")
        return json.loads(line)

    def save(self, weight: Tensor, hessian: Tensor) -> Path:
        """Save a problem for :meth:`run`."""
        path = Path(self.folder.name) / f"{weight.shape[0]}x{weight.shape[1]}.pt"
        torch.save((weight, hessian), path)
        return path

    def run(self, saved: Path) -> float:
        """Seconds for the saved problem, by the peer's own clock; its weight is left in ``saved`` + ``.out``."""
        assert self.process.stdin is not None
        print(saved, file=self.process.stdin, flush=True)
        return float(self._answer()["seconds"])


def problem(outputs: int, inputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of correlated inputs with a few outlier channels."""
    generator = torch.Generator(device).manual_seed(outputs + inputs)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    x = normal(2 * inputs, inputs) @ normal(inputs, inputs) / inputs**0.5 + 0.3 * normal(2 * inputs, inputs)
    x[:, :: inputs // 8] *= 20
    return normal(outputs, inputs) * 0.02, x.mT @ x


def ours(weight: Tensor, hessian: Tensor) -> Quantized:
    """Factorisation and sweep."""
    return group_quantize(weight, factorize(hessian), Scheme())


def not_refined(weight: Tensor, hessian: Tensor) -> Quantized:
    """Factorisation and sweep, scales by the ``mse`` rule and in float16."""
    return group_quantize(weight, factorize(hessian), Scheme(scale_rule="mse"), scale_dtype=torch.float16)


def refined(weight: Tensor, hessian: Tensor) -> Quantized:
    """The same, refined."""
    scheme, factor = Scheme(scale_rule="mse"), factorize(hessian)
    quantized = group_quantize(weight, factor, scheme, scale_dtype=torch.float16)
    return group_refine(weight, quantized, hessian, factor, scheme, passes=PASSES)


def ours_batched(weights: Tensor, hessians: Tensor) -> list[Quantized]:
    """Several layers of one shape."""
    return group_quantize_layers(list(weights), [factorize(hessian) for hessian in hessians], Scheme())


def column_loop(weight: Tensor, damped: Tensor) -> None:
    """Inverse and textbook sweep, a Python loop over columns."""
    textbook_sweep(weight, damped, Scheme())


def lower_bound(weight: Tensor, damped: Tensor) -> None:
    """The Cholesky, and half a product of the errors with the factor: its upper triangle."""
    upper = torch.linalg.cholesky(damped)
    half = len(upper) // 2
    weight[:, :half] @ upper[:half]


def _loss_over_peer(weight: Tensor, hessian: Tensor, saved: Path) -> Record:
    """Our damped quadratic error over the peer's: about 1 says that both did the same work."""
    precise = factorize(hessian.double()).upper
    errors = [
        ((weight - q).double() @ precise).square().sum()
        for q in (ours(weight, hessian).dequantize(), torch.load(f"{saved}.out"))
    ]
    return {"loss_over_gptqmodel": float(errors[0] / errors[1])}


def cases(
    device: torch.device, *, quick: bool, shapes: Sequence[Shape] = (), peer_python: str | None = None
) -> Iterator[Case]:
    """Cases on a device; a quick run takes only the square layer, unless shapes are given."""
    gpu = device.type == "cuda"
    peer = GPTQModelPeer(peer_python) if peer_python and not gpu else None
    for m, n in shapes or (QUICK_SHAPES if quick else SHAPES):
        weight, hessian = problem(m, n, device)
        damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(n, device=device)
        peers: dict[str, Call] = {"torch Cholesky and products": calling(lower_bound, weight, damped)}
        extra: Callable[[], Record] = dict
        if gpu or (not quick and n <= 1280):
            peers["textbook sweep in Python"] = calling(column_loop, weight, damped)
        if gpu:
            from tarq.bench.fused_sweep import fused_sweep

            peers["fused sweep in Triton"] = calling(fused_sweep, weight[None], damped[None])
        if peer is not None:
            saved = peer.save(weight, hessian)
            peers[peer.version] = calling(peer.run, saved)
            extra = partial(_loss_over_peer, weight, hessian, saved)
        yield _case("group_quantize", (m, n), calling(ours, weight, hessian), peers, extra=extra)
        peers = {"not refined": calling(not_refined, weight, hessian)}
        yield _case("group_quantize, refined", (m, n), calling(refined, weight, hessian), peers, passes=PASSES)
        if gpu:
            many, hessians, all_damped = (t.expand(LAYERS, -1, -1).contiguous() for t in (weight, hessian, damped))
            together = calling(ours_batched, many, hessians)
            peers = {"fused sweep in Triton": calling(fused_sweep, many, all_damped)}
            yield _case("group_quantize, layers together", (LAYERS, m, n), together, peers, LAYERS)


def _case(
    op: str,
    shape: tuple[int, ...],
    call: Call,
    peers: dict[str, Call],
    layers: int = 1,
    extra: Callable[[], Record] = dict,
    passes: int = 0,
) -> Case:
    m, n = shape[-2:]
    variant = "factor, sweep and refinement" if passes else "factor and sweep"
    return Case(
        op=op,
        shape=shape,
        ours={variant: call},
        dtypes={variant: "float32"},
        peers=peers,
        bytes=layers * (4 * n * n + 4 * m * n + m * n // 2),
        flops={variant: ("float32", layers * (n**3 / 3 + (1.0 + 2 * passes) * m * n * n))},
        extra=extra,
    )
