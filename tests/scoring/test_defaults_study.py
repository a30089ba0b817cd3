"""docs/defaults.md: its tables are those that the kept results give, ΔNLL of the true token beside KL."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("study", ["whisper-18m", "testbed"])
def test_the_page_shows_what_was_measured(study):
    spec = importlib.util.spec_from_file_location("study_defaults", ROOT / "benchmarks" / "studies" / "defaults.py")
    defaults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(defaults)
    results = json.loads((ROOT / "benchmarks" / "results" / f"defaults-{study}.json").read_text())
    page = (ROOT / "docs" / "defaults.md").read_text()
    for table in (defaults.markdown(results), defaults.pairwise(results, defaults.PAIRS)):
        assert all(f"{figure} {kind}" in table for figure in ("ΔNLL", "KL") for kind in ("rare", "common"))
        assert table in page
    # By hand, for one cell: ΔNLL of the rare targets, a ratio of sums.
    rare = results["gptq"]["per_utterance"]["rare"]
    assert f"| gptq | {sum(rare['delta_nll']) / sum(rare['positions']):+.4f} |" in page
