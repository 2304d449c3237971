"""Eq. 12-18 against loops written from the paper, and the Jacobian against differences of the chain it belongs to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daptq.action_space import END_EFFECTOR_DELTA
from daptq.drift.loss import drift_loss
from daptq.drift.models.virtual_chain import VirtualChainConfig, drift_weights, jacobian
from daptq.errors import InvalidInputError, RecipeError
from daptq.policies.contract import Prediction

ACTIONS = torch.randn(9, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def loop_jacobian(q: list[float]) -> list[list[float]]:
    """Eq. 12-14 as written: joints 1 to 7, links 1 to 6 for the translation."""
    theta = {j: sum(q[i - 1] for i in range(1, j + 1)) for j in range(1, 8)}
    x = [-sum(math.sin(theta[k]) for k in range(j, 7)) for j in range(1, 8)]
    y = [sum(math.cos(theta[k]) for k in range(j, 7)) for j in range(1, 8)]
    return [x, y, [1.0] * 7]


def loop_weights(actions: list[list[float]], damping: float, w_xy: float, w_theta: float) -> np.ndarray:
    """Eq. 15-17 with an explicit inverse."""
    totals = np.zeros(7)
    for q in actions:
        j = np.array(loop_jacobian(q))
        pseudo_inverse = j.T @ np.linalg.inv(j @ j.T + damping * np.eye(3))
        for joint in range(7):
            terms = zip((w_xy, w_xy, w_theta), pseudo_inverse[joint], strict=True)
            totals[joint] += sum(w * abs(value) for w, value in terms)
    s = totals / len(actions)
    return np.asarray(s / (sum(s) / 7))


def test_jacobian_is_that_of_the_paper() -> None:
    expected = torch.tensor([loop_jacobian(row) for row in ACTIONS.tolist()], dtype=torch.float64)
    # Sums of at most six sines: a few units in the last place.
    torch.testing.assert_close(jacobian(ACTIONS), expected, rtol=0, atol=1e-14)


def test_jacobian_is_the_derivative_of_the_chain() -> None:
    def pose(q: list[float]) -> list[float]:
        theta = np.cumsum(q)
        return [float(np.cos(theta[:6]).sum()), float(np.sin(theta[:6]).sum()), float(theta[6])]

    step = 1e-6
    for row, matrix in zip(ACTIONS.tolist(), jacobian(ACTIONS), strict=True):
        for joint in range(7):
            up, down = list(row), list(row)
            up[joint] += step
            down[joint] -= step
            slope = [(a - b) / (2 * step) for a, b in zip(pose(up), pose(down), strict=True)]
            # Central differences: step^2 |third derivative| / 6 ~ 1e-12, cancellation 1e-16 * 6 / 1e-6 ~ 1e-9.
            assert matrix[:, joint].tolist() == pytest.approx(slope, abs=2e-9)


def test_last_joint_moves_nothing_but_the_angle() -> None:
    assert jacobian(ACTIONS)[:, :, 6].tolist() == [[0.0, 0.0, 1.0]] * len(ACTIONS)


@pytest.mark.parametrize("settings", [(3e-4, 1.8, 0.15), (0.5, 1.0, 2.0)])
def test_drift_weights_are_those_of_the_paper(settings: tuple[float, float, float]) -> None:
    weights = drift_weights(ACTIONS, *settings)
    expected = loop_weights(ACTIONS.tolist(), *settings)
    # The damped Gram matrix has a condition number of at most 36 * 7 / 3e-4 ~ 1e6: 1e6 * 2e-16 ~ 2e-10 relative.
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-9)


def test_defaults_are_the_papers() -> None:
    assert torch.equal(drift_weights(ACTIONS), drift_weights(ACTIONS, 3e-4, 1.8, 0.15))
    assert torch.equal(VirtualChainConfig().weights(ACTIONS, space=END_EFFECTOR_DELTA), drift_weights(ACTIONS))


@given(st.integers(1, 40), st.integers(0, 10_000), st.floats(1e-4, 3.0))
def test_drift_weights_average_one_and_are_positive(n: int, seed: int, spread: float) -> None:
    actions = spread * torch.randn(n, 7, generator=torch.Generator().manual_seed(seed))
    weights = drift_weights(actions)
    assert abs(float(weights.mean()) - 1.0) <= 4e-16
    assert bool((weights > 0).all())


@given(st.permutations(range(len(ACTIONS))))
def test_drift_weights_do_not_depend_on_the_order_of_actions(order: list[int]) -> None:
    torch.testing.assert_close(drift_weights(ACTIONS[order]), drift_weights(ACTIONS), rtol=1e-12, atol=0)


def test_float32_actions_are_computed_in_float64() -> None:
    single = ACTIONS.float()
    assert torch.equal(drift_weights(single), drift_weights(single.double()))


def test_drift_loss_is_that_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, noise = (torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = drift_weights(ACTIONS)
    total = 0.0
    for b in range(2):
        for t in range(3):
            total += sum(float(weights[j] * (predicted[b, t, j] - noise[b, t, j]) ** 2) for j in range(7))
    assert float(drift_loss(Prediction(predicted=predicted, target=noise, kind="noise"), weights)) == pytest.approx(
        total / 6, rel=1e-13
    )


def test_drift_loss_keeps_the_dtype_and_the_gradient() -> None:
    predicted = torch.ones(1, 2, 7, requires_grad=True)
    answer = Prediction(predicted=predicted, target=torch.zeros(1, 2, 7), kind="velocity")
    loss = drift_loss(answer, torch.arange(7, dtype=torch.float64))
    loss.backward()
    assert loss.dtype == torch.float32
    assert predicted.grad is not None
    assert predicted.grad[0, 1].tolist() == [float(j) for j in range(7)]  # 2 s_j eps_j / (b t) = 2 j / 2


@pytest.mark.parametrize(
    "actions",
    [
        torch.zeros(3, 6),
        torch.zeros(7),
        torch.zeros(0, 7),
        torch.full((2, 7), torch.nan),
        torch.full((1, 7), torch.inf),
    ],
    ids=["six dimensions", "vector", "empty", "NaN", "infinite"],
)
def test_unusable_actions_are_refused(actions: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError, match="actions of the virtual chain must"):
        drift_weights(actions)


def test_loss_of_unlike_shapes_is_refused() -> None:
    answer = Prediction(predicted=torch.zeros(1, 2, 7), target=torch.zeros(1, 2, 7), kind="action")
    with pytest.raises(InvalidInputError, match="one weight per"):
        drift_loss(answer, torch.zeros(6))


@pytest.mark.parametrize("setting", ["damping", "translation_weight", "rotation_weight"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_settings_must_be_positive(setting: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"{setting} of the virtual chain must be positive"):
        VirtualChainConfig(**{setting: value})
