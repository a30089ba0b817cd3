"""The output head in 8 bits while a model transcribes: at one token a step it is most of what is read."""

from __future__ import annotations

import torch
from torch import nn

from tarq.errors import ModelError
from tarq.kernels.group_quantize import round_to_nearest
from tarq.kernels.scheme import Scheme
from tarq.linear import QuantLinear

#: Rounded to nearest, 8.125 bits a weight.
SCHEME = Scheme(bits=8, group_size=128, symmetric=True, scale_rule="absmax")


def pack_head(model: nn.Module) -> QuantLinear:
    """Replace a model's output head, in place, by one with weights of 8 bits that stay packed.

    The embedding that the head may be tied to stays as it is, so this takes memory and saves time. A model with such a
    head is for transcribing: it cannot be saved.

    Args:
        model: a transformers model.

    Raises:
        ModelError: the model has no Linear as its head, or no kernel reads 8 bits on its device.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        kind = "is packed already" if isinstance(head, QuantLinear) else "has no head that is a Linear"
        raise ModelError(f"packed_head: {type(model).__name__} {kind}; leave it out")
    name = next(name for name, module in model.named_modules() if module is head)
    codes, scales, _ = round_to_nearest(head.weight.detach().float(), SCHEME, torch.float32)
    packed = QuantLinear.from_codes(codes, scales, None, SCHEME, head.bias).eval()
    if packed.slow_because:
        raise ModelError(f"packed_head gains nothing here: {packed.slow_because}; leave it out")
    model.set_submodule(name, packed)
    return packed


def has_packed_head(model: nn.Module) -> bool:
    """Whether :func:`pack_head` was called on a model."""
    outputs = getattr(model, "get_output_embeddings", None)
    return outputs is not None and isinstance(outputs(), QuantLinear)
