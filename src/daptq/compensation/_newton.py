"""A Newton method for stationary points of a smooth function of a matrix, given its Hessian's products with directions.

It works in coordinates that the function preconditions. The module does not know what the function means.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from scipy.sparse.linalg import LinearOperator, minres

__all__ = ["Array", "Problem", "stationary_point"]

Array = NDArray[np.float64]

# Converged when the gradient is this small relative to its own scale.
GRADIENT_TOLERANCE = 1e-10
# A start this close to stationary is the answer: where a second term only chooses among matrices that fit equally well,
# sliding along their valley would take very many iterations.
START_TOLERANCE = 1e-8
MAX_ITERATIONS = 200
MAX_POLISHING_STEPS = 5


class Problem(Protocol):
    """The function.

    Attributes:
        gradient_scale: Size of a gradient far from any stationary point.
    """

    gradient_scale: float

    def objective(self, m: Array) -> float:
        """The value at M."""

    def gradient(self, m: Array) -> Array:
        """The gradient at M."""

    def hessian_product(self, m: Array, v: Array) -> Array:
        """The Hessian at M, applied to the direction V."""

    def precondition(self, step: Array) -> Array:
        """About the inverse square root of the Hessian, symmetric."""


def stationary_point(problem: Problem, starts: list[Array]) -> Array:
    """A stationary point, reached from the start with the least objective."""
    start = min(starts, key=problem.objective)
    if np.linalg.norm(problem.gradient(start)) <= START_TOLERANCE * problem.gradient_scale:
        return start
    tolerance = GRADIENT_TOLERANCE * problem.gradient_scale

    def inside(step: Array) -> Array:
        return start + problem.precondition(step.reshape(start.shape))

    def stop_when_converged(intermediate_result: OptimizeResult) -> None:
        if np.linalg.norm(problem.gradient(inside(intermediate_result.x))) <= tolerance:
            raise StopIteration

    result = minimize(
        lambda step: problem.objective(inside(step)),
        np.zeros(start.size),
        jac=lambda step: problem.precondition(problem.gradient(inside(step))).ravel(),
        hessp=lambda step, direction: problem.precondition(
            problem.hessian_product(inside(step), problem.precondition(direction.reshape(start.shape)))
        ).ravel(),
        method="Newton-CG",
        callback=stop_when_converged,
        options={"xtol": 0.0, "maxiter": MAX_ITERATIONS},
    )
    return _polished(problem, inside(result.x), tolerance)


def _polished(problem: Problem, m: Array, tolerance: float) -> Array:
    """Newton steps on the gradient alone: a line search cannot tell objectives apart below 1e-16 of their value."""
    norm = float(np.linalg.norm(problem.gradient(m)))
    for _ in range(MAX_POLISHING_STEPS):
        if norm <= tolerance:
            break
        hessian = LinearOperator(
            (m.size, m.size),
            matvec=lambda v, m=m: problem.precondition(
                problem.hessian_product(m, problem.precondition(v.reshape(m.shape)))
            ).ravel(),
        )
        step, _ = minres(hessian, -problem.precondition(problem.gradient(m)).ravel(), rtol=1e-6, maxiter=MAX_ITERATIONS)
        candidate = m + problem.precondition(step.reshape(m.shape))
        reached = float(np.linalg.norm(problem.gradient(candidate)))
        if reached >= norm:
            break
        m, norm = candidate, reached
    return m
