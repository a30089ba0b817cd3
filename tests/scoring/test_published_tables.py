"""The tables of published pages are those that the kept results give, ΔNLL of the true token beside KL."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def script(name):
    """A study's module."""
    spec = importlib.util.spec_from_file_location(f"study_{name}", ROOT / "benchmarks" / "studies" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("study", ["whisper-18m", "testbed"])
def test_the_defaults_page_shows_what_was_measured(study):
    defaults = script("defaults")
    results = json.loads((RESULTS / f"defaults-{study}.json").read_text())
    page = (ROOT / "docs" / "defaults.md").read_text()
    for table in (defaults.markdown(results), defaults.pairwise(results, defaults.PAIRS)):
        assert all(f"{figure} {kind}" in table for figure in ("ΔNLL", "KL") for kind in ("rare", "common"))
        assert table in page
    # By hand, for one cell: ΔNLL of the rare targets, a ratio of sums.
    rare = results["gptq"]["per_utterance"]["rare"]
    assert f"| gptq | {sum(rare['delta_nll']) / sum(rare['positions']):+.4f} |" in page


def test_the_testbed_page_shows_what_was_measured():
    result = json.loads((RESULTS / "testbed.json").read_text())
    tables = script("evaluation").markdown(result)
    assert tables in (ROOT / "benchmarks" / "testbed" / "README.md").read_text()
    known = result["sets"]["seen voices"]["models"]["GPTQ W4"]["figures"]
    for name in ("delta_nll_rare", "delta_nll_common"):
        assert f"| {known[name]['value']:+.4f} [" in tables
