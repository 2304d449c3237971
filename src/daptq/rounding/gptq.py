"""GPTQ (arXiv 2210.17323): columns are rounded one by one, and those still to come make up for each error.

With the Gram matrix H = X^T X of a layer's inputs, the error of a rounded row is (w - ŵ) H (w - ŵ)^T, the squared error
of the layer's output. Rounding column j leaves an error that is made up for best by w -= (w_j - ŵ_j) / [H^-1]_jj
[H^-1]_j over the columns not yet rounded (eq. 2 and 3). Row j of the upper Cholesky factor U of H^-1 = U^T U holds just
that, so H^-1 is never updated (Algorithm 1). Columns go in blocks of 128: inside a block one by one, all columns after
the block in one product.

Greedy compensation can lose against round-to-nearest where it drives weights past the end of the grid; a row for which
it does is rounded to nearest instead, so no row is worse. A searched scale is the one with which round-to-nearest has
the least error under the diagonal of the Gram matrix. The method does not know where the Gram matrix comes from: with a
drift-weighted one it minimises drift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from daptq.errors import InvalidInputError, RecipeError
from daptq.numerics.grid import largest_integer, quantize_symmetric
from daptq.rounding._scale import ScaleRule, check_scale_rule, choose_scale

__all__ = ["BLOCK", "GptqConfig", "round_weight"]

BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class GptqConfig:
    """How a weight is rounded.

    Attributes:
        scale: ``"searched"``: the scale per output channel with the least squared error of rounding to nearest, each
            column weighted by the diagonal of the Gram matrix; ``"absmax"``: the largest weight of the channel falls on
            the end of the grid.
        act_order: Round the columns with the largest diagonal of the Gram matrix first.
        damping: Part of the mean diagonal of the Gram matrix that is added to its diagonal.
        drift_weighted: Take a Gram matrix in which every token counts by how much the drift depends on it.
    """

    method: ClassVar[str] = "gptq"

    scale: ScaleRule = "searched"
    act_order: bool = False
    damping: float = 0.01
    drift_weighted: bool = False

    def __post_init__(self) -> None:
        check_scale_rule(self.scale)
        if not 0 <= self.damping < float("inf"):
            raise RecipeError(f"damping must be a number of at least 0, got {self.damping}. GPTQ uses 0.01.")


def round_weight(
    weight: Float[Tensor, "out in"],
    num_bits: int,
    gram: Float[Tensor, "in in"],
    *,
    scale: ScaleRule = "searched",
    act_order: bool = False,
    damping: float = 0.01,
) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "out 1"]]:
    """Rounds a weight to integers of a symmetric grid, one scale per output channel; computed in float64.

    Args:
        weight: (out, in) finite float weight.
        num_bits: 2, 3, 4 or 8; the integers lie in [-(2^(num_bits-1) - 1), 2^(num_bits-1) - 1].
        gram: (in, in), symmetric and positive semi-definite, any positive multiple of sum_t x_t x_t^T. A column whose
            diagonal is zero was never seen: it is rounded to nearest and makes up for nothing.
        scale: How the scale is chosen, see `GptqConfig`.
        act_order: Round the columns with the largest diagonal first.
        damping: Part of the mean diagonal that is added to the diagonal.

    Returns:
        Integers int8 (out, in) and scale float32 (out, 1). The error of each row under `gram`, damped or not, is at
        most that of round-to-nearest with the same scale.

    Raises:
        InvalidInputError: The weight is not a finite, non-empty matrix, there is no grid of `num_bits`, or `gram` is
            not a finite symmetric matrix of the right size that is positive definite after damping.
    """
    values = weight.detach().float()
    if values.dim() != 2:
        raise InvalidInputError(f"weight must be a matrix (out, in), got shape {tuple(values.shape)}. Pass a layer's.")
    hessian = _damped(gram, values.shape[1], damping)
    channel_scale = choose_scale(values, num_bits, scale, hessian.diagonal())
    nearest = quantize_symmetric(values, channel_scale, num_bits)
    columns = torch.arange(len(hessian), device=hessian.device)
    order = hessian.diagonal().argsort(descending=True, stable=True) if act_order else columns
    factor = _inverse_factor(hessian[order][:, order])
    exact = values.to(hessian)
    compensated = _round_columns(exact[:, order], channel_scale.to(hessian), factor, largest_integer(num_bits))
    integers = torch.empty_like(nearest)
    integers[:, order] = compensated.to(integers)
    better = _row_error(exact, integers, channel_scale, hessian) < _row_error(exact, nearest, channel_scale, hessian)
    return torch.where(better, integers, nearest), channel_scale


def _damped(gram: Float[Tensor, "in in"], size: int, damping: float) -> Float[Tensor, "in in"]:
    """The Gram matrix in float64, its diagonal raised; a column that was never seen gets the mean diagonal."""
    if size == 0 or tuple(gram.shape) != (size, size) or not bool(torch.isfinite(gram).all()):
        raise InvalidInputError(
            f"gram must be a finite matrix of shape ({size}, {size}), got shape {tuple(gram.shape)}. "
            "Take the inputs of this layer."
        )
    hessian = gram.detach().to(torch.float64, copy=True)
    diagonal = hessian.diagonal()
    if not torch.allclose(hessian, hessian.mT, rtol=0, atol=1e-9 * float(diagonal.abs().max())):
        raise InvalidInputError("gram must be symmetric, got another matrix. Compute it as x^T x.")
    mean = float(diagonal.mean())
    dead = diagonal == 0
    diagonal += damping * mean
    diagonal[dead] = mean or 1.0
    return hessian


def _inverse_factor(hessian: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
    """Upper triangular U with U^T U = H^-1, without ever forming H^-1.

    Cholesky of the matrix read backwards gives H = A A^T with A upper triangular; U is the inverse of A.
    """
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if bool(failed):
        raise InvalidInputError(
            "gram must be positive definite after damping, got a singular or indefinite matrix. Raise damping, or "
            "calibrate with more states."
        )
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factor


def _round_columns(
    weight: Float[Tensor, "out in"], scale: Float[Tensor, "out 1"], factor: Float[Tensor, "in in"], limit: int
) -> Float[Tensor, "out in"]:
    """Integers of all columns in their order, float64 (out, in)."""
    remaining = weight.clone()
    integers = torch.empty_like(remaining)
    for start in range(0, remaining.shape[1], BLOCK):
        end = min(start + BLOCK, remaining.shape[1])
        errors = torch.empty_like(remaining[:, start:end])
        for column in range(start, end):
            current = remaining[:, column : column + 1]
            rounded = torch.round(current / scale).clamp_(-limit, limit)
            integers[:, column : column + 1] = rounded
            error = (current - rounded * scale) / factor[column, column]
            remaining[:, column:end] -= error * factor[column, column:end]
            errors[:, column - start : column - start + 1] = error
        remaining[:, end:] -= errors @ factor[start:end, end:]
    return integers


def _row_error(
    weight: Float[Tensor, "out in"],
    integers: Int8[Tensor, "out in"],
    scale: Float[Tensor, "out 1"],
    hessian: Float[Tensor, "in in"],
) -> Float[Tensor, "out 1"]:
    """(w - ŵ) H (w - ŵ)^T of each row, float64 (out, 1)."""
    difference = weight - integers.to(weight.dtype) * scale.to(weight.dtype)
    return (difference @ hessian * difference).sum(dim=1, keepdim=True)
