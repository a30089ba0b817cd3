"""How the inputs of layers are scaled in full precision, before anything is quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from tarq.kernels.scheme import Scheme
from tarq.method.metrics import Metric
from tarq.method.moments import Moments


class InputScaling(Protocol):
    """Finds the scales of an input: what produces it is divided by them, weights that read it are multiplied.

    Attributes:
        metric: weights the positions of the moments, and sees the inputs where it asks for activations.
    """

    metric: Metric

    def statistics(self, layer: str) -> Tensor | None:
        """What this process alone gathered of an input beside its moments; it is then forgotten.

        Args:
            layer: the first Linear that reads the input.
        """
        return None

    def scales(
        self, weights: Sequence[Tensor], moments: Moments, scheme: Scheme, statistics: Sequence[Tensor]
    ) -> tuple[Tensor, str]:
        """The scales [n] of an input, float32, and a note on them for the report.

        Args:
            weights: [m, n] of each Linear that reads it.
            moments: of the input, over the calibration set.
            scheme: the lattice.
            statistics: :meth:`statistics` of every process that has some.
        """
        ...
