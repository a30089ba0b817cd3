"""Blocks of a walk that are finished: kept for a run that goes on, and put in place by it."""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor, nn

from tarq.checkpoint.unfinished import Part, UnfinishedRun
from tarq.errors import ResumeError
from tarq.linear import QuantLinear
from tarq.report import LayerReport, counted
from tarq.walk.identity import digest_of
from tarq.walk.inputs import linear_of
from tarq.walk.records import LayerRecords
from tarq.walk.solving import GroupSolver


class FinishedBlocks:
    """A walk's finished blocks.

    Args:
        run: where they are kept.
        solver: knows each Linear's lattice, and what was observed for it.
        records: of the walk; those of a block that is put in place are added.
    """

    def __init__(self, run: UnfinishedRun, solver: GroupSolver, records: LayerRecords) -> None:
        self.run, self.solver, self.records = run, solver, records
        self._count, self._recorded = 0, 0
        self._going_through = False
        self._before = ""

    def start(self) -> None:
        """The walk begins."""
        self._going_through = self.run.finished > 0
        if self._going_through:
            self.records.reporter.phase(f"through {counted(self.run.finished, 'finished block')}", self.run.finished)
        else:
            self.records.start()

    def take(self, name: str, block: nn.Module) -> dict[str, QuantLinear] | None:
        """The packed layers of a block, by their names in it, if an earlier run has finished it; else None.

        Args:
            name: of the block in the model.
            block: with its original Linears, on the device where it is quantized.

        Raises:
            ResumeError: its weights are not those that the earlier run has quantized.
        """
        self._recorded = len(self.records.layers)
        part = self.run.take(self._name(name))
        if part is None:
            if self._going_through:
                self._going_through = False
                self.records.start()
            if self.run.keeps:
                self._before = _weights(block)
            return None
        if part.record["before"] != _weights(block):
            raise ResumeError(
                f"{name} has other weights than those that the earlier run quantized, though all that decides them is "
                "the same: this machine computes them differently each time. Start over: delete the folder"
            )
        layers = {}
        for n in sorted({key.rpartition(".")[0] for key in part.tensors}):
            tensors = {k.removeprefix(f"{n}."): t for k, t in part.tensors.items() if k.rpartition(".")[0] == n}
            layers[n] = self.solver.stored(f"{name}.{n}", linear_of(block, n), tensors)
        self.records.layers += [LayerReport(**each | {"shape": tuple(each["shape"])}) for each in part.record["layers"]]
        self.records.reporter.advance()
        self._count += 1
        return layers

    def keep(self, name: str, block: nn.Module) -> None:
        """Keep a block that the walk has just finished."""
        if self.run.keeps:
            tensors: dict[str, Tensor] = {}
            for n, module in block.named_modules():
                if isinstance(module, QuantLinear):
                    tensors |= {f"{n}.{key}": tensor for key, tensor in module.state_dict().items()}
            layers = [asdict(record) for record in self.records.layers[self._recorded :]]
            self.run.keep(self._name(name), Part(tensors, {"before": self._before, "layers": layers}))
        self._count += 1

    def _name(self, name: str) -> str:
        return f"{self._count:04}-{name}"


def _weights(block: nn.Module) -> str:
    return digest_of(block.named_parameters())
