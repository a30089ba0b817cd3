"""The arms a configuration can name: one line each. Light to import, since options and checks read the names.

An arm is a dataclass; fields that a configuration also has are set from it (``damp``, ``cost_ratio``, …).
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tarq.method.metrics import Metric
    from tarq.method.residuals import Residual
    from tarq.method.scaling import InputScaling
    from tarq.method.solvers import Solver

#: Name to the module below ``tarq.method`` and the class in it.
METRICS = {
    "rarebal": "metrics:RareBAL",
    "plain": "metrics:Plain",
    "random": "metrics:RandomControl",
    "common": "metrics:CommonControl",
    "maca": "maca:PerUtterance",
    "rarebal-bands": "bands:BandedRareBAL",
    "rarebal-gated": "spqr:GatedRareBAL",
    "rsq": "rsq:AttentionConcentration",
    "gradient": "gradient:GradientBalanced",
    "gradient-plain": "gradient:Gradient",
    "guided": "gradient:Guided",
}
RESIDUALS = {
    "cross-fitted": "residuals:CrossFitted",
    "cross-fitted-bias": "absorb:CrossFittedBias",
    "least-squares": "residuals:LeastSquares",
    "qep": "qep:QEP",
    "qronos": "qronos:Qronos",
    "coreq": "coreq:CoreQ",
    "paper": "residuals:PaperResidual",
    "none": "residuals:NoResidual",
}
SOLVERS = {
    "sweep": "solvers:Sweep",
    "refined": "refine:RefinedSweep",
    "gptaq": "gptaq:GPTAQ",
    "beam": "beam:BeamSweep",
    "refined-beam": "beam:RefinedBeam",
    "kronecker": "kronecker:Kronecker",
    "spqr": "spqr:SpQR",
    "sarqc": "sarqc:Regularized",
    "clipped": "clip:Clipped",
    "rtn": "solvers:RoundToNearest",
}
INPUT_SCALES = {
    "awq": "awq:AWQ",
    "smoothquant": "smoothquant:SmoothQuant",
}


def make_metric(name: str, **options: Any) -> Metric:
    """The metric of a name.

    Args:
        name: one of :data:`METRICS`.
        options: fields of a configuration; the arm takes those it has.

    Raises:
        ValueError: the name is unknown.
    """
    return _make("metric", METRICS, name, options)


def make_residual(name: str | float, **options: Any) -> Residual:
    """The residual of a name, or that of a fixed α; see :func:`make_metric`."""
    if isinstance(name, str):
        return _make("residual", RESIDUALS, name, options)
    from tarq.method.residuals import FixedAlpha, NoResidual

    return FixedAlpha(float(name)) if name else NoResidual()


def make_solver(name: str, **options: Any) -> Solver:
    """The solver of a name; see :func:`make_metric`."""
    return _make("solver", SOLVERS, name, options)


def make_input_scales(name: str, **options: Any) -> InputScaling | None:
    """How inputs are scaled, by name; None for ``none``; see :func:`make_metric`."""
    return None if name == "none" else _make("scaling of inputs", INPUT_SCALES, name, options)


def _make(kind: str, known: dict[str, str], name: str, options: dict[str, Any]) -> Any:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: choose {', '.join(known)}")
    module, _, arm = known[name].partition(":")
    made = getattr(import_module(f"tarq.method.{module}"), arm)
    return made(**{f.name: options[f.name] for f in fields(made) if f.name in options})
