"""Cross-Space Representation Compensation (arXiv 2604.11572, eq. 4-9).

Two corrections of the representation at an interface, from its mean and covariance in full precision and after
quantization: per channel a gain and a shift (eq. 4-5), across channels a matrix M near the identity that maps the
quantized covariance onto the full-precision one (eq. 7), truncated to I + U V^T (eq. 8). Statistics only: the module
does not see which inputs belong together, so it cannot tell noise that quantization added from a change of scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from daptq.compensation._alignment import Alignment
from daptq.compensation.contract import CompensationMethod, InterfaceSample, require_same_states
from daptq.compensation.few_states import FewStatesAlignment, factor
from daptq.errors import InvalidInputError, RecipeError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.map_class import MapClass, block_diagonal, blocks_of, rotary_matrix
from daptq.numerics.symmetric import exact_symmetric_part

__all__ = [
    "COMPENSATION",
    "CsrcConfig",
    "align_covariance",
    "gain_and_shift",
    "low_rank",
    "optimal_transport_map",
    "solve",
    "variance_ratio_weight",
]

# Covariances with at most one direction of variance for so many channels are solved in their factors.
CHANNELS_PER_DIRECTION = 4


@dataclass(frozen=True, kw_only=True)
class CsrcConfig(CompensationMethod):
    """Settings of eq. 4-8; the paper gives no value for any of them.

    Attributes:
        cross_channel: Solve eq. 7 after the per-channel correction.
        gain_min, gain_max: Limits of the per-channel gain.
        epsilon: Added to the quantized standard deviation before dividing, in units of the mean full-precision one.
        fit_weight: lambda_f, for covariances in units of the mean full-precision variance.
        identity_weight: lambda_i. Directions whose variance is far below sqrt(lambda_i / lambda_f) times the mean stay
            as they are, which is what keeps a covariance of few calibration states from being fitted to its noise.
        rank: r of eq. 8, or None for the dense matrix. Folding makes both equally fast; a low rank regularises.
    """

    method: ClassVar[str] = "csrc"

    cross_channel: bool = True
    gain_min: float = 0.5
    gain_max: float = 2.0
    epsilon: float = 1e-6
    fit_weight: float = 1.0
    identity_weight: float = 0.1
    rank: int | None = 16

    def __post_init__(self) -> None:
        if not 0 < self.gain_min <= 1 <= self.gain_max < math.inf:
            raise RecipeError(
                f"gain limits must satisfy 0 < gain_min <= 1 <= gain_max, got {self.gain_min} and {self.gain_max}. "
                "Allow at least the gain 1."
            )
        for label in ("epsilon", "fit_weight", "identity_weight"):
            value = getattr(self, label)
            if not 0 <= value < math.inf:
                raise RecipeError(f"{label} of CSRC must be finite and not negative, got {value}. Choose 0 or more.")
        if self.rank is not None and self.rank < 0:
            raise RecipeError(f"rank of CSRC must be None or at least 0, got {self.rank}. Choose a small number.")
        super().__post_init__()

    def solve(
        self,
        full: InterfaceSample,
        quantized: InterfaceSample,
        sensitivity: Float[Tensor, "d d"] | None,  # noqa: ARG002
        map_class: MapClass,
        heads: int,
    ) -> dict[str, AffineMap]:
        """See `CompensationMethod.solve` and the function `solve`; only means and covariances are read."""
        require_same_states(full, quantized)
        before, after = full.moments, quantized.moments
        statistics = (before.mean, before.covariance(), after.mean, after.covariance())
        return solve(*statistics, self, map_class, heads)


COMPENSATION = CsrcConfig


def gain_and_shift(
    mean_fp: Float[Tensor, " d"],
    std_fp: Float[Tensor, " d"],
    mean_q: Float[Tensor, " d"],
    std_q: Float[Tensor, " d"],
    gain_min: float,
    gain_max: float,
    epsilon: float,
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Per-channel correction z~ = g z_Q + d, eq. 4-5.

    Args:
        mean_fp: (d,) channel means in full precision.
        std_fp: (d,) channel standard deviations in full precision.
        mean_q: (d,) channel means after quantization.
        std_q: (d,) channel standard deviations after quantization.
        gain_min: Smallest gain.
        gain_max: Largest gain.
        epsilon: Added to `std_q` before dividing.

    Returns:
        g = clip(std_fp / (std_q + epsilon), gain_min, gain_max) and d = mean_fp - g mean_q, both float64 (d,). A
        channel that is constant before and after quantization gets gain 1.
    """
    constant = (std_q + epsilon == 0) & (std_fp == 0)
    ratio = std_fp.to(torch.float64) / (std_q.to(torch.float64) + epsilon)
    gain = torch.where(constant, torch.ones_like(ratio), ratio).clamp(gain_min, gain_max)
    return gain, mean_fp.to(torch.float64) - gain * mean_q.to(torch.float64)


