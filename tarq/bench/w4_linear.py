"""Cases of ``w4_linear``: one packed layer, from one row (decoding) to a whole window (the encoder).

Peers: ``nn.Linear`` (float32 and bfloat16 on a CPU, both 16-bit dtypes on a GPU), torch's int4 kernel in bfloat16, and
where they are installed, onnxruntime's ``MatMulNBits`` on a CPU (accuracy level 4 rounds activations to int8, level 0
computes in float32) and gemlite on a GPU, which tunes itself for every shape.

On a GPU, calls cycle through more layers than L2 holds and are launched as CUDA graphs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from tarq.bench.measure import Call, Case, Shape, copies_beyond_cache
from tarq.kernels.w4_linear import PackedWeight, dequantize, get, pack, w4_linear, w4_linear_int8

GROUP = 128
SHAPES = ((1280, 1280), (5120, 1280), (1280, 5120), (4096, 4096))  # outputs, inputs
ROWS = (1, 4, 16, 64, 256, 1500)
QUICK_SHAPES, QUICK_ROWS = ((1280, 1280),), (1, 16, 256)
GPU_SHAPES = (*SHAPES, (16384, 16384))
GPU_ROWS = (1, 8, 16, 64, 256, 1500)
COLD = (4096, 4096)  # the layer that is also read from memory, through copies of it
COLD_BYTES = 96 << 20  # more than a shared cache holds


class Layers:
    """``copies`` random layers of one shape in every contestant's format."""

    def __init__(self, outputs: int, inputs: int, copies: int, device: torch.device) -> None:
        self.outputs, self.inputs, self.device = outputs, inputs, device
        shape, groups = (outputs, inputs), inputs // GROUP
        codes = [torch.randint(0, 16, shape, dtype=torch.uint8, device=device) for _ in range(copies)]
        self.scales = [(torch.rand(outputs, groups, device=device) * 0.02 + 0.005).half() for _ in codes]
        self.packed = [pack(c, 4) for c in codes]
        dense = [dequantize(p, s, None, inputs, GROUP) for p, s in zip(self.packed, self.scales, strict=True)]
        self.dense = {dtype: [d.to(dtype) for d in dense] for dtype in self._dense_dtypes()}
        weights = [PackedWeight(p, s, None, None, inputs, GROUP) for p, s in zip(self.packed, self.scales, strict=True)]
        self.gemlite: list[torch.nn.Module] = []
        # As in a loaded layer.
        self.layers = [get("triton").prepack(w) for w in weights] if device.type == "cuda" else weights
        if device.type == "cuda" and importlib.util.find_spec("gemlite"):
            self.gemlite = self._gemlite(codes)
        self.int4pack, self.int4pack_scales = self._int4pack(codes)

    def _dense_dtypes(self) -> tuple[torch.dtype, ...]:
        if self.device.type == "cuda":
            return torch.float16, torch.bfloat16
        return torch.float32, torch.bfloat16

    def _int4pack(self, codes: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """torch's own format: its zero is the midpoint 8 already; scale and zero offset of a group, in bfloat16."""
        pairs = [torch.stack([s.T, torch.zeros_like(s.T)], -1).bfloat16().contiguous() for s in self.scales]
        if self.device.type == "cuda":
            bytes_ = [c[:, ::2] << 4 | c[:, 1::2] for c in codes]
            return [torch.ops.aten._convert_weight_to_int4pack(b, 8) for b in bytes_], pairs
        return [torch.ops.aten._convert_weight_to_int4pack_for_cpu(c.int(), 2) for c in codes], pairs

    def _gemlite(self, codes: list[Tensor]) -> list[torch.nn.Module]:
        """gemlite's layers, in float16."""
        from gemlite import DType, GemLiteLinear

        layers = [GemLiteLinear(4, GROUP, self.inputs, self.outputs, DType.FP16, DType.FP16) for _ in codes]
        for layer, own, scale in zip(layers, codes, self.scales, strict=True):
            layer.pack(own, scale, 8, None)
        return layers

    def ours(self, x: Tensor) -> Call:
        return lambda i: w4_linear(x, self.layers[i])

    def ours_int8(self, x: Tensor) -> Call:
        return lambda i: w4_linear_int8(x, self.layers[i])

    def peers(self, x: Tensor) -> dict[str, Call]:
        linear, half = torch.nn.functional.linear, x.bfloat16()
        calls: dict[str, Call] = {}
        for dtype, weights in self.dense.items():
            name = f"{str(dtype).removeprefix('torch.')} linear"
            calls[name] = lambda i, x=x.to(dtype), weights=weights: linear(x, weights[i])  # type: ignore[misc]
        if len(x) <= 256:  # beyond, it takes seconds and would not be used
            name = "_weight_int4pack_mm" + ("" if self.device.type == "cuda" else "_for_cpu")
            product = getattr(torch.ops.aten, name)
            calls["torch int4pack (bfloat16)"] = lambda i: product(
                half, self.int4pack[i], GROUP, self.int4pack_scales[i]
            )
        if self.gemlite:
            narrow = x.half()
            calls[f"gemlite{_version('gemlite')} (float16)"] = lambda i: self.gemlite[i](narrow)
        if self.device.type == "cpu" and all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx")):
            calls |= {f"onnxruntime level {level}": self.onnxruntime(x, level) for level in (0, 4)}
        return calls

    def onnxruntime(self, x: Tensor, level: int) -> Call:
        """``MatMulNBits`` at an accuracy level, with input and output bound to fixed memory."""
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads would occupy our cores
        groups, runs = self.inputs // GROUP, []
        for packed, scale in zip(self.packed, self.scales, strict=True):
            # Two codes a byte, low nibble first: the bytes of our words.
            codes = packed.view(torch.uint8).reshape(self.outputs, groups, GROUP // 2)
            node = helper.make_node(
                "MatMulNBits",
                ["x", "codes", "scales"],
                ["y"],
                domain="com.microsoft",
                K=self.inputs,
                N=self.outputs,
                bits=4,
                block_size=GROUP,
                accuracy_level=level,
            )
            graph = helper.make_graph(
                [node],
                "layer",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], self.outputs])],
                [
                    numpy_helper.from_array(codes.numpy(), "codes"),
                    numpy_helper.from_array(scale.float().flatten().numpy(), "scales"),
                ],
            )
            opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
            model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy()))
            binding.bind_output("y")
            runs.append((session, binding))

        def run(i: int) -> object:
            session, binding = runs[i]
            session.run_with_iobinding(binding)
            return binding  # fetching what it holds would be a copy

        return run


