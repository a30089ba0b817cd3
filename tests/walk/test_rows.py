"""Rows of a batch: tail, weight, utterance and fold of each, by hand."""

from dataclasses import replace

import pytest
import torch

from tarq.method.metrics import PositionWeights, RareBAL
from tarq.models.types import Batch, Positions
from tarq.walk.rows import RowCache, assign

#: Two utterances: four frames, the last of them padding; three, the last two of them padding, and a row that only fills
#: up the batch. Tags lie on all kinds.
POSITIONS = Positions(
    tail=torch.tensor([[1, 0, 0, 1], [0, 1, 1, 1]]).bool(),
    exists=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool(),
    padding=torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]]).bool(),
    audio=torch.ones(2, 4).bool(),
)


def rows(**options):
    given = {"metric": RareBAL(), "positions": POSITIONS, "ids": ("a", "b"), "stage": "encoder", "padding_weight": 0.25}
    return assign(**(given | options))


def test_only_what_was_heard_can_be_rare():
    assert rows().tail.tolist() == [True, False, False, False] + [False] * 4


@pytest.mark.parametrize("padding_weight", [0.0, 0.25, 1.0])
def test_padding_has_its_weight_and_what_fills_up_has_none(padding_weight):
    p = padding_weight
    assert rows(padding_weight=p).weight.tolist() == [1, 1, 1, p, 1, p, p, 0]


def test_weights_of_the_metric_are_of_the_utterance_and_stage_and_count_in_padding_too():
    own = {"encoder/b": torch.tensor([2.0, 4.0, 0.0, 8.0]), "decoder/a": torch.full((4,), 9.0)}
    assert rows(metric=PositionWeights(own)).weight.tolist() == [1, 1, 1, 0.25, 2, 1, 0, 0]


def test_a_metric_is_told_what_was_heard():
    class Watches(RareBAL):
        def assign(self, tail, exists, key):
            told.append((tail.tolist(), exists.tolist(), key))
            return super().assign(tail, exists, key)

    told = []
    rows(metric=Watches())
    assert told == [
        ([True, False, False, False], [True, True, True, False], "encoder/a"),
        ([False] * 4, [True, False, False, False], "encoder/b"),
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_rows_know_their_utterance_and_packed_ones_lack_what_does_not_exist(packed):
    made = rows(positions=replace(POSITIONS, packed=packed))
    kept = 7 if packed else 8
    assert made.utterance.tolist() == [0, 0, 0, 0, 1, 1, 1, 1][:kept]
    assert made.weight.tolist() == [1, 1, 1, 0.25, 1, 0.25, 0.25, 0][:kept]
    assert len(made.tail) == len(made.fold) == kept


def test_utterances_take_turns_in_the_folds_whatever_the_batches():
    nothing = torch.zeros(1, 1)

    def batch(ids, kinds):
        stacked = Positions(*(torch.cat([t[:1]] * len(ids)) for t in (POSITIONS.tail, *[POSITIONS.exists] * 3)))
        return Batch(ids, {}, nothing, nothing, nothing.bool(), dict.fromkeys(kinds, stacked))

    for folds, expected in ((1, [0] * 5), (2, [0, 1, 0, 1, 0]), (3, [0, 1, 2, 0, 1])):
        for sizes in ((5,), (3, 2), (1, 1, 3)):
            cache, found, before = RowCache(RareBAL(), 1.0, folds, torch.device("cpu")), [], 0
            for index, size in enumerate(sizes):
                made = batch(tuple("abcde"[before : before + size]), ("encoder", "decoder"))
                for kind in ("encoder", "decoder"):
                    of = cache.of(kind, index, made, before)
                    assert cache.of(kind, index, made, before) is of
                found += of.fold.view(size, 4)[:, 0].tolist()
                assert (of.fold.view(size, 4) == of.fold.view(size, 4)[:, :1]).all()
                before += size
            assert found == expected
