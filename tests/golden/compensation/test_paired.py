"""The paired map against a dense Kronecker solve, a least-squares fit of the samples, and finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from daptq.compensation.contract import InterfaceSample
from daptq.compensation.error import interface_error
from daptq.compensation.paired import PairedConfig, solve, split
from daptq.compensation.selection import select_map
from daptq.errors import InvalidInputError, RecipeError
from daptq.interfaces.affine import AffineMap
from daptq.numerics.moments import Moments


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(n: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Full-precision states, and the same after a linear distortion, noise and a shift."""
    full = normal(n, size, seed=seed) @ normal(size, size, seed=seed + 1)
    distortion = torch.eye(size, dtype=torch.float64) + 0.2 * normal(size, size, seed=seed + 2)
    return full, full @ distortion + 0.3 * normal(n, size, seed=seed + 3) + 0.7


def statistics(full: Tensor, quantized: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, C_FQ and C_QQ by NumPy."""
    size = full.shape[1]
    joint = torch.from_numpy(np.cov(full.T.numpy(), quantized.T.numpy(), bias=True))
    return full.mean(0), quantized.mean(0), joint[:size, size:], joint[size:, size:]


def semidefinite(size: int, rank: int, seed: int) -> Tensor:
    a = normal(rank, size, seed=seed)
    return a.mT @ a


@pytest.mark.parametrize("rank", [2, 5, 9])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_map_is_the_dense_solution(ridge: float, rank: int, weighted: bool) -> None:
    """(C_QQ kron H + lambda I) vec(M) = vec(H C_FQ + lambda I), with vec stacking columns."""
    size = 5
    mean_fp, mean_q, cov_fq, cov_qq = statistics(*pairs(40, size, seed=rank))
    h = semidefinite(size, rank, seed=50) if weighted else torch.eye(size, dtype=torch.float64)
    c, cross, weight, eye = cov_qq.numpy(), cov_fq.numpy(), h.numpy(), np.eye(size)
    penalty = ridge * (np.trace(weight) / size) * (np.trace(c) / size)
    right = weight @ cross + penalty * eye
    dense = np.linalg.solve(np.kron(c, weight) + penalty * np.eye(size**2), right.ravel(order="F"))
    expected = dense.reshape(size, size, order="F")
    found = solve(mean_fp, mean_q, cov_fq, cov_qq, h if weighted else None, ridge)
    # The condition of the dense system is below 1e6, so both carry about 1e-16 * 1e6 of relative error.
    np.testing.assert_allclose(found.matrix.numpy(), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.shift.numpy(), mean_fp.numpy() - expected @ mean_q.numpy(), rtol=0, atol=1e-8)
    residual = weight @ expected @ c + penalty * expected - right
    assert np.abs(residual).max() < 1e-9 * np.abs(right).max()


def test_map_minimises_the_weighted_error_of_the_samples() -> None:
    """Moving any entry of M or d raises the objective, written as a mean over the samples."""
    full, quantized = pairs(40, 3, seed=7)
    h = semidefinite(3, 2, seed=8)
    root = torch.linalg.cholesky(h + 1e-9 * torch.eye(3, dtype=torch.float64)).mT
    mean_fp, mean_q, cov_fq, cov_qq = statistics(full, quantized)
    penalty = 0.1 * float(h.diagonal().mean() * cov_qq.diagonal().mean())
    found = solve(mean_fp, mean_q, cov_fq, cov_qq, h, 0.1)

    def objective(matrix: Tensor, shift: Tensor) -> float:
        errors = (full - quantized @ matrix.mT - shift) @ root.mT
        return float(errors.square().sum() / 40 + penalty * (matrix - torch.eye(3, dtype=torch.float64)).square().sum())

    least = objective(found.matrix, found.shift)
    for row in range(3):
        for step in (1e-3, -1e-3):
            shift = found.shift.clone()
            shift[row] += step
            # H has rank 2: along its kernel the shift is free.
            assert objective(found.matrix, shift) > least - 1e-12
            for column in range(3):
                matrix = found.matrix.clone()
                matrix[row, column] += step
                assert objective(matrix, mean_fp - matrix @ mean_q) > least


def test_without_ridge_the_map_is_the_regression() -> None:
    full, quantized = pairs(60, 4, seed=3)
    found = solve(*statistics(full, quantized), None, 0.0)
    design = np.hstack([quantized.numpy(), np.ones((60, 1))])
    fitted = np.linalg.lstsq(design, full.numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.matrix.numpy(), fitted[:4].T, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.shift.numpy(), fitted[4], rtol=0, atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_directions_without_data_or_effect_stay_as_they_are(ridge: float) -> None:
    """Channel 2 is constant after quantization; the robot ignores channel 0."""
    full, quantized = pairs(30, 3, seed=5)
    quantized[:, 2] = 1.5
    h = torch.diag(torch.tensor([0.0, 2.0, 3.0], dtype=torch.float64))
    found = solve(*statistics(full, quantized), h, ridge)
    assert found.matrix[0].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-12)
    assert found.matrix[:, 2].tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-12)
    assert not torch.allclose(found.matrix, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(found(quantized).mean(0), full.mean(0), rtol=0, atol=1e-12)


def test_statistics_of_pairs_are_taken_apart() -> None:
    full, quantized = pairs(20, 3, seed=1)
    moments = Moments(6)
    moments.update(torch.cat([full, quantized], dim=1)[:7])
    moments.update(torch.cat([full, quantized], dim=1)[7:])
    mean_fp, mean_q, cov_ff, cov_fq, cov_qq = split(moments)
    expected = statistics(full, quantized)
    for found, truth in zip((mean_fp, mean_q, cov_fq, cov_qq), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)
    torch.testing.assert_close(cov_ff, torch.cov(full.mT, correction=0), rtol=0, atol=1e-12)
    with pytest.raises(InvalidInputError, match="even number of channels, got 5"):
        split(Moments(5))


def sample(rows: Tensor) -> InterfaceSample:
    moments = Moments(rows.shape[1])
    moments.update(rows)
    return InterfaceSample(rows=rows, moments=moments)


def test_the_most_complete_map_is_offered_last() -> None:
    full, quantized = pairs(30, 3, seed=2)
    given, h = statistics(full, quantized), semidefinite(3, 1, seed=4)
    samples = sample(full), sample(quantized)
    maps = PairedConfig(ridge=0.05).solve(*samples, h, "affine", 1)
    assert list(maps) == ["paired, unweighted", "paired"]
    torch.testing.assert_close(maps["paired"].matrix, solve(*given, h, 0.05).matrix, rtol=0, atol=1e-12)
    unweighted = solve(*given, None, 0.05).matrix
    torch.testing.assert_close(maps["paired, unweighted"].matrix, unweighted, rtol=0, atol=1e-12)
    assert not torch.allclose(maps["paired"].matrix, unweighted)
    alone = PairedConfig(ridge=0.05, weighted=False).solve(*samples, None, "affine", 1)
    assert list(alone) == ["paired"]
    assert torch.equal(alone["paired"].matrix, maps["paired, unweighted"].matrix)
    with pytest.raises(InvalidInputError, match="sensitivity must be given for a weighted map"):
        PairedConfig().solve(*samples, None, "affine", 1)


def test_weighted_error_is_that_of_the_loops() -> None:
    full, quantized, mean, h = normal(6, 3, seed=1), normal(6, 3, seed=2), normal(3, seed=3), semidefinite(3, 2, seed=4)

    def square(errors: Tensor) -> float:
        return sum(float(errors[n, i] * h[i, j] * errors[n, j]) for n in range(6) for i in range(3) for j in range(3))

    expected = square(quantized - full) / square(full - mean)
    assert interface_error(quantized, full, mean, h) == pytest.approx(expected, rel=1e-12)
    eye = torch.eye(3, dtype=torch.float64)
    assert interface_error(quantized, full, mean, 5 * eye) == pytest.approx(interface_error(quantized, full, mean))


def test_selection_judges_by_what_the_robot_feels() -> None:
    """Map a repairs channel 0 and ruins channel 1; the robot feels channel 0 alone."""
    full = normal(30, 2, seed=0)
    maps = {
        name: AffineMap(matrix=torch.diag(torch.tensor(gains, dtype=torch.float64)), shift=torch.zeros(2).double())
        for name, gains in (("a", [0.5, 2.0]), ("b", [0.9, 0.5]))
    }
    felt = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    arguments = (maps, 2 * full, full, full.mean(0))
    assert select_map(*arguments, max_condition=1e3, always=False).name == "b"
    chosen = select_map(*arguments, max_condition=1e3, always=False, sensitivity=felt)
    assert chosen.name == "a"
    assert chosen.errors["a"] == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ridge": -0.1}, "ridge of paired compensation"),
        ({"ridge": math.inf}, "ridge of paired compensation"),
        ({"ridge": math.nan}, "ridge of paired compensation"),
        ({"max_condition": 0.5}, "max_condition of a compensation"),
        ({"selection": "best"}, "selection of a compensation"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PairedConfig(**settings)


def test_bad_statistics_are_refused() -> None:
    mean_fp, mean_q, cov_fq, cov_qq = statistics(*pairs(30, 3, seed=2))
    for wrong in ((mean_fp, mean_q[:2], cov_fq, cov_qq), (mean_fp[:2], mean_q[:2], cov_fq, cov_qq)):
        with pytest.raises(InvalidInputError, match="statistics of pairs must be of"):
            solve(*wrong, None, 0.1)
    with pytest.raises(InvalidInputError, match="ridge must not be negative"):
        solve(mean_fp, mean_q, cov_fq, cov_qq, None, -1.0)
    with pytest.raises(InvalidInputError, match="positive semi-definite, got the eigenvalue -1"):
        solve(mean_fp, mean_q, cov_fq, cov_qq, torch.diag(torch.tensor([1.0, -1.0, 2.0])), 0.1)
