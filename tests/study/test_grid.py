"""benchmarks/study/reading.py and grid.py: what is measured in which order, and errors that name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import tarq
from benchmarks.study.grid import Job
from benchmarks.study.places import Places
from benchmarks.study.reading import load_grid
from tarq.errors import ConfigError
from tarq.presets import PRESETS

GRIDS = Path(__file__).parents[2] / "benchmarks" / "study"

#: Ours to be compared elsewhere (main.yaml), and the paper as it was, whose lattice is part of it.
NOT_OF_THE_FIELD = {"common", "gradient", "tarq-paper"}

GRID = """
models: {m: model-a, n: model-b}
corpora: {train: , other: , test: }
arms:
  rtn: {preset: rtn}
  gptq: {preset: gptq, title: GPTQ}
  half: {preset: tarq, overrides: {cost_ratio: 0.5}}
calibration:
  uniform: {corpora: train}
  r-cross: {corpora: [train, other], pool: r-cross}
scored:
  test: {half: choose, utterances: 7}
  other: {half: all}
product: {models: m, samples: 4, draws: 2, decode: 1}
include:
  - {arms: [rtn, gptq], pools: r-cross, bits: [3], draws: [5], scored: other}
  - {arms: gptq, draws: 1, scored: other}
exclude:
  - {arm: half, draw: [1]}
families:
  shares: [[half, gptq]]
