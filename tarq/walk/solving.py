"""From the moments of one input to the packed layers of the Linears that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from tarq import distributed
from tarq.config import TarqConfig
from tarq.errors import CalibrationError
from tarq.kernels.group_quantize.reference import check_scales
from tarq.kernels.scheme import Scheme
from tarq.linear import QuantLinear, packed_layer
from tarq.method.algorithm import Solution, tail_aware_quantize
from tarq.method.arms import Arms
from tarq.method.figures import Figures
from tarq.method.moments import Moments
from tarq.method.residuals import Layer
from tarq.method.solvers import RoundToNearest
from tarq.models.base import Recognizer
from tarq.timing import timed, timed_methods
from tarq.walk.observations import Observations
from tarq.walk.plan import PlannedLayer

#: Computes the codes of a group's Linears from their moments; no entry for those that stay in full precision.
Solve = Callable[[Sequence[Layer], Sequence[Moments], PlannedLayer], Mapping[str, Solution]]


class GroupSolver:
    """Algorithm 1 for one group of Linears after another, shared among processes.

    Args:
        recognizer: of the model; its stored dtype is that of biases.
        config: the lattice.
        plan: name of each Linear to its group size and bits.
        arms: metric, residual and solver.
        observations: of the walk.
        device: where blocks are quantized.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        config: TarqConfig,
        plan: Mapping[str, PlannedLayer],
        arms: Arms,
        observations: Observations,
        device: torch.device,
    ) -> None:
        self.recognizer, self.config, self.plan = recognizer, config, plan
        solver = timed_methods(arms.solver, factorize="factorization", quantize="sweep and refinement")
        self.arms = replace(arms, solver=solver, residual=timed_methods(arms.residual, target="residual"))
        self.observations, self.device = observations, device

    def solve(self, layers: Sequence[Layer], folds: Sequence[Moments], planned: PlannedLayer) -> dict[str, Solution]:
        """Algorithm 1; each process solves its share of the Linears, those of one scheme together."""
        own = distributed.shard(layers)
        outputs = None
        if self.arms.solver.output_moments:
            ranks = [distributed.rank_of(i) for i in range(len(layers))]
            outputs = self.observations.gradients.take_moments([layer.name for layer in layers], ranks)
        solved: dict[str, Solution] = {}
        with solver_errors("|".join(layer.name for layer in own)):
            if any(fold.any_nonzero for fold in folds):
                for scheme in dict.fromkeys(self._scheme(layer.name) for layer in own):
                    same_scheme = [layer for layer in own if self._scheme(layer.name) == scheme]
                    solved |= tail_aware_quantize(same_scheme, folds, self.arms, scheme, self._scale_dtype, outputs)
            else:
                solved = {layer.name: self._rounded(layer) for layer in own}
        return dict(distributed.all_gather([(layer.name, solved[layer.name]) for layer in own], self.device))

    def solve_without_audio(self, layer: Layer) -> Solution:
        """The solver's codes of a weight as it is."""
        with solver_errors(layer.name):
            (quantized,) = self.arms.solver.quantize([layer.weight], None, self._scheme(layer.name), self._scale_dtype)
        return Solution(quantized)

    @timed("swap")
    def packed(self, layer: Layer, solution: Solution) -> QuantLinear:
        """The layer that replaces a Linear."""
        scheme = self._scheme(layer.name)
        with solver_errors(layer.name):
            check_scales(solution.quantized.scales, scheme)
        bias: Tensor | None = layer.bias
        if bias is not None:  # as stored: later layers compensate its rounding
            made = bias if solution.bias is None else solution.bias
            bias = made.detach().to(self.recognizer.stored_dtype).to(bias.dtype)
        return packed_layer(solution.quantized, scheme, bias)

    def stored(self, name: str, linear: nn.Linear, tensors: Mapping[str, Tensor]) -> QuantLinear:
        """The layer that replaced a Linear in an earlier run, from its state dict; gradients for it are dropped."""
        self.observations.gradients.moments.pop(name, None)
        layer = QuantLinear(
            linear.in_features, linear.out_features, self._scheme(name), "bias" in tensors, self._scale_dtype, "meta"
        )
        layer.load_state_dict({key: tensor.to(self.device) for key, tensor in tensors.items()}, assign=True)
        return layer

    def _rounded(self, layer: Layer) -> Solution:
        """Round to nearest a layer whose input is zero on all calibration speech."""
        (quantized,) = RoundToNearest().quantize([layer.weight], None, self._scheme(layer.name), self._scale_dtype)
        columns = Figures(dead_columns=layer.weight.shape[1])
        return Solution(quantized, columns, notes=["its input is zero on all calibration speech: rounded to nearest"])

    def _scheme(self, name: str) -> Scheme:
        return self.config.scheme(self.plan[name].group_size, self.plan[name].bits)

    @property
    def _scale_dtype(self) -> torch.dtype:
        return getattr(torch, self.config.scale_dtype)


@contextmanager
def solver_errors(layers: str) -> Iterator[None]:
    """While open, a solver's failure is raised as an error that names the layers concerned and the fix."""
    try:
        yield
    except (torch.linalg.LinAlgError, ValueError) as error:
        speech = isinstance(error, torch.linalg.LinAlgError)
        mend = "more calibration speech or a larger damp may help, " if speech else ""
        raise CalibrationError(f"{layers}: {error}; {mend}or keep the layer in full precision with ignore") from error
