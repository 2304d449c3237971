"""The paired map's laws: nothing to repair, never worse on the fit data, and indifferent to the units."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from daptq.compensation.error import interface_error
from daptq.compensation.paired import solve, split
from daptq.interfaces.affine import AffineMap
from daptq.numerics.moments import Moments

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 6)
RIDGES = st.one_of(st.just(0.0), st.floats(1e-6, 1e3))


def samples(n: int, size: int, seed: int) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solved(full: Tensor, quantized: Tensor, sensitivity: Tensor | None, ridge: float) -> AffineMap:
    moments = Moments(2 * full.shape[1])
    moments.update(torch.cat([full, quantized], dim=1))
    mean_fp, mean_q, _, cov_fq, cov_qq = split(moments)
    return solve(mean_fp, mean_q, cov_fq, cov_qq, sensitivity, ridge)


def weight(size: int, rank: int, seed: int) -> Tensor | None:
    """H of some rank; None for rank 0."""
    a = samples(rank, size, seed)
    return a.mT @ a if rank else None


@given(st.integers(1, 20), SIZES, SEEDS, st.integers(0, 8), RIDGES)
def test_what_is_equal_needs_no_map(n: int, size: int, seed: int, rank: int, ridge: float) -> None:
    full = samples(n, size, seed)
    found = solved(full, full, weight(size, rank, seed + 1), ridge)
    # The moments of both halves are equal bit for bit, and so is what the map changes.
    assert torch.equal(found.matrix, torch.eye(size, dtype=torch.float64))
    assert not found.shift.any()


@given(st.integers(1, 20), SIZES, SEEDS, st.integers(0, 8), RIDGES, st.floats(0, 3))
def test_the_fit_data_never_get_worse(n: int, size: int, seed: int, rank: int, ridge: float, noise: float) -> None:
    """Even with fewer states than channels, and a sensitivity that sees few of these."""
    full = samples(n, size, seed)
    quantized = full @ (torch.eye(size, dtype=torch.float64) + 0.3 * samples(size, size, seed + 1))
    quantized = quantized + noise * samples(n, size, seed + 2) + 0.1
    h = weight(size, rank, seed + 3)
    found = solved(full, quantized, h, ridge)
    shifted = AffineMap(matrix=torch.eye(size, dtype=torch.float64), shift=(full - quantized).mean(0))
    origin = torch.zeros(size, dtype=torch.float64)
    unmapped, moved, mapped = (
        interface_error(z, full, origin, h) for z in (quantized, shifted(quantized), found(quantized))
    )
    assert mapped <= moved * (1 + 1e-9) + 1e-12
    assert moved <= unmapped * (1 + 1e-9) + 1e-12


@given(SIZES, SEEDS, st.integers(0, 8), st.floats(1e-3, 10), st.floats(-6, 6), st.floats(-6, 6))
def test_units_do_not_matter(size: int, seed: int, rank: int, ridge: float, unit: float, effect: float) -> None:
    """Neither that of the representation nor that of the displacement, since the ridge is relative."""
    full, quantized = samples(30, size, seed), samples(30, size, seed) + 0.3 * samples(30, size, seed + 1)
    h = weight(size, rank, seed + 2)
    scale = 10.0**unit
    direct = solved(full, quantized, h, ridge)
    scaled = solved(scale * full, scale * quantized, None if h is None else 10.0**effect * h, ridge)
    torch.testing.assert_close(scaled.matrix, direct.matrix, rtol=0, atol=1e-8)
    torch.testing.assert_close(scaled.shift / scale, direct.shift, rtol=0, atol=1e-8)


@given(SIZES, SEEDS, st.integers(0, 8), RIDGES)
def test_means_match(size: int, seed: int, rank: int, ridge: float) -> None:
    full, quantized = samples(20, size, seed), 1.3 * samples(20, size, seed) + samples(20, size, seed + 1) + 2.0
    found = solved(full, quantized, weight(size, rank, seed + 2), ridge)
    torch.testing.assert_close(found(quantized).mean(0), full.mean(0), rtol=0, atol=1e-10)


@given(SIZES, SEEDS, st.integers(0, 8))
def test_a_large_ridge_leaves_only_the_shift(size: int, seed: int, rank: int) -> None:
    full, quantized = samples(20, size, seed), samples(20, size, seed + 1) + 2.0
    found = solved(full, quantized, weight(size, rank, seed + 2), 1e12)
    torch.testing.assert_close(found.matrix, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-9)


@given(SIZES, SEEDS)
def test_without_ridge_the_sensitivity_decides_nothing(size: int, seed: int) -> None:
    """The regression is best for every channel at once, as long as H sees all of them."""
    full, quantized = samples(40, size, seed), samples(40, size, seed) + 0.5 * samples(40, size, seed + 1)
    h = weight(size, 2 * size, seed + 2)
    first, second = solved(full, quantized, None, 0.0), solved(full, quantized, h, 0.0)
    torch.testing.assert_close(first.matrix, second.matrix, rtol=0, atol=1e-8)
