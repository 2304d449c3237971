"""Grids, packing, scales and moments against exact rational arithmetic, Python integers and brute force."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from daptq.numerics.moments import Moments
from daptq.numerics.pack import pack, unpack
from daptq.numerics.quantized_matrix import quantize_matrix
from daptq.numerics.scales import absmax_scale, searched_scale


def exact_integer(value: float, scale: float, num_bits: int) -> int:
    """clip(round(value / scale)) in rational arithmetic; Python rounds halves to even."""
    limit: int = 2 ** (num_bits - 1) - 1
    return max(-limit, min(limit, round(Fraction(value) / Fraction(scale))))


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 6, 7, 8])
def test_quantize_equals_rational_arithmetic(num_bits: int) -> None:
    generator = torch.Generator().manual_seed(num_bits)
    # Multiples of 1/8 with a power of two as scale: every quotient is exact in float32, and ties are frequent.
    values = torch.randint(-1200, 1201, (5, 97), generator=generator) / 8
    scale = torch.tensor([[0.25], [0.5], [1.0], [2.0], [16.0]])
    expected = [
        [exact_integer(value, step, num_bits) for value in row]
        for row, (step,) in zip(values.tolist(), scale.tolist(), strict=True)
    ]
    integers = quantize_matrix(values, scale, None, num_bits).integers
    assert integers.tolist() == expected
    restored = [[integer * step for integer in row] for row, (step,) in zip(expected, scale.tolist(), strict=True)]
    assert quantize_matrix(values, scale, None, num_bits).dequantize().tolist() == restored


def test_halves_go_to_the_even_integer() -> None:
    values = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 9.0, -9.0]])
    assert quantize_matrix(values, torch.ones(1, 1), None, 4).integers.tolist() == [[-2, -2, 0, 0, 2, 2, 7, -7]]


def test_four_bits_are_two_per_byte_low_half_first() -> None:
    packed = pack(torch.tensor([[1, -2, 7, -8, 5]], dtype=torch.int8), 4)
    assert packed.tolist() == [[0xE1, 0x87, 0x05]]


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 31, 64])
def test_packing_equals_one_long_python_integer(num_bits: int, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    high = 2 ** (num_bits - 1)
    integers = torch.randint(-high, high, (3, length), generator=generator, dtype=torch.int8)
    packed = pack(integers, num_bits)
    for row, stream in zip(integers.tolist(), packed.tolist(), strict=True):
        number = sum((value % 2**num_bits) << (index * num_bits) for index, value in enumerate(row))
        assert bytes(stream) == number.to_bytes(-(-length * num_bits // 8), "little")
    assert torch.equal(unpack(packed, num_bits, length), integers)


def brute_force_scale(row: list[float], num_bits: int, fractions: list[float]) -> float:
    """Least squared error over all scales fraction * max|row| / largest integer, in float64."""
    limit = 2 ** (num_bits - 1) - 1
    values = np.array(row, dtype=np.float64)
    errors = []
    for fraction in fractions:
        step = fraction * np.abs(values).max() / limit
        errors.append(float(((np.clip(np.rint(values / step), -limit, limit) * step - values) ** 2).sum()))
    return min(errors)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_searched_scale_is_the_best_of_a_fine_brute_force(num_bits: int) -> None:
    generator = torch.Generator().manual_seed(7)
    # Student-t like tails: a few weights far out, where shortening the grid pays.
    weight = torch.randn(6, 192, generator=generator) / torch.rand(6, 192, generator=generator).add(0.05)
    scale = searched_scale(weight, num_bits)
    integers = quantize_matrix(weight.double(), scale.double(), None, num_bits).integers
    found = (integers * scale.double() - weight.double()).square().sum(dim=1)
    for row, error in zip(weight.tolist(), found.tolist(), strict=True):
        coarse = brute_force_scale(row, num_bits, [1 - 0.9 * step / 90 for step in range(91)])
        fine = brute_force_scale(row, num_bits, np.linspace(0.1, 1.0, 4001).tolist())
        # The scale is stored in float32: moving it by 2^-24 of itself changes the error by about that much, relatively.
        assert error == pytest.approx(coarse, rel=1e-5)
        # Candidates are 1 % apart. Between two of them the outermost integers move by 2^(b-1) % of a step, so the loss
        # against the best of all scales grows with the bits; 10 % holds at 8 bits.
        assert error <= 1.1 * fine


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_absmax_scale_puts_the_largest_weight_on_the_last_integer(num_bits: int) -> None:
    weight = torch.tensor([[0.5, -3.0, 1.0], [0.0, 0.0, 0.0], [1e-3, 2e-3, -1e-3]])
    scale = absmax_scale(weight, num_bits)
    limit = 2 ** (num_bits - 1) - 1
    assert scale[:, 0].tolist() == [np.float32(3.0 / limit), 1.0, np.float32(np.float64(np.float32(2e-3)) / limit)]
    assert quantize_matrix(weight, scale, None, num_bits).integers.abs().amax(dim=1).tolist() == [limit, 0, limit]


def exact_moments(samples: list[list[float]]) -> tuple[list[float], list[list[float]]]:
    """Mean and covariance (divided by n) in rational arithmetic."""
    rows = [[Fraction(value) for value in row] for row in samples]
    count, size = len(rows), len(rows[0])
    mean = [sum((row[i] for row in rows), Fraction(0)) / count for i in range(size)]
    covariance = [
        [float(sum(((r[i] - mean[i]) * (r[j] - mean[j]) for r in rows), Fraction(0)) / count) for j in range(size)]
        for i in range(size)
    ]
    return [float(value) for value in mean], covariance


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (1e6, 1e-3), (-3e8, 1.0)])
def test_moments_equal_rational_arithmetic(offset: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(3)
    samples = offset + spread * torch.randn(60, 3, dtype=torch.float64, generator=generator)
    moments = Moments(3)
    for part in samples.split([1, 7, 30, 2, 20]):
        moments.update(part)
    mean, covariance = exact_moments(samples.tolist())
    # The samples are exact float64 numbers. Differences to the mean carry an absolute error of a few units in the last
    # place of the mean (offset * 2^-52), relative to the spread; a factor of 8 covers the sums.
    relative = 8 * 2**-52 * (1 + abs(offset) / spread)
    torch.testing.assert_close(moments.mean, torch.tensor(mean, dtype=torch.float64), rtol=4 * 2**-52, atol=1e-15)
    expected = torch.tensor(covariance, dtype=torch.float64)
    torch.testing.assert_close(moments.covariance(), expected, rtol=0, atol=relative * spread**2)
    torch.testing.assert_close(moments.std() ** 2, expected.diagonal(), rtol=0, atol=relative * spread**2)


def test_one_pass_around_zero_would_fail_where_moments_do_not() -> None:
    samples = 1e6 + 1e-3 * torch.randn(500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    moments = Moments(1)
    for part in samples.split(50):
        moments.update(part)
    naive = (samples.square().mean() - samples.mean() ** 2).item()
    expected = samples.var(unbiased=False).item()
    assert moments.covariance().item() == pytest.approx(expected, rel=1e-6)
    assert naive != pytest.approx(expected, rel=1e-2)
