"""Time a 4-bit linear layer against its peers: ratios of medians, every contestant in turn, in one run.

Peers: ``nn.Linear`` in float32 and bfloat16, torch's int4 kernel (``_weight_int4pack_mm_for_cpu``, bfloat16)
and onnxruntime's ``MatMulNBits`` where onnxruntime and onnx are installed: accuracy level 4 rounds activations
to int8 (relative error near 1e-2), level 0 computes in float32 as we do.

A ratio below 1 means ours is faster. Weights that fit in cache stay there between calls; ``--copies`` walks
through several copies of every layer, as a model's forward pass does.

    python benchmarks/bench_w4_linear.py [--shape 1280x1280 …] [--rows 1 …] [--threads 1 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tarq.kernels import dispatch
from tarq.kernels.w4_linear import dequantize, pack, w4_linear
from torch import Tensor

SHAPES = ["1280x1280", "5120x1280", "1280x5120", "4096x4096"]
ROWS = [1, 4, 16, 64, 256, 1500]
GROUP = 128

Call = Callable[[int], Any]  # takes the number of the copy to use


def medians(calls: dict[str, Call], copies: int, seconds: float) -> dict[str, float]:
    """Median seconds of each call; they take turns, so that a busy moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(0)
    turn, end = 0, time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or turn < 5 or turn < copies:
        for name, call in calls.items():
            began = time.perf_counter()
            call(turn % copies)
            times[name].append(time.perf_counter() - began)
        turn += 1
    return {name: statistics.median(values) for name, values in times.items()}


class Layers:
    """`copies` random layers of one shape in every contestant's format."""

    def __init__(self, outputs: int, inputs: int, copies: int, scale_dtype: torch.dtype) -> None:
        self.outputs, self.inputs = outputs, inputs
        groups = inputs // GROUP
        codes = [torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8) for _ in range(copies)]
        self.scales = [(torch.rand(outputs, groups) * 0.02 + 0.005).to(scale_dtype) for _ in range(copies)]
        self.packed = [pack(c, 4) for c in codes]
        dense = [dequantize(p, s, None, inputs, GROUP) for p, s in zip(self.packed, self.scales, strict=True)]
        self.float32 = [d.float() for d in dense]
        self.bfloat16 = [d.bfloat16() for d in dense]
        convert = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        self.int4pack = [convert(c.int(), 2) for c in codes]
        # Its zero is the midpoint 8 already: scale and zero offset of a group, in bfloat16.
        self.int4pack_scales = [
            torch.stack([s.T, torch.zeros_like(s.T)], -1).bfloat16().contiguous() for s in self.scales
        ]
        # onnxruntime wants two codes a byte, low nibble first: the bytes of our words.
        self.bytes = [p.view(torch.uint8).reshape(outputs, groups, GROUP // 2) for p in self.packed]

    def ours(self, x: Tensor) -> Call:
        return lambda i: w4_linear(x, self.packed[i], self.scales[i], None, None, self.inputs, GROUP)

    def torch_peers(self, x: Tensor) -> dict[str, Call]:
        linear, half = torch.nn.functional.linear, x.bfloat16()
        int4pack = torch.ops.aten._weight_int4pack_mm_for_cpu
        return {
            "float32 linear": lambda i: linear(x, self.float32[i]),
            "bfloat16 linear": lambda i: linear(half, self.bfloat16[i]),
            "int4pack bfloat16": lambda i: int4pack(half, self.int4pack[i], GROUP, self.int4pack_scales[i]),
        }

    def onnxruntime_peer(self, x: Tensor, accuracy: int) -> Call:
        """`MatMulNBits` at an accuracy level, with input and output bound to fixed memory."""
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        runs = []
        for i in range(len(self.packed)):
            node = helper.make_node(
                "MatMulNBits",
                ["x", "codes", "scales"],
                ["y"],
                domain="com.microsoft",
                K=self.inputs,
                N=self.outputs,
                bits=4,
                block_size=GROUP,
                accuracy_level=accuracy,
            )
            graph = helper.make_graph(
                [node],
                "layer",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], self.outputs])],
                [
                    numpy_helper.from_array(self.bytes[i].numpy(), "codes"),
                    numpy_helper.from_array(self.scales[i].float().flatten().numpy(), "scales"),
                ],
            )
            opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
            model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy()))
            binding.bind_output("y")
            runs.append((session, binding))
        return lambda i: runs[i][0].run_with_iobinding(runs[i][1])


def device_name() -> str:
    """The processor's name and the best instruction set our kernels found."""
    isa = torch.ops.tarq.w4_linear_isas()[0] if dispatch.EXTENSION_ERROR is None else "no extension"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model} ({isa})"


def measure(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    ort = all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx"))
    if not ort:
        console.print("onnxruntime or onnx is not installed: MatMulNBits is left out")
    backend = "native" if dispatch.EXTENSION_ERROR is None else "reference"
    records = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for shape in arguments.shape:
            outputs, inputs = map(int, shape.split("x"))
            layers = Layers(outputs, inputs, arguments.copies, getattr(torch, arguments.scales))
            for rows in arguments.rows:
                x = torch.randn(rows, inputs)
                calls = {"float32": layers.ours(x), "bfloat16": layers.ours(x.bfloat16())}
                peers = layers.torch_peers(x)
                if rows > 256:  # it takes seconds there, and nobody would use it
                    del peers["int4pack bfloat16"]
                if ort:
                    peers |= {f"onnxruntime level {a}": layers.onnxruntime_peer(x, a) for a in (0, 4)}
                seconds = medians(calls | peers, arguments.copies, arguments.seconds)
                records += [
                    {
                        "op": "w4_linear",
                        "shape": [rows, outputs, inputs],
                        "dtype": dtype,
                        "threads": threads,
                        "device": device_name(),
                        "backend": backend,
                        "peer": peer,
                        "seconds": seconds[dtype],
                        "peer_seconds": seconds[peer],
                        "ratio": seconds[dtype] / seconds[peer],
                        "group_size": GROUP,
                        "scales": arguments.scales,
                        "copies": arguments.copies,
                        "torch": torch.__version__,
                    }
                    for dtype in calls
                    for peer in peers
                ]
    return records


def show(records: list[dict[str, Any]], console: Console) -> None:
    """A line a shape, row count and dtype; a column a peer."""
    peers = list(dict.fromkeys(r["peer"] for r in records))
    table = Table(title="w4_linear: time of ours ÷ time of the peer (below 1: ours is faster)")
    for column in ("threads", "weight", "rows", "ours", "µs", *peers):
        table.add_column(column, justify="right")
    lines: dict[tuple, dict[str, dict]] = {}
    for r in records:
        rows, outputs, inputs = r["shape"]
        lines.setdefault((r["threads"], f"{outputs}×{inputs}", rows, r["dtype"]), {})[r["peer"]] = r
    for (threads, weight, rows, dtype), cells in lines.items():
        ratios = [f"{cells[p]['ratio']:.2f}" if p in cells else "–" for p in peers]
        micros = next(iter(cells.values()))["seconds"] * 1e6
        table.add_row(str(threads), weight, str(rows), dtype, f"{micros:.0f}", *ratios)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=SHAPES, metavar="NxK", help="outputs x inputs")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, metavar="M")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--scales", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--copies", type=int, default=1, help="layers walked through, 1 keeps them in cache")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each contestant in each line")
    parser.add_argument("--json", type=Path, help="write the records there")
    arguments = parser.parse_args()
    console = Console(width=140)
    with torch.inference_mode():
        records = measure(arguments, console)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(records, indent=1))
    show(records, console)


if __name__ == "__main__":
    main()
