"""The configuration: presets, round trips, and every wrong field named."""

import json

import pytest
import torch

from tarq.config import PRESETS, TarqConfig


def test_presets():
    assert TarqConfig() == TarqConfig.preset("tarq")
    assert TarqConfig().method == "tarq"
    for name in PRESETS:
        assert TarqConfig.preset(name).method == name
    assert TarqConfig(cost_ratio=1.0).method == "tarq"
    assert TarqConfig(metric="random").method == "custom"
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


def test_the_normaliser_follows_the_language():
    assert TarqConfig().text_normalizer().name == "english"
    assert TarqConfig(language="de").text_normalizer().name == "basic"
    assert TarqConfig(language="de").text_normalizer({"colour": "color"}).name == "basic"
    assert TarqConfig(normalizer="none").text_normalizer().name == "none"
    assert TarqConfig().text_normalizer({"colour": "color"})("Colour") == "color"


def test_unknown_method():
    with pytest.raises(ValueError, match="tarq, gptq, rtn"):
        TarqConfig.preset("awq")
