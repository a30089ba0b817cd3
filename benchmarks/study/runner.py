"""Measure a grid: job by job, most important first; several processes share the jobs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import tarq
from benchmarks.study import bench as benches
from benchmarks.study.bench import DECIMALS, KINDS, Bench
from benchmarks.study.grid import Grid, Job
from benchmarks.study.places import Places, corpora_of
from benchmarks.study.results import Results, ResultsFile
from tarq.data.cached import CachedUtterance
from tarq.data.sampling import sample_utterances
from tarq.data.utterance import Utterance
from tarq.errors import ConfigError, TarqError
from tarq.models.base import Recognizer


@dataclass
class Runner:
    """One process's part in a study.

    Attributes:
        out: the results file.
        device: that everything runs on.
        minutes: no job is begun that would end after these, going by the longest so far.
        only: axis to the values that jobs must have; all where it is empty.
        log: called with each line of progress.
        failed: jobs that could not be measured, with the reason.
    """

    grid: Grid
    places: Places
    out: Path
    device: str = "cpu"
    minutes: float = float("inf")
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    log: Callable[[str], None] = print
    failed: dict[str, str] = field(default_factory=dict)
    _models: dict[str, Recognizer] = field(default_factory=dict)
    _benches: dict[tuple[str, str], Bench] = field(default_factory=dict)
    _longest: float = 0.0

    def run(self) -> Results:
        """Measure what is missing; returns the results.

        Raises:
            ConfigError: something is missing, or the results file is of another study.
        """
        began = time.monotonic()
        if self.grid.threads is not None:
            torch.set_num_threads(self.grid.threads)
        self.places.check(self.grid)
        pairs = [list(pair) for pair in self.grid.pairs]
        file = ResultsFile(self.out, self.settings(), self._arms(), pairs, self.grid.bars)
        results = file.read()
        while True:  # again, for what a process left that was killed meanwhile
            before = len(self.failed) + len(results["cells"])
            for job in self.jobs():
                if job.name in self.failed or not self._missing(results, job):
                    continue
                with file.claim(job.name) as mine:
                    missing = self._missing(results := file.read(), job) if mine else []
                    if not missing:
                        continue
                    start = time.monotonic()
                    if start - began + self._longest > 60 * self.minutes:
                        self.log(f"study: no time left for {job.name}")
                        return results
                    self._prepare(file, job, missing)
                    try:
                        results = self._measure(file, job, missing)
                    except TarqError as error:
                        self.failed[job.name] = str(error)
                        self.log(f"study: {job.name} failed: {error}")
                    self._longest = max(self._longest, time.monotonic() - start)
            if before == len(self.failed) + len(results["cells"]):
                return results

    def jobs(self) -> list[Job]:
        """Those asked for."""
        return [
            job
            for job in self.grid.jobs()
            if all(str(getattr(job, axis)) in values for axis, values in self.only.items())
        ]

    def settings(self) -> dict[str, Any]:
        """What the results say of the study."""
        grid, product = self.grid, self.grid.blocks[0]
        first = grid.scored[grid.first]
        scored = self._scored(grid.first)
        return {
            "title": grid.title,
            "calibration": " + ".join(grid.calibration[product.pools[0]].corpora),
            "data": first.corpus,
            "half": first.half,
            "speakers": sorted({str(u.speaker) for u in scored}),
            "utterances": len(scored),
            "samples": product.samples[0],
            "batch_size": grid.batch_size,
            "score_batch_size": grid.score_batch_size,
            "dtype": grid.dtype,
            "models": dict(grid.models),
            "corpora": dict(grid.corpora),
            "pools": {n: {"corpora": list(p.corpora), **p.fields} for n, p in grid.calibration.items()},
            "scored": {name: asdict(one) for name, one in grid.scored.items()},
        }

    def _arms(self) -> dict[str, Any]:
        return {
            name: {"preset": arm.preset, "overrides": dict(arm.overrides), "title": arm.title}
            for name, arm in self.grid.arms.items()
        }

    @cached_property
    def _corpora(self) -> dict[str, list[CachedUtterance]]:
        """Every corpus, its audio kept once it is read."""
        return {
            name: [CachedUtterance.of(u) for u in found] for name, found in corpora_of(self.grid, self.places).items()
        }

    def _scored(self, name: str) -> list[Utterance]:
        """The utterances of a set."""
        asked = self.grid.scored[name]
        corpus: Sequence[Utterance] = self._corpora[asked.corpus]
        chosen = corpus if asked.half == "all" else benches.halves(asked.corpus, corpus)[asked.half]
        chosen = [u for u in chosen if (u.text or "").strip()]
        if not chosen:
            raise ConfigError(f"{self.grid.file}: scored/{name}: no utterance of it has a transcript")
        return sample_utterances(chosen, asked.utterances, 0) if asked.utterances else list(chosen)

    def _missing(self, results: Results, job: Job) -> list[str]:
        """Sets that a job was not scored on yet, or not transcribed."""
        cells = (results["cells"].get(job.key(name, self.grid.first)) for name in job.scored)
        return [
            name
            for name, cell in zip(job.scored, cells, strict=True)
            if cell is None or (job.decode and "words" not in cell)
        ]

    # --- measuring ---

    def _prepare(self, file: ResultsFile, job: Job, sets: Sequence[str]) -> None:
        """Full precision: loaded, run on the sets, and described in the results."""
        if job.model not in self._models:
            source = self.places.model(self.grid.models[job.model])
            self._models[job.model] = benches.full_precision(str(source), self.device, getattr(torch, self.grid.dtype))
        full = self._models[job.model]
        for name in sets:
            start, label = time.monotonic(), job.label(name, self.grid.first)
            if (job.model, name) not in self._benches:
                made = Bench.make(full, self._scored(name), self.grid.score_batch_size)
                for note in made.notes:
                    self.log(f"study: {label}: {note}")
                self._describe(file, label, self._described(job, name, made))
                self._benches[job.model, name] = made
                self.log(f"study: {label}: ready in {time.monotonic() - start:.1f} s")
            # Every process runs full precision on the targets, but only one transcribes.
            with file.claim(f"words of {label}") as mine:
                # "signs" are the last that was added to what transcripts are scored by.
                if mine and job.decode and "signs" not in (file.read()["models"][label].get("words") or {}):
                    words = self._benches[job.model, name].transcribed(full)
                    file.update(lambda results, label=label, words=words: results["models"][label].update(words))

    def _describe(self, file: ResultsFile, label: str, described: dict[str, Any]) -> None:
        """Record in the results what a model was scored on, or check that it is the same."""

        def describe(results: Results) -> None:
            known = results["models"].setdefault(label, described)
            counts = described["positions"]
            # Files of before there were bands of frequency get their counts.
            known["positions"] = counts | known["positions"]
            if known["positions"] != counts or known["ids"] != described["ids"]:
                raise ConfigError(
                    f"{self.out}: {label} was scored on other targets than there are now (another model, corpus or "
                    "transformers); name another file"
                )

        file.update(describe)

    def _described(self, job: Job, name: str, made: Bench) -> dict[str, Any]:
        """A model on a set, as results have it."""
        folder = self.out.resolve().parent
        files = [
            u.audio if isinstance(u.audio, Path) and not u.start and u.end is None else None for u in made.utterances
        ]
        return {
            "model": job.model,
            "corpus": name,
            "ids": [u.id for u in made.utterances],
            "references": [u.text or "" for u in made.utterances],
            "speakers": [u.speaker for u in made.utterances],
            "audio": [None if file is None else os.path.relpath(file.resolve(), folder) for file in files],
            "positions": made.positions,
            "notes": made.notes,
        }

    def _measure(self, file: ResultsFile, job: Job, sets: Sequence[str]) -> Results:
        """Quantize a copy by an arm on a draw, score it on sets, and keep the cells."""
        config = self.grid.config(job)
        names = self.grid.calibration[job.pool].corpora
        drawn = {name: self._corpora[name] for name in names}
        start = time.monotonic()
        recognizer, report = benches.quantized(
            self._models[job.model], drawn if len(names) > 1 else drawn[names[0]], config
        )
        took = time.monotonic() - start
        cells = {}
        for name in sets:
            start = time.monotonic()
            measured = self._benches[job.model, name].measure(recognizer, job.decode)
            seconds = {"quantize": round(took, 2), "score": round(time.monotonic() - start, 2)}
            cells[job.key(name, self.grid.first)] = measured | self._facts(report) | {"seconds": seconds}
        results = file.update(lambda results: results["cells"].update(cells))
        for name, (key, cell) in zip(sets, cells.items(), strict=True):
            positions = self._benches[job.model, name].positions
            self.log(f"study: {key}: {_shown(cell, positions)}; seconds: {cell['seconds']}")
        return results

    def _facts(self, report: tarq.Report) -> dict[str, Any]:
        """What a cell keeps of its quantization."""
        cuda = torch.device(self.device).type == "cuda"
        drawn = report.calibration.get("ids")
        return {
            "config": report.config,
            "versions": report.versions | {"python": platform.python_version()},
            "device": torch.cuda.get_device_name(self.device) if cuda else "CPU",
            "threads": torch.get_num_threads(),
            "calibration_seconds": report.calibration.get("seconds"),
            "calibration_sha256": drawn and hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16],
            "bytes": report.sizes,
            "layers": [
                {
                    "name": layer.name,
                    "bits": layer.bits,
                    "alpha": _rounded(layer.alpha),
                    "lam": _rounded(layer.lam),
                    "loss": _rounded(layer.loss),
                }
                for layer in report.layers
            ],
            "notes": report.notes,
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DECIMALS}g}")


def _shown(cell: Mapping[str, Any], positions: Mapping[str, Sequence[int]]) -> str:
    """A cell's damage in a few words."""
    return ", ".join(
        f"{title} {sum(cell[figure][kind]) / max(sum(positions[kind]), 1):+.4f}"
        for kind in KINDS
        for figure, title in (("delta_nll", f"ΔNLL {kind}"), ("kl", f"KL {kind}"))
    )
