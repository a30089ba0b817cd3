"""The configuration: presets, round trips, and every wrong field named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tarq.config import Pool, TarqConfig
from tarq.errors import TarqError
from tarq.lattice import Lattice
from tarq.option import options
from tarq.presets import PRESETS
from tarq.words.settings import Words


def test_presets():
    assert TarqConfig() == TarqConfig.preset("refined")
    assert TarqConfig().method == "refined"
    for name in PRESETS:
        assert TarqConfig.preset(name).method == name
    assert TarqConfig(cost_ratio=1.0).method == "refined"
    assert TarqConfig(metric="random").method == "custom"
    assert TarqConfig(metric="maca").method == "custom"
    assert not TarqConfig.preset("rtn").needs_statistics
    assert TarqConfig.preset("rtn", residual="least-squares").needs_statistics


def test_a_report_can_be_redone():
    config = TarqConfig(bits=3, ignore=("a", "b"), residual=0.5)
    assert TarqConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="nonsense"):
        TarqConfig.from_dict({"nonsense": 1})


def test_scale_dtype_follows_the_checkpoint():
    assert TarqConfig().with_scale_dtype(torch.bfloat16).scale_dtype == "bfloat16"
    assert TarqConfig(scale_dtype="float32").with_scale_dtype(torch.float16).scale_dtype == "float32"
    assert TarqConfig().with_scale_dtype(torch.float64).scale_dtype == "float32"


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 5}, {"group_size": 0}, {"scale_rule": "max"}, {"metric": "rare"}, {"residual": "some"},
        {"solver": "awq"}, {"damp": -1}, {"cost_ratio": float("nan")}, {"act_order": "dynamic"},
        {"tail_positions": "both"}, {"transcripts": "none"}, {"scale_dtype": "int8"}, {"batch_size": 0},
        {"residual": float("nan")}, {"normalizer": "french"},
        {"samples": 0}, {"max_lambda": 0.0}, {"padding_weight": -0.1},
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        TarqConfig(**fields)


#: Values that some field takes and most do not.
ODD = [float("nan"), float("inf"), -float("inf"), -1, 0, 10**400, "x", "", "a\0b", None, True, [], [""], {}, b"x"]


@pytest.mark.parametrize("name", options(TarqConfig))
def test_every_field_names_itself_when_a_value_is_refused(name):
    """NaN and infinity are no field's; whatever else is refused is refused by name, and what is taken is valid JSON."""
    taken, refused = [], {}
    for value in ODD:
        try:
            taken.append(TarqConfig(**{name: value}))
        except TarqError as error:
            refused[repr(value)] = str(error)
    for value, message in refused.items():
        assert (message.startswith(f"{name} must be "), message.endswith(f"not {value}")) == (True, True), message
    for config in taken:
        assert TarqConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
    assert len(taken) < 5
    assert not any(getattr(config, name) in ODD[:3] for config in taken)


def test_values_are_kept_in_the_fields_own_types():
    config = TarqConfig(samples=np.int64(3), cost_ratio=1, residual=0, ids=Path("a/b"), ignore=["x"])
    assert (config.samples, config.cost_ratio, config.residual) == (3, 1.0, 0.0)
    assert [type(v) for v in (config.samples, config.cost_ratio, config.residual)] == [int, float, float]
    assert (config.ids, config.ignore) == ("a/b", ("x",))
    with pytest.raises(ValueError, match="ignore must be a list"):
        TarqConfig(ignore="model.encoder")  # not the letters of a name
    with pytest.raises(ValueError, match="leave one out"):
        TarqConfig(ids="a.json", pool="r-top")


def test_bits_by_place():
    given = {"encoder": np.int64(8), "*.fc2": 2}
    config = TarqConfig(bits_for=given)
    given["decoder"] = 3
    assert config.bits_for == {"encoder": 8, "*.fc2": 2}
    assert [type(bits) for bits in config.bits_for.values()] == [int, int]
    assert hash(config) == hash(TarqConfig.from_dict(json.loads(json.dumps(config.to_dict()))))
    assert (config.method, TarqConfig().bits_for) == ("refined", {})
    for wrong in ({"encoder": 5}, {"encoder": True}, {" ": 4}, {3: 4}, [("encoder", 4)], "encoder=4"):
        with pytest.raises(ValueError, match="bits_for must be a mapping from stages or layer names to 2, 3, 4 or 8"):
            TarqConfig(bits_for=wrong)


def test_a_concern_stands_alone():
    """Whoever needs the words alone takes no more than those."""
    assert Words(language="de").text_normalizer().name == "basic"
    config = TarqConfig(language="de", samples=3, bits=3)
    assert (config.part(Words), config.part(Pool)) == (Words(language="de"), Pool(samples=3))
    assert [type(config.part(kind)) for kind in TarqConfig.__bases__] == list(TarqConfig.__bases__)
    assert Lattice(bits=3).scheme(32).group_size == 32
    assert {name for base in TarqConfig.__bases__ for name in options(base)} == set(options(TarqConfig))


def test_every_field_says_what_it_is_for():
    for name, known in options(TarqConfig).items():
        assert known.help.endswith("."), name
        assert known.panel in ("Method", "Speech", "Checkpoint", "Resources")


def test_the_papers_preset_is_pinned():
    """Whatever the defaults come to be, ``tarq-paper`` is what the paper says and how we read the rest of it."""
    paper = TarqConfig.preset("tarq-paper")
    assert (paper.cost_ratio, paper.residual, paper.scale_rule, paper.padding_weight) == (1.0, "paper", "minmax", 1.0)
    assert (paper.tail_positions, paper.frame_tags, paper.damp, paper.tail_threshold) == ("input", "none", 0.01, 3.0)
    assert TarqConfig.preset("tarq-paper", bits=3).method == "tarq-paper"
    assert TarqConfig.preset("tarq-paper", cost_ratio=0.25).method == "custom"


def test_drift_is_made_up_for_once():
    """GPTAQ does it as it rounds; a residual as well would do it twice."""
    assert TarqConfig(solver="gptaq", residual=0).solver == "gptaq"
    for residual in ("cross-fitted", "qronos", 0.5):
        with pytest.raises(TarqError, match="set residual to none"):
            TarqConfig(solver="gptaq", residual=residual)


def test_language_is_an_argument():
    config = TarqConfig()
    assert config.text_normalizer(language="de").name == "basic"
    assert config.text_normalizer(language="en-GB").name == "english"
    assert (config.frequencies(), config.frequencies("de")) == ("en", "de")


def test_the_normaliser_follows_the_language():
    assert TarqConfig().text_normalizer().name == "english"
    assert TarqConfig(language="de").text_normalizer().name == "basic"
    assert TarqConfig(language="de").text_normalizer({"colour": "color"}).name == "basic"
    assert TarqConfig(normalizer="none").text_normalizer().name == "none"
    assert TarqConfig().text_normalizer({"colour": "color"})("Colour") == "color"


def test_unknown_method():
    with pytest.raises(ValueError, match="tarq, gptq, rtn"):
        TarqConfig.preset("best")
