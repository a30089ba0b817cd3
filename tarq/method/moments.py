"""Running moments of one Linear input, common and tail positions separately (arXiv 2605.27808, §3–4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tarq.kernels.gram import gram_split
from tarq.timing import timed

#: The positions that statistics are kept of separately: those outside the tail, and those in it.
SUBSETS = ("common", "tail")


class Moments:
    """``H_C, H_T, H_Δ,C, H_Δ,T`` of one input shared by one or more Linear layers.

    Each position is in exactly one of the two subsets, so both together cost the arithmetic of a
    single Gram matrix. Products are float32 per call; running sums are float64, so that millions of rows do not lose
    precision. Nothing is read back from the device while positions are added; :meth:`bad_updates` and :attr:`positions`
    do that.

    Attributes:
        hessian: subset to [n, n] float64, ``Σ d x xᵀ``.
        cross: subset to [n, n] float64, ``Σ d (xf − x) xᵀ``; None unless paired.
        drift: subset to [n, n] float64, ``Σ d (xf − x)(xf − x)ᵀ``; None unless asked for and paired.
        mean: subset to [n] float64, ``Σ d x``; None unless asked for.
        mean_full: subset to [n] float64, ``Σ d xf``; None unless asked for and paired.
        mass: subset to float64 scalar, ``Σ d``.
        counts: subset to int64 scalar, positions whose weight is not 0.

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
        self.counts = {subset: torch.zeros((), dtype=torch.int64, device=self.device) for subset in SUBSETS}
        self._bad: list[Tensor] = []

    def _zeros(self, *shape: int) -> dict[str, Tensor]:
        """Zeros of each subset, made when they are first asked for: an empty one takes no memory."""
        return defaultdict(partial(torch.zeros, shape, dtype=torch.float64, device=self.device))

    @property
    def positions(self) -> dict[str, int]:
        """:attr:`counts`, read from the device."""
        return {subset: int(count) for subset, count in self.counts.items()}

    @property
    def any_nonzero(self) -> bool:
        """Whether any input was ever nonzero."""
        return any(bool(self.hessian[subset].diagonal().any()) for subset in SUBSETS)

    def sums(self) -> Iterator[Tensor]:
        """Every running sum but the counts, in a fixed order; the sums of a set's parts add up to those of the set."""
        for sums in (self.mass, self.hessian, self.cross, self.drift, self.mean, self.mean_full):
            if sums is not None:
                yield from (sums[subset] for subset in SUBSETS)

    @timed("gram")
    def update(self, x: Tensor, x_full: Tensor | None, tail: Tensor, weight: Tensor) -> None:
        """Add positions.

        Args:
            x: [T, n] inputs seen by the partly quantized network.
            x_full: [T, n] inputs of the full-precision network at the same positions (paired moments only).
            tail: [T] bool, positions in the tail.
            weight: [T] real weight of each position; a zero leaves the position out, even if it is not finite.

        Raises:
            ValueError: paired moments without full-precision inputs.
        """
        if self.paired and x_full is None:
            raise ValueError("paired moments need the full-precision inputs")
        taken = weight != 0
        members = {"common": taken & ~tail, "tail": taken & tail}
        # A CPU can be asked which subset is empty, and need not add zeros; a GPU would have to be waited for.
        present = [subset for subset in SUBSETS if x.device.type != "cpu" or bool(members[subset].any())]
        finite = []

        def add(sums: dict[str, Tensor] | None, rows: Tensor, other: Tensor | None = None, drift: bool = False) -> None:
            if sums is None:
                return
            products = dict(zip(SUBSETS, gram_split(rows, tail, other, weight, drift=drift), strict=True))
            for subset in present:
                _add(sums[subset], products[subset].view_as(sums[subset]))
                finite.append(products[subset].diagonal().isfinite().all())

        for subset in present:
            self.counts[subset] += members[subset].sum()
            self.mass[subset] += torch.where(members[subset], weight, 0).sum(dtype=torch.float64)
        add(self.hessian, x)
        ones = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        add(self.mean, x, ones)
        if x_full is not None:
            add(self.cross, x, x_full, drift=True)
            add(self.mean_full, x_full, ones)
            if self.drift is not None:
                add(self.drift, x_full.float() - x.float())
        # A NaN or an infinity in any row reaches the diagonal of the products.
        self._bad.append(~torch.stack(finite).all() if finite else torch.tensor(False, device=self.device))

    def weigh_tail(self, weight: float, weighs_cross: bool = True) -> None:
        """Multiply the weight of every position in the tail, in H_Δ only where asked to."""
        for sums in (self.mass, self.hessian, self.drift, self.mean, self.mean_full):
            if sums is not None:
                sums["tail"] *= weight
        if self.cross is not None and weighs_cross:
            self.cross["tail"] *= weight

    def add(self, other: Moments) -> None:
        """Add the positions of another one of the same kinds."""
        for total, further in zip(self.sums(), other.sums(), strict=True):
            total += further
        for subset in SUBSETS:
            self.counts[subset] += other.counts[subset]

    def bad_updates(self) -> list[int]:
        """Which calls of :meth:`update`, counted from 0, brought NaN or infinite activations."""
        return torch.stack(self._bad).nonzero().flatten().tolist() if self._bad else []


def _add(total: Tensor, product: Tensor) -> None:
    """Add a float32 matrix or vector to a float64 one in place."""
    # A CPU makes a float64 copy of it first: of a few rows it stays in the cache.
    rows = 32 if total.device.type == "cpu" else len(total)
    for to, more in zip(total.split(rows), product.split(rows), strict=True):
        to += more
