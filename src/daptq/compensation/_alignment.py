"""The objective of eq. 7 with its derivatives, and a Newton method that finds a stationary point of it.

    f(M) = fit ||W (A - M B M^T)||_F^2 + identity ||M - I||_F^2,  A, B symmetric, W diagonal

f is a quartic in d^2 unknowns whose curvature spans the squares of B's eigenvalues, so it is solved in the eigenbasis
of B, where the Hessian at W = 1, M = I, A = B splits into 2 x 2 blocks (entries ij and ji); its inverse square root
is the preconditioner. Arrays are float64 (d, d); the module does not know what the matrices mean.
"""

from __future__ import annotations

import numpy as np

from daptq.compensation._newton import Array, stationary_point

__all__ = ["Alignment"]


class Alignment:
    """One instance of eq. 7.

    Args:
        target: A, the covariance to reach.
        source: B, the covariance that M transforms.
        weight: Diagonal of W (d,).
        fit: lambda_f, not negative.
        identity: lambda_i, not negative.
    """

    def __init__(self, target: Array, source: Array, weight: Array, *, fit: float, identity: float) -> None:
        values, basis = np.linalg.eigh(source)
        self._basis = basis
        self._values: Array = np.clip(values, 0.0, None)
        self._target = basis.T @ target @ basis
        self._squared_weight = (basis.T * weight**2) @ basis
        self._fit, self._identity = fit, identity
        self._eye = np.eye(len(values))
        largest = float(np.max(weight**2, initial=0.0))
        self.gradient_scale = 4.0 * fit * largest * float(np.linalg.norm(target) * np.linalg.norm(self._values))
        curvature = max(2.0 * identity, 1e-12 * self.gradient_scale, np.finfo(np.float64).tiny)
        self._pair_norm = np.maximum(self._values[:, None] ** 2 + self._values[None, :] ** 2, 1e-300)
        self._free = curvature**-0.5
        self._stiff = (4.0 * fit * self._pair_norm + curvature) ** -0.5

    def solve(self, starts: list[Array]) -> Array:
        """A stationary point, reached from the start with the least objective."""
        return self._outside(stationary_point(self, [self._basis.T @ start @ self._basis for start in starts]))

    def objective(self, m: Array) -> float:
        """The value of f at M, given in the eigenbasis."""
        residual = self._residual(m)
        fit = (self._squared_weight @ residual * residual).sum()
        return float(self._fit * fit + self._identity * ((m - self._eye) ** 2).sum())

    def gradient(self, m: Array) -> Array:
        """Gradient of f at M: -4 fit Sym(W^2 R) M B + 2 identity (M - I)."""
        pull = self._weighted(self._residual(m)) @ m * self._values
        return -4.0 * self._fit * pull + 2.0 * self._identity * (m - self._eye)

    def hessian_product(self, m: Array, v: Array) -> Array:
        """Hessian of f at M, applied to the direction V."""
        moved = v * self._values @ m.T
        change = self._weighted(-(moved + moved.T)) @ m + self._weighted(self._residual(m)) @ v
        return -4.0 * self._fit * change * self._values + 2.0 * self._identity * v

    def precondition(self, step: Array) -> Array:
        """Inverse square root of the block-diagonal Hessian: stiff along (B_j, B_i) of each pair, free across."""
        along = step * self._values
        share = (along + along.T) / self._pair_norm
        return self._free * step + (self._stiff - self._free) * share * self._values

    def _residual(self, m: Array) -> Array:
        return self._target - m * self._values @ m.T

    def _weighted(self, symmetric: Array) -> Array:
        product = self._squared_weight @ symmetric
        return 0.5 * (product + product.T)

    def _outside(self, m: Array) -> Array:
        return self._basis @ m @ self._basis.T
