"""The sets that are scored: read, sampled where that is asked, and cut by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tarq.config import Pool
from tarq.data.cached import AudioBudget, CachedUtterance
from tarq.data.intake import Intake
from tarq.data.sampling import first_usable, sample_utterances
from tarq.data.speech import Data, utterances_of
from tarq.data.utterance import Utterance, check_ids, language_of
from tarq.errors import DataError
from tarq.models.base import Recognizer
from tarq.report import FILE_NAME, Report, Reporter


@dataclass(frozen=True)
class ScoredSet:
    """Utterances of one language that models are scored on together.

    Attributes:
        utterances: each with a transcript.
        language: of all of them.
        intake: what was left out while they were loaded and checked.
        notes: on models that were calibrated on some.
    """

    utterances: Sequence[Utterance]
    language: str
    intake: Intake = field(default_factory=Intake)
    notes: Sequence[str] = ()


def read_sets(
    data: Mapping[str, Data],
    models: Mapping[str, Recognizer],
    language: str,
    pool: Pool,
    reporter: Reporter,
    *,
    intakes: Mapping[str, Intake],
    samples: int | None,
) -> dict[str, ScoredSet]:
    """The utterances of each set that can be used; a set in several languages is one for each, ``label (de)``.

    Args:
        data: label to a corpus's name or to utterances.
        models: label to recognizer; a note names one that was calibrated on audio of a set.
        language: of utterances that state none.
        pool: its seed and ``max_bad`` apply.
        intakes: label to what has been left out while utterances were loaded; it goes on counting.
        samples: take a random sample of so many; None for all.

    Returns:
        Name to set. Its utterances keep the audio that was decoded to check them, within an
        :class:`~tarq.data.cached.AudioBudget`.

    Raises:
        DataError: a set is not usable, or two would be scored under one name.
    """
    sets: list[tuple[str, ScoredSet]] = []
    budget, rate = AudioBudget(), next((recognizer.sampling_rate for recognizer in models.values()), 16000)
    for label, given in data.items():
        intake = intakes.get(label) or getattr(given, "intake", None) or Intake(pool.max_bad)
        utterances = [CachedUtterance.of(utterance, budget, rate) for utterance in utterances_of(given, intake)]
        notes = list(_calibrated_on(models, utterances))
        reporter.phase(f"reading {label}")
        # Every file is checked before any work is done, so that a broken one does not end the run midway.
        if samples is not None:
            usable = sample_utterances(utterances, samples, pool.seed, intake=intake)
        else:
            usable = first_usable(utterances, max(len(utterances), 1), intake=intake)
        languages = by_language(usable, language)
        for code, some in languages.items():
            name = label if len(languages) == 1 else f"{label} ({code})"
            sets.append((name, ScoredSet(some, code, intake, notes)))
    names = Counter(name for name, _ in sets)
    if twice := [name for name, times in names.items() if times > 1]:
        raise DataError(f"{twice[0]} is the label of one set and of a language of another: use other labels")
    return dict(sets)


def by_language(utterances: Sequence[Utterance], default: str) -> dict[str, list[Utterance]]:
    """Language to the utterances in it; all are in ``default`` where there are none."""
    languages: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        languages.setdefault(language_of(utterance, default), []).append(utterance)
    return {language: languages[language] for language in sorted(languages)} or {default: []}


def check_set(label: str, utterances: Sequence[Utterance]) -> None:
    """Check that a set can be scored.

    Raises:
        DataError: it is empty, an utterance has no transcript, or two have one id.
    """
    if not utterances:
        raise DataError(f"{label}: no utterances to score: check what was left out, or give another set")
    missing = [u.id for u in utterances if u.text is None]
    if missing:
        raise DataError(f"{label}: {len(missing)} utterances have no transcript to score against: {missing[0]}, …")
    check_ids(label, utterances)


def _calibrated_on(models: Mapping[str, Recognizer], utterances: Sequence[Utterance]) -> Iterator[str]:
    """Notes about models calibrated on audio of the set, whose scores are then too good."""
    for name, recognizer in models.items():
        folder = Path(str(recognizer.model.config._name_or_path or ""))
        if folder == Path() or not (folder / FILE_NAME).is_file():  # it was loaded from nowhere
            continue
        used = set(Report.read(folder).calibration.get("origins", ()))
        if seen := sum(u.origin in used for u in utterances):
            yield f"{name} was calibrated on {seen} of its {len(utterances)} utterances"
