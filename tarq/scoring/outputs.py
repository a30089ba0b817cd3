"""Models' outputs on a set of utterances: divergence from the reference model, and transcripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from tarq import distributed
from tarq.data.cached import CachedUtterance
from tarq.data.utterance import Utterance
from tarq.errors import ModelError
from tarq.models.base import Recognizer
from tarq.models.generation import are_numbers
from tarq.models.types import Batch
from tarq.report import Reporter
from tarq.scoring.divergence import Divergence, divergence, joined
from tarq.speech.calibration import batched, make_examples
from tarq.speech.transcription import transcribe_waveforms
from tarq.words.transcripts import Rarity

#: Most audio held at a time: utterances, and seconds unless a single one is longer.
PIECE, PIECE_SECONDS = 128, 3600.0


@dataclass(frozen=True)
class SetOutputs:
    """Models' outputs on a set.

    Attributes:
        divergence: model to kind of target to sums, one entry per utterance that could be teacher-forced, in the
            set's order; for all models but the reference.
        transcripts: model to utterance id to transcript; empty unless they were asked for.
        notes: what was left out.
        forced: ids of the utterances that could be teacher-forced, in that order.
    """

    divergence: dict[str, dict[str, Divergence]]
    transcripts: dict[str, dict[str, str]]
    notes: list[str]
    forced: Sequence[str] = ()


@dataclass(frozen=True)
class _BatchOutputs:
    """Models' outputs on one batch of the B utterances ``ids``, by model."""

    ids: tuple[str, ...]
    divergence: dict[str, dict[str, Divergence]]
    transcripts: dict[str, list[str]]


def run_models(
    models: Mapping[str, Recognizer],
    utterances: Sequence[Utterance],
    language: str,
    *,
    reference: str | None,
    rarity: Rarity,
    batch_size: int,
    decode: bool,
    reporter: Reporter,
) -> SetOutputs:
    """Run every model on every utterance: audio is decoded once, and each encoder runs once for both.

    With several processes, each takes a share of the batches, which are the same as in a single process.

    Args:
        language: of the utterances.
        reference: label of the model that the others are compared with, teacher-forced; None to transcribe only.
        rarity: which targets are rare.
        batch_size: utterances per forward pass.
        decode: transcribe, too.

    Raises:
        DataError: audio cannot be read.
        ModelError: logits are not finite.
    """
    batches: list[_BatchOutputs] = []
    forced: list[str] = []
    transcripts: dict[str, dict[str, str]] = {name: {} for name in models} if decode else {}
    notes: list[str] = []
    for piece in _pieces(utterances):
        others = piece
        if reference is not None:
            with_text = [u for u in piece if (u.text or "").strip()]
            made = make_examples(models[reference], with_text, rarity, Reporter(), batch_size=batch_size)
            notes += made.notes
            forced += [e.id for e in made.examples]
            own = []
            every = list(batched(models[reference], made.examples, batch_size))
            for batch in distributed.shard(every):
                own.append(_force(models, reference, batch, language, decode))
                reporter.advance(len(batch.ids) * len(models))
            elsewhere = len(made.examples) - sum(len(outputs.ids) for outputs in own)
            reporter.advance(elsewhere * len(models))
            batches += distributed.all_gather(own)
            done = {e.id for e in made.examples}
            others = [u for u in piece if u.id not in done]
        if others and decode:
            for name, recognizer in models.items():
                waveforms = [u.waveform(recognizer.sampling_rate) for u in others]
                texts = transcribe_waveforms(recognizer, waveforms, batch_size, reporter, language)
                transcripts[name] |= zip((u.id for u in others), texts, strict=True)
    for outputs in batches:
        for name, texts in outputs.transcripts.items():
            transcripts[name] |= zip(outputs.ids, texts, strict=True)
    return SetOutputs(_in_order(batches, forced), transcripts, notes, forced)


def _pieces(utterances: Sequence[Utterance]) -> Iterator[list[CachedUtterance]]:
    """Pieces of a set whose audio is held together; within a piece, batches have similar lengths."""
    piece: list[CachedUtterance] = []
    seconds = 0.0
    for utterance in utterances:
        if piece and (len(piece) == PIECE or seconds + utterance.seconds() > PIECE_SECONDS):
            yield piece
            piece, seconds = [], 0.0
        piece.append(CachedUtterance.of(utterance))
        seconds += utterance.seconds()
    if piece:
        yield piece


def _force(
    models: Mapping[str, Recognizer], reference: str, batch: Batch, language: str, decode: bool
) -> _BatchOutputs:
    """One batch through every model: divergence from the reference's logits, and transcripts."""
    compared: dict[str, dict[str, Divergence]] = {}
    transcripts: dict[str, list[str]] = {}
    with torch.no_grad():
        for name in (reference, *(name for name in models if name != reference)):
            audio = models[name].encode(batch.features)
            logits = models[name].logits(batch, audio)
            _check_logits(name, batch, logits)
            if name == reference:
                expected = logits
            else:
                compared[name] = divergence(
                    expected, logits, batch.targets, batch.rare_target, batch.target_zipf, batch.protected_target
                )
            if decode:
                transcripts[name] = models[name].decode_forced(batch, audio, logits, language)
    return _BatchOutputs(batch.ids, compared, transcripts)


def _check_logits(name: str, batch: Batch, logits: Tensor) -> None:
    """Raises ModelError if a target's logits are not finite; names model and utterance."""
    wrong = (~are_numbers(logits)).cpu() & (batch.targets != -100)
    if wrong.any():
        first = batch.ids[int(wrong.any(-1).nonzero()[0])]
        raise ModelError(
            f"{name}: its logits for {first} are not finite: the weights are damaged, or they overflow in "
            f"{str(logits.dtype).removeprefix('torch.')}; compute in float32 or bfloat16"
        )


def _in_order(batches: Sequence[_BatchOutputs], wanted: Sequence[str]) -> dict[str, dict[str, Divergence]]:
    """Model to kind of target to the sums of all batches, one entry per id of ``wanted``."""
    if not batches:
        return {}
    place = {name: i for i, name in enumerate(chain.from_iterable(outputs.ids for outputs in batches))}
    order = [place[name] for name in wanted]
    return {
        model: {kind: joined([outputs.divergence[model][kind] for outputs in batches], order) for kind in kinds}
        for model, kinds in batches[0].divergence.items()
    }
