"""Fixtures of the kernels' tests."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tarq.kernels import dispatch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


ISAS = torch.ops.tarq.cpu_isas() if dispatch.EXTENSION_ERROR is None else []


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of the extension that this CPU has, in turn forced on its kernels."""
    monkeypatch.setenv("TARQ_CPU_ISA", request.param)
    return request.param


@pytest.fixture
def isas(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Iterator[str]]:
    """All of them, one after the other, for tests whose expected values take longer than the kernels."""

    def each() -> Iterator[str]:
        for name in ISAS:
            monkeypatch.setenv("TARQ_CPU_ISA", name)
            yield name

    return each


@pytest.fixture(scope="session")
def benchmark_script() -> Callable[[str], SimpleNamespace]:
    """The names that a script of benchmarks/ defines."""
    return lambda name: SimpleNamespace(**runpy.run_path(str(BENCHMARKS / f"{name}.py")))
