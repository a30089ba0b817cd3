"""torch's defaults (dtype, device, autocast), whatever the caller has set them to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def torch_defaults() -> Iterator[None]:
    """While open, no autocast, and new tensors are float32 on the CPU; afterwards the caller's settings are restored.

    Feature extractors and calibration create tensors with torch's defaults. With float64, bfloat16 or the meta device
    as defaults they would fail halfway, or silently give other codes.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
