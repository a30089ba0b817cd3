"""Codes to int32 words and back, bit for bit as compressed-tensors' ``pack-quantized`` format has them.

Codes are unsigned (``0 … 2**bits − 1``). compressed-tensors packs the signed code plus ``2**(bits−1)``, which
is the same unsigned number. A row is one dense little-endian bit string: code k takes bits
``bits·k … bits·(k+1) − 1``, and the last word is padded with zero bits. Eight codes of b bits are
therefore exactly b bytes for every b, which is all the code below relies on.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = (2, 3, 4, 8)


def packed_words(count: int, bits: int) -> int:
    """int32 words that hold ``count`` codes of ``bits`` bits."""
    return -(-count * bits // 32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes along the last dimension.

    Args:
        codes: uint8 [N, K], every value below ``2**bits``.
        bits: 2, 3, 4 or 8.

    Returns:
        int32 [N, ceil(K · bits / 32)].

    Raises:
        ValueError: ``codes`` is not a uint8 matrix, is on the meta device, a code does not fit, or ``bits`` is not
            supported.
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise ValueError(f"codes must be a uint8 matrix [N, K], not {codes.dtype} {list(codes.shape)}")
    if codes.is_meta:
        raise ValueError("codes are on the meta device, where there are no values to pack")
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"codes must be below {2**bits} to fit {bits} bits; the largest is {int(codes.max())}")
    rows, count = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -count % 32)).reshape(rows, -1, 8)
    eights = padded[..., 0].long()
    for k in range(1, 8):
        eights |= padded[..., k].long() << (bits * k)
    # Each int64 holds eight codes in its low `bits` bytes (little-endian hosts, as compressed-tensors assumes).
    octets = eights.unsqueeze(-1).view(torch.uint8)[..., :bits].reshape(rows, -1)
    return octets.view(torch.int32)[:, : packed_words(count, bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo :func:`pack`.

    Args:
        packed: int32 [N, ceil(count · bits / 32)].
        bits: 2, 3, 4 or 8.
        count: K, the codes in a row.

    Returns:
        uint8 [N, count].

    Raises:
        ValueError: ``packed`` is not an int32 matrix of that width, or ``bits`` is not supported.
    """
    _check_bits(bits)
    if packed.dtype != torch.int32 or packed.dim() != 2 or packed.shape[1] != packed_words(count, bits):
        raise ValueError(
            f"packed must be int32 [N, {packed_words(count, bits)}] for {count} codes of {bits} bits, "
            f"not {packed.dtype} {list(packed.shape)}"
        )
    rows = packed.shape[0]
    words = torch.nn.functional.pad(packed.contiguous(), (0, -packed.shape[1] % bits))
    octets = words.view(torch.uint8).reshape(rows, -1, bits)
    if bits == 8:
        return octets.reshape(rows, -1)[:, :count].contiguous()
    eights = octets[..., 0].int()  # bits ≤ 4: eight codes fit in 32 bits
    for k in range(1, bits):
        eights = eights | octets[..., k].int() << (8 * k)
    shifts = torch.arange(0, 8 * bits, bits, dtype=torch.int32, device=packed.device)
    codes = (eights.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.reshape(rows, -1)[:, :count].to(torch.uint8)


def pack_zeros(zeros: Tensor, bits: int) -> Tensor:
    """Pack zero points along dimension 0, as ``weight_zero_point`` is saved (no minus one).

    Args:
        zeros: uint8 [N, G], every value below ``2**bits``.
        bits: 2, 3, 4 or 8.

    Returns:
        int32 [ceil(N · bits / 32), G].

    Raises:
        ValueError: as :func:`pack`.
    """
    return pack(zeros.T, bits).T.contiguous()


def unpack_zeros(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo :func:`pack_zeros`: int32 [ceil(count · bits / 32), G] to uint8 [count, G]; raises as :func:`unpack`."""
    return unpack(packed.T, bits, count).T.contiguous()


def repack(
    weight_packed: Tensor, weight_zero_point: Tensor | None, in_features: int, bits: int, new_bits: int
) -> tuple[Tensor, Tensor | None]:
    """A layer's codes and zero points at another bit width, for the same weights and scales; it is its own inverse.

    Codes with explicit zero points keep their values; symmetric ones shift with the zero point implied by their width,
    from ``2**(bits−1)`` to ``2**(new_bits−1)``.

    Args:
        weight_packed: int32 [N, ceil(in_features · bits / 32)].
        weight_zero_point: int32 [ceil(N · bits / 32), G], or None: symmetric.
        in_features: K.
        bits: 2, 3, 4 or 8, the current width.
        new_bits: likewise, the new width.

    Raises:
        ValueError: as :func:`unpack`; or a code or zero point does not fit the new width.
    """
    codes = unpack(weight_packed, bits, in_features)
    if weight_zero_point is None:
        # uint8 wraps: codes too small to shift down become too large, and pack() refuses them.
        return pack(codes + (2 ** (new_bits - 1) - 2 ** (bits - 1)), new_bits), None
    return pack(codes, new_bits), pack_zeros(unpack_zeros(weight_zero_point, bits, len(codes)), new_bits)


def _check_bits(bits: int) -> None:
    if bits not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, not {bits}")
