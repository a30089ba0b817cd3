"""The tables of published pages are those that the kept results give, ΔNLL of the true token beside KL."""

from __future__ import annotations

import importlib.util
import json
import re
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


#: README's rows, with their names on the page of the study.
ROWS = {"full precision": "full precision", "GPTQ": "gptq", "tarq's default": "refined"}
#: Rows of the page that README leaves out: one draw.
ON_THE_PAGE_ALONE = {"gptq, zero points"}
#: Its columns likewise, where they differ.
COLUMNS = {"rare-word errors": "rare WER %", "word errors": "WER %"}


def table_of(page: str, heading: str, first: int = 0) -> dict[str, dict[str, list[float]]]:
    """The first table behind a heading: row to column to the numbers of its cell, the first of a row being its name."""
    lines = page[page.index(heading, first) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([re.sub("[*`]", "", cell).strip() for cell in line.strip("|").split("|")])
    numbers = lambda cell: [float(n.replace("−", "-")) for n in re.findall(r"[+−]?\d*\.?\d+", cell)]  # noqa: E731
    return {name: dict(zip(rows[0][1:], map(numbers, cells), strict=True)) for name, *cells in rows[2:]}


@pytest.mark.parametrize("model", ["tiny.en", "base"])
def test_the_readme_shows_what_was_measured(model):
    """README's tables hold figures of the study's page, which its command prints (tests/study)."""
    readme, page = ((ROOT / name).read_text() for name in ("README.md", "benchmarks/study/RESULTS.md"))
    transcribed = page[page.index("## The default against GPTQ, transcribed") :]
    shown, known = table_of(readme, f"| Whisper {model} |"), table_of(transcribed, f"**whisper-{model}**")
    if model == "base":
        more = table_of(transcribed, "1 draw of 367 calibration utterances")
        known["the same, 367 utterances"] = more["refined"]
    assert [ROWS.get(name, name) for name in shown] == [name for name in known if name not in ON_THE_PAGE_ALONE]
    for name, figures in shown.items():
        for figure, values in figures.items():
            expected = known[ROWS.get(name, name)][COLUMNS.get(figure, figure)]
            # Full precision is what damage is counted from; word errors are shown without their intervals.
            assert values == (expected[:1] if figure in COLUMNS else expected or [0]), (name, figure)
