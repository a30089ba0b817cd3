"""Where the models and corpora of a grid are on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tarq.testbed as packaged
from benchmarks.study.grid import Grid
from tarq.data.corpora.registry import load_utterances
from tarq.data.utterance import Utterance
from tarq.errors import ConfigError

#: Source of the packaged model, and of its speech.
TESTBED = "testbed"
TESTBED_SPEECH = {"testbed/calibration": packaged.calibration_pool, "testbed/test": packaged.test_set}


@dataclass(frozen=True)
class Places:
    """Folders that sources are looked for in, before they are taken as paths."""

    models: str | None = None
    speech: str | None = None

    def model(self, source: str) -> str | None:
        """The folder of a model; None where it is not there."""
        if source == TESTBED:
            return str(packaged.model())
        return _there(self.models, source)

    def corpus(self, source: str) -> str | None:
        """The folder of a corpus, or the name of one that is packaged; None where it is not there."""
        return source if source in TESTBED_SPEECH else _there(self.speech, source)

    def utterances(self, source: str) -> list[Utterance]:
        """Of a corpus that is there."""
        if source in TESTBED_SPEECH:
            return TESTBED_SPEECH[source]()
        return load_utterances(self.corpus(source))

    def absent(self, grid: Grid) -> list[str]:
        """What the jobs of a grid need and is not there, in words; the options that name the folders."""
        jobs = grid.jobs()
        models = {grid.models[job.model] for job in jobs}
        pools = {corpus for job in jobs for corpus in grid.calibration[job.pool].corpora}
        corpora = {grid.corpora[c] for c in pools | {grid.scored[s].corpus for job in jobs for s in job.scored}}
        return [f"{_place(self.models, s)} (--models)" for s in sorted(models) if self.model(s) is None] + [
            f"{_place(self.speech, s)} (--speech)" for s in sorted(corpora) if self.corpus(s) is None
        ]

    def check(self, grid: Grid) -> None:
        """Raises ConfigError where something is not there."""
        if absent := self.absent(grid):
            raise ConfigError(f"{grid.file}: not there: {', '.join(absent)}")


def corpora_of(grid: Grid, places: Places) -> Mapping[str, list[Utterance]]:
    """Corpus to its utterances, of those that the jobs of a grid need."""
    jobs = grid.jobs()
    names = [c for job in jobs for c in grid.calibration[job.pool].corpora]
    names += [grid.scored[s].corpus for job in jobs for s in job.scored]
    return {name: places.utterances(grid.corpora[name]) for name in dict.fromkeys(names)}


def _there(root: str | None, source: str) -> str | None:
    for path in ([Path(root) / source] if root else []) + [Path(source)]:
        if path.exists():
            return str(path)
    return None


def _place(root: str | None, source: str) -> str:
    return str(Path(root) / source) if root else source
