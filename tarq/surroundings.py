"""What a caller may have set in torch around a call, and what tarq computes under all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def plain_torch() -> Iterator[None]:
    """Without autocast, new tensors float32 and on the CPU unless said otherwise; the caller's settings come back.

    Feature extractors and calibration make tensors by torch's defaults: float64, bfloat16 or the meta device there give
    an error in the middle of the work, or other codes unsaid.
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
