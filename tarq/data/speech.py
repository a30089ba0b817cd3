"""Corpora by their names, loaded before any model, so that their errors are reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tarq.config import Pool as PoolSettings
from tarq.data.corpora.registry import load_utterances
from tarq.data.hub import is_dataset
from tarq.data.intake import Intake
from tarq.data.manifests import write_manifest
from tarq.data.pools import Pool, draw_pool, given_pool
from tarq.data.sampling import select_utterances
from tarq.data.utterance import Utterance
from tarq.errors import DataError
from tarq.files import expanded
from tarq.report import Reporter
from tarq.words.frequencies import described
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity

#: Speech: the path or name of a corpus (``tarq.data.corpora.registry.load_utterances``), or its utterances.
Data = str | Path | Sequence[Utterance]


class Speech(list[Utterance]):
    """A corpus's utterances, with where they came from and what was left out of them."""

    def __init__(self, utterances: Iterable[Utterance], source: str, intake: Intake) -> None:
        super().__init__(utterances)
        self.source, self.intake = source, intake


def name_of(data: Data) -> str:
    """The name of speech in a report: its corpus's name, if it has one."""
    return str(data) if isinstance(data, str | Path) else getattr(data, "source", "utterances")


def utterances_of(data: Data, intake: Intake) -> Sequence[Utterance]:
    """The utterances of a named corpus, or those of any iterable.

    Raises:
        DataError: the corpus is not usable, or what is given holds something else than utterances.
    """
    if isinstance(data, str | Path) or is_dataset(data):
        return load_utterances(data, intake)
    given: Sequence[Any] = data if isinstance(data, Sequence) else list(data) if isinstance(data, Iterable) else [data]
    for stray in (one for one in given if not isinstance(one, Utterance)):
        raise DataError(
            f"speech is given as {type(data).__name__} of {type(stray).__name__}: give the name of a corpus, or "
            "objects of tarq.data.utterance.Utterance"
        )
    return given


def speech_by_label(data: Data | Mapping[str, Data], max_bad: int) -> dict[str, Speech]:
    """Label to the speech of one or several corpora (one alone is ``speech``), loaded where they are named.

    Args:
        max_bad: broken files that may be left out, unless the corpora were loaded and have counted some already.

    Raises:
        DataError: a corpus is not usable.
    """
    named = dict(data) if isinstance(data, Mapping) else {"speech": data}
    intake = next((d.intake for d in named.values() if isinstance(d, Speech)), Intake(max_bad))
    return {
        label: d if isinstance(d, Speech) else Speech(utterances_of(d, intake), name_of(d), intake)
        for label, d in named.items()
    }


def load_speech(
    sources: Sequence[str],
    where: Sequence[str] = (),
    *,
    max_bad: int = 0,
    per_corpus: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Speech]:
    """The utterances of corpora, by short unique names.

    Args:
        sources: as ``tarq.data.corpora.registry.load_utterances`` takes them.
        where: ``KEY=VALUE`` conditions that utterances must meet.
        max_bad: broken audio files that may be left out of all corpora together, or from each if ``per_corpus``.
        per_corpus: count what is left out separately for each corpus.
        reporter: receives progress.

    Raises:
        DataError: a corpus is not usable.
    """
    shared = Intake(max_bad)
    speech = {}
    for label, source in short_labels(sources).items():
        if reporter is not None:
            reporter.phase(f"loading {source}")
        intake = Intake(max_bad) if per_corpus else shared
        speech[label] = Speech(select_utterances(load_utterances(source, intake), where), source, intake)
    return speech


def short_labels(sources: Sequence[str]) -> dict[str, str]:
    """Short name to source: the last part of each path, with as many parts before it as make it unique."""
    unique = list(dict.fromkeys(sources))
    parts = {s: [p for p in s.removesuffix("manifest.jsonl").split("/") if p] or [s] for s in unique}
    deepest = max(map(len, parts.values()), default=0)
    labels: list[str] = []
    for depth in range(1, deepest + 1):
        labels = ["/".join(parts[s][-depth:]) for s in unique]
        if len(set(labels)) == len(unique):
            break
    else:
        labels = unique
    return dict(zip(labels, unique, strict=True))


@dataclass(frozen=True)
class DrawnPool:
    """A calibration pool and how it was drawn.

    Attributes:
        pool: its utterances, their sources and counts of rare words.
        asked: number of utterances asked for; fewer may qualify.
        settings: of the draw, for a report.
        word_frequencies: the word frequencies that define rare words.
        notes: everything left out.
    """

    pool: Pool
    asked: int
    settings: dict[str, Any]
    word_frequencies: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def utterances(self) -> list[Utterance]:
        """The utterances drawn, for calibration."""
        return self.pool.utterances

    def to_dict(self) -> dict[str, Any]:
        """For JSON: figures, ids, settings."""
        return self.pool.summary() | {"ids": [u.id for u in self.utterances]} | self.settings

    def write_manifest(self, path: str | Path) -> None:
        """Write it as a JSONL manifest that every command and function takes as a corpus.

        Raises:
            OutputError: the file cannot be written.
            DataError: the folder for audio in memory cannot be written.
        """
        extra = [
            {"source": source, "rho": rho if words else None}
            for source, rho, words in zip(self.pool.sources, self.pool.rho, self.pool.words, strict=True)
        ]
        write_manifest(Path(path), self.utterances, extra)


def draw(
    speech: Mapping[str, Sequence[Utterance]],
    wanted: PoolSettings,
    words: Words,
    *,
    max_duration: float | None = 30.0,
    reporter: Reporter | None = None,
) -> DrawnPool:
    """Draw a calibration pool, or take a given one by its ids; see :func:`tarq.pool`.

    Raises:
        DataError: see ``tarq.data.pools.draw_pool`` and ``given_pool``.
    """
    reporter = reporter or Reporter()
    intake = next((s.intake for s in speech.values() if isinstance(s, Speech)), Intake(wanted.max_bad))
    rarity = Rarity(words)
    frequencies = described(words.frequencies(), words.tail_threshold)
    reporter.phase("drawing the pool")
    if wanted.ids is None:
        asked = wanted.samples
        pool = draw_pool(speech, wanted.pool, asked, wanted.seed, rarity, max_duration=max_duration, intake=intake)
    else:
        pool = given_pool(speech, expanded(wanted.ids), rarity, max_duration=max_duration, intake=intake)
        asked = pool.candidates
    notes = intake.notes()
    if len(pool.utterances) < asked:
        notes.append(f"only {len(pool.utterances)} of the {asked} utterances asked for qualify")
    if "note" in frequencies:
        notes.append(frequencies["note"])
    settings = {
        "ids_from": wanted.ids,
        "sources_given": {label: getattr(s, "source", "utterances") for label, s in speech.items()},
        "max_duration": max_duration,
        "normalizer": words.text_normalizer().name,
        "tail_threshold": words.tail_threshold,
        "seed": wanted.seed,
        "word_frequencies": frequencies,
        **intake.to_dict(),
    }
    return DrawnPool(pool, asked, settings, frequencies, notes)
