"""The arms of one run (metric, residual and solver) and what they ask of the walk together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarq.method.metrics import Metric
from tarq.method.moments import Moments
from tarq.method.registry import make_input_scales, make_metric, make_residual, make_solver
from tarq.method.residuals import Residual
from tarq.method.scaling import InputScaling
from tarq.method.solvers import Solver

#: Choice of ``reparametrize`` to what it changes.
REPARAMETRIZED = {"none": (), "heads": ("heads",), "hidden": ("hidden",), "both": ("heads", "hidden")}


@dataclass(frozen=True)
class Arms:
    """What decides how a layer is quantized.

    Attributes:
        metric: how positions are weighted.
        residual: the target of the codes.
        solver: how codes are chosen.
        input_scales: how inputs are scaled in full precision, before all else; None for as they are.
        reparametrized: what is given other weights of the same function, before all else: ``heads``, ``hidden`` units.
    """

    metric: Metric
    residual: Residual
    solver: Solver
    input_scales: InputScaling | None = None
    reparametrized: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        metric: Metric | None = None,
        residual: Residual | None = None,
        solver: Solver | None = None,
    ) -> Arms:
        """The arms that a configuration names (``TarqConfig.to_dict()``), except those given.

        Raises:
            ValueError: a name is unknown.
        """
        settings = {name: value for name, value in options.items() if name not in ("metric", "residual", "solver")}
        return cls(
            make_metric(options["metric"], **settings) if metric is None else metric,
            make_residual(options["residual"], **settings) if residual is None else residual,
            make_solver(options["solver"], **settings) if solver is None else solver,
            make_input_scales(options.get("input_scales", "none"), **settings),
            REPARAMETRIZED[options.get("reparametrize", "none")],
        )

    @property
    def reads_audio(self) -> bool:
        """Whether calibration speech is needed at all."""
        return self.solves_by_audio or self.input_scales is not None

    @property
    def solves_by_audio(self) -> bool:
        """Whether it is needed to choose the codes."""
        return self.solver.reads_audio or self.paired

    @property
    def reads_tail(self) -> bool:
        """Whether it matters which positions are in the tail."""
        return bool(getattr(self.metric, "reads_tail", True)) and self.solves_by_audio

    @property
    def paired(self) -> bool:
        """Whether the full-precision network is walked beside the quantized one."""
        return self.residual.paired or self.solver.paired

    @property
    def storable(self) -> bool:
        """Whether a checkpoint can hold what the solver makes."""
        return bool(getattr(self.solver, "storable", True))

    def moments(self, features: int, device: torch.device | str = "cpu", bands: int = 1) -> list[Moments]:
        """Empty moments of an input as wide, of the kinds the arms ask for: one a fold for each band of the tail."""
        residual = self.residual
        kinds = {"first": residual.first_moments, "drift": getattr(residual, "drift_moments", False)}
        return [Moments(features, paired=self.paired, device=device, **kinds) for _ in range(residual.folds * bands)]

    @property
    def bands(self) -> bool:
        """Whether bands of the tail are accumulated separately until their traces are known."""
        return bool(getattr(self.metric, "bands", False))

    @property
    def depends_on_layer(self) -> bool:
        """Whether a position's weight differs from layer to layer."""
        return bool(getattr(self.metric, "activations", False)) or self.gradients or self.attention

    @property
    def gradients(self) -> bool:
        """Whether the metric asks for the gradients at the layers' outputs."""
        return bool(getattr(self.metric, "gradients", False))  # a metric need not inherit from Metric

    @property
    def attention(self) -> bool:
        """Whether the metric asks for the attention that rows are given."""
        return bool(getattr(self.metric, "attention", False))

    def target_weight(self, rare: Tensor, share: float) -> Tensor:
        """:meth:`Metric.target_weight`, ones where the metric has none."""
        own = getattr(self.metric, "target_weight", None)
        return torch.ones(rare.shape) if own is None else own(rare, share)
