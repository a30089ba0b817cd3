"""Running second moments of one Linear input, common and tail positions side by side (method.md §3–4)."""

from __future__ import annotations

import torch
from torch import Tensor

from tarq.kernels.gram import gram_sides

#: The two sides of the statistics: positions outside the tail, and in it.
SIDES = ("common", "tail")


class Moments:
    """``H_C, H_T, H_Δ,C, H_Δ,T`` of one input shared by one or more Linear layers.

    Each position goes to exactly one of the two sides, so keeping them apart costs the arithmetic of a
    single Gram matrix. Products are float32 per call, running sums float64: millions of rows do not drift.

    Args:
        features: n, the input width.
        paired: also accumulate the cross-moments against full-precision inputs.
        device: where the sums live.
    """

    def __init__(self, features: int, *, paired: bool, device: torch.device | str = "cpu") -> None:
        self.features = features
        self.paired = paired
        self.device = torch.device(device)
        self.hessian = {"common": self._zeros(), "tail": self._zeros()}
        self.cross = {"common": self._zeros(), "tail": self._zeros()} if paired else None
        self.positions = {"common": 0, "tail": 0}

    def _zeros(self) -> Tensor:
        return torch.zeros(self.features, self.features, dtype=torch.float64, device=self.device)

    def update(self, x: Tensor, x_full: Tensor | None, tail: Tensor, weight: Tensor) -> None:
        """Add positions.

        Args:
            x: [T, n] inputs seen by the partly quantized network.
            x_full: [T, n] inputs of the full-precision network at the same positions (paired moments only).
            tail: [T] bool, positions on the tail side.
            weight: [T] real weight of each position; a zero leaves the position out.

        Raises:
            ValueError: an activation is NaN or infinite.
        """
        taken = weight != 0
        counts = {"common": int((taken & ~tail).sum()), "tail": int((taken & tail).sum())}
        # A NaN or an infinity in any row reaches the diagonal; checking n numbers is free.
        for side, product in zip(SIDES, gram_sides(x, tail, weight=weight), strict=True):
            if not bool(torch.isfinite(product.diagonal()).all()):
                raise ValueError("NaN or infinite activations")
            if counts[side]:
                self.hessian[side] += product
                self.positions[side] += counts[side]
        if self.cross is None:
            return
        if x_full is None:
            raise ValueError("paired moments need the full-precision inputs")
        x = x.float()
        for side, product in zip(SIDES, gram_sides(x, tail, x_full.float() - x, weight), strict=True):
            if not bool(torch.isfinite(product.sum())):
                raise ValueError("NaN or infinite full-precision activations")
            if counts[side]:
                self.cross[side] += product
