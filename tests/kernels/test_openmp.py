"""OpenMP's threads sleep while they wait, unless the user says how, or torch was there before."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tarq.kernels.openmp import VARIABLES

PROGRAM = """
import os, sys
{before}
import tarq
print(os.environ.get("OMP_WAIT_POLICY"), {before!r} or "torch" not in sys.modules)
import torch
torch.ones(1)
"""


def settings(before: str = "", **chosen: str) -> tuple[str, str]:
    """The policy in the environment once tarq is imported, and the spins that OpenMP says it was loaded with."""
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
    policy, without_torch = done.stdout.split(maxsplit=1)
    assert without_torch.strip() != "False"
    return policy, found[0].split("=")[1].strip(" '")


def test_threads_sleep_where_nothing_is_chosen_and_it_costs_no_import_of_torch():
    assert settings() == ("passive", "0")


@pytest.mark.slow
def test_the_users_choice_stands():
    assert settings(GOMP_SPINCOUNT="77") == ("None", "77")
    policy, spins = settings(OMP_WAIT_POLICY="active")
    assert policy == "active"
    assert int(spins) > 10**6


@pytest.mark.slow
def test_after_torch_it_is_too_late():
    policy, spins = settings(before="import torch")
    assert policy == "None"
    assert spins != "0"
