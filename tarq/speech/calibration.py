"""From utterances to teacher-forced examples: transcripts, tokens, tags, batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tarq import distributed
from tarq.config import TailPositions, TarqConfig, Timestamps, Transcripts
from tarq.data.cached import AudioBudget, CachedUtterance
from tarq.data.intake import Intake
from tarq.data.pools import draw_pool, given_pool
from tarq.data.utterance import Utterance, language_of
from tarq.errors import CalibrationError, ModelError
from tarq.files import expanded
from tarq.models.base import Recognizer
from tarq.models.types import Batch, Example, Positions
from tarq.report import Reporter
from tarq.speech.styles import in_style, transcript_styles
from tarq.timing import timed
from tarq.words.frequencies import described
from tarq.words.protect import notes_on, occurrences
from tarq.words.rarity import position_tags, token_scores, word_spans
from tarq.words.settings import Words
from tarq.words.transcripts import Rarity


@dataclass(frozen=True)
class Examples:
    """Teacher-forced examples, and how they were made.

    Attributes:
        examples: in the order of the utterances they were made from.
        utterances: those utterances.
        texts: their transcripts, as they were given to the tokenizer.
        style: case of the transcripts (:func:`transcript_styles`); two kinds as ``a / b``.
        self_transcribed: how many transcripts are the model's own.
        notes: whatever was left out or changed, with the reason.
    """

    examples: list[Example]
    utterances: list[Utterance]
    texts: list[str]
    style: str
    self_transcribed: int
    notes: list[str]


@timed("audio and features")
def calibration_set(
    recognizer: Recognizer,
    speech: Sequence[Utterance] | Mapping[str, Sequence[Utterance]],
    config: TarqConfig,
    reporter: Reporter,
    intake: Intake | None = None,
) -> tuple[list[Batch], dict[str, Any], list[str]]:
    """Draw a pool and make it into batches.

    Args:
        speech: utterances, or label to those of each of several corpora.
        intake: the record of what was left out while they were loaded; it keeps counting.

    Returns:
        Batches; the report's ``calibration`` entry; notes on whatever was left out.

    Raises:
        CalibrationError: nothing usable is left.
        DataError: too many audio files cannot be read.
    """
    intake = Intake(config.max_bad) if intake is None else intake
    corpora = speech if isinstance(speech, Mapping) else {"speech": speech}
    notes = []
    budget = AudioBudget()  # decoded once: to be checked, for the model's own transcripts, and for the features
    usable = {
        label: [
            u if isinstance(u, CachedUtterance) else CachedUtterance.of(u, budget, recognizer.sampling_rate)
            for u in utterances
        ]
        for label, utterances in with_transcripts(corpora, config.transcripts).items()
    }
    silent = sum(map(len, corpora.values())) - sum(map(len, usable.values()))
    if silent:
        notes.append(f"{silent} utterances with an empty transcript left out")
    if not any(usable.values()):
        raise CalibrationError("no calibration utterance has a transcript; use --transcripts self")
    words = config.part(Words)
    rarity = Rarity(words, recognizer.spelling)
    reporter.phase("drawing the pool")
    # The length is read from the file if the corpus does not state it, so nothing exceeds the window.
    fitting: dict[str, Any] = {"max_duration": recognizer.window, "require_text": False, "intake": intake}
    if config.ids is None:
        pool, asked = draw_pool(usable, config.pool, config.samples, config.seed, rarity, **fitting), config.samples
    else:
        pool = given_pool(usable, expanded(config.ids), rarity, **fitting)
        asked = pool.candidates
    notes += intake.notes()
    chosen = pool.utterances
    if len(chosen) < asked:
        notes.append(
            f"only {len(chosen)} of the {asked} calibration utterances asked for last at most {recognizer.window:g} s"
        )
    made = make_examples(
        recognizer, chosen, rarity, reporter, transcripts=config.transcripts, timestamps=config.timestamps,
        tail_positions=config.tail_positions, batch_size=config.batch_size,
    )  # fmt: skip
    if not made.examples:
        raise CalibrationError(f"no calibration utterance is usable: {'; '.join(made.notes)}")
    aligned = config.frame_tags == "aligned" or (config.frame_tags == "auto" and recognizer.frames_only)
    batches = _tagged(recognizer, made.examples, config.batch_size, aligned=aligned)
    for threshold in words.band_thresholds[1:]:
        # Protected words are in the first band of the tail unless they are rare enough for a further one.
        plain = [replace(example, protected=None) for example in made.examples]
        examples = [with_rare(example, threshold, config.tail_positions) for example in plain]
        if not any(bool(example.rare.any()) for example in examples):
            notes.append(f"no word is below Zipf {threshold:g}: that band of the tail is empty")
        deeper = _tagged(recognizer, examples, config.batch_size, aligned=aligned)
        batches = [with_band(*pair) for pair in zip(batches, deeper, strict=True)]
    if aligned and recognizer.frame_tags_note:
        notes.append(recognizer.frame_tags_note)
    frequencies = described(words.frequencies(), words.tail_threshold)
    if "note" in frequencies:
        notes.append(frequencies["note"])
    languages = [language_of(u, words.language) for u in made.utterances]
    matched = [(rarity.protected(language), text) for text, language in zip(made.texts, languages, strict=True)]
    protected = [(matcher, text) for matcher, text in matched if matcher is not None]
    listed = {"protected": occurrences(protected)} if protected else {}
    if protected:
        notes += notes_on(listed["protected"], "do not occur in the calibration speech and so are not protected")
    counts = [rarity.counts(text, language) for text, language in zip(made.texts, languages, strict=True)]
    total, rare = (sum(numbers) for numbers in zip(*counts, strict=True))
    summary = {
        "ids": [u.id for u in made.utterances],
        "origins": [u.origin for u in made.utterances],
        "utterances": len(made.examples),
        "seconds": round(sum(u.seconds() for u in made.utterances), 2),
        "normalizer": words.text_normalizer(recognizer.spelling).name,
        "transcript_style": made.style,
        "self_transcribed": made.self_transcribed,
        "languages": dict(Counter(languages)),
        "rare_word_share": rare / total if total else 0.0,
        "word_frequencies": frequencies,
        **listed,
        "pool": pool.summary(),
        "positions": count_positions(batches),
        **intake.to_dict(),
    }
    return batches, summary, notes + made.notes


def with_transcripts(
    corpora: Mapping[str, Sequence[Utterance]], transcripts: Transcripts
) -> dict[str, list[Utterance]]:
    """Of each corpus the utterances that have a transcript, or that the model is to transcribe."""
    return {
        label: [u for u in utterances if _transcribed_by_model(u, transcripts) or (u.text or "").strip()]
        for label, utterances in corpora.items()
    }


def make_examples(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    rarity: Rarity,
    reporter: Reporter,
    *,
    transcripts: Transcripts = "reference",
    timestamps: Timestamps = "without",
    tail_positions: TailPositions = "target",
    batch_size: int = 4,
) -> Examples:
    """Features, forced tokens and tags of utterances; those that do not fit are left out with a note.

    Args:
        rarity: which words are rare, and the language of utterances that state none.
        reporter: receives progress.
        transcripts, timestamps, tail_positions: as the configuration's fields of these names.
        batch_size: utterances transcribed at once, and read at once.

    Raises:
        DataError: audio cannot be read.
        ModelError: timestamps or a language are asked of a model that has none.
    """
    own = [_transcribed_by_model(u, transcripts) for u in utterances]
    default = rarity.words.language
    notes = []
    if any(own) and transcripts != "self":
        notes.append(
            f"{sum(own)} of {len(own)} utterances have no transcript: the model's own is used instead. "
            "If they have one that was not found, give a manifest with a text for each"
        )
    # The model's own transcripts are in its own style already.
    styles = transcript_styles(recognizer, [u.text or "" for u, mine in zip(utterances, own, strict=True) if not mine])
    if timestamps != "without" and not recognizer.has_timestamps:
        raise ModelError(f"{type(recognizer.model).__name__} has no timestamps: leave --timestamps out")
    pieces = [utterances[start : start + batch_size] for start in range(0, len(utterances), batch_size)]
    if any(own):
        reporter.phase("transcribing", len(distributed.shard(pieces)))
    gathered = distributed.all_gather(
        [_transcripts(recognizer, p, transcripts, default, reporter) for p in distributed.shard(pieces)]
    )
    reporter.phase("reading audio", len(utterances))
    made: list[tuple[Example, Utterance, str]] = []
    for some, texts in zip(pieces, gathered, strict=True):
        waveforms = [u.waveform(recognizer.sampling_rate) for u in some]
        for utterance, waveform, text in zip(some, waveforms, texts, strict=True):
            if not _transcribed_by_model(utterance, transcripts):
                text = in_style(text, styles)
            if reason := _unusable(recognizer, waveform, text):
                notes.append(f"{utterance.id}: {reason}, left out")
                continue
            times = timestamps == "with" or (timestamps == "alternate" and len(made) % 2 == 1)
            language = language_of(utterance, default)
            example = make_example(
                recognizer, utterance.id, waveform, text, rarity, language, tail_positions, timestamps=times
            )
            if reason := recognizer.reason_to_skip(example):
                notes.append(f"{utterance.id}: {reason}, left out")
                continue
            made.append((example, utterance, text))
        reporter.advance(len(some))
    return Examples(
        examples=[example for example, _, _ in made],
        utterances=[utterance for _, utterance, _ in made],
        texts=[text for _, _, text in made],
        style=" / ".join(dict.fromkeys(styles.values())) or "as written",
        self_transcribed=sum(own),
        notes=notes,
    )


def _transcribed_by_model(utterance: Utterance, transcripts: Transcripts) -> bool:
    return transcripts == "self" or utterance.text is None


def _transcripts(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    transcripts: Transcripts,
    language: str,
    reporter: Reporter,
) -> list[str]:
    """Reference transcripts, or the model's own where there is none or it is to transcribe all."""
    texts = [u.text or "" for u in utterances]
    mine = [i for i, u in enumerate(utterances) if _transcribed_by_model(u, transcripts)]
    for code in sorted({language_of(utterances[i], language) for i in mine}):
        these = [i for i in mine if language_of(utterances[i], language) == code]
        waveforms = [utterances[i].waveform(recognizer.sampling_rate) for i in these]
        for i, text in zip(these, recognizer.transcribe(waveforms, code), strict=True):
            texts[i] = text
    reporter.advance()
    return texts


