"""``group_quantize`` in plain PyTorch: the specification, to be read beside the GPTQ paper.

Frantar et al., *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers*,
arXiv 2210.17323, algorithm 1. Same order and same letters: ``U`` upper triangular with ``H⁻¹ = Uᵀ U``, and a
block of 128 columns between two lazy updates of the columns after it. :func:`refine` is what may follow it.
"""

from __future__ import annotations

import torch

from ..scheme import Scheme

#: Columns between two lazy updates.
BLOCK = 128

#: Factors of the ``mse`` rule's grid, tried in this order; the first one wins a tie.
SHRINKS = tuple(1.0 - 0.02 * k for k in range(36))

#: A change of a row's loss below this share of it may be a rounding error of the arithmetic.
SLACK = {torch.float32: 1e-4, torch.float64: 1e-10}


def stored_scale(scale: torch.Tensor, scale_dtype: torch.dtype) -> torch.Tensor:
    """``scale`` rounded to values of ``scale_dtype`` and clamped to its normal numbers; dtype unchanged.

    Scales clamped from above are refused afterwards (:func:`check_scales`); those clamped from below are counted
    (``Quantized.coarse_groups``).
    """
    limits = torch.finfo(scale_dtype)
    return scale.clamp(limits.tiny, limits.max).to(scale_dtype).to(scale.dtype)


def max_level(scheme: Scheme) -> int:
    """Largest magnitude of ``code − zero`` in a group."""
    return scheme.symmetric_zero if scheme.symmetric else scheme.max_code


def check_scales(scales: torch.Tensor, scheme: Scheme) -> None:
    """Refuse scales with which a weight would be infinite in their stored dtype.

    Raises:
        ValueError: one is too large; the message gives the fix.
    """
    if scales.numel() == 0:
        return
    largest = float(scales.amax()) * max_level(scheme)
    limit = torch.finfo(scales.dtype).max
    if not largest <= limit:
        dtype = str(scales.dtype).removeprefix("torch.")
        raise ValueError(
            f"the weight has groups that reach {largest:.3g}, which {dtype} scales cannot hold (to {limit:.3g}): set "
            "scale_dtype to bfloat16 or float32"
        )


def check_weight(weight: torch.Tensor) -> None:
    """Refuse an unusable weight.

    Raises:
        ValueError: it is not a float matrix, is on the meta device, or has values that are not finite.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"the weight must be a float matrix [m, n], not {weight.dtype} {list(weight.shape)}")
    if weight.is_meta:
        raise ValueError("the weight is on the meta device, where there are no values: load it first")
    # The sum is finite for valid inputs and costs one pass; elements are checked only if it is not.
    if not torch.isfinite(weight.sum()) and not torch.isfinite(weight).all():
        raise ValueError("the weight has values that are not finite")


def encode(weights: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Nearest codes of ``weights`` (ties to even), in the dtype of ``weights``; broadcasts scale and zero."""
    return (torch.round(weights / scale) + zero).clamp(0, scheme.max_code)


