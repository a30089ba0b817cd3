"""What a run reports: progress while it runs; afterwards a record of every layer and everything degraded."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarq.errors import CheckpointError
from tarq.files import to_json
from tarq.method.figures import Figures
from tarq.version import __version__

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
        bits: bits per weight; 0 if skipped.
        group_size: the group size used.
        positions: number of calibration positions.
        tail_positions: how many of them are in the tail.
        skipped: why the layer was left in full precision; empty if it was not.
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
        model: folder or hub id of the full-precision model.
        config: the run's :meth:`tarq.TarqConfig.to_dict`.
        versions: of tarq and the libraries that shape the result.
        calibration: source, ids, digests of the audio's locations, counts, seconds of audio, share of rare words,
            transcript style, languages, the pool and its ρ, the word frequencies used, what was broken or left out,
            and for each stage the number of rows that are audio, tokens, in the tail, and padding.
        layers: one record per layer.
        left_out: matrices outside the blocks' Linears (heads, stems, pointwise convolutions), with the reason.
        sizes: bytes of the quantized Linears' weights before and after, and of the whole checkpoint.
        seconds: wall time of the walk.
        memory: ``ram_peak_bytes``, the process's peak memory, including loading the model; on a GPU also
            ``device_peak_bytes``, torch's peak allocation there during the run. The maximum over all processes.
        processes: how many shared the work.
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
        """Strict JSON: NaN and infinities become ``null``."""
        return to_json(asdict(self)) + "\n"

    @classmethod
    def read(cls, folder: str | Path) -> Report:
        """The report beside a checkpoint. Fields that a newer tarq added are left out, and a note says so.

        Raises:
            CheckpointError: it is missing or is not a report; names the field.
        """
        path = Path(folder) / FILE_NAME
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(f"{path} does not exist: was this folder written by tarq?") from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a tarq report: {error}") from error
        newer: set[str] = set()
        report = _read(cls, stored, str(path), newer)
        for i, fields_of_layer in enumerate(report.layers):
            layer = report.layers[i] = _read(LayerReport, fields_of_layer, f"{path}: layers[{i}]", newer)
            layer.shape = tuple(layer.shape)
        if newer:
            report.notes.append(
                f"written by tarq {report.versions.get('tarq', '?')}, which this version does not read in full: left "
                f"out {', '.join(sorted(newer))}"
            )
        return report


#: What JSON holds for the plain types of a report's fields.
_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float, type(None)), "bool": (bool,)}
_KINDS |= {"list": (list,), "tuple": (list,), "dict": (dict,)}


def _read(record: type, stored: Any, where: str, newer: set[str]) -> Any:
    """A record from stored fields, whose types are checked; names of unknown fields are added to ``newer``."""
    if not isinstance(stored, dict):
        raise CheckpointError(f"{where} is not a tarq report: {type(stored).__name__} where fields are expected")
    known = {f.name: f for f in fields(record)}
    newer |= stored.keys() - known.keys()
    for name, each in known.items():
        if name not in stored and each.default is MISSING and each.default_factory is MISSING:
            raise CheckpointError(f"{where} is not a tarq report: {name} is missing")
        kinds = _KINDS.get(str(each.type).split("[")[0].split(" |")[0], (object,))
        value = stored.get(name)
        right = isinstance(value, kinds) and (not isinstance(value, bool) or not {int, float} & set(kinds))
        if name in stored and not right:
            raise CheckpointError(f"{where} is not a tarq report: {name} is {value!r}, not {each.type}")
    return record(**{name: value for name, value in stored.items() if name in known})


def versions() -> dict[str, str]:
    """Of tarq and the libraries that shape a result."""
    return {"tarq": __version__} | {p: version(p) for p in ("torch", "transformers", "numpy", "wordfreq")}


def peak_memory(device: torch.device) -> dict[str, int]:
    """:attr:`Report.memory` of this process."""
    import torch

    # Not getrusage: its peak survives exec, so it may be the parent's.
    status = Path("/proc/self/status").read_text()
    peak = {"ram_peak_bytes": 1024 * int(status.split("VmHWM:")[1].split()[0])}
    if device.type == "cuda":
        peak["device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak


class Reporter:
    """Receives progress; this one is silent, and subclasses override what they show.

    Pass one as ``reporter=`` to :func:`tarq.quantize`, :func:`tarq.evaluate`, :func:`tarq.transcribe` or
    :func:`tarq.pool`. An exception that it raises ends the run, with nothing half-written.
    """

    def phase(self, text: str, total: int | None = None) -> None:
        """A new phase of work begins, with ``total`` steps if known."""

    def advance(self, steps: int = 1) -> None:
        """Steps of the current phase are done."""

    def start(self, layers: int) -> None:
        """The walk over ``layers`` layers begins."""

    def layer(self, record: LayerReport) -> None:
        """A layer is done."""

    def note(self, text: str) -> None:
        """Something degraded or unusual happened."""


def counted(count: int, noun: str) -> str:
    """``1 word``, ``2 words``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size_text(count: float) -> str:
    """Bytes; in kB where two decimals of a MB would leave less than two digits."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
