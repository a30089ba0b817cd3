"""OpenMP's threads sleep while they wait, unless the user says how, or torch was there before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tarq.kernels.openmp import VARIABLES

PROGRAM = """
import sys
{before}
from tarq.kernels.openmp import wait_asleep
print(wait_asleep(), "torch" in sys.modules)
import torch
torch.ones(1)
"""


def settings(before: str = "", **chosen: str) -> tuple[str, str]:
    """What the function returned, and what OpenMP says it was loaded with."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"OMP_DISPLAY_ENV": "verbose"} | chosen,
    )
    lines = [line.strip() for line in done.stderr.splitlines()]
    found = [line for line in lines if "GOMP_SPINCOUNT" in line]
    if not found:
        pytest.skip("torch's OpenMP is not GNU's")
    return done.stdout.split()[0], found[0].split("=")[1].strip(" '")


def test_threads_sleep_where_nothing_is_chosen_and_it_costs_no_import_of_torch():
    assert settings() == ("True", "0")


@pytest.mark.slow
def test_the_users_choice_stands():
    assert settings(GOMP_SPINCOUNT="77") == ("False", "77")
    returned, spins = settings(OMP_WAIT_POLICY="active")
    assert returned == "False"
    assert int(spins) > 10**6


@pytest.mark.slow
def test_after_torch_it_is_too_late_and_said():
    returned, spins = settings(before="import torch")
    assert returned == "False"
    assert spins != "0"
