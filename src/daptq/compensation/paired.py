"""Compensation from pairs: the affine map that turns quantized into full-precision representations best.

Both representations come from the same inputs, so their covariance is known as well as mean and covariance of each, and
the least-squares map exists. Its residual is weighed by what it does to the robot: with A the Jacobian of the
executed motion with respect to the representation, H = A^T A in mm^2 per squared unit of it,

    min_{M, d} E ||A (z_F - M z_Q - d)||^2 + lambda ||M - I||_F^2

which is stationary where H M C_QQ + lambda M = H C_FQ + lambda I and d = mu_FP - M mu_Q. In the eigenbases of H and
C_QQ this separates into one equation for each entry of M - I; narrower classes of maps are solved by
`daptq.compensation.within_class`. No paper is followed here; the matched covariances of
arXiv 2604.11572 (eq. 7) are the alternative that does not need pairs. The module does not know how H was measured, nor
that noise of few states can be fitted: the ridge and held-out states answer for this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.compensation.contract import CompensationMethod, InterfaceSample, require_same_states
from daptq.compensation.within_class import block_matrix, diagonal_matrix, rotary_least_squares
from daptq.errors import InvalidInputError, RecipeError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.map_class import MapClass
from daptq.methods import Needs
from daptq.numerics.moments import Moments
from daptq.numerics.symmetric import NEGLIGIBLE, exact_symmetric_part

__all__ = ["COMPENSATION", "PairedConfig", "solve", "split"]


@dataclass(frozen=True, kw_only=True)
class PairedConfig(CompensationMethod):
    """Settings of the paired compensation.

    Attributes:
        ridge: lambda in units of the mean eigenvalue of H times that of C_QQ. Directions in which quantized
            representations vary, or act on the robot, less than that stay as they are.
        weighted: Weigh the residual by H, and offer the unweighted map as well; otherwise H = I.
    """

    method: ClassVar[str] = "paired"

    ridge: float = 0.1
    weighted: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < math.inf:
            raise RecipeError(
                f"ridge of paired compensation must be finite and not negative, got {self.ridge}. Choose 0 or more."
            )
        super().__post_init__()

    @property
    def needs(self) -> Needs:
        """Calibration data, and H of every interface where residuals are weighed."""
        return Needs(data=True, interface_sensitivities=self.weighted)

    def solve(
        self,
        full: InterfaceSample,
        quantized: InterfaceSample,
        sensitivity: Float[Tensor, "d d"] | None,
        map_class: MapClass,
        heads: int,
    ) -> dict[str, AffineMap]:
        """See `CompensationMethod.solve`: ``"paired"``, and before it ``"paired, unweighted"`` when it is weighted."""
        require_same_states(full, quantized)
        moments = Moments(2 * full.rows.shape[1])
        moments.update(torch.cat([full.rows, quantized.rows], dim=1))
        mean_fp, mean_q, _, cov_fq, cov_qq = split(moments)

        def best(weight: Float[Tensor, "d d"] | None) -> AffineMap:
            return solve(mean_fp, mean_q, cov_fq, cov_qq, weight, self.ridge, map_class, heads)

        if not self.weighted:
            return {"paired": best(None)}
        if sensitivity is None:
            raise InvalidInputError(
                "sensitivity must be given for a weighted map, got None. Measure it, or do not weigh."
            )
        return {"paired, unweighted": best(None), "paired": best(sensitivity)}


COMPENSATION = PairedConfig


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
    map_class: MapClass = "affine",
    heads: int = 1,
) -> AffineMap:
    """The map of the module's equation, the best of its class.

    Of all affine maps it is M = I + P N Q^T with H = P diag(h) P^T, C_QQ = Q diag(c) Q^T and
    N_ij = h_i (P^T (C_FQ - C_QQ) Q)_ij / (h_i c_j + lambda). Where h_i c_j is nothing and lambda is 0, N_ij is 0.

    Args:
        mean_fp: (d,) mean in full precision.
        mean_q: (d,) mean after quantization.
        cov_fq: (d, d) covariance between full precision (rows) and quantized (columns).
        cov_qq: (d, d) covariance after quantization.
        sensitivity: (d, d) H, symmetric positive semi-definite, in mm^2 per squared unit; None for the identity.
        ridge: lambda = ridge * mean(h) * mean(c), not negative. At 0 with H = I, M is C_FQ C_QQ^-1.
        map_class: Class of the map. One without a shift is fitted to second moments about zero in place of C.
        heads: Number of heads that share the channels, where the class has heads.

    Returns:
        M and d = mu_FP - M mu_Q in float64; d = 0 in a class without a shift.

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
    if bool((h < -NEGLIGIBLE * h.abs().max()).any()):
        raise InvalidInputError(
            f"sensitivity must be positive semi-definite, got the eigenvalue {float(h[0]):.3g}. Pass A^T A."
        )
    h = _positive(h)
    if map_class != "affine":
        return _within(mean_fp, mean_q, cov_fq, cov_qq, weight, ridge * h.mean(), map_class, heads)
    c, q = _eigen(cov_qq)
    c = _positive(c)
    curvature = torch.outer(h, c)
    denominator = curvature + ridge * h.mean() * c.mean()
    change = p.mT @ (cov_fq.to(c) - exact_symmetric_part(cov_qq)) @ q
    # Directions without data or effect stay as they are: nothing is known about them.
    scaled = torch.where(curvature > 0, h[:, None] * change / torch.where(curvature > 0, denominator, 1.0), 0.0)
    matrix = torch.eye(size, dtype=torch.float64) + p @ scaled @ q.mT
    return AffineMap(matrix=matrix, shift=mean_fp.to(c) - matrix @ mean_q.to(c))


def _within(
    mean_fp: Float[Tensor, " d"],
    mean_q: Float[Tensor, " d"],
    cov_fq: Float[Tensor, "d d"],
    cov_qq: Float[Tensor, "d d"],
    weight: Float[Tensor, "d d"],
    ridge: Float[Tensor, ""],
    map_class: MapClass,
    heads: int,
) -> AffineMap:
    """`solve` for classes narrower than all affine maps; `ridge` holds the mean eigenvalue of H already."""
    target, centre = mean_fp.to(torch.float64), mean_q.to(torch.float64)
    fq, qq = cov_fq.to(target), cov_qq.to(target)
    shifted = map_class in ("affine-per-head", "diagonal")
    if not shifted:
        fq, qq = fq + torch.outer(target, centre), qq + torch.outer(centre, centre)
    penalty = float(ridge * qq.diagonal().mean())
    if map_class == "affine-per-head":
        matrix = block_matrix(fq, qq, weight, penalty, heads)
    elif map_class == "rotary":
        matrix = rotary_least_squares(fq, qq, weight, penalty, heads)
    else:
        matrix = diagonal_matrix(fq, qq, weight, penalty)
    return AffineMap(matrix=matrix, shift=target - matrix @ centre if shifted else torch.zeros_like(target))


def _eigen(matrix: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Ascending eigenvalues and eigenvectors of the symmetric part, float64."""
    values, vectors = torch.linalg.eigh(exact_symmetric_part(matrix))
    return values, vectors


def _positive(values: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """Eigenvalues with those that are only rounding set to 0."""
    return torch.where(values > NEGLIGIBLE * values.max(), values, 0.0)
