"""Other weights of the same function, which round better: heads of attentions rotated, hidden units sorted.

**Heads.** An attention reads queries and keys only by their products within a head, and its output projection reads
values only through sums over positions. So with any orthogonal R of the head's size, ``q ← R q`` with ``k ← R k``, and
``v ← R v`` with ``W_out ← W_out (I ⊗ Rᵀ)``, change nothing. They mix a head's channels: rows and columns that stand out
are spread over all of them, so a group's scale fits more of its weights.

**Hidden units** of a feed-forward network can stand in any order. Sorted by the size of their column of the second
layer, a group's columns are of one size, and so its scale fits them.

Codes, scales and zero points are stored as ever; nothing is added to the checkpoint or to what runs it.

**Paper.** The rotation of values is R₂ of SpinQuant (arXiv 2405.16406), there learned; QuaRot (2404.00456) has a
Hadamard matrix in its place; FPTQuant (2506.04985) learns one for queries and keys. They can be rotated where nothing
stands between the projections and their product: no rotary positions, no norm. **Where it differs**: nothing is
learned, and one R serves every head of a size, so that grouped heads need no care. Sorting whole columns is GPTQ's
act-order (2210.17323) with another key, and with the groups in the new order at no cost, since the layer before takes
it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_of(size: int) -> Tensor:
    """The orthogonal matrix [size, size], float64, that heads of a size are rotated by: always the same one.

    A random one: each channel goes to all others in parts of about equal size.
    """
    generator = torch.Generator().manual_seed(size)
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()  # without the signs, Q's distribution is not uniform


def rotate_outputs(tensor: Tensor, rotation: Tensor) -> Tensor:
    """A Linear's weight [m, n] or bias [m] whose outputs, in heads one after the other, are rotated."""
    heads = tensor.to(rotation).reshape(-1, len(rotation), tensor.shape[1] if tensor.dim() == 2 else 1)
    return (rotation @ heads).reshape(tensor.shape).to(tensor.dtype)


def rotate_inputs(weight: Tensor, rotation: Tensor) -> Tensor:
    """A Linear's weight [m, n] that reads its inputs, in heads one after the other, rotated."""
    heads = weight.to(rotation).reshape(len(weight), -1, len(rotation))
    return (heads @ rotation.T).reshape(weight.shape).to(weight.dtype)


def order_of(weight: Tensor) -> Tensor:
    """The columns of a weight [m, n], those of the largest root mean square first: their indices [n]."""
    return weight.float().square().mean(0).argsort(descending=True, stable=True)
