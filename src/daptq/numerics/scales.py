"""Scales of grids, one for each row of a weight or of a group of its columns.

`absmax_scale` represents the largest weight of a row exactly at the end of a symmetric grid, `range_grid` the smallest
and the largest at the two ends of an asymmetric one; `searched_scale` and `searched_range_grid` shorten the grid where
clipping a few large weights costs less squared error than it saves on all others. None of them sees activations; a
caller that does can say how much each column counts.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.numerics.grid import largest_integer
from daptq.numerics.screening import screened_scale

__all__ = ["absmax_scale", "range_grid", "searched_range_grid", "searched_scale"]

# With 2 bits the best grid of a heavy-tailed row ends at a small part of the largest weight.
SMALLEST_FRACTION = 0.1
CANDIDATES = 91
FRACTIONS = tuple(1 - (1 - SMALLEST_FRACTION) * step / (CANDIDATES - 1) for step in range(CANDIDATES))
# With more integers than 4 bits have, trying every candidate is no slower than screening them.
LARGEST_SCREENED = 7


def absmax_scale(weight: Float[Tensor, "out in"], num_bits: int) -> Float[Tensor, "out 1"]:
    """The largest |weight| of each row over the largest integer; 1 for a row of zeros.

    Args:
        weight: (out, in) finite weight.
        num_bits: Bits of the grid, 2 to 8.

    Returns:
        float32 (out, 1), positive.

    Raises:
        InvalidInputError: `weight` is not a finite, non-empty matrix.
    """
    limit = largest_integer(num_bits)
    _require_matrix(weight)
    scale = (weight.detach().abs().amax(dim=1, keepdim=True).to(torch.float64) / limit).float()
    # A scale that underflows to zero belongs to a row that float32 cannot tell from zeros.
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def searched_scale(
    weight: Float[Tensor, "out in"], num_bits: int, column_weight: Float[Tensor, " in"] | None = None
) -> Float[Tensor, "out 1"]:
    """The scale with the least squared rounding error of each row, among shortened absmax scales.

    91 fractions from 0.1 to 1 of the absmax scale are tried in float64; ties go to the larger scale, so the result is
    never worse than `absmax_scale` and equal to it where shortening gains nothing.

    Args:
        weight: (out, in) finite weight.
        num_bits: Bits of the grid, 2 to 8.
        column_weight: (in,), finite and not negative: how much the squared error of each column counts; by default all
            count the same.

    Returns:
        float32 (out, 1), positive.

    Raises:
        InvalidInputError: `weight` is not a finite, non-empty matrix, or `column_weight` is not as said above.
    """
    longest, limit = absmax_scale(weight, num_bits), largest_integer(num_bits)
    end = torch.tensor(limit, dtype=torch.float64, device=weight.device)
    if limit > LARGEST_SCREENED:
        return _shortened(weight, longest, -end, end, column_weight)
    if column_weight is not None:
        _require_column_weight(column_weight, weight)
        column_weight = column_weight.to(torch.float64)
    best, undecided = screened_scale(weight, longest, FRACTIONS, limit, column_weight)
    if len(undecided):
        best[undecided] = _shortened(weight[undecided], longest[undecided], -end, end, column_weight)
    return best


def range_grid(weight: Float[Tensor, "out in"], num_bits: int) -> tuple[Float[Tensor, "out 1"], Int8[Tensor, "out 1"]]:
    """The asymmetric grid from the smallest to the largest weight of each row, zero included; clips nothing.

    scale = (max(w, 0) - min(w, 0)) / (2^b - 1), zero point = round(-2^(b-1) - min(w, 0) / scale).

    Args:
        weight: (out, in) finite weight.
        num_bits: Bits of the grid, 2 to 8.

    Returns:
        Scale float32 (out, 1), positive, 1 for a row of zeros, and zero point int8 (out, 1).

    Raises:
        InvalidInputError: `weight` is not a finite, non-empty matrix.
    """
    half = largest_integer(num_bits) + 1
    _require_matrix(weight)
    exact = weight.detach().to(torch.float64)
    low = exact.amin(dim=1, keepdim=True).clamp_max_(0.0)
    high = exact.amax(dim=1, keepdim=True).clamp_min_(0.0)
    scale = ((high - low) / (2 * half - 1)).float()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = torch.round(-half - low / scale.to(torch.float64)).clamp_(-half, half - 1)
    return scale, zero_point.to(torch.int8)


def searched_range_grid(
    weight: Float[Tensor, "out in"], num_bits: int, column_weight: Float[Tensor, " in"] | None = None
) -> tuple[Float[Tensor, "out 1"], Int8[Tensor, "out 1"]]:
    """`range_grid` with both ends drawn towards zero to the least squared rounding error; the zero point stays.

    Args:
        weight: As in `searched_scale`, like everything below.
        num_bits: Bits of the grid, 2 to 8.
        column_weight: (in,), or None.

    Returns:
        Scale float32 (out, 1), positive, and zero point int8 (out, 1).

    Raises:
        InvalidInputError: As `searched_scale`.
    """
    half = largest_integer(num_bits) + 1
    scale, zero_point = range_grid(weight, num_bits)
    offset = zero_point.to(torch.float64)
    return _shortened(weight, scale, -half - offset, half - 1 - offset, column_weight), zero_point


def _shortened(
    weight: Float[Tensor, "out in"],
    longest: Float[Tensor, "out 1"],
    low: Float[Tensor, "*rows"],
    high: Float[Tensor, "*rows"],
    column_weight: Float[Tensor, " in"] | None,
) -> Float[Tensor, "out 1"]:
    """The scale with the least error among fractions of `longest`, for a grid of the multiples `low` … `high`."""
    if column_weight is not None:
        _require_column_weight(column_weight, weight)
        column_weight = column_weight.to(torch.float64)
    exact = weight.detach().to(torch.float64)
    best = longest.clone()
    least = _squared_error(exact, longest, low, high, column_weight)
    for fraction in FRACTIONS[1:]:
        candidate = longest * fraction
        error = _squared_error(exact, candidate, low, high, column_weight)
        better = (error < least) & (candidate > 0)
        best = torch.where(better, candidate, best)
        least = torch.where(better, error, least)
    return best


def _squared_error(
    weight: Float[Tensor, "out in"],
    scale: Float[Tensor, "out 1"],
    low: Float[Tensor, "*rows"],
    high: Float[Tensor, "*rows"],
    column_weight: Float[Tensor, " in"] | None,
) -> Float[Tensor, "out 1"]:
    """Sum over each row of column_weight (weight - scale * multiple)^2, float64 (out, 1)."""
    exact = scale.to(torch.float64)
    # Half the time of a clamp between tensors.
    rounded = torch.maximum(torch.minimum(torch.round(weight / exact), high), low).mul_(exact)
    squares = rounded.sub_(weight).square_()
    return squares.sum(dim=1, keepdim=True) if column_weight is None else squares @ column_weight[:, None]


def _require_matrix(weight: Tensor) -> None:
    if weight.dim() != 2 or weight.numel() == 0 or not bool(torch.isfinite(weight).all()):
        raise InvalidInputError(
            f"weight must be a finite, non-empty matrix (out, in), got shape {tuple(weight.shape)}"
            f"{' with NaN or infinity' if weight.dim() == 2 and weight.numel() else ''}. Check the checkpoint."
        )


def _require_column_weight(column_weight: Tensor, weight: Tensor) -> None:
    finite = bool((torch.isfinite(column_weight) & (column_weight >= 0)).all())
    if column_weight.shape != weight.shape[1:] or not finite:
        raise InvalidInputError(
            f"column_weight must be finite, not negative and of shape {tuple(weight.shape[1:])}, got shape "
            f"{tuple(column_weight.shape)}{'' if finite else ' with other values'}. Give one entry per input channel."
        )
