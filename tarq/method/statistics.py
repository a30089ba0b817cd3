"""Running second moments of one Linear input, common and tail positions side by side (method.md §3–4)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.gram import gram

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
        for side, rows in (("common", ~tail & (weight > 0)), ("tail", tail & (weight > 0))):
            count = int(rows.sum())
            if count == 0:
                continue
            x_side, weight_side = x[rows].float(), weight[rows].float()
            # A weight of one everywhere needs no multiplication: the usual case of 0/1 tags.
            scaled = None if bool((weight_side == 1).all()) else weight_side
            product = gram(x_side, weight=scaled)
            # A NaN or an infinity in any row reaches the diagonal; checking n numbers is free.
            if not bool(torch.isfinite(product.diagonal()).all()):
                raise ValueError("NaN or infinite activations")
            self.hessian[side] += product
            self.positions[side] += count
            if self.cross is not None:
                if x_full is None:
                    raise ValueError("paired moments need the full-precision inputs")
                cross = gram(x_side, x_full[rows].float() - x_side, scaled)
                if not bool(torch.isfinite(cross.sum())):
                    raise ValueError("NaN or infinite full-precision activations")
                self.cross[side] += cross
