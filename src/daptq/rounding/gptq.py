"""GPTQ (arXiv 2210.17323): columns are rounded one by one, and those still to come make up for each error.

With the Gram matrix H = X^T X of a layer's inputs, the error of a rounded row is (w - ŵ) H (w - ŵ)^T, the squared error
of the layer's output. Rounding column j leaves an error that is made up for best by w -= (w_j - ŵ_j) / [H^-1]_jj
[H^-1]_j over the columns not yet rounded (eq. 2 and 3). Row j of the upper Cholesky factor U of H^-1 = U^T U holds just
that, so H^-1 is never updated (Algorithm 1). Columns go in blocks of 128: inside a block one by one, all columns after
the block in one product.

Greedy compensation can lose against round-to-nearest where it drives weights past the end of the grid; a row for which
it does is rounded to nearest instead, so no row is worse. A searched scale is the one with which round-to-nearest has
the least error under the diagonal of the Gram matrix. Scales of groups are those of the weight before any compensation,
so columns may be rounded in any order. The method does not know where the Gram matrix comes from: with a drift-weighted
one it minimises drift.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor

from daptq.errors import InvalidInputError, RecipeError
from daptq.methods import Needs
from daptq.numerics.quantized_matrix import QuantizedMatrix, ends, quantize_matrix, spread
from daptq.rounding._scale import ScaleRule, check_grid, choose_grid
from daptq.rounding.contract import RoundingMethod

__all__ = ["BLOCK", "ROUNDING", "GptqConfig", "round_weight"]

BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class GptqConfig(RoundingMethod):
    """How a weight is rounded.

    Attributes:
        scale: ``"searched"``: the scale with the least squared error of rounding to nearest, each column weighted by
            the diagonal of the Gram matrix; ``"absmax"``: the largest weight falls on the end of the grid, or, of an
            asymmetric grid, the smallest and the largest on its two ends.
        group_size: Inputs that share a scale: 32, 64 or 128, or 0 for one scale per output channel.
        asymmetric: Whether each scale has a zero point.
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
        check_grid(self.scale, self.group_size, self.asymmetric)
        if not 0 <= self.damping < float("inf"):
            raise RecipeError(f"damping must be a number of at least 0, got {self.damping}. GPTQ uses 0.01.")

    @property
    def needs(self) -> Needs:
        """Gram matrices, weighted or not."""
        return Needs(grams=True, weighted_grams=self.drift_weighted)

    def round_weight(
        self, weight: Float[Tensor, "out in"], num_bits: int, gram: Float[Tensor, "in in"] | None = None
    ) -> QuantizedMatrix:
        """Rounds one weight, see the function `round_weight`.

        Raises:
            InvalidInputError: As the function, or there is no Gram matrix.
        """
        if gram is None:
            raise InvalidInputError("gram must be given for GPTQ, got None. Take the inputs of this layer.")
        return round_weight(
            weight,
            num_bits,
            gram,
            scale=self.scale,
            group_size=self.group_size,
            asymmetric=self.asymmetric,
            act_order=self.act_order,
            damping=self.damping,
        )


ROUNDING = GptqConfig


def round_weight(
    weight: Float[Tensor, "out in"],
    num_bits: int,
    gram: Float[Tensor, "in in"],
    *,
    scale: ScaleRule = "searched",
    group_size: int = 0,
    asymmetric: bool = False,
    act_order: bool = False,
    damping: float = 0.01,
) -> QuantizedMatrix:
    """Rounds a weight to integers; computed in float64.

    Args:
        weight: (out, in) finite float weight.
        num_bits: 2, 3, 4 or 8.
        gram: (in, in), symmetric and positive semi-definite, any positive multiple of sum_t x_t x_t^T. A column whose
            diagonal is zero was never seen: it is rounded to nearest and makes up for nothing.
        scale: How the scales are chosen, see `GptqConfig`.
        group_size: 32, 64, 128, or 0 for one scale per output channel.
        asymmetric: Whether each scale has a zero point.
        act_order: Round the columns with the largest diagonal first.
        damping: Part of the mean diagonal that is added to the diagonal.

    Returns:
        Integers, scales and zero points. The error of each row under `gram`, damped or not, is at most that of
        round-to-nearest with the same scales.

    Raises:
        InvalidInputError: The weight is not a finite, non-empty matrix, there is no grid of `num_bits`, or `gram` is
            not a finite symmetric matrix of the right size that is positive definite after damping.
    """
    values = weight.detach().float()
    if values.dim() != 2:
        raise InvalidInputError(f"weight must be a matrix (out, in), got shape {tuple(values.shape)}. Pass a layer's.")
    hessian = _damped(gram, values.shape[1], damping)
    scales, zero_point = choose_grid(
        values, num_bits, scale, group_size=group_size, asymmetric=asymmetric, column_weight=hessian.diagonal()
    )
    nearest = quantize_matrix(values, scales, zero_point, num_bits, group_size)
    columns = torch.arange(len(hessian), device=hessian.device)
    order = hessian.diagonal().argsort(descending=True, stable=True) if act_order else columns
    factor = _inverse_factor(hessian[order][:, order])
    integers = torch.empty_like(nearest.integers)
    integers[:, order] = _round_columns(values.to(hessian)[:, order], nearest, order, factor)
    compensated = replace(nearest, integers=integers)
    exact = values.to(hessian)
    better = _row_error(exact, compensated, hessian) < _row_error(exact, nearest, hessian)
    return replace(nearest, integers=torch.where(better, integers, nearest.integers))


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
    return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)


def _round_columns(
    weight: Float[Tensor, "out in"],
    nearest: QuantizedMatrix,
    order: Int64[Tensor, " in"],
    factor: Float[Tensor, "in in"],
) -> Int8[Tensor, "out in"]:
    """Integers of all columns in their order, on the grids of `nearest`, whose columns are in their own."""
    remaining = weight.clone()
    rows, width = weight.shape
    scale = spread(nearest.scale.to(weight), width, nearest.group_size).expand(rows, width)[:, order]
    low, high = ends(nearest.num_bits, nearest.zero_point)
    zero_point = torch.zeros_like(nearest.scale) if nearest.zero_point is None else nearest.zero_point
    offset = spread(zero_point.to(weight), width, nearest.group_size).expand(rows, width)[:, order]
    integers = torch.empty_like(nearest.integers)
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        errors = torch.empty_like(remaining[:, start:end])
        for column in range(start, end):
            one = slice(column, column + 1)
            current = remaining[:, one]
            stored = torch.round(current / scale[:, one]).add_(offset[:, one]).clamp_(low, high)
            integers[:, one] = stored.to(torch.int8)
            error = (current - (stored - offset[:, one]) * scale[:, one]) / factor[column, column]
            remaining[:, column:end] -= error * factor[column, column:end]
            errors[:, column - start : column - start + 1] = error
        remaining[:, end:] -= errors @ factor[start:end, end:]
    return integers


def _row_error(
    weight: Float[Tensor, "out in"], rounded: QuantizedMatrix, hessian: Float[Tensor, "in in"]
) -> Float[Tensor, "out 1"]:
    """(w - ŵ) H (w - ŵ)^T of each row, float64 (out, 1)."""
    difference = weight - rounded.dequantize(weight.dtype)
    return (difference @ hessian * difference).sum(dim=1, keepdim=True)