"""


@pytest.fixture
def grid(tmp_path):
    """Write a grid with changes, and read it."""

    def read(text=GRID, settings=(), **changes):
        path = tmp_path / "g.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(text) | changes) if changes else text)
        return load_grid(path, settings)

    return read


def test_jobs_come_in_order_of_worth_draw_by_draw(grid):
    made = grid()
    assert [(j.arm, j.draw, j.pool, j.bits, j.scored, j.decode) for j in made.jobs()] == [
        ("rtn", 0, "uniform", 4, ("test",), True),
        # A later block scores it on another set, too: a model is quantized once.
        ("gptq", 0, "uniform", 4, ("test", "other"), True),
        ("half", 0, "uniform", 4, ("test",), True),
        # Rounding to nearest looks at no speech, and half is excluded here.
        ("gptq", 1, "uniform", 4, ("test",), False),
        ("rtn", 5, "r-cross", 3, ("other",), True),
        ("gptq", 5, "r-cross", 3, ("other",), True),
    ]
    assert {j.model for j in made.jobs()} == {"m"}
    assert made.pairs == (("half", "gptq", "shares"),)


def test_whole_draws_can_come_first(grid):
    """All arms of draw 0, of whatever block, before draw 1: a run that is stopped leaves pairs that are complete."""
    jobs = grid(settings=["order=draws"]).jobs()
    assert [(j.arm, j.draw, j.bits) for j in jobs] == [
        ("rtn", 0, 4),
        ("gptq", 0, 4),
        ("half", 0, 4),
        ("gptq", 1, 4),
        ("rtn", 5, 3),
        ("gptq", 5, 3),
    ]
    more = [{"arms": "half", "draws": 1, "bits": 3}, {"arms": "gptq", "draws": 2, "bits": 3}]
    places = [(j.draw, j.bits) for j in grid(order="draws", include=more).jobs()]
    assert places == [(0, 4), (0, 4), (0, 4), (0, 3), (0, 3), (1, 4), (1, 3)]
    places = [(j.draw, j.bits) for j in grid(include=more).jobs()]
    assert places == [(0, 4), (0, 4), (0, 4), (1, 4), (0, 3), (0, 3), (1, 3)]


def test_dtype_and_threads(grid):
    assert (grid().dtype, grid().threads) == ("float32", None)
    made = grid(dtype="bfloat16", threads=2)
    assert (made.dtype, made.threads) == ("bfloat16", 2)


def test_cells_are_named_after_all_that_varies(grid):
    made, job = grid(), Job("m", "half", 1, "r-cross", 4, 3, ("test", "other"), False)
    assert job.key("test", made.first) == "m/half/1/r-cross/4/3/test"
    assert job.key("other", made.first) == "m (other)/half/1/r-cross/4/3/other"


def test_a_job_is_configured_by_arm_pool_and_axes(grid):
    config = grid(batch_size=2).config(Job("m", "half", 1, "r-cross", 4, 3, ("test",), False))
    assert (config.method, config.cost_ratio, config.pool) == ("tarq", 0.5, "r-cross")
    assert (config.seed, config.samples, config.bits, config.batch_size) == (1, 4, 3, 2)


def test_settings_replace_values(grid):
    made = grid(settings=["product.draws=[7]", "scored.test.utterances=3", "batch_size=6"])
    assert made.jobs()[0].draw == 7
    assert made.scored["test"].utterances == 3
    assert (made.batch_size, made.score_batch_size) == (6, 6)
    with pytest.raises(ConfigError, match="--set product: write KEY=VALUE"):
        grid(settings=["product"])
    with pytest.raises(ConfigError, match="batch_size: must be a whole number from 1, not 0"):
        grid(settings=["batch_size=0"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, "unknown: arm; there are title, otherwise, models"),
        ({"models": {}}, "models: is empty"),
        ({"models": {"a/b": "x"}}, "models/a/b: a name must not be empty or hold a /"),
        ({"arms": {"x": {"preset": "gtpq"}}}, "arms/x/preset: must be one of refined, .*, not 'gtpq'"),
        ({"arms": {"x": {"preset": "gptq", "override": {}}}}, "arms/x: unknown: override; there are preset, overrides"),
        ({"arms": {"x": {"preset": "gptq", "overrides": {"dump": 1}}}}, "arms/x/overrides: unknown .* fields: dump"),
        ({"arms": {"x": {"preset": "gptq", "overrides": {"damp": -1}}}}, "arms/x/overrides: damp must be"),
        (
            {"arms": {"x": {"preset": "gptq", "overrides": {"seed": 1}}}},
            "arms/x/overrides/seed: is not set here",
        ),
        (
            {"calibration": {"p": {"corpora": "tran"}}},
            "calibration/p/corpora: there is no corpus 'tran'; there are",
        ),
        ({"calibration": {"p": {}}}, "calibration/p/corpora: is missing"),
        ({"calibration": {"p": {"corpora": "train", "pool": "r-cross"}}}, "calibration/p/corpora: .* r-cross from sev"),
        (
            {"calibration": {"p": {"corpora": "train", "pool": "top"}}},
            "calibration/p: pool must be uniform, .* not 'top",
        ),
        (
            {"scored": {"test": {"half": "second"}}},
            "scored/test/half: must be one of choose, report, all, not 'second'",
        ),
        ({"scored": {"nothing": {}}}, "scored/nothing/corpus: there is no corpus 'nothing'"),
        ({"product": {"draws": 0}}, "product/draws: must be a whole number from 1, not 0"),
        ({"product": {"bits": [4, 5]}}, "product/bits: bits must be 2, 3, 4 or 8, not 5"),
        ({"product": {"samples": [4, 4]}}, r"product/samples: must be one or several different values, not \[4, 4\]"),
        ({"include": [{"arms": "no"}]}, r"include\[0\]/arms: there is no arm 'no'; there are gptq, half, rtn"),
        ({"include": {}, "exclude": {"arm": "no"}}, "exclude: must be a list"),
        ({"exclude": [{"arm": "no"}]}, r"exclude\[0\]/arm: there is no arm 'no'"),
        ({"exclude": [{}]}, r"exclude\[0\]: is empty"),
        ({"families": {"f": [["half", "half"]]}}, r"families/f\[0\]: must be two arms"),
        ({"families": {"f": [["half", "no"]]}}, r"families/f\[0\]: there is no arm 'no'"),
        ({"corpora": None}, "corpora: must be a mapping of names to values, not None"),
        ({"dtype": "float8"}, "dtype: must be one of float32, bfloat16, not 'float8'"),
        ({"threads": 0}, "threads: must be a whole number from 1, not 0"),
        ({"order": "size"}, "order: must be one of worth, draws, not 'size'"),
        ({"bars": {"default": "gptq"}}, "bars/baselines: is missing"),
        ({"bars": {"default": "x", "baselines": "gptq"}}, "bars/default: there is no arm 'x'; there are"),
        ({"bars": {"default": "gptq", "baselines": "gptq", "tail": "x"}}, "bars/tail: there is no family 'x'"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_key(grid, changes, message):
    with pytest.raises(ConfigError, match=rf"g\.yaml: {message}"):
        grid(**changes)


def test_files_that_are_no_grids(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_grid(tmp_path / "none.yaml")
    (tmp_path / "g.yaml").write_text("arms: {a: {preset: rtn}, a: {preset: gptq}}")
    with pytest.raises(ConfigError, match=r"g\.yaml is no grid: 'a' is there twice"):
        load_grid(tmp_path / "g.yaml")
    (tmp_path / "g.yaml").write_text("- a list")
    with pytest.raises(ConfigError, match=r"g\.yaml: must be a mapping"):
        load_grid(tmp_path / "g.yaml")


@pytest.mark.parametrize(
    "name", ["quick", "quick-testbed", "two-cores", "main", "gpu-quarter-hour", "zero-points", "field"]
)
def test_the_grids_here_are_grids(name):
    made = load_grid(GRIDS / f"{name}.yaml")
    jobs = made.jobs()
    assert jobs
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        made.config(job)
    if name.startswith("quick"):
        assert {job.arm for job in jobs} == {"rtn", "gptq", "gptq, zero points", "refined"}
    if name in ("main", "gpu-quarter-hour", "two-cores"):
        draws = {job.draw for job in jobs if job.arm == "refined, c 1" and job.samples == made.blocks[0].samples[0]}
        assert len(draws) >= 8
    if name != "field":  # the default is what the package's is, and has a baseline on its own lattice
        default = next(job for job in jobs if job.arm == made.bars["default"])
        same = {"samples": default.samples, "batch_size": made.batch_size, "seed": default.draw}
        assert made.config(default) == tarq.TarqConfig(**same)
        baselines = [made.arms[name] for name in made.bars["baselines"]]
        lattices = {tarq.TarqConfig.preset(arm.preset, **arm.overrides).symmetric for arm in baselines}
        assert lattices == {True, False}
    if name == "field":  # all arms on one lattice, but for GPTQ as it was published, and no preset is left out
        assert {job.arm for job in jobs if made.config(job).symmetric} == {"gptq"}
        assert {made.arms[job.arm].preset for job in jobs} == set(PRESETS) - NOT_OF_THE_FIELD
        assert {ours for ours, _, _ in made.pairs} | {base for _, base, _ in made.pairs} == set(made.arms)
    # Where the packaged model is meant, it is there; the others say what they lack.
    absent = Places("/nowhere", "/nowhere").absent(made)
    assert bool(absent) == (name != "quick-testbed")
    if name == "quick":
        assert absent[0] == "/nowhere/whisper-tiny.en (--models)"
        assert load_grid(GRIDS / made.otherwise)
