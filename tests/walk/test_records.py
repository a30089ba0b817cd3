"""Records of layers: what the report says of each, in which order, and what progress hears of it."""

import pytest
import torch
from tarq.kernels.group_quantize import Quantized, round_to_nearest
from tarq.kernels.scheme import Scheme
from torch import nn

from tarq.method.algorithm import Solution
from tarq.method.figures import Figures
from tarq.method.moments import Moments
from tarq.method.residuals import Layer
from tarq.report import Reporter
from tarq.walk.observations import Observations
from tarq.walk.plan import PlannedLayer
from tarq.walk.records import LayerRecords

SCHEME = Scheme(4, 8, True, "absmax")


class Progress(Reporter):
    def __init__(self):
        self.total, self.seen = None, []

    def start(self, layers):
        self.total = layers

    def layer(self, record):
        self.seen.append(record)


def planned(name, note="", bits=4):
    return PlannedLayer(name, "decoder", (4, 16), 8, "", note, 128, 48, bits=bits)


def solution(scale=1.0, **options):
    weight = torch.linspace(-1, 1, 64).reshape(4, 16) * scale
    quantized = Quantized(*round_to_nearest(weight, SCHEME, torch.float16), torch.zeros(4), 8)
    return Solution(quantized, **options)


def layer(name):
    return Layer(name, torch.ones(4, 16))


def records(*plan):
    progress = Progress()
    made = LayerRecords({each.name: each for each in plan}, Observations(), progress)
    made.start()
    return made, progress


def moments(common, tail):
    """With so many positions in each subset."""
    made = Moments(16, paired=False)
    rows = common + tail
    made.update(torch.ones(rows, 16), None, torch.arange(rows) >= common, torch.ones(rows))
    return made


def test_a_record_holds_the_plan_the_figures_and_the_positions_of_all_folds():
    made, progress = records(planned("block.fc"), planned("block.out"))
    figures = Figures(lam=3.0, alpha=0.5, loss=0.25, shift=0.125, damp=0.01, damp_retries=1, dead_columns=2)
    made.quantized(
        "decoder", [layer("block.fc")], {"block.fc": solution(figures=figures)}, [moments(3, 2), moments(4, 0)]
    )
    (record,) = made.layers
    assert (record.name, record.stage, record.shape, record.bits, record.group_size) == (
        "block.fc", "decoder", (4, 16), 4, 8,
    )  # fmt: skip
    assert (record.positions, record.tail_positions) == (9, 2)
    assert {name: getattr(record, name) for name in vars(figures)} == vars(figures)
    assert (record.skipped, record.notes) == ("", [])
    assert (progress.total, progress.seen) == (2, [record])


def test_notes_stand_in_the_order_in_which_things_happened():
    made, _ = records(planned("block.q", "group size 8", bits=4), planned("block.k", bits=8))
    made.notes = {"block.q": ["scaled"]}
    made.observations.attention.unobserved.add("block.q")
    tiny = solution(1e-9, notes=["damping raised"])
    assert tiny.quantized.coarse_groups == 8
    made.quantized("decoder", [layer("block.q"), layer("block.k")], {"block.q": tiny, "block.k": solution()})
    first, second = made.layers
    assert [note.partition(":")[0] for note in first.notes] == [
        "group size 8",
        "damping raised",
        "no attention is known over what it reads",
        "8 of 8 scales are too small for float16",
        "scaled",
        "Linears of one input differ in bits (q 4, k 8)",
    ]
    assert [note.partition(":")[0] for note in second.notes] == ["Linears of one input differ in bits (q 4, k 8)"]


def test_a_layer_without_a_solution_is_recorded_as_one_that_stays():
    made, progress = records(planned("block.0"))
    made.quantized("decoder", [layer("block.0")], {})
    assert made.layers == progress.seen == []
    made.skipped("decoder", "block", nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 2)))
    assert [(r.name, r.shape, r.bits, r.skipped) for r in made.layers] == [
        ("block.0", (4, 16), 0, "not called during calibration"),
        ("block.1", (2, 4), 0, "ignored by configuration"),
    ]
    assert progress.seen == []


@pytest.mark.parametrize("parts", [(), (moments(5, 0),)])
def test_without_audio_there_are_no_positions(parts):
    made, _ = records(planned("block.fc"))
    made.quantized("decoder", [layer("block.fc")], {"block.fc": solution()}, parts)
    assert (made.layers[0].positions, made.layers[0].tail_positions) == (5 * len(parts), 0)
