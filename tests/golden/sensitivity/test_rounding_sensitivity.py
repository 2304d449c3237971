"""The cost of rounding against Jacobians of a tiny network that are enumerated in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from daptq.sensitivity.probe import metric_root, probe
from daptq.sensitivity.rounding import RoundingSensitivity

BATCH, CHUNK, ACTION = 3, 2, 2
SIZE = CHUNK * ACTION
PROBES = 4000


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


INPUTS = draw(BATCH, 3, seed=0)
WEIGHTS = {"first": draw(5, 3, seed=1).requires_grad_(), "second": draw(SIZE, 5, seed=2).requires_grad_()}
CHANGES = {("first", 2): draw(5, 3, seed=3), ("first", 4): 0.1 * draw(5, 3, seed=4)}
CHANGES |= {("second", 2): draw(SIZE, 5, seed=5), ("second", 4): 0.1 * draw(SIZE, 5, seed=6)}
FACTOR = draw(SIZE, SIZE - 1, seed=7)  # one direction of the chunk moves nothing
METRIC = FACTOR @ FACTOR.mT


def network(first: Tensor, second: Tensor, inputs: Tensor = INPUTS) -> Tensor:
    return (torch.tanh(inputs @ first.mT) @ second.mT).reshape(-1, CHUNK, ACTION)


def rounded(name: str, bits: int) -> Tensor:
    return WEIGHTS[name].detach() + CHANGES[name, bits]


def enumerated(name: str, bits: int) -> Tensor:
    """dA (sample, chunk * action): the first-order change of every sample's chunk, by central differences."""
    step = 1e-6

    def moved(sign: float) -> Tensor:
        shifted = {
            k: v.detach() + (sign * step * CHANGES[name, bits] if k == name else 0.0) for k, v in WEIGHTS.items()
        }
        return network(**shifted).flatten(1)

    return (moved(1.0) - moved(-1.0)) / (2 * step)


def exact_drift(name: str, bits: int) -> float:
    change = enumerated(name, bits).numpy()
    return float(np.mean([row @ METRIC.numpy() @ row for row in change]))


def seen(values: Callable[[int], Tensor], steps: int) -> RoundingSensitivity:
    sensitivity = RoundingSensitivity(WEIGHTS, rounded, (2, 4))
    for step in range(steps):
        sensitivity.update(values(step))
    return sensitivity


def test_probes_estimate_the_drift_without_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    root = metric_root(METRIC)
    costs = seen(lambda _: probe(network(**WEIGHTS), root, generator), PROBES).second_moment()
    for name, bits in CHANGES:
        # g . dW is normal (a sum of normal draws), so the mean of n squares has a relative deviation of sqrt(2 / n):
        # 0.022; three of them.
        assert costs[name][bits] == pytest.approx(exact_drift(name, bits), rel=3 * math.sqrt(2 / PROBES))


def test_the_estimate_tells_a_wrong_batch_scale_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    root = metric_root(METRIC)
    sums = seen(lambda _: probe(network(**WEIGHTS), root, generator) * math.sqrt(BATCH), 500).second_moment()
    assert sums["first"][2] > 2 * exact_drift("first", 2)


def test_one_unit_probe_gives_one_row_of_the_jacobian() -> None:
    # Values that are entries of the chunk: the products are entries of the enumerated change.
    for index in range(SIZE):
        costs = seen(lambda step, i=index: network(**WEIGHTS).flatten(1)[step, i], BATCH)  # type: ignore[misc]
        for name, bits in CHANGES:
            column = enumerated(name, bits)[:, index]
            # Central differences with 1e-6: truncation 1e-12 and cancellation 1e-9 of values near 1.
            assert costs.first_order()[name][bits] == pytest.approx(abs(float(column.mean())), abs=1e-8)
            assert costs.second_moment()[name][bits] == pytest.approx(float(column.square().mean()), abs=1e-7)


def test_first_order_keeps_signs_until_the_mean_is_taken() -> None:
    costs = seen(lambda step: (1.0 if step else -1.0) * network(**WEIGHTS).sum(), 2)
    assert costs.first_order()["first"][2] == 0.0
    assert costs.second_moment()["first"][2] > 0.1


def test_probe_is_the_projection_that_is_documented() -> None:
    chunk, root = draw(BATCH, CHUNK, ACTION, seed=8), draw(SIZE, SIZE, seed=9)
    value = float(probe(chunk.float(), root, torch.Generator().manual_seed(3)))
    xi = torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy()
    expected = sum(xi[s] @ root.numpy().T @ chunk[s].float().double().flatten().numpy() for s in range(BATCH))
    assert value == pytest.approx(float(expected) / math.sqrt(BATCH), rel=1e-13)


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_root_of_a_matrix_of_any_rank(rank: int) -> None:
    factor = 1e3 * draw(6, rank, seed=rank)
    metric = factor @ factor.mT
    root = metric_root(metric)
    # Eigenvalues to a few 1e-16 of the largest entry, here about 1e7.
    torch.testing.assert_close(root @ root.mT, metric, rtol=0, atol=1e-7)
