"""What grids, packing, scales and moments promise for any input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from daptq.numerics.grid import largest_integer
from daptq.numerics.moments import Moments
from daptq.numerics.pack import pack, packed_length, unpack
from daptq.numerics.quantized_matrix import quantize_matrix
from daptq.numerics.scales import absmax_scale, searched_scale

bits = st.integers(2, 8)
seeds = st.integers(0, 2**32 - 1)


def rounded(weight: Tensor, scale: Tensor, num_bits: int) -> Tensor:
    """The nearest integers, one scale for each row."""
    return quantize_matrix(weight, scale, None, num_bits).integers


def random_weight(seed: int, rows: int, columns: int, spread: float) -> Tensor:
    """Normal weights, each row with its own magnitude over several decades."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.exp(spread * torch.randn(rows, 1, generator=generator))
    return torch.randn(rows, columns, generator=generator) * magnitude


@given(num_bits=bits, rows=st.integers(0, 4), length=st.integers(0, 67), seed=seeds)
def test_unpack_undoes_pack_for_any_length(num_bits: int, rows: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    high = 2 ** (num_bits - 1)
    integers = torch.randint(-high, high, (rows, length), generator=generator, dtype=torch.int8)
    packed = pack(integers, num_bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_length(length, num_bits))
    assert 8 * packed.shape[1] < length * num_bits + 8
    assert torch.equal(unpack(packed, num_bits, length), integers)


@given(values=st.lists(st.integers(-8, 7), min_size=1, max_size=40), position=st.integers(0, 10**6))
def test_a_flipped_bit_of_a_packed_row_changes_an_integer(values: list[int], position: int) -> None:
    integers = torch.tensor(values, dtype=torch.int8)
    packed = pack(integers, 4)
    bit = position % (4 * len(values))
    packed[bit // 8] ^= 1 << (bit % 8)
    assert (unpack(packed, 4, len(values)) != integers).sum() == 1


@given(num_bits=bits, seed=seeds, shorten=st.floats(0.2, 1.5))
def test_rounding_error_is_at_most_half_a_step_unless_clipped(num_bits: int, seed: int, shorten: float) -> None:
    weight = random_weight(seed, 3, 50, 2.0)
    scale = absmax_scale(weight, num_bits) * shorten
    integers = rounded(weight, scale, num_bits)
    limit = largest_integer(num_bits)
    assert int(integers.abs().max()) <= limit
    error = (weight.double() - integers * scale.double()).abs()
    # The quotient is rounded to float32 before it is rounded to an integer: |quotient| * 2^-24 steps on top of a half.
    half_step = scale.double() * (0.5 + 2**-24 * (limit + 1))
    inside = weight.double().abs() <= scale.double() * (limit + 0.5)
    assert bool((error <= half_step)[inside].all())
    assert bool((integers.abs() == limit)[~inside].all())


@given(num_bits=bits, seed=seeds, exponent=st.integers(-20, 20))
def test_scales_are_equivariant(num_bits: int, seed: int, exponent: int) -> None:
    weight = random_weight(seed, 4, 33, 1.0)
    factor = 2.0**exponent
    for find in (absmax_scale, searched_scale):
        scale = find(weight, num_bits)
        # A power of two changes exponents only, so everything must follow exactly.
        assert torch.equal(find(weight * factor, num_bits), scale * factor)
        assert torch.equal(find(-weight, num_bits), scale)
        rows, columns = torch.randperm(4), torch.randperm(33)
        assert torch.equal(absmax_scale(weight[rows][:, columns], num_bits), absmax_scale(weight, num_bits)[rows])
        assert torch.equal(find(weight[rows], num_bits), scale[rows])
        assert torch.equal(
            rounded(weight * factor, scale * factor, num_bits),
            rounded(weight, scale, num_bits),
        )


@given(num_bits=bits, seed=seeds)
def test_searched_scale_is_never_worse_than_absmax(num_bits: int, seed: int) -> None:
    weight = random_weight(seed, 5, 40, 1.0)

    def error(scale: Tensor) -> Tensor:
        return (weight.double() - rounded(weight, scale, num_bits) * scale.double()).square().sum(dim=1)

    longest = absmax_scale(weight, num_bits)
    searched = searched_scale(weight, num_bits)
    # The search rounds quotients in float64, `error` in float32: a tie may fall the other way, for 2^-24 of the error.
    assert bool((error(searched) <= error(longest) * (1 + 1e-6)).all())
    assert bool((searched <= longest).all())


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0),
    split=st.integers(0, 6),
    seed=seeds,
    offset=st.sampled_from([0.0, 1e3, 1e6]),
)
def test_merged_moments_equal_one_pass(sizes: list[int], split: int, seed: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = offset + torch.randn(sum(sizes), 4, dtype=torch.float64, generator=generator)
    whole, left, right = Moments(4), Moments(4), Moments(4)
    whole.update(samples)
    for index, part in enumerate(samples.split(sizes)):
        (left if index < split else right).update(part)
    left.merge(right)
    assert left.count == whole.count == len(samples)
    # Both differ from the exact result by a few roundings of numbers of size offset, 2^-52 each.
    tolerance = 16 * 2**-52 * (1 + offset)
    torch.testing.assert_close(left.mean, whole.mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(left.covariance(), whole.covariance(), rtol=0, atol=tolerance)
    assert torch.equal(left.covariance(), left.covariance().mT)
    restored = Moments.from_tensors(left.tensors())
    assert restored.count == left.count
    assert torch.equal(restored.mean, left.mean)
    assert torch.equal(restored.covariance(), left.covariance())


def test_the_half_step_property_can_fail() -> None:
    weight = random_weight(0, 3, 50, 2.0)
    scale = absmax_scale(weight, 4)
    truncated = (weight / scale).trunc()
    assert bool(((weight - truncated * scale).abs() > 0.51 * scale).any())
    with pytest.raises(AssertionError):
        assert torch.equal(rounded(weight, scale, 4), truncated.to(torch.int8))


@given(
    num_bits=st.sampled_from([2, 3, 4]),
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    kind=st.sampled_from(["normal", "heavy", "integers", "zeros"]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_screening_takes_the_scale_that_trying_every_one_takes(
    num_bits: int, rows: int, columns: int, kind: str, weighted: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    weight = {"normal": normal, "heavy": normal**3, "integers": normal.mul(3).round(), "zeros": normal * 0}[kind]
    column_weight = torch.rand(columns, generator=generator) if weighted else None
    chosen = searched_scale(weight, num_bits, column_weight)
    limit = largest_integer(num_bits)
    best, least = absmax_scale(weight, num_bits), torch.full((rows, 1), torch.inf, dtype=torch.float64)
    longest, counted = best, torch.ones(columns) if column_weight is None else column_weight
    for step in range(91):
        scale = longest * (1 - 0.9 * step / 90)
        rounded = torch.round(weight.double() / scale.double()).clamp(-limit, limit) * scale.double()
        error = ((rounded - weight.double()).square() * counted.double()).sum(dim=1, keepdim=True)
        better = error < least * (1 - 1e-12)
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    rounded = torch.round(weight.double() / chosen.double()).clamp(-limit, limit) * chosen.double()
    error = ((rounded - weight.double()).square() * counted.double()).sum(dim=1, keepdim=True)
    # Another scale is as good only where errors agree to their rounding.
    assert bool(((chosen == best) | (error <= least * (1 + 1e-9) + 1e-20)).all())