def _unusable(recognizer: Recognizer, waveform: Any, text: str) -> str:
    if not text.strip():
        return "nothing was recognized"
    if len(waveform) > recognizer.window * recognizer.sampling_rate:
        return f"longer than the {recognizer.window:g} s window"
    return ""


def make_example(
    recognizer: Recognizer,
    name: str,
    waveform: Any,
    text: str,
    rarity: Rarity,
    language: str,
    tail_positions: TailPositions = "target",
    *,
    timestamps: bool = False,
) -> Example:
    """One utterance with its transcript in a language: features, tokens, tags."""
    features, frames = recognizer.audio_inputs(waveform)
    prompted = recognizer.prompt(text, frames=frames, timestamps=timestamps, language=language)
    none = torch.zeros(0, dtype=torch.bool)
    # Tokens of the prompt and special ones stand for no characters, and so have no score: they are never rare.
    scores = token_scores(prompted.offsets, word_spans(text, *rarity.of_language(language)))
    zipf = torch.tensor(scores, dtype=torch.float64)
    listed = rarity.protected(language)
    protected = None
    if listed is not None:
        inside = token_scores(prompted.offsets, [(span, 0.0) for span in listed.spans(text)])
        protected = torch.tensor([score == 0.0 for score in inside], dtype=torch.bool)
    example = Example(
        id=name, features=features, frames=frames, prompted=prompted, rare=none, tail=none, zipf=zipf,
        protected=protected,
    )  # fmt: skip
    return with_rare(example, rarity.words.tail_threshold, tail_positions)


