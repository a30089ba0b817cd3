"""A linear layer from packed weights.

``weight`` (the packed tensors), ``packing`` (codes to words), ``reference`` (the specification), ``op`` (torch
operators), ``backends`` (registry, for your own too), ``native`` (C++ and Triton).
"""

from . import native  # registers its backends
from .backends import Backend, Config, get, register, select, survey, unregister
from .op import multiply, w4_linear, w4_linear_int8
from .packing import pack, pack_zeros, packed_words, repack, unpack, unpack_zeros
from .reference import dequantize
from .weight import PackedWeight

__all__ = [
    "Backend",
    "Config",
    "PackedWeight",
    "dequantize",
    "get",
    "multiply",
    "native",
    "pack",
    "pack_zeros",
    "packed_words",
    "register",
    "repack",
    "select",
    "survey",
    "unpack",
    "unpack_zeros",
    "unregister",
    "w4_linear",
    "w4_linear_int8",
]
