"""From utterances to teacher-forced examples: transcripts, tokens, tags, batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tarq import distributed
from tarq.config import TarqConfig
from tarq.data.held import Held, Room
from tarq.data.intake import Intake
from tarq.data.pools import Rarity, draw_pool, given_pool
from tarq.data.utterance import Utterance, language_of
from tarq.errors import CalibrationError, ModelError
from tarq.files import expanded
from tarq.models.base import Recognizer
from tarq.models.types import Batch, Example, Positions
from tarq.report import Reporter
from tarq.words.frequencies import described
from tarq.words.rarity import position_tags, token_scores, word_spans


@dataclass
class Examples:
    """Teacher-forced examples, and how they were made.

    Attributes:
        examples: in the order of the utterances they were made from.
        utterances: those utterances.
        style: case of the transcripts given to the tokenizer (:func:`transcript_styles`); two kinds as ``a / b``.
        self_transcribed: how many transcripts are the model's own.
        notes: whatever was left out or changed, with the reason.
    """

    examples: list[Example] = field(default_factory=list)
    utterances: list[Utterance] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    style: str = "as written"
    self_transcribed: int = 0
    notes: list[str] = field(default_factory=list)


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
    room = Room()  # decoded once: to be checked, for the model's own transcripts, and for the features
    usable = {
        label: [u if isinstance(u, Held) else Held.of(u, room, recognizer.sampling_rate) for u in utterances]
        for label, utterances in with_transcripts(corpora, config).items()
    }
    silent = sum(map(len, corpora.values())) - sum(map(len, usable.values()))
    if silent:
        notes.append(f"{silent} utterances with an empty transcript left out")
    if not any(usable.values()):
        raise CalibrationError("no calibration utterance has a transcript; use --transcripts self")
    rarity = Rarity(config, recognizer.spelling)
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
    made = make_examples(recognizer, chosen, config, reporter)
    if not made.examples:
        raise CalibrationError(f"no calibration utterance is usable: {'; '.join(made.notes)}")
    batches = _tagged(recognizer, made.examples, config)
    for depth in range(1, config.tail_bands):
        deeper = replace(config, tail_threshold=config.tail_threshold - depth, tail_bands=1)
        languages = [language_of(u, config.language) for u in made.utterances]
        texts = zip(made.examples, made.texts, languages, strict=True)
        examples = [with_rare(recognizer, e, text, replace(deeper, language=code)) for e, text, code in texts]
        if not any(bool(example.rare.any()) for example in examples):
            notes.append(f"no word is below Zipf {deeper.tail_threshold:g}: that band of the tail is empty")
        batches = [with_band(*pair) for pair in zip(batches, _tagged(recognizer, examples, deeper), strict=True)]
    if _tags_frames(recognizer, config) and recognizer.frame_tags_note:
        notes.append(recognizer.frame_tags_note)
    frequencies = described(config.frequencies(), config.tail_threshold)
    if "note" in frequencies:
        notes.append(frequencies["note"])
    languages = [language_of(u, config.language) for u in made.utterances]
    counts = [rarity.counts(text, language) for text, language in zip(made.texts, languages, strict=True)]
    words, rare = (sum(numbers) for numbers in zip(*counts, strict=True))
    summary = {
        "ids": [u.id for u in made.utterances],
        "origins": [u.origin for u in made.utterances],
        "utterances": len(made.examples),
        "seconds": round(sum(u.seconds() for u in made.utterances), 2),
        "normalizer": config.text_normalizer(recognizer.spelling).name,
        "transcript_style": made.style,
        "self_transcribed": made.self_transcribed,
        "languages": dict(Counter(languages)),
        "rare_word_share": rare / words if words else 0.0,
        "word_frequencies": frequencies,
        "pool": pool.summary(),
        "positions": count_positions(batches),
        **intake.to_dict(),
    }
    return batches, summary, notes + made.notes


def with_transcripts(corpora: Mapping[str, Sequence[Utterance]], config: TarqConfig) -> dict[str, list[Utterance]]:
    """Of each corpus the utterances that have a transcript, or that the model is to transcribe."""
    return {
        label: [u for u in utterances if _transcribed_by_model(u, config) or (u.text or "").strip()]
        for label, utterances in corpora.items()
    }


def make_examples(
    recognizer: Recognizer, utterances: Sequence[Utterance], config: TarqConfig, reporter: Reporter
) -> Examples:
    """Features, forced tokens and tags of utterances; those that do not fit are left out with a note.

    Raises:
        DataError: audio cannot be read.
        ModelError: timestamps or a language are asked of a model that has none.
    """
    made = Examples()
    own = [_transcribed_by_model(u, config) for u in utterances]
    made.self_transcribed = sum(own)
    if any(own) and config.transcripts != "self":
        made.notes.append(
            f"{sum(own)} of {len(own)} utterances have no transcript: the model's own is used instead. "
            "If they have one that was not found, give a manifest with a text for each"
        )
    # The model's own transcripts are in its own style already.
    styles = transcript_styles(recognizer, [u.text or "" for u, mine in zip(utterances, own, strict=True) if not mine])
    made.style = " / ".join(dict.fromkeys(styles.values())) or "as written"
    if config.timestamps != "without" and not recognizer.has_timestamps:
        raise ModelError(f"{type(recognizer.model).__name__} has no timestamps: leave --timestamps out")
    starts = range(0, len(utterances), config.batch_size)
    pieces = [utterances[start : start + config.batch_size] for start in starts]
    if any(own):
        reporter.phase("transcribing", len(distributed.shard(pieces)))
    transcripts = distributed.all_gather(
        [_transcripts(recognizer, p, config, reporter) for p in distributed.shard(pieces)]
    )
    reporter.phase("reading audio", len(utterances))
    languages = {language_of(u, config.language) for u in utterances}
    configs = {language: replace(config, language=language) for language in languages}
    for some, texts in zip(pieces, transcripts, strict=True):
        waveforms = [u.waveform(recognizer.sampling_rate) for u in some]
        for utterance, waveform, text in zip(some, waveforms, texts, strict=True):
            if not _transcribed_by_model(utterance, config):
                text = in_style(text, styles)
            if reason := _unusable(recognizer, waveform, text):
                made.notes.append(f"{utterance.id}: {reason}, left out")
                continue
            times = config.timestamps == "with" or (config.timestamps == "alternate" and len(made.examples) % 2 == 1)
            in_language = configs[language_of(utterance, config.language)]
            example = make_example(recognizer, utterance.id, waveform, text, in_language, timestamps=times)
            if reason := recognizer.reason_to_skip(example):
                made.notes.append(f"{utterance.id}: {reason}, left out")
                continue
            made.examples.append(example)
            made.utterances.append(utterance)
            made.texts.append(text)
        reporter.advance(len(some))
    return made


def _transcribed_by_model(utterance: Utterance, config: TarqConfig) -> bool:
    return config.transcripts == "self" or utterance.text is None


def _transcripts(
    recognizer: Recognizer, utterances: Sequence[Utterance], config: TarqConfig, reporter: Reporter
) -> list[str]:
    """Reference transcripts, or the model's own where there is none or the configuration asks for them."""
    texts = [u.text or "" for u in utterances]
    mine = [i for i, u in enumerate(utterances) if _transcribed_by_model(u, config)]
    for language in sorted({language_of(utterances[i], config.language) for i in mine}):
        these = [i for i in mine if language_of(utterances[i], config.language) == language]
        waveforms = [utterances[i].waveform(recognizer.sampling_rate) for i in these]
        for i, text in zip(these, recognizer.transcribe(waveforms, language), strict=True):
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
    recognizer: Recognizer, name: str, waveform: Any, text: str, config: TarqConfig, *, timestamps: bool = False
) -> Example:
    """One utterance with its transcript, in the configuration's language: features, tokens, tags."""
    features, frames = recognizer.audio_inputs(waveform)
    prompted = recognizer.prompt(text, frames=frames, timestamps=timestamps, language=config.language)
    none = torch.zeros(0, dtype=torch.bool)
    example = Example(
        id=name, features=features, frames=frames, prompted=prompted, rare=none, tail=none, zipf=none.double()
    )
    return with_rare(recognizer, example, text, config)


