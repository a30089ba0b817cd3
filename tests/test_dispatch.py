"""Backends: the extension where it is, the reference where it is not, and what forces one."""

import subprocess
import sys
import textwrap

import pytest
import torch
from tarq.kernels import dispatch
from tarq.kernels.gram import gram

BLOCK_EXTENSION = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tarq._C":
            raise ImportError("blocked for the test")
sys.meta_path.insert(0, Block())
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    import os

    return subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def test_without_the_extension_everything_runs_on_the_references_with_one_warning():
    result = python(
        BLOCK_EXTENSION
        + textwrap.dedent("""
        import torch, tarq
        from tarq.kernels import dispatch
        from tarq.kernels.group_quantize import factorize, group_quantize
        from tarq.kernels.scheme import Scheme
        from tarq.linear import QuantLinear
        assert dispatch.EXTENSION_ERROR == "blocked for the test"
        x = torch.randn(100, 64)
        scheme = Scheme(group_size=32)
        q = group_quantize(torch.randn(8, 64), factorize(x.T @ x), scheme)
        layer = QuantLinear.from_codes(q.codes, q.scales, None, scheme, None)
        torch.testing.assert_close(layer(x), x @ q.dequantize().T, rtol=1e-4, atol=1e-4)
        """)
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("compiled extension is not available (blocked for the test)") == 1
    assert "pip install" in result.stderr


def test_import_is_quick_and_light():
    """``import tarq`` alone pulls in neither torch nor transformers."""
    result = python("import sys, tarq; assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'")
    assert result.returncode == 0, result.stderr


def test_the_kernels_folder_does_not_shadow_another_package():
    """It installs as ``tarq.kernels``; a top-level ``kernels`` is somebody else's."""
    result = python(
        "import importlib.util as u, tarq.kernels; assert u.find_spec('kernels') is None, u.find_spec('kernels')"
    )
    assert result.returncode == 0, result.stderr


def test_unknown_backends_are_named(monkeypatch):
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="auto, reference, native"):
        gram(x, backend="cuda")
    monkeypatch.setenv("TARQ_BACKEND", "fast")
    with pytest.raises(ValueError, match="'fast'"):
        gram(x)


def test_native_is_refused_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(dispatch, "EXTENSION_ERROR", "not built")
    with pytest.raises(ValueError, match="not built"):
        dispatch.use_reference("native")
    assert dispatch.use_reference("reference")
    assert not dispatch.use_reference(None)


@pytest.mark.parametrize("name", ["group_quantize", "w4_linear"])
def test_the_compiled_kernels_are_in_use(name):
    import tarq.kernels.group_quantize
    import tarq.kernels.w4_linear  # noqa: F401

    assert dispatch.EXTENSION_ERROR is None
    assert dispatch.has_native(name, "cpu")
