"""What must hold for every pair of covariances and every set of held-out states."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from daptq.compensation.csrc import CsrcConfig, align_covariance, low_rank, solve
from daptq.compensation.selection import select_map

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 6)


def samples(n: int, size: int, seed: int) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SIZES, SEEDS, st.data())
def test_alignment_follows_a_permutation_of_the_channels(size: int, seed: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(size)))
    target, source = torch.cov(samples(30, size, seed).mT), torch.cov(1.2 * samples(30, size, seed + 1).mT)
    target, source = target.reshape(size, size), source.reshape(size, size)
    weight = samples(1, size, seed + 2)[0].abs() + 0.5
    direct = align_covariance(target, source, weight, 1.0, 0.5)
    permuted = align_covariance(target[order][:, order], source[order][:, order], weight[order], 1.0, 0.5)
    # Both stop at a gradient of 1e-10 of its scale (about 1e2) with a curvature of at least 2 * 0.5.
    torch.testing.assert_close(permuted, direct[order][:, order], rtol=0, atol=1e-7)


@given(SIZES, SEEDS, st.floats(1e-3, 1e3))
def test_maps_do_not_depend_on_the_unit(size: int, seed: int, unit: float) -> None:
    full, noisy = samples(25, size, seed), samples(25, size, seed) + 0.3 * samples(25, size, seed + 1)
    maps = [
        solve(
            u * full.mean(0),
            u * u * torch.cov(full.mT).reshape(size, size),
            u * noisy.mean(0),
            u * u * torch.cov(noisy.mT).reshape(size, size),
            CsrcConfig(rank=None),
        )
        for u in (1.0, unit)
    ]
    for name in maps[0]:
        torch.testing.assert_close(maps[0][name].matrix, maps[1][name].matrix, rtol=0, atol=1e-6)
        torch.testing.assert_close(unit * maps[0][name].shift, maps[1][name].shift, rtol=1e-5, atol=1e-6 * unit)


@given(SIZES, SEEDS)
def test_truncation_to_full_rank_loses_nothing(size: int, seed: int) -> None:
    matrix = samples(size, size, seed)
    u, v = low_rank(matrix, size)
    torch.testing.assert_close(torch.eye(size, dtype=torch.float64) + u @ v.mT, matrix, rtol=0, atol=1e-12)


@given(st.integers(2, 12), SIZES, SEEDS, st.floats(0, 3))
def test_compensation_never_makes_the_judged_states_worse(n: int, size: int, seed: int, noise: float) -> None:
    full = samples(n, size, seed)
    noisy = full + noise * samples(n, size, seed + 1)
    covariances = [torch.cov(part.mT).reshape(size, size) for part in (full, noisy)]
    maps = solve(full.mean(0), covariances[0], noisy.mean(0), covariances[1], CsrcConfig())
    held = samples(5, size, seed + 2)
    chosen = select_map(maps, 1.5 * held + 0.1, held, full.mean(0), max_condition=1e3, always=False)
    assert chosen.errors[chosen.name] == min(chosen.errors.values())
    assert chosen.errors[chosen.name] <= chosen.errors["none"]
