"""Signed integers of 2 to 8 bits packed into bytes without gaps, and back.

Integer i of a row occupies bits [i b, (i + 1) b) of the row's little-endian bit stream, in two's complement: at 4 bits
two weights share a byte (the even one in the low half), at 3 bits eight weights share three bytes. Every row starts at
a byte; its length must be remembered, because the last byte may be padded with zeros.
"""

from __future__ import annotations

import torch
from jaxtyping import Int8, UInt8
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.numerics.grid import largest_integer

__all__ = ["pack", "packed_length", "unpack"]

# Eight integers of b bits fill exactly b bytes, which fit into one 64-bit word for every b up to 8.
GROUP = 8


def packed_length(length: int, num_bits: int) -> int:
    """Bytes of one packed row of `length` integers of `num_bits` bits."""
    largest_integer(num_bits)
    return (length * num_bits + 7) // 8


def pack(integers: Int8[Tensor, "*rows n"], num_bits: int) -> UInt8[Tensor, "*rows bytes"]:
    """Packs each row.

    Args:
        integers: int8 (…, n), each in [-2^(num_bits-1), 2^(num_bits-1) - 1].
        num_bits: Bits of each integer, 2 to 8.

    Returns:
        uint8 (…, ceil(n num_bits / 8)).

    Raises:
        InvalidInputError: The integers are not int8, or one does not fit into `num_bits` bits.
    """
    largest = largest_integer(num_bits)
    if integers.dtype != torch.int8 or integers.dim() == 0:
        raise InvalidInputError(
            f"integers to pack must be int8 with at least one axis, got {integers.dtype} with {integers.dim()}. "
            "Round to the grid first."
        )
    if integers.numel() and not -largest - 1 <= int(integers.min()) <= int(integers.max()) <= largest:
        raise InvalidInputError(
            f"integers of {num_bits} bits must lie in [{-largest - 1}, {largest}], got {int(integers.min())} to "
            f"{int(integers.max())}. Clip them to the grid."
        )
    *rows, length = integers.shape
    if num_bits == 4:
        return _pack_halves(integers)
    groups = -(-length // GROUP)
    padded = torch.nn.functional.pad(integers, (0, groups * GROUP - length))
    fields = padded.reshape(*rows, groups, GROUP).to(torch.int64) & (2**num_bits - 1)
    words = torch.zeros(*rows, groups, dtype=torch.int64, device=integers.device)
    for index in range(GROUP):
        words |= fields[..., index] << (index * num_bits)
    stream = torch.stack([(words >> (8 * index)) & 0xFF for index in range(num_bits)], dim=-1).to(torch.uint8)
    return stream.reshape(*rows, groups * num_bits)[..., : packed_length(length, num_bits)].contiguous()


def unpack(packed: UInt8[Tensor, "*rows bytes"], num_bits: int, length: int) -> Int8[Tensor, "*rows n"]:
    """Inverse of `pack`.

    Args:
        packed: uint8 (…, ceil(length num_bits / 8)).
        num_bits: Bits of each integer, 2 to 8.
        length: Integers of each row.

    Returns:
        int8 (…, length).

    Raises:
        InvalidInputError: `packed` is not uint8 or does not have the bytes that `length` integers need.
    """
    expected = packed_length(length, num_bits)
    if packed.dtype != torch.uint8 or packed.dim() == 0 or packed.shape[-1] != expected:
        raise InvalidInputError(
            f"packed integers must be uint8 with {expected} bytes in each row, got {packed.dtype} of shape "
            f"{tuple(packed.shape)}. Check num_bits and the remembered shape."
        )
    if num_bits == 8:
        return packed.view(torch.int8).clone()
    if num_bits == 4:
        return _unpack_halves(packed)[..., :length].contiguous()
    *rows, size = packed.shape
    groups = -(-size // num_bits)
    padded = torch.nn.functional.pad(packed, (0, groups * num_bits - size))
    stream = padded.reshape(*rows, groups, num_bits).to(torch.int64)
    words = torch.zeros(*rows, groups, dtype=torch.int64, device=packed.device)
    for index in range(num_bits):
        words |= stream[..., index] << (8 * index)
    mask, sign = 2**num_bits - 1, 2 ** (num_bits - 1)
    fields = torch.stack([(words >> (index * num_bits)) & mask for index in range(GROUP)], dim=-1)
    signed: Tensor = ((fields ^ sign) - sign).to(torch.int8)
    return signed.reshape(*rows, groups * GROUP)[..., :length].contiguous()


def _pack_halves(integers: Int8[Tensor, "*rows n"]) -> UInt8[Tensor, "*rows bytes"]:
    """Two 4-bit integers to a byte, without the detour over 64-bit words, which need 16 times their memory."""
    pairs = torch.nn.functional.pad(integers, (0, integers.shape[-1] % 2)).view(torch.uint8).unflatten(-1, (-1, 2))
    return (pairs[..., 0] & 0x0F) | (pairs[..., 1] << 4)


def _unpack_halves(packed: UInt8[Tensor, "*rows bytes"]) -> Int8[Tensor, "*rows twice_bytes"]:
    """Two 4-bit integers of each byte, without the detour over 64-bit words: this one runs in every forward pass."""
    pairs = packed.to(torch.int16)
    pairs = (pairs | (pairs << 4)).bitwise_and_(0x0F0F).bitwise_xor_(0x0808)
    return pairs.view(torch.int8).sub_(8)