def with_rare(recognizer: Recognizer, example: Example, text: str, config: TarqConfig) -> Example:
    """The example with its tokens' Zipf scores, and those tagged that a configuration calls rare."""
    normalizer = config.text_normalizer(recognizer.spelling)
    words = word_spans(text, normalizer, config.frequencies())
    # Tokens of the prompt and special ones stand for no characters, and so have no score: they are never rare.
    zipf = torch.tensor(token_scores(example.prompted.offsets, words), dtype=torch.float64)
    rare = zipf < config.tail_threshold
    tail = position_tags(rare, config.tail_positions) if len(rare) else rare
    return replace(example, rare=rare, tail=tail, zipf=zipf)


def _tagged(recognizer: Recognizer, examples: Sequence[Example], config: TarqConfig) -> list[Batch]:
    """Batches of examples, with their frames tagged."""
    batches = list(batched(recognizer, examples, config.batch_size))
    with torch.no_grad():
        tags = distributed.all_gather([frame_tags(recognizer, batch, config) for batch in distributed.shard(batches)])
    return [with_tags(batch, rows) for batch, rows in zip(batches, tags, strict=True)]


def frame_tags(recognizer: Recognizer, batch: Batch, config: TarqConfig) -> dict[str, torch.Tensor]:
    """The frames that the model aligns to rare words, by stage; none if the configuration asks for no frame tags.

    Raises:
        ModelError: the family cannot align words to frames.
    """
    return recognizer.frame_tags(batch) if _tags_frames(recognizer, config) else {}


