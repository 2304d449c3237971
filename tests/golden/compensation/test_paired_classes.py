"""Paired maps within a class against numerical minimisation of the written-out objective, float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from daptq.compensation.paired import solve
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.map_class import MapClass, belongs

HEADS, SIZE = 2, 4
CHANNELS = HEADS * SIZE


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(n: int = 40) -> tuple[Tensor, Tensor]:
    full = normal(n, CHANNELS, seed=1) @ normal(CHANNELS, CHANNELS, seed=2) + normal(CHANNELS, seed=3)
    distortion = torch.eye(CHANNELS, dtype=torch.float64) + 0.3 * normal(CHANNELS, CHANNELS, seed=4)
    return full, full @ distortion + 0.3 * normal(n, CHANNELS, seed=5) + 0.4


def statistics(full: Tensor, quantized: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    joint = torch.from_numpy(np.cov(full.T.numpy(), quantized.T.numpy(), bias=True))
    return full.mean(0), quantized.mean(0), joint[:CHANNELS, CHANNELS:], joint[CHANNELS:, CHANNELS:]


def sensitivity() -> Tensor:
    root = normal(CHANNELS, 3, seed=6)
    return root @ root.mT + 0.01 * torch.eye(CHANNELS, dtype=torch.float64)


def blocks(numbers: np.ndarray) -> np.ndarray:
    matrix = np.zeros((CHANNELS, CHANNELS))
    for head, block in enumerate(numbers.reshape(HEADS, SIZE, SIZE)):
        own = slice(head * SIZE, (head + 1) * SIZE)
        matrix[own, own] = block
    return matrix


def turned(numbers: np.ndarray) -> np.ndarray:
    """Every pair (i, i + D/2) of each head as a complex number, times a + i b."""
    matrix = np.zeros((CHANNELS, CHANNELS))
    for pair, (a, b) in enumerate(numbers.reshape(-1, 2)):
        head, i = divmod(pair, SIZE // 2)
        i, j = head * SIZE + i, head * SIZE + i + SIZE // 2
        matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = a, -b, b, a
    return matrix


CLASSES: dict[MapClass, tuple[int, Callable[[np.ndarray], np.ndarray], bool]] = {
    "affine-per-head": (HEADS * SIZE**2, blocks, True),
    "rotary": (CHANNELS, turned, False),
    "diagonal": (CHANNELS, np.diag, True),
    "gain": (CHANNELS, np.diag, False),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_it_is_the_best_map_of_its_class(name: MapClass, weighted: bool) -> None:
    full, quantized = pairs()
    count, matrix_of, shifted = CLASSES[name]
    h = sensitivity() if weighted else torch.eye(CHANNELS, dtype=torch.float64)
    given = statistics(full, quantized)
    seconds = given[3] if shifted else quantized.mT @ quantized / len(quantized)
    penalty = 0.2 * float(h.trace() * seconds.trace()) / CHANNELS**2
    metric, z_f, z_q = h.numpy(), full.numpy(), quantized.numpy()

    def objective(numbers: np.ndarray) -> float:
        matrix = matrix_of(numbers)
        error = z_f - z_q @ matrix.T
        error = error - error.mean(axis=0) if shifted else error
        fit = np.einsum("ni,ij,nj->", error, metric, error) / len(error)
        return float(fit + penalty * ((matrix - np.eye(CHANNELS)) ** 2).sum())

    result = minimize(objective, np.zeros(count) + 0.1, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    found = solve(*given, h if weighted else None, 0.2, name, HEADS)
    np.testing.assert_allclose(found.matrix.numpy(), matrix_of(result.x), rtol=0, atol=2e-5)
    expected = given[0] - found.matrix @ given[1] if shifted else torch.zeros(CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(found.shift, expected, rtol=0, atol=1e-12)
    assert belongs(found, name, HEADS)


def test_rotary_is_complex_least_squares() -> None:
    full, quantized = pairs()
    found = solve(*statistics(full, quantized), None, 0.0, "rotary", HEADS)
    half = SIZE // 2
    for head in range(HEADS):
        for i in range(half):
            first, second = head * SIZE + i, head * SIZE + i + half
            z_f = torch.complex(full[:, first], full[:, second])
            z_q = torch.complex(quantized[:, first], quantized[:, second])
            a = (z_q.conj() * z_f).sum() / z_q.abs().square().sum()
            assert float(found.matrix[first, first]) == pytest.approx(float(a.real), rel=1e-10)
            assert float(found.matrix[second, first]) == pytest.approx(float(a.imag), rel=1e-10)


def test_without_coupling_each_head_is_solved_as_one_interface() -> None:
    full, quantized = pairs()
    mean_fp, mean_q, cov_fq, cov_qq = statistics(full, quantized)
    found = solve(mean_fp, mean_q, cov_fq, cov_qq, None, 0.0, "affine-per-head", HEADS)
    for head in range(HEADS):
        own = slice(head * SIZE, (head + 1) * SIZE)
        alone = solve(mean_fp[own], mean_q[own], cov_fq[own, own], cov_qq[own, own], None, 0.0)
        torch.testing.assert_close(found.matrix[own, own], alone.matrix, rtol=0, atol=1e-10)
    one = solve(mean_fp, mean_q, cov_fq, cov_qq, sensitivity(), 0.3, "affine-per-head", 1)
    whole = solve(mean_fp, mean_q, cov_fq, cov_qq, sensitivity(), 0.3)
    torch.testing.assert_close(one.matrix, whole.matrix, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CLASSES)
def test_directions_without_data_or_effect_stay_as_they_are(name: MapClass) -> None:
    still = torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64)
    zero = torch.zeros(CHANNELS, dtype=torch.float64)
    assert solve(zero, zero, still, still, None, 0.0, name, HEADS).is_identity
    given = statistics(*pairs())
    found = solve(*given, still, 0.0, name, HEADS)
    assert torch.equal(found.matrix, AffineMap.identity(CHANNELS).matrix)
    assert math.isfinite(float(found.shift.sum()))
