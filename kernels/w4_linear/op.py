"""Operator ``tarq::w4_linear``: a linear layer whose weights stay packed at 4 bits."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from .reference import dequantize
from .reference import w4_linear as reference
from .reference import w4_linear_int8 as int8_reference

SCHEMA = (
    "(Tensor x, Tensor weight_packed, Tensor weight_scale, Tensor? weight_zero_point, Tensor? bias, "
    "int in_features, int group_size) -> Tensor"
)


def _fake(
    x: Tensor,
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    group_size: int,
) -> Tensor:
    torch._check(x.shape[-1] == in_features, lambda: f"x must end in {in_features}, not {list(x.shape)}")
    return x.new_empty((*x.shape[:-1], weight_packed.shape[-2]))  # prepacked tensors have a dimension before it


dispatch.define("w4_linear", SCHEMA, reference, _fake)
dispatch.define("w4_linear_int8", SCHEMA, int8_reference, _fake)
if find_spec("triton") is not None:
    # Importing triton takes a second: only a GPU's first call pays it.
    @torch.library.impl("tarq::w4_linear", "CUDA")
    def _w4_linear_cuda(
        x: Tensor,
        weight_packed: Tensor,
        weight_scale: Tensor,
        weight_zero_point: Tensor | None,
        bias: Tensor | None,
        in_features: int,
        group_size: int,
    ) -> Tensor:
        from .cuda import w4_linear_cuda

        return w4_linear_cuda(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size)


_op = torch.ops.tarq.w4_linear.default
_int8_op = torch.ops.tarq.w4_linear_int8.default


def w4_linear(
    x: Tensor,
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    group_size: int,
    backend: str | None = None,
) -> Tensor:
    """``y = x · Wᵀ + bias`` with W in compressed-tensors' ``pack-quantized`` layout (4 bits), never expanded.

    W is ``(code − zero) · scale``, not rounded to the scales' dtype; sums are float32. With bfloat16 or float16 ``x``
    a backend may round W to that dtype, as a dense model would hold it. float16 on a CPU computes in float32. With AVX2
    an input below 5e-29 loses bits.

    Args:
        x: float32, bfloat16 or float16 [..., K]; any leading shape (empty included), any strides.
        weight_packed: int32 [N, ceil(K/8)]; the code of input k is in bits ``4·(k%8)`` of word ``k//8``.
        weight_scale: float16, bfloat16 or float32 [N, G] with G = ceil(K / group_size).
        weight_zero_point: int32 [ceil(N/8), G] packed along dimension 0, or None: zero point 8.
        bias: float [N] or None.
        in_features: K.
        group_size: consecutive inputs that share a scale; multiples of 8 are fast, any is right.
            (A GPU also takes the three weight tensors as :func:`~tarq.kernels.w4_linear.cuda.prepack` orders them.)
        backend: ``reference`` or ``native`` forces one; None takes the native one where there is one.

    Returns:
        [..., N], contiguous, in the dtype of ``x``. Gradients reach ``x`` and ``bias`` (through a weight
        expanded for the backward pass); the packed weights have none.

    Raises:
        RuntimeError: a tensor's shape, dtype or device does not fit; the message names it.
        ValueError: ``backend`` is unknown or missing.
    """
    if dispatch.use_reference(backend, "w4_linear", x.device.type):
        stored = _as_stored(weight_packed, weight_scale, weight_zero_point, in_features)
        return reference(x, *stored, bias, in_features, group_size)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _Differentiable.apply(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size)
    return _op(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size)


def w4_linear_int8(
    x: Tensor,
    weight_packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    group_size: int,
    backend: str | None = None,
) -> Tensor:
    """:func:`w4_linear` with activations rounded to 8 bits, a scale a group: integer products, faster, less exact.

    Every call rounds x group by group to ``max|x| / 127`` steps, the granularity of the weight's scales (what
    onnxruntime's ``MatMulNBits`` does at accuracy level 4). Weights are used as they are; sums over groups are
    float32. Products of normal activations differ from :func:`w4_linear`'s by about 0.7 % of their norm.

    Args, Returns: as :func:`w4_linear`; a NaN or infinity makes its row NaN. There are no gradients.

    Raises:
        RuntimeError: as :func:`w4_linear`, or on a CPU ``group_size`` is not 32, 64, a multiple of 128 or all of K.
        ValueError: ``backend`` is unknown or missing.
    """
    # A GPU has no kernel for it, and float16 is fast there; a traced call with prepacked tensors needs to know.
    if dispatch.use_reference(backend, "w4_linear_int8", x.device.type) or x.is_cuda:
        stored = _as_stored(weight_packed, weight_scale, weight_zero_point, in_features)
        return int8_reference(x, *stored, bias, in_features, group_size)
    return _int8_op(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size)


def _as_stored(
    weight_packed: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None, in_features: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors in the checkpoint's order, which prepacked ones (three dimensions) are not in."""
    if weight_packed.dim() == 2:
        return weight_packed, weight_scale, weight_zero_point
    from .cuda import Prepacked, unprepack

    return unprepack(Prepacked(weight_packed, weight_scale, weight_zero_point), in_features)


class _Differentiable(torch.autograd.Function):
    """The operator with gradients of its activations and bias: what training around frozen weights needs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_packed: Tensor,
        weight_scale: Tensor,
        weight_zero_point: Tensor | None,
        bias: Tensor | None,
        in_features: int,
        group_size: int,
    ) -> Tensor:
        ctx.save_for_backward(weight_packed, weight_scale, weight_zero_point)
        ctx.sizes = in_features, group_size
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _op(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            weight_packed, weight_scale, weight_zero_point = ctx.saved_tensors
            codes, scales, zeros = _as_stored(weight_packed, weight_scale, weight_zero_point, ctx.sizes[0])
            x_grad = (grad.float() @ dequantize(codes, scales.float(), zeros, *ctx.sizes)).to(grad.dtype)
        if ctx.needs_input_grad[4]:
            bias_grad = grad.float().flatten(0, -2).sum(0).to(ctx.bias_dtype)
        return x_grad, None, None, None, bias_grad, None, None
