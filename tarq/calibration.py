"""From utterances to teacher-forced examples: transcripts, tokens, tags, batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .config import TarqConfig
from .data.intake import Intake
from .data.pools import Rarity, draw_pool
from .data.utterance import Utterance
from .errors import CalibrationError
from .families.family import Batch, Example, Recognizer
from .frequencies import described
from .method.rarity import position_tags, rare_share, rare_spans, tag_tokens
from .normalize import Normalizer
from .report import Reporter


@dataclass
class Examples:
    """Teacher-forced examples and how they came about.

    Attributes:
        examples: in the order of the utterances they were made from.
        utterances: those utterances.
        style: ``as written`` or ``lower case``, how transcripts were fed to the tokenizer.
        self_transcribed: how many transcripts the model made itself.
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
        intake: has counted what was left out while they were loaded; goes on counting.

    Returns:
        Batches; the report's ``calibration`` entry; notes on whatever was left out.

    Raises:
        CalibrationError: nothing usable is left.
        DataError: too much audio cannot be read.
    """
    intake = Intake(config.max_bad) if intake is None else intake
    corpora = speech if isinstance(speech, Mapping) else {"speech": speech}
    notes = []
    usable = {
        label: [u for u in utterances if _transcribed_by_model(u, config) or (u.text or "").strip()]
        for label, utterances in corpora.items()
    }
    silent = sum(map(len, corpora.values())) - sum(map(len, usable.values()))
    if silent:
        notes.append(f"{silent} utterances with an empty transcript left out")
    if not any(usable.values()):
        raise CalibrationError("no calibration utterance has a transcript; use --transcripts self")
    normalizer = config.text_normalizer(recognizer.spelling)
    reporter.phase("drawing the pool")
    # Its length is asked of the file where the corpus does not say, so nothing longer than the window gets in.
    pool = draw_pool(
        usable,
        config.pool,
        config.samples,
        config.seed,
        Rarity(normalizer, config.tail_threshold, config.frequencies()),
        max_duration=recognizer.window,
        require_text=False,
        intake=intake,
    )
    notes += intake.notes()
    chosen = pool.utterances
    if len(chosen) < config.samples:
        notes.append(f"{len(chosen)} calibration utterances of at most {recognizer.window:g} s, {config.samples} asked")
    made = make_examples(recognizer, chosen, config, reporter)
    if not made.examples:
        raise CalibrationError(f"no calibration utterance is usable: {'; '.join(made.notes)}")
    batches = list(batched(recognizer, made.examples, config.batch_size))
    frequencies = described(config.frequencies(), config.tail_threshold)
    if "note" in frequencies:
        notes.append(frequencies["note"])
    summary = {
        "ids": [u.id for u in made.utterances],
        "origins": [u.origin for u in made.utterances],
        "utterances": len(made.examples),
        "seconds": round(sum(u.seconds() for u in made.utterances), 2),
        "normalizer": normalizer.name,
        "transcript_style": made.style,
        "self_transcribed": made.self_transcribed,
        "rare_word_share": rare_share(made.texts, normalizer, config.tail_threshold, config.frequencies()),
        "word_frequencies": frequencies,
        "pool": pool.summary(),
        "decoder_positions": sum(len(e.tail) for e in made.examples),
        "tail_positions": sum(int(e.tail.sum()) for e in made.examples),
        **intake.to_dict(),
    }
    return batches, summary, notes + made.notes


def make_examples(
    recognizer: Recognizer, utterances: Sequence[Utterance], config: TarqConfig, reporter: Reporter
) -> Examples:
    """Features, forced tokens and tags of utterances; those that do not fit are left out with a note.

    Raises:
        DataError: audio cannot be read.
    """
    made = Examples()
    own = [_transcribed_by_model(u, config) for u in utterances]
    made.self_transcribed = sum(own)
    # The model's own transcripts are in its own style already.
    made.style = transcript_style(
        recognizer, [u.text or "" for u, self_made in zip(utterances, own, strict=True) if not self_made]
    )
    normalizer = config.text_normalizer(recognizer.spelling)
    reporter.phase("transcribing" if any(own) else "reading audio", len(utterances))
    for start in range(0, len(utterances), config.batch_size):
        some = utterances[start : start + config.batch_size]
        waveforms = [u.waveform(recognizer.sampling_rate) for u in some]
        for utterance, waveform, text in zip(some, waveforms, _texts(recognizer, some, waveforms, config), strict=True):
            text = text.lower() if made.style == "lower case" else text
            if reason := _unusable(recognizer, waveform, text):
                made.notes.append(f"{utterance.id}: {reason}, left out")
                continue
            example = make_example(recognizer, utterance.id, waveform, text, config, normalizer)
            if len(example.prompted.ids) > recognizer.max_target_tokens:
                count, limit = len(example.prompted.ids), recognizer.max_target_tokens
                made.notes.append(f"{utterance.id}: {count} tokens, the decoder takes {limit}, left out")
                continue
            made.examples.append(example)
            made.utterances.append(utterance)
            made.texts.append(text)
        reporter.advance(len(some))
    return made


def _transcribed_by_model(utterance: Utterance, config: TarqConfig) -> bool:
    return config.transcripts == "self" or utterance.text is None


def _texts(
    recognizer: Recognizer, utterances: Sequence[Utterance], waveforms: Sequence[Any], config: TarqConfig
) -> list[str]:
    """Reference transcripts, or the model's own where there is none or all are to be its own."""
    wanted = [_transcribed_by_model(u, config) for u in utterances]
    heard = [w for w, yes in zip(waveforms, wanted, strict=True) if yes]
    own = iter(recognizer.transcribe(heard) if heard else [])
    return [next(own) if yes else (u.text or "") for u, yes in zip(utterances, wanted, strict=True)]


