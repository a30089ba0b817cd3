"""What metrics and solvers need of the full-precision model, observed before anything in it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tarq.errors import ModelError
from tarq.method.arms import Arms
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.report import Reporter
from tarq.walk.attention import AttentionReceived, attention_received
from tarq.walk.gradients import OutputGradients, output_gradients, rare_share


@dataclass
class Observations:
    """Of one calibration set; empty where the arms do not ask.

    Attributes:
        gradients: at the outputs of the Linears.
        attention: received by each row.
    """

    gradients: OutputGradients = field(default_factory=OutputGradients)
    attention: AttentionReceived = field(default_factory=AttentionReceived)

    def observe(
        self,
        recognizer: Recognizer,
        batches: Sequence[Batch],
        share: Sequence[tuple[int, Batch]],
        names: Sequence[str],
        arms: Arms,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        """Run the passes that the arms ask for.

        Args:
            recognizer: of the full-precision model.
            batches: the whole calibration set.
            share: this process's batches, with their indices in it.
            names: of the Linears that will be quantized.
            arms: metric, residual and solver.
            device: where the walk runs blocks.
            reporter: receives each phase.

        Raises:
            ModelError: the model is offloaded: such a pass needs all of it on the device.
        """
        if arms.gradients or arms.solver.output_moments:
            _begin("gradients", recognizer, device, reporter)
            self.gradients = output_gradients(recognizer, share, names, arms, rare_share(batches))
        if arms.attention:
            _begin("attention", recognizer, device, reporter)
            self.attention = attention_received(recognizer, share)


def _begin(what: str, recognizer: Recognizer, device: torch.device, reporter: Reporter) -> None:
    if device != recognizer.device:
        raise ModelError(
            f"a metric or solver that asks for {what} needs the whole model on the device: leave offload out"
        )
    reporter.phase(what)
