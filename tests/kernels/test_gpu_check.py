"""benchmarks/gpu_check.py: it knows every test that wants a GPU and every package that these need."""

import ast
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load():
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks" / "gpu_check.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_marked_test_runs():
    check = load()
    assert "tests/kernels/test_linear.py" in check.MARKED_TESTS
    assert any(not name.startswith("tests/kernels/") for name in check.MARKED_TESTS)
    assert "tests/kernels/test_dispatch.py" not in check.MARKED_TESTS
    assert not set(check.KERNEL_TESTS) & set(check.MARKED_TESTS)
    assert all((ROOT / name).is_file() for name in check.KERNEL_TESTS + check.MARKED_TESTS)


def test_what_the_tests_import_is_asked_for():
    """By conftest.py and the tests themselves, where they begin."""
    check = load()
    imported = set()
    for name in ("tests/conftest.py", *check.KERNEL_TESTS, *check.MARKED_TESTS):
        for node in ast.parse((ROOT / name).read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) - {"tarq"} <= set(check.NEEDED)
