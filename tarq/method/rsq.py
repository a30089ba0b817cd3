"""Positions weighted by the attention they receive, after RSQ (arXiv 2503.01820).

RSQ's "attention concentration" of a position is the attention it receives in the block's self-attention, summed over
heads and queries. Within an utterance it is stretched to ``floor … 1`` and then to mean one; ``H = Σ r x xᵀ``. It
needs neither transcripts nor tags, so it weights audio frames too: those that the model itself attends to.

**What it equals.** The plain metric at ``floor = 1``; else a real weight for each position and block.

**Where it differs.** RSQ rotates the weights first, which a checkpoint of plain Linears cannot hold. Its authors
search the floor in 0.005 … 0.1. What several decoder blocks read of the encoder is weighed by the cross-attention of
each; a block without attention keeps its positions alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tarq.method.metrics import LayerRows, Plain


@dataclass(frozen=True)
class AttentionConcentration(Plain):
    """Weights from the attention of the full-precision model.

    Attributes:
        floor: weight of an utterance's least attended position against its most attended one.
        attention: asks for it.
    """

    floor: float = 0.01
    attention: bool = True

    def reassign(self, rows: LayerRows) -> tuple[Tensor, Tensor]:
        if rows.attention is None:  # a projector's, which attends to nothing
            return rows.tail, rows.weight
        weight = rows.weight.clone()
        for utterance in rows.utterance.unique():
            here = (rows.utterance == utterance) & (rows.weight > 0)
            received = rows.attention[here]
            if len(received) == 0:
                continue
            spread = received.max() - received.min()
            stretched = self.floor + (1 - self.floor) * (received - received.min()) / spread.clamp_min(1e-30)
            weight[here] *= stretched / stretched.mean() if bool(spread > 0) else 1
        return rows.tail, weight
