"""``w4_linear``, whose weights stay packed: its torch operators, and the functions over all backends.

The operators take the fields of a :class:`PackedWeight` one by one, as a torch schema requires. ``tarq::w4_linear`` and
``tarq::w4_linear_int8`` take the stored layout, ``tarq::w4_linear_k_blocks`` that of the Triton kernels. The reference
serves each on every device without a kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..triton_runtime import installed
from .backends import Backend, Config, as_stored, can_run_config, get
from .reference import dequantize
from .reference import w4_linear as reference
from .reference import w4_linear_int8 as int8_reference
from .triton.layout import K_BLOCKS, unprepack
from .weight import STORED, PackedWeight

SCHEMA = (
    "(Tensor x, Tensor weight_packed, Tensor weight_scale, Tensor? weight_zero_point, Tensor? bias, "
    "int in_features, int group_size) -> Tensor"
)


def _reference(x: Tensor, *fields: Any) -> Tensor:
    return reference(x, PackedWeight(*fields))


def _reference_k_blocks(x: Tensor, *fields: Any) -> Tensor:
    return reference(x, unprepack(PackedWeight(*fields)._replace(layout=K_BLOCKS)))


def _reference_int8(x: Tensor, *fields: Any) -> Tensor:
    return int8_reference(x, PackedWeight(*fields))


def _fake(x: Tensor, weight_packed: Tensor, *fields: Any) -> Tensor:
    in_features = fields[-2]
    torch._check(x.shape[-1] == in_features, lambda: f"x must end in {in_features}, not {list(x.shape)}")
    return x.new_empty((*x.shape[:-1], weight_packed.shape[-2]))


dispatch.define("w4_linear", SCHEMA, _reference, _fake)
dispatch.define("w4_linear_k_blocks", SCHEMA, _reference_k_blocks, _fake)
dispatch.define("w4_linear_int8", SCHEMA, _reference_int8, _fake)
if installed():
    # Importing triton takes a second: only the first call on a GPU pays for it.
    @torch.library.impl("tarq::w4_linear", "CUDA")
    def _w4_linear_cuda(x: Tensor, *fields: Any) -> Tensor:
        from .triton.launch import w4_linear_triton

        weight = PackedWeight(*fields)
        weight.check()
        return w4_linear_triton(x, weight)

    @torch.library.impl("tarq::w4_linear_k_blocks", "CUDA")
    def _w4_linear_k_blocks_cuda(x: Tensor, *fields: Any) -> Tensor:
        from .triton.launch import w4_linear_triton

        return w4_linear_triton(x, PackedWeight(*fields)._replace(layout=K_BLOCKS))


def w4_linear(x: Tensor, weight: PackedWeight, backend: str | None = None) -> Tensor:
    """``y = x · Wᵀ + bias`` with packed W, which a kernel never expands.

    W is ``(code − zero) · scale``, not rounded to the scales' dtype; sums are float32. With bfloat16 or float16 ``x``
    a backend may round W to that dtype, as in a dense model. float16 on a CPU is computed in float32. With AVX2 an
    input below 5e-29 loses bits.

    How a CPU multiplies bfloat16 is decided by a measurement in the first call: in float32, unless the bfloat16
    instructions are clearly faster. ``TARQ_CPU_ISA=avx512_bf16`` selects them without measuring; any other name that
    the CPU supports selects float32.

    Args:
        x: float32, bfloat16 or float16 [..., K]; any leading shape (empty included), any strides. float64 runs on the
            reference.
        weight: in any layout; for repeated calls, convert it once to a backend's
            (:meth:`~.backends.Backend.prepack`), as :class:`tarq.QuantLinear` does.
        backend: ``reference``, ``native`` or a backend's name forces one; None takes the best available.

    Returns:
        [..., N], contiguous, in the dtype of ``x``. Gradients reach ``x`` and ``bias`` (through a weight
        expanded for the backward pass); the packed weights have none.

    Raises:
        RuntimeError: a tensor's shape, dtype or device does not fit; the message names it.
        BackendError: ``backend`` is unknown, or cannot run it.
    """
    name = dispatch.choice(backend)
    if name not in dispatch.BACKENDS:
        chosen = get(name)
        able, reason = can_run_config(chosen, Config.of(weight, x.device))
        if not able:
            raise dispatch.refused(f"backend {name!r} {reason}", backend)
        return multiply(chosen, x, weight if weight.layout == name else chosen.prepack(as_stored(weight)))
    if dispatch.use_reference(backend, "w4_linear", x.device.type) or weight.bits != 4:
        return multiply(get("reference"), x, as_stored(weight))
    # This backend's operator reads the stored layout on every device.
    return multiply(get("cpp" if weight.layout == STORED else weight.layout), x, weight)


def w4_linear_int8(x: Tensor, weight: PackedWeight, backend: str | None = None) -> Tensor:
    """:func:`w4_linear` with activations rounded to 8 bits, one scale per group: integer products, faster, less exact.

    Every call rounds x group by group to ``max|x| / 127`` steps, the granularity of the weight's scales (what
    onnxruntime's ``MatMulNBits`` does at accuracy level 4). Weights are not rounded further; sums over groups are
    float32. Products of normal activations differ from :func:`w4_linear`'s by about 0.7 % of their norm.

    Args, Returns: as :func:`w4_linear`; a NaN or infinity makes its row NaN. There are no gradients.

    Raises:
        RuntimeError: as :func:`w4_linear`, or on a CPU ``group_size`` is not 32, 64, a multiple of 128 or all of K.
        BackendError: as :func:`w4_linear`.
    """
    slow = dispatch.use_reference(backend, "w4_linear_int8", x.device.type) or x.is_cuda  # no kernel there
    return get("reference" if slow or weight.bits != 4 else "cpp").run_int8(x, as_stored(weight))


def multiply(backend: Backend, x: Tensor, weight: PackedWeight) -> Tensor:
    """``run`` of a backend, with gradients and float64, which backends need not handle.

    Args:
        backend: the one of the weight's layout.
        x, weight: as :func:`w4_linear`.

    Raises:
        RuntimeError: as :func:`w4_linear`.
    """
    if x.dtype == torch.float64:
        return reference(x, as_stored(weight))
    bias = weight.bias
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _Differentiable.apply(backend.name, x, *weight)
    return backend.run(x, weight)


class _Differentiable(torch.autograd.Function):
    """A product with gradients of its activations and bias: what training around frozen weights needs."""

    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor, *fields: Any) -> Tensor:
        weight = PackedWeight(*fields)
        ctx.save_for_backward(weight.packed, weight.scale, weight.zeros)
        ctx.rest = fields[4:]
        ctx.bias_dtype = None if weight.bias is None else weight.bias.dtype
        return get(name).run(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_grad = bias_grad = None
        if ctx.needs_input_grad[1]:
            packed, scale, zeros = ctx.saved_tensors
            weight = as_stored(PackedWeight(packed, scale, zeros, None, *ctx.rest))
            dense = dequantize(
                weight.packed, weight.scale.float(), weight.zeros, weight.in_features, weight.group_size, weight.bits
            )
            x_grad = (grad.float() @ dense).to(grad.dtype)
        if ctx.needs_input_grad[5]:
            bias_grad = grad.float().flatten(0, -2).sum(0).to(ctx.bias_dtype)
        return None, x_grad, None, None, None, bias_grad, None, None, None, None
