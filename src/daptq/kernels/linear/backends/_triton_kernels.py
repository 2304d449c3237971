"""The Triton kernels: weights are read packed and unpacked in registers; importing this module needs Triton.

A program computes a tile of outputs, group of inputs by group of inputs. The integer kernel follows the arithmetic of
`_arithmetic.py`, each operation rounded on its own: both are launched without fusing products and sums. Tiles are those
that tensor cores take at few rows; nothing here was tuned on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from daptq.kernels.linear.backends._triton_form import interpreted

__all__ = ["multiply_floats", "multiply_integers"]

BLOCK_OUT = 64
# Inputs of one product: tensor cores need 32 of 8 bits, and every group size is a multiple.
BLOCK_IN = 32


@triton.jit
def _unpacked(packed, outputs, inputs, row_bytes, valid, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Integers int32 (inputs, outputs) of a tile, 0 where it is not valid."""
    bits = inputs * BITS
    address = packed + outputs[None, :] * row_bytes + (bits // 8)[:, None]
    word = tl.load(address, mask=valid, other=0).to(tl.int32)
    if BITS == 3:
        # A field of 3 bits may reach into the next byte.
        reaches = ((bits % 8) > 5)[:, None] & valid
        word = word | (tl.load(address + 1, mask=reaches, other=0).to(tl.int32) << 8)
    field = (word >> (bits % 8)[:, None]) & ((1 << BITS) - 1)
    half = 1 << (BITS - 1)
    return tl.where(valid, (field ^ half) - half, 0)


@triton.jit
def _integer_kernel(  # type: ignore[no-untyped-def]
    x, packed, x_scale, weight_scale, zero_point, bias, y,
    rows, in_features, out_features, row_bytes, groups, group_size,
    BITS: tl.constexpr, ZERO: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Y = sum_g (acc_g * x_scale) * weight_scale_g + bias, acc_g an int32 sum of int8 products."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < out_features
    token_scale = tl.load(x_scale + m, mask=m < rows, other=0.0)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for group in range(groups):
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        row_sum = tl.zeros((BLOCK_M,), dtype=tl.int32)
        end = tl.minimum((group + 1) * group_size, in_features)
        for start in range(group * group_size, end, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            tile = tl.load(
                x + m[:, None] * in_features + k[None, :], mask=(m < rows)[:, None] & (k < end)[None, :], other=0
            )
            weight = _unpacked(packed, n, k, row_bytes, (k < end)[:, None] & inside[None, :], BITS)
            acc = tl.dot(tile, weight.to(tl.int8), acc=acc, out_dtype=tl.int32)
            if ZERO:
                row_sum += tl.sum(tile.to(tl.int32), axis=1)
        if ZERO:
            zero = tl.load(zero_point + n * groups + group, mask=inside, other=0).to(tl.int32)
            acc = acc - row_sum[:, None] * zero[None, :]
        scale = tl.load(weight_scale + n * groups + group, mask=inside, other=0.0)
        total += acc.to(tl.float32) * token_scale[:, None] * scale[None, :]
    if BIAS:
        total += tl.load(bias + n, mask=inside, other=0.0)[None, :]
    tl.store(y + m[:, None] * out_features + n[None, :], total, mask=(m < rows)[:, None] & inside[None, :])


@triton.jit
def _float_kernel(  # type: ignore[no-untyped-def]
    x, packed, weight_scale, zero_point, bias, y,
    rows, in_features, out_features, row_bytes, groups, group_size,
    BITS: tl.constexpr, ZERO: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Y = sum_g (x_g (integers - zero points)_g) * weight_scale_g + bias, products in the dtype of x, float32 sums."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < out_features
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for group in range(groups):
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        end = tl.minimum((group + 1) * group_size, in_features)
        if ZERO:
            zero = tl.load(zero_point + n * groups + group, mask=inside, other=0).to(tl.int32)
        for start in range(group * group_size, end, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            valid = (k < end)[:, None] & inside[None, :]
            tile = tl.load(
                x + m[:, None] * in_features + k[None, :], mask=(m < rows)[:, None] & (k < end)[None, :], other=0.0
            )
            weight = _unpacked(packed, n, k, row_bytes, valid, BITS)
            if ZERO:
                weight = tl.where(valid, weight - zero[None, :], 0)
            # At most 8 significant bits: exact in every floating-point dtype that x may have.
            acc = tl.dot(tile, weight.to(tile.dtype), acc=acc, input_precision="ieee")
        scale = tl.load(weight_scale + n * groups + group, mask=inside, other=0.0)
        total += acc * scale[None, :]
    if BIAS:
        total += tl.load(bias + n, mask=inside, other=0.0)[None, :]
    tl.store(y + m[:, None] * out_features + n[None, :], total, mask=(m < rows)[:, None] & inside[None, :])


def multiply_integers(
    x: Int8[Tensor, "m in"],
    packed: UInt8[Tensor, "out bytes"],
    activation_scale: Float[Tensor, "m 1"],
    weight_scale: Float[Tensor, "out groups"],
    zero_point: Int8[Tensor, "out groups"] | None,
    bias: Float[Tensor, " out"] | None,
    num_bits: int,
    group_size: int,
) -> Float[Tensor, "m out"]:
    """The product of integer activations with a packed weight, rescaled.

    Args:
        x: int8 (m, in), integers.
        packed: uint8 (out, ceil(in num_bits / 8)).
        activation_scale: float32 (m, 1).
        weight_scale: float32 (out, groups).
        zero_point: int8 (out, groups), or None.
        bias: float32 (out,), or None.
        num_bits: 2, 3, 4 or 8.
        group_size: Inputs of a group, 0 for all.

    Returns:
        float32 (m, out).
    """
    y = torch.empty(len(x), len(packed), dtype=torch.float32, device=x.device)
    if y.numel():
        block = _rows(len(x))
        _integer_kernel[_tiles(y, block)](
            x.contiguous(), packed, activation_scale.contiguous(), *_weights(weight_scale, zero_point, bias), y,
            *_sizes(x, packed, weight_scale, group_size),
            BITS=num_bits, ZERO=zero_point is not None, BIAS=bias is not None,
            BLOCK_M=block, BLOCK_N=BLOCK_OUT, BLOCK_K=BLOCK_IN, enable_fp_fusion=False,
        )  # fmt: skip
    return y


def multiply_floats(
    x: Float[Tensor, "m in"],
    packed: UInt8[Tensor, "out bytes"],
    weight_scale: Float[Tensor, "out groups"],
    zero_point: Int8[Tensor, "out groups"] | None,
    bias: Float[Tensor, " out"] | None,
    num_bits: int,
    group_size: int,
) -> Float[Tensor, "m out"]:
    """The product of floating-point activations with a packed weight.

    Args:
        x: (m, in), float32, bfloat16 or float16, whose products are summed in float32.
        packed: As in `multiply_integers`, like everything below.
        weight_scale: float32 (out, groups).
        zero_point: int8 (out, groups), or None.
        bias: float32 (out,), or None.
        num_bits: 2, 3, 4 or 8.
        group_size: Inputs of a group, 0 for all.

    Returns:
        float32 (m, out).
    """
    if interpreted() and x.dtype == torch.bfloat16:
        x = x.to(torch.float32)  # The interpreter multiplies the bits of bfloat16 as if they were integers.
    y = torch.empty(len(x), len(packed), dtype=torch.float32, device=x.device)
    if y.numel():
        block = _rows(len(x))
        _float_kernel[_tiles(y, block)](
            x.contiguous(), packed, *_weights(weight_scale, zero_point, bias), y,
            *_sizes(x, packed, weight_scale, group_size),
            BITS=num_bits, ZERO=zero_point is not None, BIAS=bias is not None,
            BLOCK_M=block, BLOCK_N=BLOCK_OUT, BLOCK_K=BLOCK_IN, enable_fp_fusion=False,
        )  # fmt: skip
    return y


def _rows(rows: int) -> int:
    """Rows of a tile: 16 is the least that tensor cores multiply."""
    return next(size for size in (16, 32, 64) if size >= rows or size == 64)


def _tiles(y: Tensor, block: int) -> tuple[int, int]:
    return triton.cdiv(y.shape[0], block), triton.cdiv(y.shape[1], BLOCK_OUT)


def _weights(weight_scale: Tensor, zero_point: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scales, zero points and bias; a pointer that a kernel does not read is that of the scales."""
    scale = weight_scale.contiguous()
    return scale, scale if zero_point is None else zero_point, scale if bias is None else bias


def _sizes(x: Tensor, packed: Tensor, weight_scale: Tensor, group_size: int) -> tuple[int, int, int, int, int, int]:
    return len(x), x.shape[1], len(packed), packed.shape[1], weight_scale.shape[1], group_size or x.shape[1]
