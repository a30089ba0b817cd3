"""Aligns tokens to audio frames by a decoder's attention."""

from __future__ import annotations

from torch import Tensor, std_mean
from torch.nn import functional


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
    deviation, mean = std_mean(attention, dim=1, keepdim=True, correction=0)
    standard = (attention - mean) / deviation.clamp_min(1e-9)
    reach = smoothed // 2
    if standard.shape[-1] > reach:
        padded = functional.pad(standard, (reach, reach), mode="reflect")
        standard = padded.unfold(-1, smoothed, 1).median(-1).values
    return standard.mean(0)
