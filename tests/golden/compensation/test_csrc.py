"""Eq. 4-8 against loops, finite differences, SciPy's matrix square root and closed forms; float64 throughout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from daptq.compensation.csrc import (
    CsrcConfig,
    align_covariance,
    gain_and_shift,
    low_rank,
    optimal_transport_map,
    solve,
    variance_ratio_weight,
)
from daptq.compensation.few_states import factor
from daptq.errors import InvalidInputError, RecipeError


def covariance(size: int, seed: int, samples: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1, size, dtype=torch.float64)
    x = torch.randn(samples or 4 * size, size, generator=generator, dtype=torch.float64) * scales
    mix = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return torch.cov((x @ mix).mT)


def near(cov: Tensor, seed: int, amount: float = 0.2) -> Tensor:
    """A covariance that differs from `cov` by about `amount`."""
    generator = torch.Generator().manual_seed(seed)
    change = torch.eye(len(cov), dtype=torch.float64)
    change = change + amount * torch.randn(cov.shape, generator=generator, dtype=torch.float64) / math.sqrt(len(cov))
    return change @ cov @ change.mT


def loop_objective(m: list[list[float]], a: Tensor, b: Tensor, w: Tensor, fit: float, identity: float) -> float:
    """Eq. 7 with every product written out."""
    d = len(m)
    total = 0.0
    for i in range(d):
        for j in range(d):
            mapped = sum(m[i][k] * float(b[k, n]) * m[j][n] for k in range(d) for n in range(d))
            total += fit * (float(w[i]) * (float(a[i, j]) - mapped)) ** 2
            total += identity * (m[i][j] - (1.0 if i == j else 0.0)) ** 2
    return total


def test_gain_and_shift_are_those_of_the_paper() -> None:
    mean_fp, mean_q = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.5, -2.5, 0.5, 3.5])
    std_fp, std_q = torch.tensor([1.0, 4.0, 0.1, 0.0]), torch.tensor([2.0, 1.0, 1.0, 0.0])
    gain, shift = gain_and_shift(mean_fp, std_fp, mean_q, std_q, 0.4, 1.5, 0.01)
    for c in range(4):
        sigma = float(std_fp[c]) / (float(std_q[c]) + 0.01)
        g = min(max(sigma, 0.4), 1.5)
        assert float(gain[c]) == pytest.approx(g, rel=1e-7)
        assert float(shift[c]) == pytest.approx(float(mean_fp[c]) - g * float(mean_q[c]), rel=1e-7)
    assert gain.dtype == shift.dtype == torch.float64


def test_constant_channel_keeps_its_scale() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    gain, shift = gain_and_shift(one, zero, 3 * one, zero, 0.5, 2.0, 0.0)
    assert gain.tolist() == [1.0]
    assert shift.tolist() == [-2.0]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("fit", "identity"), [(1.0, 0.1), (1.0, 0.003), (0.2, 1.0)])
def test_aligned_matrix_is_stationary(seed: int, fit: float, identity: float) -> None:
    target = covariance(4, seed)
    source = near(target, seed + 100)
    weight = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
    m = align_covariance(target, source, weight, fit, identity).tolist()
    step, slopes = 1e-5, []
    for i in range(4):
        for j in range(4):
            values = []
            for sign in (1, -1):
                moved = [list(row) for row in m]
                moved[i][j] += sign * step
                values.append(loop_objective(moved, target, source, weight, fit, identity))
            slopes.append((values[0] - values[1]) / (2 * step))
    # Differences: truncation step^2 * third derivative (of order 10) ~ 1e-9, cancellation 1e-16 / 1e-5 ~ 1e-11.
    assert math.hypot(*slopes) < 1e-8
    start = torch.eye(4, dtype=torch.float64).tolist()
    assert loop_objective(m, target, source, weight, fit, identity) < loop_objective(
        start, target, source, weight, fit, identity
    )


def test_diagonal_covariances_have_a_scalar_solution_per_channel() -> None:
    a, b = [2.0, 0.5, 1.0], [1.0, 1.0, 3.0]
    w, fit, identity = [1.0, 2.0, 0.5], 0.7, 0.05
    m = align_covariance(
        torch.diag(torch.tensor(a, dtype=torch.float64)),
        torch.diag(torch.tensor(b, dtype=torch.float64)),
        torch.tensor(w, dtype=torch.float64),
        fit,
        identity,
    )
    for c in range(3):
        # d/dm [fit w^2 (a - b m^2)^2 + identity (m - 1)^2] = 0, a cubic; the positive root with the least value.
        f, k = fit * w[c] ** 2, identity
        roots = np.roots([4 * f * b[c] ** 2, 0.0, 2 * k - 4 * f * a[c] * b[c], -2 * k])
        real = [r.real for r in roots if abs(r.imag) < 1e-9]
        best = min(real, key=lambda r: f * (a[c] - b[c] * r * r) ** 2 + k * (r - 1) ** 2)
        # numpy's companion-matrix roots of a well-conditioned cubic: about 1e-12; the solver's gradient: 1e-10.
        assert float(m[c, c]) == pytest.approx(best, abs=1e-9)
    torch.testing.assert_close(m, torch.diag(m.diagonal()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("identity", [0.0, 1e-12, 1e-10])
@pytest.mark.parametrize("form", ["vector", "matrix"])
def test_without_identity_weight_it_is_the_optimal_transport_map(identity: float, form: str) -> None:
    target = covariance(6, 3)
    source = near(target, 4, 0.5)
    eye = torch.eye(6, dtype=torch.float64)
    m = align_covariance(target, source, eye if form == "matrix" else torch.ones(6), 1.0, identity)
    root = scipy.linalg.sqrtm(source.numpy()).real
    inverse = np.linalg.inv(root)
    expected = inverse @ scipy.linalg.sqrtm(root @ target.numpy() @ root).real @ inverse
    # Condition number of the source is about 100; two square roots and two inverses lose at most 1e4 * 2e-16.
    np.testing.assert_allclose(m.numpy(), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose((m @ source @ m.mT).numpy(), target.numpy(), rtol=0, atol=1e-12)


def test_optimal_transport_is_identity_where_nothing_varies() -> None:
    target, source = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    target[:2, :2], source[:2, :2] = covariance(2, 0), near(covariance(2, 0), 1)
    m = optimal_transport_map(target, source)
    torch.testing.assert_close(m[:2, :2] @ source[:2, :2] @ m[:2, :2].mT, target[:2, :2], rtol=0, atol=1e-12)
    assert m[2].tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-15)
    assert torch.equal(optimal_transport_map(torch.zeros(2, 2), torch.zeros(2, 2)), torch.eye(2, dtype=torch.float64))


def test_equal_covariances_need_no_map() -> None:
    cov = covariance(5, 0)
    torch.testing.assert_close(
        align_covariance(cov, cov, torch.ones(5), 1.0, 0.1), torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_low_rank_is_the_best_of_its_rank() -> None:
    matrix = torch.eye(7, dtype=torch.float64) + torch.randn(7, 7, dtype=torch.float64)
    values = np.linalg.svd(matrix.numpy() - np.eye(7), compute_uv=False)
    for rank in range(8):
        u, v = low_rank(matrix, rank)
        assert u.shape == v.shape == (7, rank)
        error = float((torch.eye(7, dtype=torch.float64) + u @ v.mT - matrix).norm())
        # Eckart and Young: the discarded singular values are the least possible error.
        assert error == pytest.approx(math.sqrt(float((values[rank:] ** 2).sum())), abs=1e-13)


def test_weight_is_the_larger_variance_ratio() -> None:
    fp, q = [1.0, 2.0, 1.0, 1.0, 100.0], [1.0, 1.0, 3.0, 0.0, 1.0]
    weight = variance_ratio_weight(torch.tensor(fp), torch.tensor(q))
    floor = 1e-6 * sum(fp) / 5
    ratios = [min(max((a + floor) / (b + floor), 0.25), 4.0) for a, b in zip(fp, q, strict=True)]
    larger = [max(r, 1 / r) for r in ratios]
    assert weight.tolist() == pytest.approx([value / (sum(larger) / 5) for value in larger], rel=1e-12)


@pytest.mark.parametrize("rank", [None, 2, 0])
def test_maps_carry_the_mean_and_repair_the_covariance(rank: int | None) -> None:
    cov_fp = covariance(8, 5)
    cov_q = near(cov_fp, 6, 0.3)
    mean_fp, mean_q = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    maps = solve(mean_fp, cov_fp, mean_q, cov_q, CsrcConfig(rank=rank, identity_weight=1e-3))
    assert list(maps) == ["per-channel", "cross-channel"]
    for affine in maps.values():
        torch.testing.assert_close(affine(mean_q), mean_fp, rtol=0, atol=1e-12)
    gains = maps["per-channel"].matrix
    repaired = (gains @ cov_q @ gains.mT).diagonal()
    torch.testing.assert_close(repaired, cov_fp.diagonal(), rtol=1e-4, atol=0)  # epsilon = 1e-6 shows at 1e-6 relative

    def misfit(m: Tensor) -> float:
        return float((cov_fp - m @ cov_q @ m.mT).norm() / cov_fp.norm())

    assert maps["per-channel"].is_diagonal
    full = maps["cross-channel"].matrix
    if rank is None:
        assert misfit(full) < 0.1 * misfit(gains)
    elif rank:
        assert misfit(full) < misfit(gains)
    else:
        torch.testing.assert_close(full, gains, rtol=0, atol=0)


def test_few_states_leave_unseen_directions_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 20, generator=generator, dtype=torch.float64)
    noisy = z + 0.1 * torch.randn(5, 20, generator=generator, dtype=torch.float64)
    maps = solve(z.mean(0), torch.cov(z.mT), noisy.mean(0), torch.cov(noisy.mT), CsrcConfig(rank=None))
    assert 1 <= maps["cross-channel"].condition_number < 20


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rank", [None, 2])
def test_few_states_are_solved_in_factors_to_the_same_map(
    seed: int, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(5, 24, generator=generator, dtype=torch.float64)
    noisy = z + 0.3 * torch.randn(5, 24, generator=generator, dtype=torch.float64)
    statistics = (z.mean(0), torch.cov(z.mT), noisy.mean(0), torch.cov(noisy.mT))
    config = CsrcConfig(rank=rank)
    factored = solve(*statistics, config)["cross-channel"]
    monkeypatch.setattr("daptq.compensation.csrc.CHANNELS_PER_DIRECTION", math.inf)
    dense = solve(*statistics, config)["cross-channel"]
    # Both stop at a gradient of 1e-10 of its scale, here about 2000, and the weakest curvature is 2 identity_weight.
    torch.testing.assert_close(factored.matrix, dense.matrix, rtol=0, atol=1e-6)
    assert not torch.equal(factored.matrix, dense.matrix), "two ways were taken"
    assert not factored.is_identity


@pytest.mark.parametrize("rank", [0, 1, 4, 9])
def test_factor_of_a_covariance_has_its_rank(rank: int) -> None:
    root = torch.randn(9, rank, dtype=torch.float64)
    found = factor((root @ root.mT).numpy())
    assert found.shape == (9, rank)
    np.testing.assert_allclose(found @ found.T, (root @ root.mT).numpy(), rtol=0, atol=1e-13)


def test_per_channel_alone() -> None:
    cov = covariance(3, 0)
    maps = solve(torch.zeros(3), cov, torch.zeros(3), cov, CsrcConfig(cross_channel=False))
    assert list(maps) == ["per-channel"]


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(4, 4), torch.ones(4, 1)])
def test_weight_that_is_not_diagonal_is_refused(weight: Tensor) -> None:
    with pytest.raises(InvalidInputError, match="weight must be a vector"):
        align_covariance(torch.eye(4), torch.eye(4), weight, 1.0, 1.0)


def test_unlike_covariances_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="covariances must be square"):
        align_covariance(torch.eye(4), torch.eye(3), torch.ones(4), 1.0, 1.0)


@pytest.mark.parametrize("rank", [-1, 4])
def test_impossible_rank_is_refused(rank: int) -> None:
    with pytest.raises(InvalidInputError, match="rank must be between 0 and 3"):
        low_rank(torch.eye(3), rank)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gain_min": 0.0}, "gain limits"),
        ({"gain_max": 0.9}, "gain limits"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"fit_weight": math.nan}, "fit_weight"),
        ({"identity_weight": math.inf}, "identity_weight"),
        ({"rank": -1}, "rank"),
        ({"max_condition": 0.5}, "max_condition"),
        ({"selection": "never"}, "selection"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CsrcConfig(**settings)  # type: ignore[arg-type]
