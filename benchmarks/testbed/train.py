"""Training of the testbed's recognizer: a small Whisper, from random weights, on a CPU.

What makes it converge in about two hours on two cores: bfloat16 autocast, batches of like lengths cut to
that length (the encoder sees the whole window only now and then, and always at the end), short utterances
first, and a CTC loss over letters on the encoder (Graves et al. 2006; as an auxiliary, Watanabe et al. 2017)
that teaches it to listen before the decoder has learned to align.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from corpus import feature_extractor, lines, read_features
from speech import WINDOW
from text import SEED
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

END, START, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
LETTERS = " abcdefghijklmnopqrstuvwxyz"  # CTC classes 1 …; 0 is the blank
POSITIONS = int(50 * WINDOW)  # encoder positions of a window
WARP = 0.1  # how far vocal tracts differ in training, at most
BUCKETS = (100, 125, 150, 175, 200, 250, POSITIONS)  # encoder positions a batch is padded to


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule. Positions are the encoder's, 50 a second."""

    vocabulary: int = 512
    width: int = 256
    layers: int = 4
    heads: int = 4
    steps: int = 7000
    warmup: int = 400
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    batch_positions: int = 6400
    ctc_weight: float = 0.5
    short_steps: int = 600  # steps on the shortest third only
    whole_window: float = 0.1  # share of the batches padded to the window …
    whole_window_end: float = 0.07  # … and share of the steps, the last, when all are
    average: float = 0.999  # decay of the weights' moving average, which is what is kept


