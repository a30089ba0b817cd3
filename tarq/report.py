"""What a run tells: progress while it goes, a record of every layer and everything degraded after it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarq.errors import CheckpointError
from tarq.method.figures import Figures

if TYPE_CHECKING:
    import torch

FILE_NAME = "tarq_report.json"


@dataclass
class LayerReport(Figures):
    """One Linear layer: what it is, and the :class:`~tarq.method.figures.Figures` of its solution.

    Attributes:
        name: qualified name in the model.
        stage: encoder, projector or decoder.
        shape: (out, in) features.
        bits: bits a weight; 0 when skipped.
        group_size: as used.
        positions: calibration positions seen.
        tail_positions: those of them in the tail.
        skipped: why the layer was left in full precision, empty when it was not.
        notes: everything degraded or unusual.
    """

    name: str
    stage: str
    shape: tuple[int, ...]
    bits: int = 0
    group_size: int = 0
    positions: int = 0
    tail_positions: int = 0
    skipped: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """A whole quantization run; saved beside the checkpoint as ``tarq_report.json``.

    Attributes:
        model: where the full-precision model came from.
        config: of the run, :meth:`tarq.TarqConfig.to_dict`.
        versions: of tarq and the libraries that shape the result.
        calibration: source, ids, digests of the audio's places, counts, seconds of audio, rare share of words,
            transcript style, languages, the pool and its ρ, which word frequencies, what was broken or left out, and
            for each stage how many rows are heard audio, tokens, in the tail, and padding.
        layers: one record each.
        left_out: matrices outside the blocks' Linears (heads, stems, pointwise convolutions), with the reason.
        sizes: bytes of the quantized Linears' weights before and after, and of the whole checkpoint.
        seconds: wall time of the walk.
        memory: ``ram_peak_bytes``, the most the process ever held, loading the model included; on a GPU
            ``device_peak_bytes``, the most torch had allocated there during the run. Of several processes the largest.
        processes: that shared the work.
        notes: everything degraded or unusual about the run as a whole.
    """

    model: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    processes: int = 1
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, folder: str | Path) -> Report:
        """The report beside a checkpoint.

        Raises:
            CheckpointError: it is missing or not a report.
        """
        path = Path(folder) / FILE_NAME
        try:
            fields = json.loads(path.read_text())
            layers = [LayerReport(**{**layer, "shape": tuple(layer["shape"])}) for layer in fields.pop("layers")]
            return cls(layers=layers, **fields)
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist: was this folder written by tarq?") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is not a tarq report: {error}") from error


def peak_memory(device: torch.device) -> dict[str, int]:
    """:attr:`Report.memory` of this process."""
    import torch

    # Not getrusage: what it gives outlives exec, so that it may be the parent's.
    status = Path("/proc/self/status").read_text()
    peak = {"ram_peak_bytes": 1024 * int(status.split("VmHWM:")[1].split()[0])}
    if device.type == "cuda":
        peak["device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak


class Reporter:
    """Hears of progress; this one is silent, screens override what they show."""

    def phase(self, text: str, total: int | None = None) -> None:
        """A new phase of work begins, with so many steps if known."""

    def advance(self, steps: int = 1) -> None:
        """Steps of the current phase are done."""

    def start(self, layers: int) -> None:
        """The walk begins over so many layers."""

    def layer(self, record: LayerReport) -> None:
        """A layer is done."""

    def note(self, text: str) -> None:
        """Something degraded or unusual happened."""
