"""``group_quantize``: the Cholesky-based column sweep, and the refinement of its codes and scales."""

from .op import Factor, Quantized, factorize, group_quantize, group_quantize_layers
from .reference import round_to_nearest
from .refine import group_refine

__all__ = [
    "Factor",
    "Quantized",
    "factorize",
    "group_quantize",
    "group_quantize_layers",
    "group_refine",
    "round_to_nearest",
]
