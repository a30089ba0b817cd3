"""``group_quantize`` as torch operators, and its Python interface: factorize once, quantize all that share the factor.

``tarq::upper_cholesky`` factors H = L Lᵀ with L upper triangular; ``tarq::group_quantize`` is the sweep. It
needs no inverse. With E = W − Ŵ against the original weights,

    ‖w − ŵ‖²_H = Σ_j (Σ_{i≤j} e_i L_ij)²
    so ŵ_j = round(w_j + Σ_{i<j} e_i L_ij / L_jj)

which gives the codes of GPTQ (``reference.textbook_sweep``, arXiv 2210.17323) with one Cholesky instead of two
and an inverse.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import dispatch
from ..scheme import Scheme
from .reference import check_scales, check_weight, textbook_sweep


@dataclass(frozen=True)
class Factor:
    """Cholesky factor of a damped Hessian, shared by every weight that reads the same input.

    Attributes:
        upper: ``[n, n]`` upper triangular L with ``H + δI = L Lᵀ`` (H permuted if there is an ``order``).
        damp: the damping used, as a share of the mean diagonal.
        retries: how often damping was raised because the Cholesky failed.
        dead: ``bool [n]``, natural order: inputs that were always zero (H_jj = 0). Their diagonal is the mean
            of the others', and :func:`group_quantize` zeroes their weights itself.
        order: the order in which columns are visited, ``int64 [n]``, or None for the natural one.
    """

    upper: torch.Tensor
    damp: float
    retries: int
    dead: torch.Tensor
    order: torch.Tensor | None = None

    def damped(self, hessian: torch.Tensor) -> torch.Tensor:
        """``H + δI`` ``[n, n]`` in natural order and the factor's dtype, of the H that was factored."""
        hessian = hessian.to(self.upper.dtype, copy=True)
        diagonal = hessian.diagonal()
        mean = diagonal[~self.dead].double().mean().to(self.upper.dtype)
        diagonal.copy_(torch.where(self.dead, mean, diagonal) + self.damp * mean)
        return hessian

    def solve(self, rows: torch.Tensor) -> torch.Tensor:
        """``rows (H + δI)⁻¹`` by two triangular solves.

        Args:
            rows: ``[m, n]`` in natural order, dtype of ``upper``.

        Returns:
            ``[m, n]``, natural order.

        Raises:
            RuntimeError: shape or dtype do not fit ``upper``.
        """
        rows = rows if self.order is None else rows[:, self.order]
        half = torch.linalg.solve_triangular(self.upper.mT, rows, upper=False, left=False)
        whole = torch.linalg.solve_triangular(self.upper, half, upper=True, left=False)
        return whole if self.order is None else whole[:, torch.argsort(self.order)]


