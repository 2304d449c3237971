"""Least squares within a class of maps.

Of all matrices M of the class, the one that minimises

    E (z_F - M z_Q)^T H (z_F - M z_Q) + lambda ||M - I||_F^2

from second moments of z_F and z_Q about their means, where a shift follows, or about zero, where there is none. H is
symmetric positive semi-definite. Directions without data or effect stay as they are, so no matrix fits worse than I.

M is linear in the numbers that it consists of. Of a diagonal M these are the gains g, with the normal equations
(H o C_QQ + lambda I) g = diag(H C_FQ) + lambda 1 (o multiplies entry by entry). A rotary M is diag(a) + diag(b) J, J
the quarter turn of every pair of channels, and has the same equations for z_Q and J z_Q on top of each other; with
H = I they split into a = <z_Q, z_F> / |z_Q|^2 for every pair, read as complex numbers. The blocks of M for heads
influence each other through H: each in turn is solved given the others, until none changes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.interfaces.map_class import blocks_of, rotary_matrix
from daptq.numerics.symmetric import NEGLIGIBLE, exact_symmetric_part

__all__ = ["block_matrix", "diagonal_matrix", "rotary_least_squares"]

MAX_SWEEPS = 100
CONVERGED = 1e-12


def diagonal_matrix(
    moment_fq: Float[Tensor, "d d"], moment_qq: Float[Tensor, "d d"], weight: Float[Tensor, "d d"], penalty: float
) -> Float[Tensor, "d d"]:
    """The best diagonal M, float64.

    Args:
        moment_fq: E z_F z_Q^T.
        moment_qq: E z_Q z_Q^T.
        weight: H.
        penalty: lambda, not negative.
    """
    curvature = exact_symmetric_part(weight) * exact_symmetric_part(moment_qq)
    slope = (weight @ moment_fq).diagonal() - curvature.sum(dim=1)
    return torch.diag(1.0 + _solved(curvature, slope, penalty))


def rotary_least_squares(
    moment_fq: Float[Tensor, "d d"],
    moment_qq: Float[Tensor, "d d"],
    weight: Float[Tensor, "d d"],
    penalty: float,
    heads: int,
) -> Float[Tensor, "d d"]:
    """The best M that scales and turns every pair of channels of each head, float64; see `diagonal_matrix`."""
    size = len(moment_qq)
    half = size // heads // 2
    index = torch.arange(size).view(heads, 2, half)
    partner = index.flip(1).flatten()
    sign = torch.ones(heads, 2, half, dtype=torch.float64)
    sign[:, 0] = -1.0
    sign = sign.flatten()
    # Second moments of z_Q and J z_Q: (J z)_i = sign_i z_partner(i).
    both = torch.cat([torch.arange(size), partner])
    signs = torch.cat([torch.ones(size, dtype=torch.float64), sign])
    stacked = signs[:, None] * exact_symmetric_part(moment_qq)[both][:, both] * signs
    curvature = exact_symmetric_part(weight).repeat(2, 2) * stacked
    pull = weight @ moment_fq
    slope = torch.cat([pull.diagonal(), pull[torch.arange(size), partner] * sign]) - curvature[:, :size].sum(dim=1)
    # The two channels of a pair share a and b.
    shared = torch.cat([index[:, 0].flatten(), index[:, 0].flatten() + size])
    other = torch.cat([index[:, 1].flatten(), index[:, 1].flatten() + size])
    tied = curvature[shared] + curvature[other]
    tied = tied[:, shared] + tied[:, other]
    change = _solved(tied, slope[shared] + slope[other], 2.0 * penalty).view(2, heads, half)
    return rotary_matrix(1.0 + change[0], change[1])


def block_matrix(
    moment_fq: Float[Tensor, "d d"],
    moment_qq: Float[Tensor, "d d"],
    weight: Float[Tensor, "d d"],
    penalty: float,
    heads: int,
) -> Float[Tensor, "d d"]:
    """The best M with one block for each head, float64; see `diagonal_matrix`."""
    source, metric = exact_symmetric_part(moment_qq), exact_symmetric_part(weight)
    h, p = torch.linalg.eigh(blocks_of(metric, heads))
    c, q = torch.linalg.eigh(blocks_of(source, heads))
    h, c = _positive(h), _positive(c)
    curvature = h[:, :, None] * c[:, None, :]
    denominator = torch.where(curvature > 0, curvature + penalty, 1.0)
    matrix = torch.eye(len(source), dtype=torch.float64)
    size = len(source) // heads
    eye = torch.eye(size, dtype=torch.float64)
    for _ in range(MAX_SWEEPS):
        largest = 0.0
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            residual = moment_fq[:, own].to(source) - matrix @ source[:, own]
            pull = metric[own] @ residual - penalty * (matrix[own, own] - eye)
            inside = torch.where(curvature[head] > 0, p[head].mT @ pull @ q[head] / denominator[head], 0.0)
            step = p[head] @ inside @ q[head].mT
            matrix[own, own] += step
            largest = max(largest, float(step.abs().max()))
        if largest <= CONVERGED:
            break
    return matrix


def _solved(curvature: Float[Tensor, "n n"], slope: Float[Tensor, " n"], penalty: float) -> Float[Tensor, " n"]:
    """(curvature + penalty I)^-1 slope; 0 along directions without curvature."""
    values, vectors = torch.linalg.eigh(exact_symmetric_part(curvature))
    values = _positive(values)
    along = vectors.mT @ slope.to(vectors)
    scaled = torch.where(values > 0, along / torch.where(values > 0, values + penalty, 1.0), 0.0)
    return vectors @ scaled


def _positive(values: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Eigenvalues with those that are only rounding set to 0."""
    return torch.where(values > NEGLIGIBLE * values.amax(dim=-1, keepdim=True), values, 0.0)
