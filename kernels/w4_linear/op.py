"""Operator ``tarq::w4_linear``: a linear layer whose weights stay packed at 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from .reference import dequantize
from .reference import w4_linear as reference

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
    return x.new_empty((*x.shape[:-1], weight_packed.shape[0]))


dispatch.define("w4_linear", SCHEMA, reference, _fake)
_op = torch.ops.tarq.w4_linear.default


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

    W is what :func:`~tarq.kernels.w4_linear.dequantize` gives; sums are float32. With bfloat16 ``x`` a backend
    may round W to bfloat16, as a bfloat16 model would hold it. float16 on a CPU computes in float32.

    Args:
        x: float32, bfloat16 or float16 [..., K]; any leading shape (empty included), any strides.
        weight_packed: int32 [N, ceil(K/8)]; the code of input k is in bits ``4·(k%8)`` of word ``k//8``.
        weight_scale: float16, bfloat16 or float32 [N, G] with G = ceil(K / group_size).
        weight_zero_point: int32 [ceil(N/8), G] packed along dimension 0, or None: zero point 8.
        bias: float [N] or None.
        in_features: K.
        group_size: consecutive inputs that share a scale; multiples of 32 are fast, any is right.
        backend: ``reference`` or ``native`` forces one; None takes the native one where there is one.

    Returns:
        [..., N], contiguous, in the dtype of ``x``. Gradients reach ``x`` and ``bias`` (through a weight
        expanded for the backward pass); the packed weights have none.

    Raises:
        RuntimeError: a tensor's shape, dtype or device does not fit; the message names it.
        ValueError: ``backend`` is unknown or missing.
    """
    if dispatch.use_reference(backend):
        return reference(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _Differentiable.apply(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size)
    return _op(x, weight_packed, weight_scale, weight_zero_point, bias, in_features, group_size)


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
            weight = dequantize(*ctx.saved_tensors, *ctx.sizes)
            x_grad = (grad.float() @ weight.float()).to(grad.dtype)
        if ctx.needs_input_grad[4]:
            bias_grad = grad.float().flatten(0, -2).sum(0).to(ctx.bias_dtype)
        return x_grad, None, None, None, bias_grad, None, None
