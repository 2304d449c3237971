"""The objective of eq. 7 where covariances come from fewer states than there are channels.

    f(M) = fit ||W (A - M B M^T)||_F^2 + identity ||M - I||_F^2,  A = F F^T, B = V diag(b) V^T of rank r < d

Setting the gradient to zero shows that every stationary M is I + U V^T, so the unknowns are the d r entries of U, not
d^2, and with Y = V + U the residual is A - M B M^T = [F, Y b^1/2] [F, -Y b^1/2]^T. Nothing of size d x d is formed.
`_alignment` solves the same problem for full rank; arrays are float64, and the module does not know what they mean.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dpstrf

from daptq.compensation._newton import Array, stationary_point

__all__ = ["FewStatesAlignment", "factor"]


def factor(covariance: Array) -> Array:
    """F (d, r) with F F^T equal to a positive semi-definite matrix, by Cholesky with pivots; r is its rank."""
    size = len(covariance)
    tolerance = size * np.finfo(np.float64).eps * float(np.max(covariance.diagonal(), initial=0.0))
    lower, pivots, rank, _ = dpstrf(covariance, tol=tolerance, lower=1)
    factors: Array = np.zeros((size, rank))
    factors[pivots - 1] = np.tril(lower)[:, :rank]
    return factors


class FewStatesAlignment:
    """One instance of eq. 7.

    Args:
        target: F (d, k), A = F F^T is the covariance to reach.
        source: (d, r), B = source source^T is the covariance that M transforms; r is its rank.
        weight: Diagonal of W (d,).
        fit: lambda_f, not negative.
        identity: lambda_i, not negative.
    """

    def __init__(self, target: Array, source: Array, weight: Array, *, fit: float, identity: float) -> None:
        basis, roots, _ = np.linalg.svd(source, full_matrices=False)
        self.basis: Array = basis
        self._roots: Array = roots
        self._target = target
        self._squared_weight: Array = weight[:, None] ** 2
        self._fit, self._identity = fit, identity
        largest = float(np.max(weight**2, initial=0.0))
        norms = np.linalg.norm(target.T @ target) * np.linalg.norm(roots**2)
        self.gradient_scale = 4.0 * fit * largest * float(norms)
        curvature = max(2.0 * identity, 1e-12 * self.gradient_scale, np.finfo(np.float64).tiny)
        self._scale: Array = (4.0 * fit * roots**4 + curvature) ** -0.5

    def solve(self) -> Array:
        """U (d, r) of a stationary point I + U V^T; V is `basis`."""
        return stationary_point(self, [np.zeros_like(self.basis), self._transport()])

    def objective(self, u: Array) -> float:
        """The value of f at I + U V^T."""
        left, right = self._residual(u)
        weighted = left.T @ (self._squared_weight * left)
        fit = (weighted @ (right.T @ right)).trace()
        return float(self._fit * fit + self._identity * (u**2).sum())

    def gradient(self, u: Array) -> Array:
        """Gradient of f with respect to U."""
        g: Array = -4.0 * self._fit * self._pull(self._residual(u), self.basis + u) * self._roots**2
        return g + 2.0 * self._identity * u

    def hessian_product(self, u: Array, v: Array) -> Array:
        """Hessian of f at U, applied to the direction V."""
        y = self.basis + u
        # The residual changes by -(V b Y^T + Y b V^T).
        change = (np.hstack([v, y]), -np.hstack([y, v]) * np.tile(self._roots**2, 2))
        pull = self._pull(change, y) + self._pull(self._residual(u), v)
        return -4.0 * self._fit * pull * self._roots**2 + 2.0 * self._identity * v

    def precondition(self, step: Array) -> Array:
        """Inverse square root of the Hessian's diagonal at W = 1, M = I, A = B."""
        return step * self._scale

    def _residual(self, u: Array) -> tuple[Array, Array]:
        """Two factors of A - M B M^T."""
        image = (self.basis + u) * self._roots
        return np.hstack([self._target, image]), np.hstack([self._target, -image])

    def _pull(self, residual: tuple[Array, Array], y: Array) -> Array:
        """Sym(W^2 R) Y for a symmetric R given by its factors."""
        left, right = residual
        return 0.5 * (self._squared_weight * (left @ (right.T @ y)) + left @ (right.T @ (self._squared_weight * y)))

    def _transport(self) -> Array:
        """U of the optimal-transport map, the closed-form zero of the first term within the span of B."""
        seen = (self.basis * self._roots).T @ self._target
        values, vectors = np.linalg.eigh(seen @ seen.T)
        middle = (vectors * np.clip(values, 0.0, None) ** 0.5) @ vectors.T
        map_inside = middle / (self._roots[:, None] * self._roots)
        return self.basis @ (map_inside - np.eye(len(self._roots)))
