"""``tarq::group_refine``: codes and scales of a quantized layer, moved to where its quadratic error is less."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import dispatch
from ..scheme import Scheme
from ..triton_runtime import installed
from . import reference
from .op import Factor, Quantized


def group_refine(
    target: Tensor,
    quantized: Quantized,
    hessian: Tensor,
    factor: Factor,
    scheme: Scheme,
    *,
    passes: int = 4,
    backend: str | None = None,
) -> Quantized:
    """Lower the damped quadratic error of a layer that is quantized already; it rises in no row.

    Block coordinate descent: group after group, the scale that leaves the least error given the codes, then each code
    in turn given everything else (method.md §9). Zero points stay.

    Args:
        target: ``[m, n]`` V, any floating dtype; computed in that of the factor. Dead inputs count as zero.
        quantized: codes and scales of it, and each row's loss under the factor.
        hessian: ``[n, n]`` H that was factored, before damping.
        factor: of it.
        scheme: the lattice.
        passes: over all groups.
        backend: ``auto | reference | native``.

    Returns:
        The same zero points with other codes and scales, in the dtype they were stored in.

    Raises:
        ValueError: shapes do not fit, the target is no finite float matrix, or the backend is not there.
    """
    n = factor.upper.shape[0]
    if target.shape != quantized.codes.shape or hessian.shape != (n, n) or target.shape[1] != n:
        raise ValueError(
            f"target {list(target.shape)}, codes {list(quantized.codes.shape)}, Hessian {list(hessian.shape)} and "
            f"factor [{n}, {n}] do not fit together"
        )
    if quantized.group_size != scheme.group_size:
        raise ValueError(f"the layer has groups of {quantized.group_size}, the scheme of {scheme.group_size}")
    if passes < 1:
        raise ValueError(f"passes must be positive, not {passes}")
    reference.check_weight(target)
    v = target.detach().to(factor.upper.dtype).masked_fill(factor.dead, 0)
    # The CUDA kernel is float32 only.
    slow = dispatch.use_reference(backend, "group_refine", v.device.type) or (v.is_cuda and v.dtype == torch.float64)
    run = _reference if slow else _ops.group_refine
    q = quantized
    codes, scales, loss = run(
        v,
        factor.damped(hessian),
        q.codes,
        q.scales,
        q.zeros,
        q.loss,
        scheme.bits,
        scheme.group_size,
        scheme.symmetric,
        passes,
    )
    return replace(quantized, codes=codes, scales=scales, loss=loss)


def _reference(
    target: Tensor,
    hessian: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    loss: Tensor,
    bits: int,
    group_size: int,
    symmetric: bool,
    passes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """In float64 where the device has it."""
    precise = torch.float32 if target.device.type == "mps" else torch.float64
    scheme = Scheme(bits, group_size, symmetric)
    return reference.refine(target.to(precise), hessian.to(precise), codes, scales, zeros, loss, scheme, passes)


def _fake(
    target: Tensor,
    hessian: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    loss: Tensor,
    bits: int,
    group_size: int,
    symmetric: bool,
    passes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(codes, memory_format=contiguous),
        torch.empty_like(scales, memory_format=contiguous),
        torch.empty_like(loss, memory_format=contiguous),
    )


dispatch.define(
    "group_refine",
    "(Tensor target, Tensor hessian, Tensor codes, Tensor scales, Tensor zeros, Tensor loss, int bits, int group_size, "
    "bool symmetric, int passes) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
if installed():
    # Importing triton takes a second: only a GPU's first call pays it.
    @torch.library.impl("tarq::group_refine", "CUDA")
    def _cuda(
        target: Tensor,
        hessian: Tensor,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor,
        loss: Tensor,
        bits: int,
        group_size: int,
        symmetric: bool,
        passes: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from .triton.launch import group_refine_triton

        scheme = Scheme(bits, group_size, symmetric)
        return group_refine_triton(target, hessian, codes, scales, zeros, loss, scheme, passes)


_ops = torch.ops.tarq
