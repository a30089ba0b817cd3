"""Backends: the extension where it is, the reference where it is not, and what forces one."""

import subprocess
import sys
import textwrap

import pytest
import torch
from tarq.kernels import dispatch
from tarq.kernels.gram import gram

from tarq.errors import TarqError

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


def test_without_the_extension_everything_runs_on_the_references_with_a_warning_each():
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
        layer(x)
        torch.testing.assert_close(layer(x), x @ q.dequantize().T, rtol=1e-4, atol=1e-4)
        """)
    )
    assert result.returncode == 0, result.stderr
    reason = "the compiled extension is not available (blocked for the test); build it with: pip install"
    assert result.stderr.count(reason) == 2
    for name in ("group_quantize", "w4_linear"):
        assert result.stderr.count(f"tarq::{name} has no native kernel on cpu, where the slow reference runs") == 1


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
    with pytest.raises(TarqError, match="variable TARQ_BACKEND=fast is not a backend: choose one of auto, ") as caught:
        gram(x)
    assert not isinstance(caught.value, ValueError)  # which callers take for unsound data


@pytest.fixture
def without_kernels(monkeypatch):
    """No operator has a native kernel anywhere, and none has warned of it."""
    monkeypatch.setattr(dispatch, "has_native", lambda name, device: False)
    dispatch.warn_reference.cache_clear()
    yield
    dispatch.warn_reference.cache_clear()


def test_native_is_refused_where_it_is_missing(without_kernels, monkeypatch):
    monkeypatch.setattr(dispatch, "EXTENSION_ERROR", "not built")
    with pytest.raises(ValueError, match=r"tarq::gram has no native kernel on cpu: .*\(not built\)"):
        gram(torch.ones(2, 3), backend="native")
    monkeypatch.setenv("TARQ_BACKEND", "native")
    with pytest.raises(TarqError, match=r"no native kernel on meta$"):
        gram(torch.ones(2, 3, device="meta"))


@pytest.mark.parametrize(
    ("name", "error", "triton", "reason"),
    [
        ("w4_linear", None, False, "Triton is not installed"),
        ("group_quantize", None, True, "the compiled extension was built without CUDA"),
        ("group_quantize", "not built", True, r"the compiled extension is not available \(not built\)"),
    ],
)
def test_a_gpu_without_kernels_says_why(without_kernels, monkeypatch, name, error, triton, reason):
    monkeypatch.setattr(dispatch, "EXTENSION_ERROR", error)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: triton or None)
    with pytest.warns(RuntimeWarning, match=f"tarq::{name} has no native kernel on cuda.*: {reason}"):
        assert dispatch.use_reference(None, name, "cuda")
    with pytest.raises(ValueError, match=reason):
        dispatch.use_reference("native", name, "cuda")


def test_the_reference_warns_once_for_an_operator_and_a_device(without_kernels, recwarn):
    for _ in range(2):
        for name, device in (("gram", "cuda"), ("gram", "cpu"), ("w4_linear", "cuda")):
            assert dispatch.use_reference("auto", name, device)
    assert len(recwarn) == 3
    assert dispatch.use_reference("reference", "w4_linear", "cpu")
    assert len(recwarn) == 3


def test_native_needs_no_extension_where_triton_has_the_kernel(monkeypatch):
    monkeypatch.setattr(dispatch, "EXTENSION_ERROR", "not built")
    monkeypatch.setattr(dispatch, "has_native", lambda name, device: (name, device) == ("w4_linear", "cuda"))
    assert not dispatch.use_reference("native", "w4_linear", "cuda")


def test_a_call_can_be_traced_whole():
    call = torch.compile(lambda x: gram(x) * 2, fullgraph=True, backend="eager")
    torch.testing.assert_close(call(torch.ones(2, 3)), torch.full((3, 3), 4.0))


@pytest.mark.parametrize("name", ["group_quantize", "w4_linear"])
def test_the_compiled_kernels_are_in_use(name):
    import tarq.kernels.group_quantize
    import tarq.kernels.w4_linear  # noqa: F401

    assert dispatch.EXTENSION_ERROR is None
    assert dispatch.has_native(name, "cpu")
