"""Running moments of one Linear input, common and tail positions side by side (arXiv 2605.27808, §3–4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tarq.kernels.gram import gram_sides
from tarq.timing import timed

#: The two sides of the statistics: positions outside the tail, and in it.
SIDES = ("common", "tail")


class Moments:
    """``H_C, H_T, H_Δ,C, H_Δ,T`` of one input shared by one or more Linear layers.

    Each position goes to exactly one of the two sides, so two sides cost the arithmetic of a
    single Gram matrix. Products are float32 per call; running sums are float64, so that millions of rows do not lose
    precision. Nothing is read back from the device while positions are added; :meth:`bad_updates` and :attr:`positions`
    do that.

    Attributes:
        hessian: side to [n, n] float64, ``Σ d x xᵀ``.
        cross: side to [n, n] float64, ``Σ d (xf − x) xᵀ``; None unless paired.
        drift: side to [n, n] float64, ``Σ d (xf − x)(xf − x)ᵀ``; None unless asked for and paired.
        mean: side to [n] float64, ``Σ d x``; None unless asked for.
        mean_full: side to [n] float64, ``Σ d xf``; None unless asked for and paired.
        mass: side to float64 scalar, ``Σ d``.
        counts: side to int64 scalar, positions whose weight is not 0.

    Args:
        features: n, the input width.
        paired: also accumulate the cross-moments against full-precision inputs.
        first: also accumulate the first moments, which centring needs.
        drift: also accumulate the drift's own second moments (paired moments only).
        device: where the sums live.
    """

    def __init__(
        self,
        features: int,
        *,
        paired: bool,
        first: bool = False,
        drift: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.features = features
        self.paired = paired
        self.device = torch.device(device)
        self.hessian = self._zeros(features, features)
        self.cross = self._zeros(features, features) if paired else None
        self.drift = self._zeros(features, features) if drift and paired else None
        self.mean = self._zeros(features) if first else None
        self.mean_full = self._zeros(features) if first and paired else None
        self.mass = self._zeros()
        self.counts = {side: torch.zeros((), dtype=torch.int64, device=self.device) for side in SIDES}
        self._bad: list[Tensor] = []

    def _zeros(self, *shape: int) -> dict[str, Tensor]:
        return {side: torch.zeros(shape, dtype=torch.float64, device=self.device) for side in SIDES}

    @property
    def positions(self) -> dict[str, int]:
        """:attr:`counts`, read from the device."""
        return {side: int(count) for side, count in self.counts.items()}

    @property
    def seen(self) -> bool:
        """Whether any input was ever nonzero."""
        return any(bool(self.hessian[side].diagonal().any()) for side in SIDES)

    def sums(self) -> Iterator[Tensor]:
        """Every running sum but the counts, in a fixed order; the sums of a set's parts add up to those of the set."""
        for sums in (self.mass, self.hessian, self.cross, self.drift, self.mean, self.mean_full):
            yield from (sums or {}).values()

    @timed("gram")
    def update(self, x: Tensor, x_full: Tensor | None, tail: Tensor, weight: Tensor) -> None:
        """Add positions.

        Args:
            x: [T, n] inputs seen by the partly quantized network.
            x_full: [T, n] inputs of the full-precision network at the same positions (paired moments only).
            tail: [T] bool, positions on the tail side.
            weight: [T] real weight of each position; a zero leaves the position out, even if it is not finite.

        Raises:
            ValueError: paired moments without full-precision inputs.
        """
        taken = weight != 0
        side_of = {"common": taken & ~tail, "tail": taken & tail}
        # A NaN or an infinity in any row reaches the diagonal of the products.
        finite = []
        for side, product in zip(SIDES, gram_sides(x, tail, weight=weight), strict=True):
            finite.append(product.diagonal().isfinite().all())
            self.hessian[side] += product
            self.counts[side] += side_of[side].sum()
            self.mass[side] += torch.where(side_of[side], weight, 0).sum(dtype=torch.float64)
        if self.cross is not None:
            if x_full is None:
                raise ValueError("paired moments need the full-precision inputs")
            drift = x_full.float() - x.float()
            x = x if x.dtype in (torch.bfloat16, torch.float16) else x.float()
            for side, product in zip(SIDES, gram_sides(x, tail, drift, weight), strict=True):
                finite.append(product.diagonal().isfinite().all())
                self.cross[side] += product
            if self.drift is not None:
                for side, product in zip(SIDES, gram_sides(drift, tail, weight=weight), strict=True):
                    self.drift[side] += product
        self._bad.append(~torch.stack(finite).all())
        for means, rows in ((self.mean, x), (self.mean_full, x_full)):
            if means is not None and rows is not None:
                ones = torch.ones(len(rows), 1, dtype=rows.dtype, device=rows.device)
                for side, product in zip(SIDES, gram_sides(rows, tail, ones, weight), strict=True):
                    means[side] += product[0]

    def weigh_tail(self, weight: float, weighs_cross: bool = True) -> None:
        """Multiply the weight of every position on the tail side, in H_Δ only where asked to."""
        for sums in (self.mass, self.hessian, self.drift, self.mean, self.mean_full):
            if sums is not None:
                sums["tail"] *= weight
        if self.cross is not None and weighs_cross:
            self.cross["tail"] *= weight

    def add(self, other: Moments) -> None:
        """Add the positions of another one of the same kinds."""
        for total, further in zip(self.sums(), other.sums(), strict=True):
            total += further
        for side in SIDES:
            self.counts[side] += other.counts[side]

    def bad_updates(self) -> list[int]:
        """Which calls of :meth:`update`, counted from 0, brought NaN or infinite activations."""
        return torch.stack(self._bad).nonzero().flatten().tolist() if self._bad else []