def optimal_transport_map(cov_fp: Float[Tensor, "d d"], cov_q: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric M with M Sigma_Q M = Sigma_FP that moves a Gaussian least, float64 (d, d).

    M = Sigma_Q^-1/2 (Sigma_Q^1/2 Sigma_FP Sigma_Q^1/2)^1/2 Sigma_Q^-1/2, positive semi-definite. Directions in which
    `cov_q` has no variance (relative to its largest eigenvalue, 1e-12) are left alone: M is the identity there.
    """
    source = exact_symmetric_part(cov_q)
    values, vectors = torch.linalg.eigh(source)
    floor = 1e-12 * float(values[-1].clamp_min(0))
    alive = values > floor
    root = torch.where(alive, values, 0.0).sqrt()
    inverse_root = torch.where(alive, values.clamp_min(floor) ** -0.5, 0.0) if bool(alive.any()) else root
    half = (vectors * root) @ vectors.mT
    inverse_half = (vectors * inverse_root) @ vectors.mT
    middle_values, middle_vectors = torch.linalg.eigh(exact_symmetric_part(half @ exact_symmetric_part(cov_fp) @ half))
    middle = (middle_vectors * middle_values.clamp_min(0).sqrt()) @ middle_vectors.mT
    idle = (vectors * (~alive).to(vectors)) @ vectors.mT
    return inverse_half @ middle @ inverse_half + idle


def align_covariance(
    cov_fp: Float[Tensor, "d d"],
    cov_q: Float[Tensor, "d d"],
    weight: Float[Tensor, " d"] | Float[Tensor, "d d"],
    fit_weight: float,
    identity_weight: float,
) -> Float[Tensor, "d d"]:
    """Cross-channel correction: a stationary point, near the identity, of the objective of eq. 7.

        f(M) = fit_weight ||W (Sigma_FP - M Sigma_Q M^T)||_F^2 + identity_weight ||M - I||_F^2

    W is diagonal; its product scales row i of the symmetric residual by w_i (scaling the columns gives the same norm).
    A preconditioned Newton method in float64 starts from the better of the identity and the optimal-transport map, the
    closed-form zero of the first term.

    Args:
        cov_fp: (d, d) covariance in full precision.
        cov_q: (d, d) covariance after quantization.
        weight: Diagonal of W (d,), or W itself (d, d), diagonal.
        fit_weight: lambda_f, not negative.
        identity_weight: lambda_i, not negative. At 0 with W = I the result is the optimal-transport map. (For small
            positive values the fit leaves M free up to a rotation, and the second term prefers the rotation with the
            least ||M - I||_F, which is the optimal-transport map only where the two covariances commute.)

    Returns:
        M, float64 (d, d).

    Raises:
        InvalidInputError: The shapes do not belong together, or a matrix for W is not diagonal.
    """
    size = len(cov_fp)
    if cov_fp.shape != (size, size) or cov_q.shape != (size, size):
        raise InvalidInputError(
            f"covariances must be square and of one size, got {tuple(cov_fp.shape)} and {tuple(cov_q.shape)}. "
            "Observe the same channels."
        )
    problem = Alignment(
        exact_symmetric_part(cov_fp).numpy(),
        exact_symmetric_part(cov_q).numpy(),
        _diagonal(weight, size).numpy(),
        fit=fit_weight,
        identity=identity_weight,
    )
    starts = [np.eye(size), optimal_transport_map(cov_fp, cov_q).numpy()]
    return torch.from_numpy(np.ascontiguousarray(problem.solve(starts)))


def variance_ratio_weight(variance_fp: Float[Tensor, " d"], variance_q: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """Diagonal of W in eq. 7, "from per-channel variance ratios": the larger of the ratio and its inverse, mean 1.

    The paper does not define it. A channel whose variance quantization changed most, in either direction, weighs most.

    Args:
        variance_fp: (d,) channel variances in full precision.
        variance_q: (d,) channel variances after quantization.

    Returns:
        float64 (d,); ratios are limited to [1/4, 4] so that a nearly constant channel cannot take over.
    """
    fp, q = variance_fp.to(torch.float64), variance_q.to(torch.float64)
    floor = 1e-6 * float(fp.mean()) + torch.finfo(torch.float64).tiny
    ratio = ((fp + floor) / (q + floor)).clamp(0.25, 4.0)
    larger = torch.maximum(ratio, 1.0 / ratio)
    return larger / larger.mean()


def low_rank(matrix: Float[Tensor, "d d"], rank: int) -> tuple[Float[Tensor, "d r"], Float[Tensor, "d r"]]:
    """Best M = I + U V^T of the given rank, by truncated singular value decomposition of M - I, eq. 8.

    Args:
        matrix: (d, d) dense M.
        rank: r, from 0 to d.

    Returns:
        U and V, float64 (d, rank); singular values are shared evenly between the two.

    Raises:
        InvalidInputError: `rank` is not between 0 and d.
    """
    size = len(matrix)
    if not 0 <= rank <= size:
        raise InvalidInputError(f"rank must be between 0 and {size}, got {rank}. Choose a smaller rank.")
    difference = matrix.to(torch.float64) - torch.eye(size, dtype=torch.float64)
    left, values, right = torch.linalg.svd(difference)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, right[:rank].mT * root


def solve(
    mean_fp: Float[Tensor, " d"],
    cov_fp: Float[Tensor, "d d"],
    mean_q: Float[Tensor, " d"],
    cov_q: Float[Tensor, "d d"],
    config: CsrcConfig,
    map_class: MapClass = "affine",
    heads: int = 1,
) -> dict[str, AffineMap]:
    """The maps of eq. 4-8 for one interface, from the simplest to the most complete, within a class of maps.

    The cross-channel matrix is solved on top of the per-channel gain: M = (I + U V^T) diag(g). Where a map treats every
    head by itself, so do the equations; where it treats every pair of channels alike, the pair has one standard
    deviation. Covariances do not tell a rotation of a pair, so there is none.

    Args:
        mean_fp: (d,) mean in full precision.
        cov_fp: (d, d) covariance in full precision.
        mean_q: (d,) mean after quantization.
        cov_q: (d, d) covariance after quantization.
        config: Settings.
        map_class: Class of the maps.
        heads: Number of heads that share the channels, where the class has heads.

    Returns:
        ``"per-channel"`` and, when asked for and of the class, ``"cross-channel"``; each maps `mean_q` to `mean_fp`
        where the class has a shift. ``"per-pair"`` alone for ``"rotary"``.
    """
    if map_class == "affine-per-head":
        return _per_head(mean_fp, cov_fp, mean_q, cov_q, config, heads)
    if map_class == "rotary":
        return {"per-pair": _per_pair(cov_fp, cov_q, config, heads)}
    if map_class != "affine":
        (channels,) = solve(mean_fp, cov_fp, mean_q, cov_q, replace(config, cross_channel=False)).values()
        return {"per-channel": channels if map_class == "diagonal" else _without_shift(channels)}
    fp, q = exact_symmetric_part(cov_fp), exact_symmetric_part(cov_q)
    target, centre = mean_fp.to(torch.float64), mean_q.to(torch.float64)
    variance_fp, variance_q = fp.diagonal().clamp_min(0), q.diagonal().clamp_min(0)
    unit = float(variance_fp.mean()) or 1.0
    gain, shift = gain_and_shift(
        target,
        variance_fp.sqrt(),
        centre,
        variance_q.sqrt(),
        config.gain_min,
        config.gain_max,
        config.epsilon * math.sqrt(unit),
    )
    maps = {"per-channel": AffineMap(matrix=torch.diag(gain), shift=shift)}
    if config.cross_channel:
        scaled = gain[:, None] * q * gain[None, :]
        weight = variance_ratio_weight(variance_fp, variance_q)
        target_factor, source_factor = factor((fp / unit).numpy()), factor((scaled / unit).numpy())
        if CHANNELS_PER_DIRECTION * max(target_factor.shape[1], source_factor.shape[1]) <= len(fp):
            matrix = _aligned_few(target_factor, source_factor, weight, config)
        else:
            matrix = align_covariance(fp / unit, scaled / unit, weight, config.fit_weight, config.identity_weight)
            if config.rank is not None and config.rank < len(matrix):
                u, v = low_rank(matrix, config.rank)
                matrix = torch.eye(len(matrix), dtype=torch.float64) + u @ v.mT
        matrix = matrix * gain[None, :]
        maps["cross-channel"] = AffineMap(matrix=matrix, shift=target - matrix @ centre)
    return maps


def _per_head(
    mean_fp: Float[Tensor, " d"],
    cov_fp: Float[Tensor, "d d"],
    mean_q: Float[Tensor, " d"],
    cov_q: Float[Tensor, "d d"],
    config: CsrcConfig,
    heads: int,
) -> dict[str, AffineMap]:
    """`solve` for every head by itself."""
    means = zip(mean_fp.view(heads, -1), mean_q.view(heads, -1), strict=True)
    covariances = zip(blocks_of(cov_fp, heads), blocks_of(cov_q, heads), strict=True)
    parts = [
        solve(own_mean_fp, own_cov_fp, own_mean_q, own_cov_q, config)
        for (own_mean_fp, own_mean_q), (own_cov_fp, own_cov_q) in zip(means, covariances, strict=True)
    ]
    return {
        name: AffineMap(
            matrix=block_diagonal(torch.stack([part[name].matrix for part in parts])),
            shift=torch.cat([part[name].shift for part in parts]),
        )
        for name in parts[0]
    }


def _per_pair(cov_fp: Float[Tensor, "d d"], cov_q: Float[Tensor, "d d"], config: CsrcConfig, heads: int) -> AffineMap:
    """A gain for every pair of channels (i, i + D/2) of each head, from the standard deviations of both together."""
    fp, q = (exact_symmetric_part(one).diagonal().clamp_min(0).view(heads, 2, -1).sum(dim=1) for one in (cov_fp, cov_q))
    unit = float(fp.mean()) / 2 or 1.0
    zero = torch.zeros_like(fp)
    epsilon = config.epsilon * math.sqrt(unit)
    gain, _ = gain_and_shift(zero, fp.sqrt(), zero, q.sqrt(), config.gain_min, config.gain_max, epsilon)
    return AffineMap(matrix=rotary_matrix(gain, zero), shift=torch.zeros(len(cov_fp), dtype=torch.float64))


def _without_shift(affine: AffineMap) -> AffineMap:
    return AffineMap(matrix=affine.matrix, shift=torch.zeros_like(affine.shift))


def _aligned_few(
    target: NDArray[np.float64], source: NDArray[np.float64], weight: Float[Tensor, " d"], config: CsrcConfig
) -> Float[Tensor, "d d"]:
    """`align_covariance` and `low_rank` where the covariances' factors (d, k) and (d, r) have few columns."""
    problem = FewStatesAlignment(target, source, weight.numpy(), fit=config.fit_weight, identity=config.identity_weight)
    # M - I = U V^T with orthonormal V: the singular values are those of U.
    left, values, right = np.linalg.svd(problem.solve(), full_matrices=False)
    rank = len(values) if config.rank is None else min(config.rank, len(values))
    difference = (left[:, :rank] * values[:rank]) @ (right[:rank] @ problem.basis.T)
    return torch.eye(len(weight), dtype=torch.float64) + torch.from_numpy(difference)


def _diagonal(weight: Tensor, size: int) -> Tensor:
    """The diagonal of W, float64 (d,), from either of its forms."""
    exact = weight.detach().to("cpu", torch.float64)
    if exact.shape == (size, size) and torch.equal(exact, torch.diag(exact.diagonal())):
        return exact.diagonal()
    if exact.shape != (size,):
        raise InvalidInputError(
            f"weight must be a vector ({size},) or a diagonal matrix ({size}, {size}), got shape "
            f"{tuple(weight.shape)}. Pass the diagonal of W."
        )
    return exact
