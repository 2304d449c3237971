"""Which scale of a symmetric grid has the least squared error, for all candidates of a row at once.

In a row of sorted magnitudes those that round to the same integer lie side by side, so with sums of 1, |w| and w^2 up
to every position the error of a candidate takes a few look-ups, whatever the length of the row. Sums are rounded, so
rows where candidates are too close to tell apart are left to a caller that tries them one by one: a decision that is
made here is the one that trying would have come to.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["screened_scale"]

# Rows are taken in pieces of so many weights, which fit into a processor's cache.
PIECE = 2**18
# Errors closer than these parts of the error and of the row's squares are not told apart. Sums over a row of 16,000
# weights are exact to 4e-12 of its squares at worst.
RELATIVE, OF_SQUARES = 1e-9, 1e-11


def screened_scale(
    weight: Float[Tensor, "out in"],
    longest: Float[Tensor, "out 1"],
    fractions: Sequence[float],
    limit: int,
    column_weight: Float[Tensor, " in"] | None = None,
) -> tuple[Float[Tensor, "out 1"], Int[Tensor, " undecided"]]:
    """The best of the candidates longest * fraction for each row.

    Args:
        weight: (out, in) finite weight.
        longest: float32 (out, 1), positive.
        fractions: Of the candidates, from 1 down.
        limit: Largest integer of the grid.
        column_weight: float64 (in,), not negative: how much the squared error of each column counts.

    Returns:
        Scale float32 (out, 1), and the rows for which it may not be the best.
    """
    rows = max(1, PIECE // weight.shape[1])
    # One multiplication in float32 at a time, as a caller that tries one candidate does.
    candidates = torch.cat([longest * fraction for fraction in fractions], dim=1)
    best = torch.empty_like(longest)
    undecided: list[Tensor] = []
    for start in range(0, len(weight), rows):
        piece, scales = weight.detach()[start : start + rows], candidates[start : start + rows]
        errors, squares = _errors(piece, scales.to(torch.float64), limit, column_weight)
        errors.masked_fill_(scales <= 0, torch.inf)
        least, position = errors.min(dim=1, keepdim=True)
        best[start : start + rows] = scales.gather(1, position)
        near = (errors <= least * (1 + RELATIVE) + OF_SQUARES * squares).sum(dim=1) > 1
        undecided.append(near.nonzero().flatten() + start)
    return best, torch.cat(undecided)


def _errors(
    weight: Float[Tensor, "out in"],
    scales: Float[Tensor, "out candidates"],
    limit: int,
    column_weight: Float[Tensor, " in"] | None,
) -> tuple[Float[Tensor, "out candidates"], Float[Tensor, "out 1"]]:
    """Squared error of every candidate, and the sum of squares, of each row, float64."""
    magnitudes = weight.abs()
    if column_weight is None:
        # Several times faster than sorting in torch.
        values = torch.from_numpy(np.sort(magnitudes.cpu().numpy(), axis=1)).to(weight.device, torch.float64)
        counted = torch.ones_like(values)
    else:
        ordered, order = magnitudes.sort(dim=1)
        values, counted = ordered.to(torch.float64), column_weight[order]
    sums = [_summed(counted), _summed(counted * values), _summed(counted * values.square())]
    halves = torch.arange(limit, dtype=torch.float64, device=weight.device) + 0.5
    edges = (scales.unsqueeze(2) * halves).flatten(1)
    inner = torch.searchsorted(values, edges).view(*scales.shape, -1)
    first, last = inner.new_zeros(*scales.shape, 1), inner.new_full((*scales.shape, 1), weight.shape[1])
    positions = torch.cat([first, inner, last], dim=2).flatten(1)
    count, total, squares = (prefix.gather(1, positions).view(*scales.shape, -1).diff(dim=2) for prefix in sums)
    levels = scales.unsqueeze(2) * torch.arange(limit + 1, dtype=torch.float64, device=weight.device)
    errors = (squares - 2 * levels * total + levels.square() * count).sum(dim=2)
    return errors, sums[2][:, -1:]


def _summed(values: Float[Tensor, "out in"]) -> Float[Tensor, "out in_plus_1"]:
    """Sums up to each position, zero first."""
    return torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))