@dataclass(frozen=True)
class Quantized:
    """A weight on its lattice: ``w ≈ scale · (code − zero)``.

    Attributes:
        codes: ``uint8 [m, n]``, natural order.
        scales: ``[m, G]`` in the dtype they are stored in, ``G = ceil(n / group_size)``.
        zeros: ``uint8 [m, G]``; a symmetric scheme's are all ``Scheme.symmetric_zero``.
        loss: ``float64 [m]``, each row's damped quadratic error ``‖(w − ŵ) L‖²``.
        group_size: columns per group.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    loss: torch.Tensor
    group_size: int

    @property
    def coarse_groups(self) -> int:
        """Number of groups whose scale was raised to the smallest normal number of its dtype.

        In float16 (6.1e-5) their weights are rounded more coarsely than the scheme says, ultimately to zero, which
        belongs in a report. Synchronises with the device.
        """
        return int((self.scales <= torch.finfo(self.scales.dtype).tiny).sum())

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """``(codes − zeros) · scales`` ``[m, n]``, multiplied in their dtype as compressed-tensors does.

        Args:
            dtype: dtype of the result; None keeps the scales'.
        """
        group = torch.arange(self.codes.shape[1], device=self.codes.device) // self.group_size
        levels = self.codes.to(self.scales.dtype) - self.zeros.to(self.scales.dtype)[:, group]
        weight = levels * self.scales[:, group]
        return weight if dtype is None else weight.to(dtype)


def factorize(
    hessian: torch.Tensor,
    damp: float = 0.01,
    max_damp: float = 1.0,
    *,
    order: torch.Tensor | None = None,
    backend: str | None = None,
) -> Factor:
    """Factor ``H + δI = L Lᵀ`` with ``δ = damp · mean(diag H)`` over the nonzero inputs.

    A failed Cholesky is retried with ten times the damping, up to ``max_damp``; the result records how often.

    Args:
        hessian: ``[n, n]`` symmetric, ``float32`` or ``float64``; only its upper triangle is read.
        damp: initial damping, not negative.
        max_damp: largest damping to try, at least ``damp``.
        order: visit the columns in this order (``int64 [n]``, a permutation): static act-order.
        backend: ``auto | reference | native``.

    Raises:
        ValueError: ``hessian`` is not square, of another dtype, on the meta device, not finite, or all zero (its
            input is always zero); a damping is negative or not finite; or ``order`` is not a permutation.
        torch.linalg.LinAlgError: no damping up to ``max_damp`` makes it positive definite.
    """
    if hessian.dim() != 2 or hessian.shape[0] != hessian.shape[1] or hessian.shape[0] == 0:
        raise ValueError(f"the Hessian must be [n, n], not {list(hessian.shape)}")
    if hessian.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the Hessian must be float32 or float64, not {hessian.dtype}")
    if hessian.is_meta:
        raise ValueError("the Hessian is on the meta device, where there are no values")
    if not (math.isfinite(damp) and math.isfinite(max_damp) and 0 <= damp <= max_damp):
        raise ValueError(f"damping must be finite, from 0 to max_damp, not damp = {damp}, max_damp = {max_damp}")
    if order is not None and not _is_permutation(order, hessian.shape[0]):
        raise ValueError(f"order must be a permutation of 0 … {hessian.shape[0] - 1}, int64")
    # The sum is finite for valid inputs and costs one pass; elements are checked only if it is not.
    if not torch.isfinite(hessian.sum()) and not torch.isfinite(hessian).all():
        raise ValueError("the Hessian has values that are not finite: the calibration activations overflowed")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    live = diagonal[~dead]
    if live.numel() == 0:
        raise ValueError("the Hessian is zero: this layer's input is always zero")
    mean = float(live.double().mean())
    diagonal = diagonal.masked_fill(dead, mean)
    if order is not None:
        hessian, diagonal = hessian[order][:, order], diagonal[order]

    # The sweep's backend decides: where it is native on CUDA, this is the library's Cholesky, the right one there.
    slow = dispatch.use_reference(backend, "group_quantize", hessian.device.type)
    cholesky = _reference_cholesky if slow else _ops.upper_cholesky
    retries = 0
    while True:
        upper, failed = cholesky(hessian, diagonal + damp * mean)
        if int(failed) == 0:
            return Factor(upper, damp, retries, dead, order)
        if mean <= 0 or damp >= max_damp:
            raise torch.linalg.LinAlgError(
                f"the Hessian is not positive definite with damping {damp:g} after {retries} retries "
                f"(n = {hessian.shape[0]}, mean diagonal {mean:g}, pivot {int(failed) - 1} fails)"
            )
        damp, retries = min(max(10 * damp, 1e-6), max_damp), retries + 1


def group_quantize(
    weight: torch.Tensor,
    factor: Factor,
    scheme: Scheme,
    *,
    scale_dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Quantized:
    """Quantize ``weight`` under the metric that ``factor`` factors.

    Args:
        weight: ``[m, n]``, any floating dtype; computed in that of the factor. Columns of dead inputs are treated as
            zero, and so become zero.
        factor: of the Hessian of the layer's inputs; columns are visited in its order, if it has one.
        scheme: the lattice.
        scale_dtype: what scales are rounded to: ``float16``, ``bfloat16`` or ``float32``.
        backend: ``auto | reference | native``.

    Raises:
        ValueError: shapes do not fit, the weight is not a finite float matrix or too large for scales of this dtype,
            or the backend is not available.
    """
    return group_quantize_layers([weight], [factor], scheme, scale_dtype=scale_dtype, backend=backend)[0]


def group_quantize_layers(
    weights: Sequence[torch.Tensor],
    factors: Sequence[Factor],
    scheme: Scheme,
    *,
    scale_dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> list[Quantized]:
    """:func:`group_quantize` of several layers, each with its factor.

    On CUDA, layers of one shape are swept together: one layer of 1,280 rows fills a fraction of a large chip.

    Args:
        weights, factors: equally many; see :func:`group_quantize` for these and the rest.

    Raises:
        ValueError: see :func:`group_quantize`.
    """
    if scale_dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"scales are float16, bfloat16 or float32, not {scale_dtype}")
    layers = [_ready(weight, factor) for weight, factor in zip(weights, factors, strict=True)]
    alike: dict[tuple, list[int]] = {}
    for i, (weight, factor) in enumerate(zip(layers, factors, strict=True)):
        # One layer occupies a whole CPU.
        alone = None if weight.is_cuda else i
        alike.setdefault((alone, weight.shape, weight.dtype, weight.device, factor.order is None), []).append(i)

    results: dict[int, Quantized] = {}
    for indices in alike.values():
        stack = torch.stack if len(indices) > 1 else operator.itemgetter(0)
        weight, upper = stack([layers[i] for i in indices]), stack([factors[i].upper for i in indices])
        orders = [order for i in indices if (order := factors[i].order) is not None]
        # The CUDA kernel is float32 only; elsewhere the dispatcher finds the kernel, or the reference.
        slow = dispatch.use_reference(backend, "group_quantize", weight.device.type)
        slow = slow or (weight.is_cuda and weight.dtype == torch.float64)
        run = _reference if slow else _ops.group_quantize
        lattice = scheme.bits, scheme.group_size, scheme.symmetric, scheme.scale_rule
        done = run(weight, upper, stack(orders) if orders else None, *lattice, scale_dtype)
        each = zip(*done, strict=True) if len(indices) > 1 else [done]
        for i, (codes, scales, zeros, loss) in zip(indices, each, strict=True):
            check_scales(scales, scheme)
            results[i] = Quantized(codes, scales, zeros, loss, scheme.group_size)
    return [results[i] for i in range(len(layers))]


def _is_permutation(order: torch.Tensor, n: int) -> bool:
    if order.dtype != torch.int64 or order.shape != (n,):
        return False
    return bool(torch.equal(order.sort().values, torch.arange(n, device=order.device)))


def _ready(weight: torch.Tensor, factor: Factor) -> torch.Tensor:
    """The weight, checked, in the factor's dtype, with the columns of dead inputs zeroed."""
    n = factor.upper.shape[0]
    if weight.dim() != 2 or weight.shape[1] != n:
        raise ValueError(f"the weight must be [m, {n}] for this factor, not {list(weight.shape)}")
    check_weight(weight)
    weight = weight.detach().to(factor.upper.dtype)
    check_weight(weight)  # float64 exceeds float32's range
    return weight.masked_fill(factor.dead, 0) if bool(factor.dead.any()) else weight


