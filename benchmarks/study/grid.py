"""A grid: what a study measures, cell by cell, most important first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import tarq

Half = Literal["choose", "report", "all"]
DType = Literal["float32", "bfloat16"]
Order = Literal["worth", "draws"]


@dataclass(frozen=True)
class Arm:
    """A preset with fields overridden; ``reads_audio`` where it needs calibration speech."""

    preset: str
    overrides: Mapping[str, Any]
    title: str
    reads_audio: bool


@dataclass(frozen=True)
class CalibrationPool:
    """Corpora to draw from, and the fields that say how."""

    corpora: tuple[str, ...]
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """A corpus to score on: a half of its speakers, or a random sample of it of so many utterances."""

    corpus: str
    half: Half
    utterances: int | None


class Job(NamedTuple):
    """One quantization, and the sets it is scored on; ``decode`` where it transcribes them too."""

    model: str
    arm: str
    draw: int
    pool: str
    samples: int
    bits: int
    scored: tuple[str, ...]
    decode: bool

    @property
    def name(self) -> str:
        """Everything but what it is scored on."""
        return "/".join(map(str, self[:6]))

    def label(self, scored: str, first: str) -> str:
        """The model's key in the results: its name, with the set's name for any but the grid's first."""
        return self.model if scored == first else f"{self.model} ({scored})"

    def key(self, scored: str, first: str) -> str:
        """Of the cell in the results."""
        return "/".join([self.label(scored, first), *map(str, self[1:6]), scored])


@dataclass(frozen=True)
class Block:
    """A product of axes, measured draw by draw."""

    models: tuple[str, ...]
    arms: tuple[str, ...]
    pools: tuple[str, ...]
    samples: tuple[int, ...]
    bits: tuple[int, ...]
    draws: tuple[int, ...]
    scored: tuple[str, ...]
    decode: int  # in so many of the draws

    def jobs(self, arms: Mapping[str, Arm]) -> Iterator[Job]:
        """An arm that needs no calibration speech is measured once for each width."""
        for place, draw in enumerate(self.draws):
            for model, pool, samples, bits, arm in itertools.product(
                self.models, self.pools, self.samples, self.bits, self.arms
            ):
                first = (self.pools[0], self.samples[0], self.draws[0])
                if arms[arm].reads_audio or (pool, samples, draw) == first:
                    yield Job(model, arm, draw, pool, samples, bits, self.scored, place < self.decode)


@dataclass(frozen=True)
class Grid:
    """A study. Models and corpora are name to source: a folder below the one the command line gives, or the testbed's.

    Attributes:
        blocks: what is measured, most important first.
        exclude: what of it is not: a job that meets all conditions of an entry.
        pairs: (arm, base, family) to compare.
        dtype: of the models, in full precision and quantized.
        threads: of each process; None leaves them as they are.
        order: of jobs: block by block, or all that have the first draw before those of the next.
        bars: what the arms are called that the four bars (``bars.py``) are about: ``default``, ``baselines``, ``tail``.
    """

    file: str
    title: str
    models: Mapping[str, str]
    arms: Mapping[str, Arm]
    corpora: Mapping[str, str]
    calibration: Mapping[str, CalibrationPool]
    scored: Mapping[str, Scored]
    blocks: tuple[Block, ...]
    exclude: tuple[Mapping[str, tuple[Any, ...]], ...]
    batch_size: int
    score_batch_size: int
    dtype: DType
    threads: int | None
    order: Order
    pairs: tuple[tuple[str, str, str], ...]
    bars: Mapping[str, Any]
    otherwise: str | None

    def config(self, job: Job) -> tarq.TarqConfig:
        """Of a job's quantization."""
        arm, pool = self.arms[job.arm], self.calibration[job.pool]
        axes = {"samples": job.samples, "seed": job.draw, "bits": job.bits, "batch_size": self.batch_size}
        return tarq.TarqConfig.preset(arm.preset, **{**axes, **pool.fields, **arm.overrides})

    def jobs(self) -> list[Job]:
        """Most important first. A model is quantized once, and scored on the sets of later blocks then, too."""
        found: dict[str, Job] = {}
        for block in self.blocks:
            for job in block.jobs(self.arms):
                if not any(_meets(job, conditions) for conditions in self.exclude):
                    known = found.get(job.name, job)
                    scored = tuple(dict.fromkeys(known.scored + job.scored))
                    found[job.name] = known._replace(scored=scored, decode=known.decode or job.decode)
        jobs = list(found.values())
        return sorted(jobs, key=lambda job: job.draw) if self.order == "draws" else jobs

    @property
    def first(self) -> str:
        """The set whose cells bear the model's plain name."""
        return next(iter(self.scored))


def _meets(job: Job, conditions: Mapping[str, tuple[Any, ...]]) -> bool:
    return all(getattr(job, axis) in values for axis, values in conditions.items())