def group_scales(weights: torch.Tensor, scheme: Scheme, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of groups of weights.

    Scales are rounded to ``scale_dtype`` before anything is rounded with them, because that is what the
    checkpoint stores. An all-zero group gets scale 1; if ``minmax`` has no span (all weights equal), it
    falls back to ``absmax``. Asymmetric ranges include 0, so that the zero point is a code.

    Args:
        weights: ``[..., g]``, any floating dtype; computed in it.
        scheme: bits, symmetry and scale rule (its group size is not used).
        scale_dtype: ``float16``, ``bfloat16`` or ``float32``.

    Returns:
        ``(scale, zero)``, both ``[...]`` in the dtype of ``weights``; every value of ``scale`` is exact in
        ``scale_dtype`` and normal there.
    """
    low, high = weights.aminmax(dim=-1)
    magnitude = torch.maximum(-low, high)
    if scheme.symmetric:
        base = magnitude / (scheme.max_code / 2)
        if scheme.scale_rule == "minmax":
            base = torch.where(high > low, (high - low) / scheme.max_code, base)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        base = (high - low) / scheme.max_code

    def zero_point(scale: torch.Tensor, shrink: float) -> torch.Tensor:
        if scheme.symmetric:
            return torch.full_like(scale, scheme.symmetric_zero)
        return torch.round(-low * shrink / scale).clamp(0, scheme.max_code)

    scale = stored_scale(base, scale_dtype)
    zero = zero_point(scale, 1.0)
    if scheme.scale_rule == "mse":
        least = torch.full_like(scale, torch.inf)
        for shrink in SHRINKS:
            tried = stored_scale(base * shrink, scale_dtype)
            shift = zero_point(tried, shrink)
            codes = encode(weights, tried[..., None], shift[..., None], scheme)
            error = (weights - (codes - shift[..., None]) * tried[..., None]).square().sum(-1)
            better = error < least
            scale, zero = torch.where(better, tried, scale), torch.where(better, shift, zero)
            least = torch.where(better, error, least)
    return torch.where(magnitude > 0, scale, 1.0), zero


def all_group_scales(
    weight: torch.Tensor, scheme: Scheme, scale_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`group_scales` of every group of ``weight [m, n]``; two ``[m, ceil(n / group_size)]``."""
    pairs = [group_scales(group, scheme, scale_dtype) for group in weight.split(scheme.group_size, dim=1)]
    scales, zeros = zip(*pairs, strict=True)
    return torch.stack(scales, dim=1), torch.stack(zeros, dim=1)


def round_to_nearest(
    weight: torch.Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every weight to the nearest code of its group: the baseline without data.

    Args:
        weight: ``[m, n]``, any floating dtype.
        scheme: the lattice; a last group may be shorter.
        scale_dtype: what the scales are stored in.

    Returns:
        codes ``uint8 [m, n]``, scales ``scale_dtype [m, G]``, zeros ``uint8 [m, G]``.

    Raises:
        ValueError: the weight is not a finite float matrix, or too large for scales of this dtype.
    """
    check_weight(weight)
    scales, zeros = all_group_scales(weight, scheme, scale_dtype)
    check_scales(scales.to(scale_dtype), scheme)
    group = torch.arange(weight.shape[1], device=weight.device) // scheme.group_size
    codes = encode(weight, scales[:, group], zeros[:, group], scheme)
    return codes.to(torch.uint8), scales.to(scale_dtype), zeros.to(torch.uint8)


def textbook_sweep(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scheme: Scheme,
    scale_dtype: torch.dtype = torch.float32,
    order: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GPTQ as in its paper: invert the Hessian, then quantize column by column.

    Args:
        weight: ``[m, n]``; the sweep runs in its dtype.
        hessian: ``[n, n]``, already damped, in natural order.
        scheme: the lattice; a group's scale comes from its weights as compensated when the sweep reaches its
            first column.
        scale_dtype: what the scales are stored in.
        order: static act-order, a permutation of the columns: scales are fixed first, from the original
            weights, then columns are visited in this order; each keeps its natural group.

    Returns:
        codes ``uint8 [m, n]``, scales ``scale_dtype [m, G]`` and zeros ``uint8 [m, G]`` per natural group.

    Raises:
        torch.linalg.LinAlgError: ``hessian`` is not positive definite.
    """
    m, n = weight.shape
    g = scheme.group_size
    W = weight.clone()
    if order is not None:
        scales, zeros = all_group_scales(weight, scheme, scale_dtype)
        W, hessian = W[:, order], hessian[order][:, order]
    else:
        scales, zeros = W.new_empty(m, -(-n // g)), W.new_empty(m, -(-n // g))
    U = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)

    codes = torch.empty_like(W)
    start = 0
    while start < n:
        end = min(start + BLOCK, n)
        last_group = (end - 1) // g * g
        if order is None and start < last_group and end < min(last_group + g, n):
            end = last_group  # a scale needs its whole group up to date, so blocks end at group boundaries
        E = torch.empty(m, end - start, dtype=W.dtype, device=W.device)
        for j in range(start, end):
            if order is None and j % g == 0:
                scales[:, j // g], zeros[:, j // g] = group_scales(W[:, j : j + g], scheme, scale_dtype)
            group = (j if order is None else int(order[j])) // g
            s, z = scales[:, group], zeros[:, group]
            codes[:, j] = encode(W[:, j], s, z, scheme)
            e = (W[:, j] - (codes[:, j] - z) * s) / U[j, j]
            W[:, j:end] -= e[:, None] * U[j, j:end]
            E[:, j - start] = e
        W[:, end:] -= E @ U[start:end, end:]
        start = end

    if order is not None:
        codes = codes[:, torch.argsort(order)]
    return codes.to(torch.uint8), scales.to(scale_dtype), zeros.to(torch.uint8)


def refit_scale(
    level: torch.Tensor,
    scale: torch.Tensor,
    gradient: torch.Tensor,
    within: torch.Tensor,
    scheme: Scheme,
    scale_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How a group's scale is to change so that the loss is least with its codes and all else fixed.

    Along it the loss is a parabola, ``loss + δ² A − 2 δ r`` with ``A = z H zᵀ`` and ``r = (E H) zᵀ``, z the levels.
    What is rounded to the stored dtype is taken only where it still lowers the loss, where it is a normal number, and
    where no weight of the group overflows.

    Args:
        level: ``[m, g]``, codes less zero points, as floats.
        scale: ``[m]``, exact in ``scale_dtype``.
        gradient: ``[m, g]``, the group's columns of E H.
        within: ``[g, g]``, its block of H.
        scheme: for how far levels reach.
        scale_dtype: what scales are stored in.

    Returns:
        δ and the change of the loss, both ``[m]``; zero where the scale stays.
    """
    limits = torch.finfo(scale_dtype)
    curvature, slope = ((level @ within) * level).sum(1), (gradient * level).sum(1)
    wanted = scale + slope / curvature
    rounded = wanted.to(scale_dtype).to(scale.dtype)
    delta = rounded - scale
    change = delta * (delta * curvature - 2 * slope)
    # A group whose levels are all zero has no say; what is no number compares as false.
    usable = (curvature > 0) & (wanted >= limits.tiny) & (rounded <= limits.max / max_level(scheme)) & (change < 0)
    return delta.where(usable, 0), change.where(usable, 0)


def descend(
    level: torch.Tensor,
    zero: torch.Tensor,
    scale: torch.Tensor,
    gradient: torch.Tensor,
    within: torch.Tensor,
    scheme: Scheme,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A group's levels, each moved to its best value in turn with all others fixed.

    The best level of column j is the integer nearest to ``level_j + (E H)_j / (s H_jj)`` that has a code.

    Args:
        level, gradient, within, scheme: see :func:`refit_scale`; the gradient is up to date with the scale.
        zero: ``[m]`` zero point, as float.
        scale: ``[m]``.

    Returns:
        levels ``[m, g]`` and the change of the loss ``[m]``.
    """
    level, gradient, total = level.clone(), gradient.clone(), torch.zeros_like(scale)
    for j in range(level.shape[1]):
        slope, curvature = gradient[:, j], within[j, j]
        best = torch.round(level[:, j] + slope / (scale * curvature)).clamp(-zero, scheme.max_code - zero)
        moved = (best - level[:, j]) * scale
        total += moved * (moved * curvature - 2 * slope)
        gradient -= moved[:, None] * within[j]
        level[:, j] = best
    return level, total


def refine(
    target: torch.Tensor,
    hessian: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    loss: torch.Tensor,
    scheme: Scheme,
    passes: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales and codes moved, group after group, to where the quadratic error is least with all else fixed.

    A row is changed only if its loss falls by more than rounding errors could make of it.

    Args:
        target: ``[m, n]`` V; computed in its dtype.
        hessian: ``[n, n]`` symmetric positive definite, that dtype, natural order.
        codes, scales, zeros: of the layer as it is quantized, see :class:`~tarq.kernels.group_quantize.Quantized`.
        loss: ``float64 [m]``, ``(v − v̂) H (v − v̂)ᵀ`` of it.
        scheme: the lattice.
        passes: over all groups.

    Returns:
        codes, scales and loss after it, as they came.
    """
    group = torch.arange(target.shape[1], device=target.device) // scheme.group_size
    zero, scale = zeros.to(target.dtype), scales.to(target.dtype)
    level = codes.to(target.dtype) - zero[:, group]
    change = torch.zeros_like(loss)
    for _ in range(passes):
        for g in range(scales.shape[1]):
            columns = slice(g * scheme.group_size, (g + 1) * scheme.group_size)
            within = hessian[columns, columns]
            gradient = (target - level * scale[:, group]) @ hessian[:, columns]
            delta, gained = refit_scale(level[:, columns], scale[:, g], gradient, within, scheme, scales.dtype)
            scale[:, g] += delta
            gradient = gradient - delta[:, None] * (level[:, columns] @ within)
            level[:, columns], more = descend(level[:, columns], zero[:, g], scale[:, g], gradient, within, scheme)
            change += gained + more
    return keep_improved(codes, scales, loss, level + zero[:, group], scale, change, target.dtype)


def keep_improved(
    codes: torch.Tensor,
    scales: torch.Tensor,
    loss: torch.Tensor,
    refined: torch.Tensor,
    scale: torch.Tensor,
    change: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The refined codes and scales, of the rows whose loss fell by more than rounding errors in ``dtype`` explain.

    Args:
        codes, scales, loss: as they were.
        refined, scale, change: codes and scales as they are, in any dtype, and what the loss changed by.
        dtype: of the arithmetic.
    """
    fell = change < -SLACK[dtype] * loss
    return (
        torch.where(fell[:, None], refined.to(torch.uint8), codes),
        torch.where(fell[:, None], scale.to(scales.dtype), scales),
        torch.where(fell, (loss + change).clamp(min=0), loss),  # rounding may take it below 0
    )
