"""Round-to-nearest against exact arithmetic in fractions and a brute-force search of the scale."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from daptq.errors import InvalidInputError
from daptq.rounding.nearest import round_weight

WEIGHT = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
WEIGHT[2] *= 100


def squared_error(row: list[float], scale: float, limit: int) -> Fraction:
    """Least squared error of a row on the grid of this scale, exactly."""
    step, total = Fraction(scale), Fraction(0)
    for value in row:
        exact = Fraction(value)
        total += min((exact - k * step) ** 2 for k in range(-limit, limit + 1))
    return total


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_absmax_puts_every_weight_on_the_nearest_point(num_bits: int) -> None:
    rounded = round_weight(WEIGHT, num_bits, scale="absmax")
    integers, scale = rounded.integers, rounded.scale
    limit = 2 ** (num_bits - 1) - 1
    for row, ints, (step,) in zip(WEIGHT.tolist(), integers.tolist(), scale.tolist(), strict=True):
        assert step == pytest.approx(max(map(abs, row)) / limit, rel=1e-6)
        for value, k in zip(row, ints, strict=True):
            # float32 division may round a value that lies within 2^-23 of a midpoint to its other neighbour.
            assert abs(Fraction(value) - k * Fraction(step)) <= Fraction(step) * (Fraction(1, 2) + Fraction(1, 2**18))


@pytest.mark.parametrize("num_bits", [2, 4])
def test_searched_scale_has_the_least_error_of_many(num_bits: int) -> None:
    rounded = round_weight(WEIGHT, num_bits)
    integers, scale = rounded.integers, rounded.scale
    limit = 2 ** (num_bits - 1) - 1
    for row, ints, (step,) in zip(WEIGHT.tolist(), integers.tolist(), scale.tolist(), strict=True):
        reached = sum((Fraction(v) - k * Fraction(step)) ** 2 for v, k in zip(row, ints, strict=True))
        longest = max(map(abs, row)) / limit
        tried = [squared_error(row, longest * fraction / 20, limit) for fraction in range(2, 21)]
        # The search steps by 1/100 of the absmax scale: every one of these twentieths is among its candidates.
        assert reached <= min(tried) * Fraction(1 + 10**-5)


def test_outlier_is_clipped_only_by_the_searched_scale() -> None:
    # 400 weights of deviation 1 and one of 6: clipping that one to 3 costs 9, a grid half as wide saves about 20.
    weight = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    weight[0, 7] = 6.0
    searched, absmax = (round_weight(weight, 4, scale=rule) for rule in ("searched", "absmax"))
    assert float(searched.scale) < 0.8 * float(absmax.scale)
    assert int(searched.integers[0, 7]) == int(absmax.integers[0, 7]) == 7


def test_bfloat16_weights_are_rounded_as_their_values() -> None:
    low = WEIGHT.bfloat16()
    first, second = round_weight(low, 4), round_weight(low.float(), 4)
    assert torch.equal(first.integers, second.integers)
    assert torch.equal(first.scale, second.scale)


@pytest.mark.parametrize("weight", [torch.zeros(4), torch.zeros(0, 4), torch.full((2, 2), torch.nan)])
def test_what_is_no_finite_matrix_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError, match="weight must be a finite"):
        round_weight(weight, 4)
