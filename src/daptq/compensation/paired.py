"""Compensation from pairs: the affine map that turns quantized into full-precision representations best.

Both representations come from the same inputs, so beside mean and covariance of each there is the covariance between
them, and the least-squares map exists. Its residual is weighed by what it does to the robot: with A the Jacobian of the
executed motion with respect to the representation, H = A^T A in mm^2 per squared unit of it,

    min_{M, d} E ||A (z_F - M z_Q - d)||^2 + lambda ||M - I||_F^2

which is stationary where H M C_QQ + lambda M = H C_FQ + lambda I and d = mu_FP - M mu_Q. In the eigenbases of H and
C_QQ this separates into one equation for each entry of M - I. No paper is followed here; the matched covariances of
arXiv 2604.11572 (eq. 7) are the alternative that does not need pairs. The module does not know how H was measured, nor
that noise of few states can be fitted: the ridge and held-out states answer for this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.compensation._symmetry import symmetric_part
from daptq.errors import InvalidInputError, RecipeError
from daptq.interfaces.affine import AffineMap
from daptq.numerics.moments import Moments

__all__ = ["PairedConfig", "candidates", "solve", "split"]

Selection = Literal["held-out", "always"]

# An eigenvalue this small beside the largest is rounding: there are no data, or no effect, along its direction.
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True, kw_only=True)
class PairedConfig:
    """Settings of the paired compensation.

    Attributes:
        ridge: lambda in units of the mean eigenvalue of H times that of C_QQ. Directions in which quantized
            representations vary, or act on the robot, less than that stay as they are.
        weighted: Weigh the residual by H, and offer the unweighted map as well; otherwise H = I.
        max_condition: Largest condition number of a map; a worse one cannot be inverted for the interface's constants.
        selection: ``"held-out"`` takes whichever of no map and the maps has the least error on held-out states;
            ``"always"`` takes the last one solved.
    """

    method: ClassVar[str] = "paired"

    ridge: float = 0.1
    weighted: bool = True
    max_condition: float = 1e3
    selection: Selection = "held-out"

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < math.inf:
            raise RecipeError(
                f"ridge of paired compensation must be finite and not negative, got {self.ridge}. Choose 0 or more."
            )
        if not self.max_condition >= 1:
            raise RecipeError(
                f"max_condition of paired compensation must be at least 1, got {self.max_condition}. "
                "Choose for example 1e3."
            )
        if self.selection not in get_args(Selection):
            raise RecipeError(
                f"selection of paired compensation must be one of {', '.join(get_args(Selection))}, got "
                f"{self.selection!r}. Choose one of these."
            )


def split(
    moments: Moments,
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"], Float[Tensor, "d d"], Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """Takes the statistics of concatenated vectors [z_F; z_Q] apart.

    Args:
        moments: Moments of 2 d channels, those in full precision first.

    Returns:
        mu_FP (d,), mu_Q (d,), C_FF, C_FQ and C_QQ (d, d), float64. C_FQ = E (z_F - mu_FP) (z_Q - mu_Q)^T.

    Raises:
        InvalidInputError: The number of channels is odd, or no sample has been seen.
    """
    if moments.size % 2:
        raise InvalidInputError(
            f"moments of pairs must have an even number of channels, got {moments.size}. "
            "Concatenate both representations."
        )
    size = moments.size // 2
    joint = moments.covariance()
    return moments.mean[:size], moments.mean[size:], joint[:size, :size], joint[:size, size:], joint[size:, size:]


def solve(
    mean_fp: Float[Tensor, " d"],
    mean_q: Float[Tensor, " d"],
    cov_fq: Float[Tensor, "d d"],
    cov_qq: Float[Tensor, "d d"],
    sensitivity: Float[Tensor, "d d"] | None,
    ridge: float,
) -> AffineMap:
    """The map of the module's equation.

    M = I + P N Q^T with H = P diag(h) P^T, C_QQ = Q diag(c) Q^T and
    N_ij = h_i (P^T (C_FQ - C_QQ) Q)_ij / (h_i c_j + lambda). Where h_i c_j is nothing and lambda is 0, N_ij is 0.

    Args:
        mean_fp: (d,) mean in full precision.
        mean_q: (d,) mean after quantization.
        cov_fq: (d, d) covariance between full precision (rows) and quantized (columns).
        cov_qq: (d, d) covariance after quantization.
        sensitivity: (d, d) H, symmetric positive semi-definite, in mm^2 per squared unit; None for the identity.
        ridge: lambda = ridge * mean(h) * mean(c), not negative. At 0 with H = I, M is C_FQ C_QQ^-1.

    Returns:
        M and d = mu_FP - M mu_Q in float64.

    Raises:
        InvalidInputError: The shapes do not belong together, H has a negative eigenvalue, or the ridge is negative.
    """
    size = len(mean_fp)
    weight = torch.eye(size, dtype=torch.float64) if sensitivity is None else sensitivity
    shapes = [tuple(m.shape) for m in (cov_fq, cov_qq, weight)]
    if mean_q.shape != (size,) or shapes != [(size, size)] * 3:
        raise InvalidInputError(
            f"statistics of pairs must be of {size} channels each, got {tuple(mean_q.shape)}, "
            f"{', '.join(map(str, shapes))}. Observe the same interface."
        )
    if not ridge >= 0:
        raise InvalidInputError(f"ridge must not be negative, got {ridge}. Choose 0 or more.")
    h, p = _eigen(weight)
    c, q = _eigen(cov_qq)
    if bool((h < -_NEGLIGIBLE * h.abs().max()).any()):
        raise InvalidInputError(
            f"sensitivity must be positive semi-definite, got the eigenvalue {float(h[0]):.3g}. Pass A^T A."
        )
    h, c = _positive(h), _positive(c)
    curvature = torch.outer(h, c)
    denominator = curvature + ridge * h.mean() * c.mean()
    change = p.mT @ (cov_fq.to(c) - symmetric_part(cov_qq)) @ q
    # Directions without data or effect stay as they are: nothing is known about them.
    scaled = torch.where(curvature > 0, h[:, None] * change / torch.where(curvature > 0, denominator, 1.0), 0.0)
    matrix = torch.eye(size, dtype=torch.float64) + p @ scaled @ q.mT
    return AffineMap(matrix=matrix, shift=mean_fp.to(c) - matrix @ mean_q.to(c))


def candidates(
    mean_fp: Float[Tensor, " d"],
    mean_q: Float[Tensor, " d"],
    cov_fq: Float[Tensor, "d d"],
    cov_qq: Float[Tensor, "d d"],
    sensitivity: Float[Tensor, "d d"] | None,
    config: PairedConfig,
) -> dict[str, AffineMap]:
    """The maps for one interface, to choose from, the most complete last.

    Args:
        mean_fp: (d,) mean in full precision.
        mean_q: (d,) mean after quantization.
        cov_fq: (d, d) covariance between full precision (rows) and quantized (columns).
        cov_qq: (d, d) covariance after quantization.
        sensitivity: (d, d) H; needed, and only looked at, when the configuration weighs the residual.
        config: Settings.

    Returns:
        ``"paired"``, and before it ``"paired, unweighted"`` when the first is weighted.

    Raises:
        InvalidInputError: The configuration weighs the residual and there is no sensitivity, or as in `solve`.
    """
    unweighted = solve(mean_fp, mean_q, cov_fq, cov_qq, None, config.ridge)
    if not config.weighted:
        return {"paired": unweighted}
    if sensitivity is None:
        raise InvalidInputError("sensitivity must be given for a weighted map, got None. Measure it, or do not weigh.")
    weighted = solve(mean_fp, mean_q, cov_fq, cov_qq, sensitivity, config.ridge)
    return {"paired, unweighted": unweighted, "paired": weighted}


def _eigen(matrix: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Ascending eigenvalues and eigenvectors of the symmetric part, float64."""
    values, vectors = torch.linalg.eigh(symmetric_part(matrix))
    return values, vectors


def _positive(values: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """Eigenvalues with those that are only rounding set to 0."""
    return torch.where(values > _NEGLIGIBLE * values.max(), values, 0.0)
