"""Aligns tokens to audio frames: by a decoder's attention, or by the best path of CTC."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def alignment_scores(attention: Tensor, smoothed: int) -> Tensor:
    """How much each token's attention stands out; a frame's token is the ``argmax`` over tokens.

    Heads have positional biases, so each frame's weights are standardised over the tokens; heads are averaged after a
    median filter over neighbouring frames. Whisper's word timestamps prepare attention in the same way and then align
    by dynamic programming; here every frame takes its best token.

    Args:
        attention: [heads, S tokens, T frames] weights of one utterance.
        smoothed: frames the median is taken over, odd.

    Returns:
        [S, T] scores; those of several layers may be added.
    """
    deviation, mean = torch.std_mean(attention, dim=1, keepdim=True, correction=0)
    standard = (attention - mean) / deviation.clamp_min(1e-9)
    reach = smoothed // 2
    if standard.shape[-1] > reach:
        padded = F.pad(standard, (reach, reach), mode="reflect")
        standard = padded.unfold(-1, smoothed, 1).median(-1).values
    return standard.mean(0)


def token_starts(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frame at which each token begins: dynamic time warping, as Whisper's word timestamps have it.

    The path of the highest sum of scores leads from the first token and frame to the last ones, each step to the next
    frame, the next token or both. It is found along anti-diagonals, all cells of which are known at once.

    Args:
        scores: [S, T] of :func:`alignment_scores`.

    Returns:
        [S] frames, none before its predecessor's.
    """
    tokens, frames = scores.shape
    # Cell (i, j), from 1, is entry i of its anti-diagonal i + j.
    before, last = np.full(tokens + 1, np.inf), np.full(tokens + 1, np.inf)
    before[0] = 0.0
    steps = np.zeros((tokens + frames + 1, tokens + 1), dtype=np.int8)  # 0 both, 1 the next token, 2 the next frame
    for diagonal in range(2, tokens + frames + 1):
        i = np.arange(max(1, diagonal - frames), min(tokens, diagonal - 1) + 1)
        both, token, frame = before[i - 1], last[i - 1], last[i]
        step = np.where((both < token) & (both < frame), 0, np.where((token < both) & (token < frame), 1, 2))
        steps[diagonal, i] = step
        before, last = last, np.full(tokens + 1, np.inf)
        last[i] = np.choose(step, [both, token, frame]) - scores[i - 1, diagonal - i - 1]
    starts = np.zeros(tokens, dtype=np.int64)
    i, j = tokens, frames
    while i > 0 and j > 0:
        starts[i - 1] = j - 1
        step = steps[i + j, i]
        i, j = i - (step != 2), j - (step != 1)
    return starts


def forced_path(
    scores: NDArray[np.float32], ids: Sequence[int], blank: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The best CTC path that spells a token sequence.

    Args:
        scores: [T, vocabulary] log-probabilities.
        ids: S ≥ 1 tokens; T is at least S plus the number of equal neighbours.
        blank: the blank's id.

    Returns:
        [T] the token each frame emits, blank or of ``ids``; [T] its state: 2k + 1 on token k, 2k on the blanks before
        it, 2S on those after the last.
    """
    labels = np.full(2 * len(ids) + 1, blank, dtype=np.int64)
    labels[1::2] = ids
    # a blank between two tokens may be skipped unless they are equal
    skips = np.zeros(len(labels), dtype=bool)
    skips[3::2] = labels[3::2] != labels[1:-2:2]
    emitted = scores[:, labels]
    best = np.full(len(labels), -np.inf, dtype=np.float64)
    best[:2] = emitted[0, :2]
    backpointers = np.zeros(emitted.shape, dtype=np.int8)  # as the number of states advanced
    for t in range(1, len(emitted)):
        stay, step, skip = best, np.full_like(best, -np.inf), np.full_like(best, -np.inf)
        step[1:] = best[:-1]
        skip[2:] = np.where(skips[2:], best[:-2], -np.inf)
        options = np.stack([stay, step, skip])
        backpointers[t] = options.argmax(0)
        best = options.max(0) + emitted[t]
    state = len(labels) - (2 if best[-2] > best[-1] else 1)
    states = np.empty(len(emitted), dtype=np.int64)
    for t in range(len(emitted) - 1, -1, -1):
        states[t] = state
        state -= int(backpointers[t, state])  # an int8 would overflow
    return labels[states], states


def rare_frames(states: NDArray[np.int64], rare: Tensor) -> Tensor:
    """Which frames of a path (:func:`forced_path`) are within a rare word: on its tokens, or between two of them."""
    left, right, outside = _neighbours(states, len(rare))
    return rare[left] & rare[right] & ~outside


def frame_zipf(states: NDArray[np.int64], zipf: Tensor) -> Tensor:
    """Zipf scores of the frames of a path: its token's, the higher one between two tokens, NaN before and after all.

    A frame is within a rare word (:func:`rare_frames`) exactly where its score is below the threshold.
    """
    left, right, outside = _neighbours(states, len(zipf))
    return torch.maximum(zipf[left], zipf[right]).masked_fill(outside, math.nan)


def _neighbours(states: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
    """The tokens on either side of each frame, twice the same on a token; which frames are before or after all."""
    left, right = (np.clip(state // 2, 0, count - 1) for state in (states - 1, states))
    return left, right, torch.from_numpy((states == 0) | (states == 2 * count))