def _tags_frames(recognizer: Recognizer, config: TarqConfig) -> bool:
    return config.frame_tags == "aligned" or (config.frame_tags == "auto" and recognizer.frames_only)


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


def transcript_styles(recognizer: Recognizer, texts: Sequence[str]) -> dict[bool, str]:
    """The case in which to tokenize all-capitals transcripts (True) and others (False), for the kinds present:
    ``as written``, ``lower case`` or ``upper case``.

    Most recognizers never write in capitals throughout, as LibriSpeech's transcripts do, and a tokenizer with a single
    case drops or masks the other: the case in which most characters have tokens is chosen. A pool of several corpora
    can have both kinds. One or two words in capitals among other transcripts are an abbreviation.
    """
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for text in texts:
        if any(c.isalpha() for c in text):
            kinds[text.isupper()].append(text)
    if len(kinds[True]) < len(kinds[False]) and all(len(t.split()) < 3 for t in kinds[True]):
        kinds[True] = []

    def best(sample: Sequence[str], styles: Sequence[str]) -> str:
        return max(styles, key=lambda style: _survivors(recognizer, [_cased(text, style) for text in sample]))

    orders = {True: ("lower case", "upper case"), False: ("as written", "lower case", "upper case")}
    return {capitals: best(sample[:64], orders[capitals]) for capitals, sample in kinds.items() if sample}


def in_style(text: str, styles: Mapping[bool, str]) -> str:
    """A transcript in the case chosen by :func:`transcript_styles`."""
    return _cased(text, styles.get(text.isupper(), styles.get(False, "as written")))


def _cased(text: str, style: str) -> str:
    return {"lower case": text.lower(), "upper case": text.upper()}.get(style, text)


def _survivors(recognizer: Recognizer, texts: Sequence[str]) -> int:
    """Number of characters that the tokenizer has tokens for."""
    unknown = getattr(recognizer.tokenizer, "unk_token_id", None)
    count = 0
    for text in texts:
        kept = {c for i, span in zip(*recognizer.tokens(text), strict=True) if i != unknown for c in range(*span)}
        count += sum(not text[c].isspace() for c in kept)
    return count