def _reference_cholesky(hessian: torch.Tensor, diagonal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper L with L Lᵀ = H (its diagonal replaced): flip both axes, lower Cholesky, flip back."""
    n = hessian.shape[0]
    flipped = hessian.flip(0, 1)
    flipped.diagonal().copy_(diagonal.flip(0))
    lower, failed = torch.linalg.cholesky_ex(flipped)
    return lower.flip(0, 1).contiguous(), torch.where(failed > 0, n + 1 - failed.long(), 0)


def _fake_cholesky(hessian: torch.Tensor, diagonal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(hessian), hessian.new_empty((), dtype=torch.long)


def _reference(
    weight: torch.Tensor,
    upper: torch.Tensor,
    order: torch.Tensor | None,
    bits: int,
    group_size: int,
    symmetric: bool,
    scale_rule: str,
    scale_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rebuild the Hessian from its factor and run the textbook sweep, in float64 where the device has it."""
    if weight.dim() == 3:
        orders = [None] * len(weight) if order is None else order
        done = [
            _reference(w, L, visit, bits, group_size, symmetric, scale_rule, scale_dtype)
            for w, L, visit in zip(weight, upper, orders, strict=True)
        ]
        codes, scales, zeros, loss = (torch.stack(tensors) for tensors in zip(*done, strict=True))
        return codes, scales, zeros, loss
    scheme = Scheme(bits, group_size, symmetric, scale_rule)  # type: ignore[arg-type]
    precise = torch.float32 if weight.device.type == "mps" else torch.float64
    w, L = weight.to(precise), upper.to(precise)
    hessian = L @ L.mT
    natural = slice(None) if order is None else torch.argsort(order)
    codes, scales, zeros = textbook_sweep(w, hessian[natural][:, natural], scheme, scale_dtype, order)
    group = torch.arange(w.shape[1], device=w.device) // group_size
    error = w - (codes.to(precise) - zeros.to(precise)[:, group]) * scales.to(precise)[:, group]
    error = error if order is None else error[:, order]
    return codes, scales, zeros, (error @ L).square().sum(1).to(torch.float64)


def _fake(
    weight: torch.Tensor,
    upper: torch.Tensor,
    order: torch.Tensor | None,
    bits: int,
    group_size: int,
    symmetric: bool,
    scale_rule: str,
    scale_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = weight.shape[:-1]
    groups = -(-weight.shape[-1] // group_size)
    return (
        torch.empty_like(weight, dtype=torch.uint8, memory_format=torch.contiguous_format),
        weight.new_empty((*rows, groups), dtype=scale_dtype),
        weight.new_empty((*rows, groups), dtype=torch.uint8),
        weight.new_empty(rows, dtype=torch.float64),
    )


dispatch.define(
    "upper_cholesky",
    "(Tensor hessian, Tensor diagonal) -> (Tensor, Tensor)",
    _reference_cholesky,
    _fake_cholesky,
)
dispatch.define(
    "group_quantize",
    "(Tensor weight, Tensor upper, Tensor? order, int bits, int group_size, bool symmetric, str scale_rule, "
    "ScalarType scale_dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
_ops = torch.ops.tarq