def _unusable(recognizer: Recognizer, waveform: Any, text: str) -> str:
    if not text.strip():
        return "nothing was recognized"
    if len(waveform) > recognizer.window * recognizer.sampling_rate:
        return f"longer than the {recognizer.window:g} s window"
    return ""


def make_example(
    recognizer: Recognizer, name: str, waveform: Any, text: str, config: TarqConfig, normalizer: Normalizer
) -> Example:
    """One utterance with its transcript: features, tokens, tags."""
    features, frames = recognizer.audio_inputs(waveform)
    prompted = recognizer.prompt(text)
    spans = rare_spans(text, normalizer, config.tail_threshold, config.frequencies())
    rare = torch.tensor(tag_tokens(prompted.offsets, spans)) & torch.tensor(prompted.is_text)
    return Example(
        id=name,
        features=features,
        frames=frames,
        prompted=prompted,
        tail=position_tags(rare, config.tail_positions),
        rare_target=position_tags(rare, "target"),
    )


def batched(recognizer: Recognizer, examples: Sequence[Example], size: int) -> Iterator[Batch]:
    """Examples of similar length together, so that little is padded; deterministic."""
    ordered = sorted(examples, key=lambda e: (len(e.prompted.ids), e.id))
    for start in range(0, len(ordered), size):
        yield recognizer.collate(ordered[start : start + size])


def transcript_style(recognizer: Recognizer, texts: Sequence[str]) -> str:
    """How transcripts should be fed to the tokenizer: ``as written`` or ``lower case``.

    Transcripts in capitals throughout (LibriSpeech) are nothing a recognizer would ever write, and a
    tokenizer that knows lower case only drops every capital: both are lowered.
    """
    sample = [t for t in texts if any(c.isalpha() for c in t)][:64]
    if not sample:
        return "as written"
    if sum(t.isupper() for t in sample) > len(sample) / 2:
        return "lower case"
    lowered = [t.lower() for t in sample]
    return "lower case" if _survivors(recognizer, lowered) > _survivors(recognizer, sample) else "as written"


def _survivors(recognizer: Recognizer, texts: Sequence[str]) -> int:
    """Characters that come back from the tokenizer."""
    ids = [recognizer.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    return sum(len(t.replace(" ", "")) for t in recognizer.tokenizer.batch_decode(ids))