def make_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the training sentences; any text can be encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary - 1,
        special_tokens=[END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((" " + line.text for line in lines("train")), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=START, pad_token=END)
    # Last, since Whisper takes every later id for a timestamp.
    tokenizer.add_special_tokens({"extra_special_tokens": [NO_TIMESTAMPS]})
    return tokenizer


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> WhisperForConditionalGeneration:
    """The model with random weights and the generation settings it ships with."""
    end, start, no_timestamps = tokenizer.convert_tokens_to_ids([END, START, NO_TIMESTAMPS])
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=recipe.width,
        encoder_layers=recipe.layers,
        decoder_layers=recipe.layers,
        encoder_attention_heads=recipe.heads,
        decoder_attention_heads=recipe.heads,
        encoder_ffn_dim=4 * recipe.width,
        decoder_ffn_dim=4 * recipe.width,
        max_source_positions=POSITIONS,
        max_target_positions=96,
        num_mel_bins=80,
        decoder_start_token_id=start,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(SEED)
    # Eager attention: on a CPU its backward pass is faster than SDPA's at these lengths.
    model = WhisperForConditionalGeneration._from_config(config, attn_implementation="eager")
    generation = model.generation_config
    generation._from_model_config = False  # or loading would rebuild it from config.json
    generation.no_timestamps_token_id, generation.is_multilingual = no_timestamps, False
    generation.max_length = config.max_target_positions
    return model


@dataclass(frozen=True)
class Batch:
    features: Tensor  # (utterances, 80, 2 positions)
    inputs: Tensor  # (utterances, tokens): prompt and transcript
    targets: Tensor  # likewise, one token on; -100 where nothing is to be predicted
    positions: Tensor  # encoder positions of each utterance
    letters: Tensor  # all transcripts' CTC classes, end to end
    letter_counts: Tensor


class Speech:
    """Utterances of a split with their features, ready to be batched."""

    def __init__(self, split: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.frames, self.texts = read_features(split, folder)
        self.positions = np.array([-(-len(f) // 2) for f in self.frames])
        self.ids = tokenizer([" " + t for t in self.texts], add_special_tokens=False)["input_ids"]
        self.prompt = tokenizer.convert_tokens_to_ids([START, NO_TIMESTAMPS])
        self.end = tokenizer.convert_tokens_to_ids(END)

    def batch(self, chosen: np.ndarray, positions: int, masks: np.random.Generator | None = None) -> Batch:
        """Utterances padded to an encoder length.

        With ``masks`` each is heard from another vocal tract (Jaitly & Hinton 2013: mel bins stretched), with bands
        hidden (SpecAugment, Park et al. 2019).
        """
        features = np.empty((len(chosen), 2 * positions, 80), np.float32)
        for row, i in zip(features, chosen, strict=True):
            frames = self.frames[i].astype(np.float32)
            if masks is not None:
                frames = _stretch(frames, masks.uniform(1 - WARP, 1 + WARP))
            row[: len(frames)] = frames
            row[len(frames) :] = frames.max() - 2  # what the feature extractor makes of silence
            if masks is not None:
                mean = frames.mean()
                for _ in range(2):
                    first, width = masks.integers(80), masks.integers(11)
                    row[:, first : first + width] = mean
                    first, width = masks.integers(len(frames)), masks.integers(16)
                    row[first : first + width] = mean
        longest = 8 * -(-(max(len(self.ids[i]) for i in chosen) + 2) // 8)
        inputs = torch.full((len(chosen), longest), self.end)
        targets = torch.full((len(chosen), longest), -100)
        for row, i in enumerate(chosen):
            ids = self.ids[i]
            inputs[row, : len(ids) + 2] = torch.tensor(self.prompt + ids)
            targets[row, 1 : len(ids) + 2] = torch.tensor([*ids, self.end])
        texts = [self.texts[i] for i in chosen]
        return Batch(
            torch.from_numpy(features.transpose(0, 2, 1).copy()),
            inputs,
            targets,
            torch.from_numpy(np.minimum(self.positions[chosen], positions)),
            torch.tensor([1 + LETTERS.index(c) for text in texts for c in text]),
            torch.tensor([len(text) for text in texts]),
        )

    def epochs(self, recipe: Recipe) -> Iterator[Batch]:
        """Batches without end, of like lengths, in random order."""
        rng = np.random.default_rng([SEED, 2])
        bucket = np.searchsorted(BUCKETS, self.positions)
        short = self.positions <= np.quantile(self.positions, 1 / 3)
        step = 0
        while True:
            batches = []
            for b, positions in enumerate(BUCKETS):
                inside = (bucket == b) & (short if step < recipe.short_steps else True)
                order = rng.permutation(np.flatnonzero(inside))
                size = recipe.batch_positions // positions
                batches += [(order[i : i + size], positions) for i in range(0, len(order) - size + 1, size)]
            for i in rng.permutation(len(batches)):
                chosen, positions = batches[i]
                at_end = step >= (1 - recipe.whole_window_end) * recipe.steps
                whole = step >= recipe.short_steps and rng.random() < recipe.whole_window
                yield self.batch(chosen, POSITIONS if whole or at_end else positions, rng)
                step += 1
                if step == recipe.short_steps:
                    break


def _stretch(frames: np.ndarray, factor: float) -> np.ndarray:
    """Mel frames (frames, 80) read at ``factor`` times each bin's place."""
    place = np.minimum(np.arange(80) * factor, 79)
    low = place.astype(int)
    share = (place - low).astype(np.float32)
    return frames[:, low] * (1 - share) + frames[:, np.minimum(low + 1, 79)] * share


class Learner(nn.Module):
    """The model, an encoder that takes any length, and the CTC head that is dropped after training."""

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.ctc = nn.Linear(model.config.d_model, 1 + len(LETTERS))

    def encode(self, features: Tensor) -> Tensor:
        """Whisper's encoder without its demand for a whole window."""
        encoder = self.model.model.encoder
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).permute(0, 2, 1)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        return encoder.layer_norm(hidden)

    def forward(self, features: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Token logits and CTC logits."""
        audio = self.encode(features)
        said = self.model.model.decoder(input_ids=inputs, encoder_hidden_states=audio, use_cache=False)
        return self.model.proj_out(said.last_hidden_state), self.ctc(audio)


def losses(learner: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy a token, and CTC a letter."""
    with torch.autocast("cpu", torch.bfloat16):
        tokens, letters = learner(batch.features, batch.inputs)
    ce = F.cross_entropy(tokens.float().flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
    ctc = F.ctc_loss(
        letters.float().log_softmax(-1).transpose(0, 1),
        batch.letters,
        batch.positions,
        batch.letter_counts,
        zero_infinity=True,
    )
    return ce, ctc


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate: linear warm-up, then a half cosine to zero."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def word_error_rate(model: WhisperForConditionalGeneration, speech: Speech, tokenizer, count: int) -> float:
    """WER of greedy transcripts of the first ``count`` utterances."""
    hypotheses = []
    for first in range(0, count, 32):
        chosen = np.arange(first, min(first + 32, count))
        with torch.autocast("cpu", torch.bfloat16):
            ids = model.generate(speech.batch(chosen, POSITIONS).features, num_beams=1, do_sample=False)
        hypotheses += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return jiwer.wer(speech.texts[:count], [h.strip() or "-" for h in hypotheses])


def train(recipe: Recipe, folder: Path, out: Path) -> None:
    """Train on the features in ``folder`` and save model, tokenizer and feature extractor to ``out``.

    State is kept beside the features every 500 steps, and training goes on from it.
    """
    tokenizer = make_tokenizer(recipe)
    learner = Learner(make_model(recipe, tokenizer))
    training, validation = (Speech(s, folder, tokenizer) for s in ("train", "validation"))
    averaged = deepcopy(learner.model).eval()
    decayed = [p for p in learner.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in learner.parameters() if p.requires_grad and p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
    state, log = folder / "training.pt", folder / "training.jsonl"
    start = 0
    if state.exists():
        kept = torch.load(state)
        start = kept["step"]
        learner.load_state_dict(kept["learner"])
        averaged.load_state_dict(kept["averaged"])
        optimizer.load_state_dict(kept["optimizer"])
    learner.train()
    batches = training.epochs(recipe)
    for _ in range(start):
        next(batches)
    began, seen = time.perf_counter(), []
    for step in range(start, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        ce, ctc = losses(learner, next(batches))
        (ce + recipe.ctc_weight * ctc).backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(recipe.average, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(learner.model.parameters()), 1 - decay)
        seen.append((ce.item(), ctc.item()))
        last = step + 1 == recipe.steps
        if (step + 1) % 100 == 0 or last:
            row = {"step": step + 1, "seconds": round(time.perf_counter() - began)}
            row |= dict(zip(("ce", "ctc"), np.mean(seen, 0).round(4).tolist(), strict=True))
            seen.clear()
            if (step + 1) % 1000 == 0 or last:
                row["wer"] = round(word_error_rate(averaged, validation, tokenizer, 256 if last else 128), 4)
            with log.open("a") as file:
                print(json.dumps(row), file=file)
            print(json.dumps(row), flush=True)
        if (step + 1) % 500 == 0 or last:
            kept = {"learner": learner.state_dict(), "averaged": averaged.state_dict()}
            kept |= {"optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(kept, state.with_suffix(".tmp"))
            state.with_suffix(".tmp").replace(state)
    averaged.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    feature_extractor().save_pretrained(out)
