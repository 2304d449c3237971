"""The AVX2 kernel against the operation written again in numpy: int64 products, every float32 operation on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from daptq.kernels.linear.backends import avx2
from daptq.kernels.linear.contract import PackedWeight

pytestmark = pytest.mark.skipif(avx2.unavailable() is not None, reason=str(avx2.unavailable()))

# Fewer and more than a tile of 4 rows x 16 outputs x 32 inputs, odd remainders, and more rows than one task takes.
SHAPES = ((1, 1, 1), (3, 7, 5), (4, 32, 16), (17, 192, 40), (34, 255, 33), (5, 33, 17), (131, 65, 24), (2, 768, 192))


def example(num_bits: int, rows: int, in_features: int, out_features: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Activations with tokens of very different size, every integer that can be stored, scales, bias."""
    generator = torch.Generator().manual_seed(num_bits * 1000 + in_features)
    x = torch.randn(rows, in_features, generator=generator)
    x *= torch.exp(2 * torch.randn(rows, 1, generator=generator))
    high = 2 ** (num_bits - 1)
    integers = torch.randint(-high, high, (out_features, in_features), generator=generator, dtype=torch.int8)
    scale = 0.01 + torch.rand(out_features, 1, generator=generator)
    return x, integers, scale, torch.randn(out_features, generator=generator)


def numpy_linear(
    x: Tensor, integers: Tensor, scale: Tensor, bias: Tensor | None, limit: int, static: Tensor | None
) -> NDArray[np.float32]:
    """y = (round(x / s_x) W^T) s_x s_w + b."""
    values = x.numpy()
    if static is None:
        step = np.abs(values).max(axis=1, keepdims=True) / np.float32(limit)
        step = np.where(step == 0, np.float32(1), step)
    else:
        step = np.full((len(values), 1), static.item(), dtype=np.float32)
    rounded = np.clip(np.rint(values / step), -limit, limit).astype(np.int64)
    accumulators = rounded @ integers.numpy().astype(np.int64).T
    result: NDArray[np.float32] = accumulators.astype(np.float32) * step * scale.numpy().T
    return result if bias is None else result + bias.numpy()


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation_bits", [4, 8])
@pytest.mark.parametrize("static", [None, 0.02])
def test_kernel_equals_numpy_bit_for_bit(
    num_bits: int, shape: tuple[int, int, int], activation_bits: int, static: float | None
) -> None:
    x, integers, scale, bias = example(num_bits, *shape)
    prepared = avx2.prepare(PackedWeight.from_integers(integers, num_bits))
    given = None if static is None else torch.tensor(static)
    for offset in (bias, None):
        y = prepared.run(x, scale, offset, activation_bits, given)
        expected = numpy_linear(x, integers, scale, offset, {4: 7, 8: 127}[activation_bits], given)
        assert np.array_equal(y.numpy(), expected)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_one_wrong_integer_would_be_seen(num_bits: int) -> None:
    x, integers, scale, bias = example(num_bits, 3, 70, 20)
    wrong = integers.clone()
    wrong[19, 69] = -1 if integers[19, 69] >= 0 else 0
    y = avx2.prepare(PackedWeight.from_integers(wrong, num_bits)).run(x, scale, bias)
    assert not np.array_equal(y.numpy(), numpy_linear(x, integers, scale, bias, 127, None))


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_do_not_overflow(num_bits: int, sign: int) -> None:
    # Every activation at its limit and every weight at an end of its range: 16-bit sums are as large as they get.
    high = 2 ** (num_bits - 1)
    for weight in (-high, high - 1):
        integers = torch.full((16, 4096), weight, dtype=torch.int8)
        x = torch.full((4, 4096), 127.0 * sign)
        y = avx2.prepare(PackedWeight.from_integers(integers, num_bits)).run(x, torch.ones(16, 1), None)
        assert torch.equal(y, torch.full((4, 16), float(np.float32(4096 * 127 * sign * weight))))


@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_bytes_of_a_tile(num_bits: int) -> None:
    """The layout of avx2.cpp, written with loops."""
    integers = example(num_bits, 1, 70, 21)[1]
    tiles = avx2.to_tiles(integers, num_bits)
    planes, neighbours = 8 // num_bits, {2: 4, 4: 4, 8: 2}[num_bits]
    assert tiles.shape == (2, 96 // (planes * neighbours), 2, 8, neighbours)
    for panel, group, half, output, neighbour in np.ndindex(*tiles.shape):
        row, byte = 16 * panel + 8 * half + output, 0
        for plane in range(planes):
            column = (group * planes + plane) * neighbours + neighbour
            value = int(integers[row, column]) if row < 21 and column < 70 else 0
            byte |= (value % 256 if num_bits == 8 else value + 2 ** (num_bits - 1)) << (num_bits * plane)
        assert int(tiles[panel, group, half, output, neighbour]) == byte
