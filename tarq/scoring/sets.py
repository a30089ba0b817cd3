"""The sets that are scored: read, sampled where that is asked, and cut by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tarq.config import TarqConfig
from tarq.data.held import Held, Room
from tarq.data.intake import Intake
from tarq.data.sampling import first_usable, sample_utterances
from tarq.data.speech import Data, utterances_of
from tarq.data.utterance import Utterance, check_ids, language_of
from tarq.errors import DataError
from tarq.models.base import Recognizer
from tarq.report import FILE_NAME, Report, Reporter


@dataclass(frozen=True)
class GivenSet:
    """A set as it was given.

    Attributes:
        parts: the name each of its languages is scored under (:func:`by_language`) to the utterances in it.
        intake: what was left out of it.
        notes: on models that were calibrated on it.
    """

    parts: Mapping[str, Sequence[Utterance]]
    intake: Intake
    notes: list[str]


def read_sets(
    data: Mapping[str, Data],
    models: Mapping[str, Recognizer],
    config: TarqConfig,
    reporter: Reporter,
    *,
    intakes: Mapping[str, Intake],
    samples: int | None,
) -> dict[str, GivenSet]:
    """The utterances of each set that can be used.

    Args:
        data: label to a corpus's name or to utterances.
        models: label to recognizer; one that was calibrated on a set is told.
        config: language of utterances that state none, seed and ``max_bad`` are read from it.
        intakes: label to what has been left out while utterances were loaded; it goes on counting.
        samples: take a random sample of so many; None for all.

    Returns:
        Label to set. Its utterances hold the audio that was decoded to check them, as much as :class:`Room` has place
        for.

    Raises:
        DataError: a set is not usable, or two would be scored under one name.
    """
    sets = {}
    room, rate = Room(), next((recognizer.sampling_rate for recognizer in models.values()), 16000)
    for label, given in data.items():
        intake = intakes.get(label) or getattr(given, "intake", None) or Intake(config.max_bad)
        utterances = [Held.of(utterance, room, rate) for utterance in utterances_of(given, intake)]
        notes = list(_calibrated_on(models, utterances))
        reporter.phase(f"reading {label}")
        # Every file is checked before any work is done, so that a broken one does not end the run midway.
        if samples is not None:
            usable = sample_utterances(utterances, samples, config.seed, intake=intake)
        else:
            usable = first_usable(utterances, max(len(utterances), 1), intake=intake)
        sets[label] = GivenSet(by_language(label, usable, config.language), intake, notes)
    names = Counter(name for given_set in sets.values() for name in given_set.parts)
    if twice := [name for name, times in names.items() if times > 1]:
        raise DataError(f"{twice[0]} is the label of one set and of a language of another: use other labels")
    return sets


def by_language(label: str, utterances: Sequence[Utterance], default: str) -> dict[str, Sequence[Utterance]]:
    """A set under its label, or one set per language, named ``label (de)``, if its utterances state several."""
    spoken: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        spoken.setdefault(language_of(utterance, default), []).append(utterance)
    if len(spoken) <= 1:
        return {label: utterances}
    return {f"{label} ({language})": spoken[language] for language in sorted(spoken)}


def language_within(label: str, utterances: Sequence[Utterance], config: TarqConfig) -> str:
    """The one language of a set.

    Raises:
        DataError: its utterances state several.
    """
    languages = {language_of(utterance, config.language) for utterance in utterances} or {config.language}
    if len(languages) > 1:
        raise DataError(f"{label} is in {', '.join(sorted(languages))}: score each language as a set of its own")
    return languages.pop()


def check_set(label: str, utterances: Sequence[Utterance]) -> None:
    """See that a set can be scored.

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
