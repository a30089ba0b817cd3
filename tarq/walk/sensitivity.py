"""How much each bit width of each layer raises the loss, estimated in one walk over the full-precision model.

To second order an error E of a weight changes the loss by ``½ Σ_t (g_tᵀ E x_t)²``, with x the layer's input and g the
loss's gradient at its output. With inputs and gradients taken for independent over R positions that is

    ½ tr(G E H Eᵀ) / R,    G = Σ g gᵀ,    H = Σ x xᵀ

in nats, so that layers can be compared. The loss is the true tokens' cross-entropy with rare and common words alike in
it. E is the sweep's alone, each layer by itself: residuals and interactions between layers are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tarq import distributed
from tarq.config import TarqConfig
from tarq.errors import ConfigError
from tarq.lattice import WIDTHS
from tarq.method.algorithm import Solution, tail_aware_quantize
from tarq.method.allocation import Sensitivity, allocate_bits, mean_bits
from tarq.method.arms import Arms
from tarq.method.gradient import GradientBalanced
from tarq.method.metrics import Plain
from tarq.method.moments import Moments
from tarq.method.residuals import Layer, NoResidual
from tarq.method.solvers import Sweep
from tarq.models.base import Recognizer
from tarq.models.types import Batch
from tarq.report import Reporter
from tarq.walk.plan import PlannedLayer, has_place, plan
from tarq.walk.solving import solver_errors
from tarq.walk.walk import Walk


class _BalancedLoss(Plain):
    """All positions alike in H; rare and common targets alike in the loss."""

    def target_weight(self, rare: Tensor, share: float) -> Tensor:
        return GradientBalanced().target_weight(rare, share)


@dataclass(frozen=True)
class _SweepWithGradients(Sweep):
    """The sweep; asks for G."""

    output_moments: bool = True


@torch.no_grad()
def measure(
    recognizer: Recognizer,
    batches: Sequence[Batch],
    config: TarqConfig,
    reporter: Reporter,
    device: torch.device | None = None,
) -> list[Sensitivity]:
    """The damage of each width from the configuration's bits on, for each group of Linears that read one input.

    Args:
        recognizer: of a full-precision model, which is not changed.
        batches: the calibration set.
        config: of the run; places with bits of their own are left out.
        reporter: receives progress.
        device: as in :func:`tarq.walk.run.quantize_model`.

    Raises:
        ModelError: the model is offloaded: gradients need all of it on one device.
        CalibrationError: activations or gradients are NaN or infinite.
    """
    reporter.phase("damage of each width")
    targets = max(sum(int((batch.targets != -100).sum()) for batch in batches), 1)
    widths = [bits for bits in WIDTHS if bits >= config.bits]
    scale_dtype = getattr(torch, config.scale_dtype)
    table: list[Sensitivity] = []

    def measure_group(layers: Sequence[Layer], folds: Sequence[Moments], planned: PlannedLayer) -> dict[str, Solution]:
        free = [layer for layer in layers if not has_place(walk.plan[layer.name], config)]
        (moments,) = folds
        outputs = walk.observations.gradients.take_moments([layer.name for layer in free], [0] * len(free))
        if outputs and moments.any_nonzero:
            hessian, mass = (sums["common"] + sums["tail"] for sums in (moments.hessian, moments.mass))
            damage = {}
            for bits in widths:
                scheme = config.scheme(planned.group_size, bits)
                with solver_errors("|".join(outputs)):
                    solved = tail_aware_quantize(free, folds, walk.arms, scheme, scale_dtype, outputs)
                change = 0.0
                for layer in free:
                    error = (layer.weight - solved[layer.name].quantized.dequantize(layer.weight.dtype)).double()
                    change += float(((outputs[layer.name] @ error) * (error @ hessian)).sum())
                damage[bits] = change / (2 * float(mass) * targets)
            weights = sum(layer.weight.numel() for layer in free)
            table.append(Sensitivity(tuple(outputs), weights, damage))
        return {}

    arms = Arms(_BalancedLoss(), NoResidual(), _SweepWithGradients(config.damp, config.act_order))
    walk = Walk(recognizer, batches, config, Reporter(), arms, device, measure_group)
    for _ in walk.blocks():
        pass
    return distributed.broadcast(lambda: table)


def settle_bits(recognizer: Recognizer, table: Sequence[Sensitivity], config: TarqConfig) -> tuple[TarqConfig, str]:
    """Give each layer of a table its width, so that the mean stays within ``config.target_bits``.

    Args:
        recognizer: of the full-precision model.
        table: damage of each width: :func:`measure`'s, or one measured otherwise.
        config: of the run.

    Returns:
        The configuration with every layer's bits settled, and a note on the mean reached.

    Raises:
        ConfigError: the table names a layer that is not quantized, or the target is out of reach.
    """
    assert config.target_bits is not None
    packed = {layer.name: layer for layer in plan(recognizer, config) if layer.bits}
    listed = [name for row in table for name in row.names]
    for name in listed:
        if name not in packed or listed.count(name) > 1:
            raise ConfigError(f"the table of sensitivities names {name!r}, which is not quantized or named twice")
    others = [(math.prod(layer.shape), layer.bits) for name, layer in packed.items() if name not in set(listed)]
    chosen = allocate_bits(table, config.target_bits, others)
    settled = replace(config, target_bits=None, bits_for=config.bits_for | chosen)
    sizes = [(math.prod(layer.shape), chosen.get(name, layer.bits)) for name, layer in packed.items()]
    wider = sum(bits > config.bits for bits in chosen.values())
    mean = mean_bits(sizes)
    return settled, f"target_bits {config.target_bits:g}: {wider} layers are wider, {mean:.3f} bits per weight"