def with_rare(example: Example, threshold: float, tail_positions: TailPositions) -> Example:
    """The example with those of its tokens tagged that belong to a word below a Zipf score, or to a protected one."""
    rare = example.zipf < threshold
    tail = rare if example.protected is None else rare | example.protected
    return replace(example, rare=rare, tail=position_tags(tail, tail_positions) if len(tail) else tail)


def _tagged(recognizer: Recognizer, examples: Sequence[Example], size: int, *, aligned: bool) -> list[Batch]:
    """Batches of examples.

    Args:
        aligned: tag the frames that the model aligns to rare words.

    Raises:
        ModelError: the family cannot align words to frames.
    """
    batches = list(batched(recognizer, examples, size))
    if not aligned:
        return batches
    with torch.no_grad():
        tags = distributed.all_gather([recognizer.frame_tags(batch) for batch in distributed.shard(batches)])
    return [with_tags(batch, rows) for batch, rows in zip(batches, tags, strict=True)]


def with_tags(batch: Batch, tags: Mapping[str, torch.Tensor]) -> Batch:
    """The batch with further rows of its stages tagged."""
    tagged = {
        stage: replace(batch.positions[stage], tail=batch.positions[stage].tail | rows) for stage, rows in tags.items()
    }
    return replace(batch, positions=batch.positions | tagged)


def with_band(batch: Batch, deeper: Batch) -> Batch:
    """The batch whose rows are a band further down the tail where they are in the tail of another one of the same."""

    def banded(rows: Positions, further: Positions) -> Positions:
        below = further.tail.long()
        return replace(rows, band=below if rows.band is None else rows.band + below)

    return replace(batch, positions={k: banded(rows, deeper.positions[k]) for k, rows in batch.positions.items()})


def count_positions(batches: Sequence[Batch]) -> dict[str, dict[str, int]]:
    """Stage to its numbers of rows that are audio, tokens, in the tail, and padding beyond the audio."""
    counts: dict[str, dict[str, int]] = {}
    for batch in batches:
        for stage, rows in batch.positions.items():
            valid = rows.exists & ~rows.padding
            kinds = {
                "audio": valid & rows.audio,
                "tokens": valid & ~rows.audio,
                "tail": valid & rows.tail,
                "padding": rows.exists & rows.padding,
            }
            total = counts.setdefault(stage, dict.fromkeys(kinds, 0))
            for kind, which in kinds.items():
                total[kind] += int(which.sum())
    return counts


def batched(recognizer: Recognizer, examples: Sequence[Example], size: int) -> Iterator[Batch]:
    """Examples of similar length together, so that little is padded, or each alone; deterministic."""
    size = size if recognizer.pads else 1
    ordered = sorted(examples, key=lambda e: (len(e.prompted.ids), e.id))
    for start in range(0, len(ordered), size):
        yield recognizer.collate(ordered[start : start + size])
