"""The public conformance suite of a rounding method: its contract, checked on a few matrices."""

from __future__ import annotations

import torch

from daptq.errors import CheckFailedError, InvalidInputError, require_check
from daptq.numerics.quantized_matrix import ends, group_count
from daptq.rounding.contract import RoundingMethod

__all__ = ["check_rounding"]

SHAPES = ((6, 40), (1, 128), (33, 7))
BITS = (2, 3, 4, 8)

# Of a normally distributed matrix at 8 bits; rounding to nearest leaves 0.007.
LARGEST_ERROR = 0.05


def check_rounding(method: RoundingMethod) -> None:
    """Checks that a method keeps the contract of `RoundingMethod`.

    Raises:
        CheckFailedError: Something differs; the message names the first difference.
    """
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        weight = torch.randn(shape, generator=generator)
        inputs = torch.randn(3 * shape[1], shape[1], generator=generator, dtype=torch.float64)
        gram = inputs.mT @ inputs if method.needs.grams else None
        for num_bits in BITS:
            given = weight.clone()
            rounded = method.round_weight(given, num_bits, gram)
            again = method.round_weight(given, num_bits, gram)
            place = f"a {shape[0]} x {shape[1]} weight at {num_bits} bits"
            require_check(torch.equal(given, weight), f"{place} must stay as it is")
            described = (rounded.num_bits, rounded.group_size, rounded.zero_point is not None)
            asked = (num_bits, method.group_size, method.asymmetric)
            require_check(
                described == asked, f"{place} must have bits, group size and zero points {asked}, got {described}"
            )
            groups = group_count(shape[1], method.group_size)
            require_check(tuple(rounded.integers.shape) == shape, f"{place} must keep its shape")
            require_check(tuple(rounded.scale.shape) == (shape[0], groups), f"{place} must have one scale per group")
            low, high = ends(num_bits, rounded.zero_point)
            within = int(rounded.integers.min()) >= low and int(rounded.integers.max()) <= high
            require_check(within, f"integers of {place} must lie between {low} and {high}")
            same = torch.equal(rounded.integers, again.integers) and torch.equal(rounded.scale, again.scale)
            require_check(same, f"{place} must be rounded to the same integers and scales at each call")
            if num_bits == 8:
                error = float((rounded.dequantize() - weight).norm() / weight.norm())
                require_check(error <= LARGEST_ERROR, f"{place} must lose at most {LARGEST_ERROR}, got {error:.3g}")
    spoilt = torch.full((2, 8), torch.nan)
    try:
        method.round_weight(spoilt, 4, torch.eye(8, dtype=torch.float64) if method.needs.grams else None)
    except InvalidInputError:
        return
    raise CheckFailedError("a weight that is not finite must be refused with an InvalidInputError.")
