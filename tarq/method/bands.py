"""RareBAL with more than two buckets: the tail in bands of frequency, all with the same trace (arXiv 2605.27808).

The paper's family has K buckets with weights α_f and ``H = Σ_f α_f H_f``; RareBAL is K = 2. Here the tail is split by
Zipf frequency into F = K − 1 bands, each a unit wide but for the last, and all come out with one trace:

    w_f = mean tr(H_g) / tr(H_f)    and    H = H_C + λ Σ_f w_f H_f,    so α_f = λ w_f = c · tr(H_C) / (F · tr(H_f))

with the mean over the bands that have positions. ``tr(Σ_f w_f H_f) = tr(H_T)``, so λ is RareBAL's own.

**What it equals.** RareBAL where F = 1, or where all bands but one are empty.

**Where it differs.** What we know of the paper gives no α_f for K > 2; equal traces are what its rule for K = 2 says,
band by band. Each band has moments of its own until their traces are known; then they are those of one tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tarq.method.metrics import RareBAL
from tarq.method.moments import Moments


@dataclass(frozen=True)
class BandedRareBAL(RareBAL):
    """RareBAL over a tail whose bands have equal traces.

    Attributes:
        bands: asks for moments of each band (``tail_bands`` of the configuration).
    """

    bands: bool = True


def merge_bands(parts: Sequence[Moments], folds: int, weighs_cross: bool = True) -> list[Moments]:
    """The moments of each fold, its bands merged with weights that give them one trace over all folds.

    The moments given are changed.

    Args:
        parts: moments of one input: each fold of the first band, which has the common positions, of the second, ….
        folds: how many there are.
        weighs_cross: whether w_f weighs H_Δ as it does H.
    """
    bands = [parts[first : first + folds] for first in range(0, len(parts), folds)]
    traces = [sum(float(part.hessian["tail"].trace()) for part in band) for band in bands]
    nonzero = [trace for trace in traces if trace > 0]
    weights = [sum(nonzero) / len(nonzero) / trace if trace > 0 else 1.0 for trace in traces]
    total = list(bands[0])
    for part in total:
        part.weigh_tail(weights[0], weighs_cross)
    for band, weight in zip(bands[1:], weights[1:], strict=True):
        for part, further in zip(total, band, strict=True):
            further.weigh_tail(weight, weighs_cross)
            part.add(further)
    return total