def _version(package: str) -> str:
    """A blank and its version; empty if it is importable but not installed, as from a folder."""
    try:
        return f" {version(package)}"
    except PackageNotFoundError:
        return ""


def cases(device: torch.device, *, quick: bool, shapes: Sequence[Shape] = ()) -> Iterator[Case]:
    """Cases on a device; a quick run takes one layer, unless shapes are given, and three row counts."""
    gpu = device.type == "cuda"
    layer_shapes = shapes or (QUICK_SHAPES if quick else GPU_SHAPES if gpu else SHAPES)
    rows = QUICK_ROWS if quick else GPU_ROWS if gpu else ROWS
    for outputs, inputs in layer_shapes:
        copies = copies_beyond_cache(outputs * inputs // 2, device) if gpu else 1
        layers = Layers(outputs, inputs, copies, device)
        for count in rows:
            yield _case(layers, count)
    if not quick and not gpu and not shapes:
        outputs, inputs = COLD
        yield _case(Layers(outputs, inputs, -(-COLD_BYTES // (outputs * inputs // 2)), device), 1)


def _case(layers: Layers, rows: int) -> Case:
    outputs, inputs = layers.outputs, layers.inputs
    x = torch.randn(rows, inputs, device=layers.device)
    flops = 2.0 * rows * outputs * inputs
    if layers.device.type == "cuda":
        ours = {str(d).removeprefix("torch."): layers.ours(x.to(d)) for d in layers.dense}
        dtypes = {variant: variant for variant in ours}
        work = dict.fromkeys(ours, ("bfloat16", flops))
    else:
        ours = {
            "float32": layers.ours(x),
            "bfloat16": layers.ours(x.bfloat16()),
            "int8 activations": layers.ours_int8(x),
        }
        dtypes = {"float32": "float32", "bfloat16": "bfloat16", "int8 activations": "float32"}
        work = {"float32": ("float32", flops), "bfloat16": ("bfloat16", flops), "int8 activations": ("int8", flops)}
    activations = rows * (inputs + outputs) * (2 if layers.device.type == "cuda" else 4)
    return Case(
        op="w4_linear",
        shape=(rows, outputs, inputs),
        ours=ours,
        dtypes=dtypes,
        peers=layers.peers(x),
        bytes=layers.packed[0].nbytes + layers.scales[0].nbytes + activations,
        flops=work,
        copies=len(layers.packed),
        graph=True,
    )
