"""Names of arms: each makes its arm, with the options it has; reading the names loads nothing."""

import subprocess
import sys

import pytest

import tarq
from tarq.method.arms import Arms
from tarq.method.registry import METRICS, RESIDUALS, SOLVERS, make_metric, make_residual, make_solver


@pytest.mark.parametrize(
    ("make", "names"), [(make_metric, METRICS), (make_residual, RESIDUALS), (make_solver, SOLVERS)]
)
def test_every_name_makes_an_arm_of_a_whole_configuration(make, names):
    options = tarq.TarqConfig().to_dict()
    made = [
        make(name, **{k: v for k, v in options.items() if k not in ("metric", "residual", "solver")}) for name in names
    ]
    assert len({type(arm) for arm in made}) == len(names)
    with pytest.raises(ValueError, match=f"choose {next(iter(names))}"):
        make("no such arm")


def test_an_arm_takes_the_options_it_has():
    config = tarq.TarqConfig(cost_ratio=2.0, max_lambda=9.0, damp=0.3, act_order="static", metric="random", seed=5)
    arms = Arms.of(config.to_dict())
    assert (arms.metric.cost_ratio, arms.metric.max_lambda, arms.metric.seed) == (2.0, 9.0, 5)
    assert (arms.solver.damp, arms.solver.act_order) == (0.3, "static")
    assert arms.residual.folds == 2
    assert Arms.of(config.to_dict(), solver=make_solver("rtn")).solver.reads_audio is False


@pytest.mark.parametrize(
    ("options", "reads"),
    [({}, True), ({"solver": "rtn"}, True), ({"solver": "rtn", "residual": "none"}, False), ({"residual": 0}, True)],
)
def test_whether_audio_is_read_follows_from_the_arms(options, reads):
    assert Arms.of(tarq.TarqConfig(**options).to_dict()).reads_audio is reads


def test_reading_the_names_loads_neither_torch_nor_transformers():
    code = "import sys, tarq.method.registry; assert not {'torch', 'transformers'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
