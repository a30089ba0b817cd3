"""A linear layer from packed 4-bit weights: layout (``packing``), specification (``reference``), operator (``op``)."""

from .op import w4_linear, w4_linear_int8
from .packing import pack, pack_zeros, packed_words, repack, unpack, unpack_zeros
from .reference import dequantize

__all__ = [
    "dequantize",
    "pack",
    "pack_zeros",
    "packed_words",
    "repack",
    "unpack",
    "unpack_zeros",
    "w4_linear",
    "w4_linear_int8",
]
