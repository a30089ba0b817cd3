"""The lattice a weight is rounded to: bits, groups, zero points and how a group's scale is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ScaleRule = Literal["absmax", "minmax", "mse"]


@dataclass(frozen=True)
class Scheme:
    """Integer group-quantization scheme, ``w ≈ scale · (code − zero)`` with unsigned codes.

    Attributes:
        bits: 2, 3, 4 or 8; codes run from 0 to ``2**bits - 1``.
        group_size: consecutive input features that share a scale (the last group may be shorter).
        symmetric: zero point fixed at ``2**(bits-1)``; otherwise an integer zero point per group.
        scale_rule: how a symmetric group's scale is chosen: ``absmax`` (max|w| / (2**bits - 1) · 2),
            ``minmax`` ((max − min) / (2**bits − 1), the paper's eq. 1, clips skewed groups) or ``mse``
            (the shrunken ``absmax`` with the smallest squared error). Asymmetric groups span min…max
            (``absmax`` and ``minmax`` alike) or its best shrink (``mse``).

    Raises:
        ValueError: a field has a value that is not allowed.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    scale_rule: ScaleRule = "absmax"

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise ValueError(f"bits must be 2, 3, 4 or 8, not {self.bits}")
        if self.group_size < 1:
            raise ValueError(f"group_size must be positive, not {self.group_size}")
        if self.scale_rule not in get_args(ScaleRule):
            raise ValueError(f"scale_rule must be one of {', '.join(get_args(ScaleRule))}, not {self.scale_rule!r}")

    @property
    def max_code(self) -> int:
        """The largest code, ``2**bits − 1``."""
        return 2**self.bits - 1

    @property
    def symmetric_zero(self) -> int:
        """The zero point of a symmetric group, ``2**(bits−1)``."""
        return 2 ** (self.bits - 1)
