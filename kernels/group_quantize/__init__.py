"""``group_quantize``: the Cholesky-based column sweep, from weights and a Hessian to codes and scales."""

from .op import Factor, Quantized, factorize, group_quantize, group_quantize_layers
from .reference import round_to_nearest

__all__ = ["Factor", "Quantized", "factorize", "group_quantize", "group_quantize_layers", "round_to_nearest"]
