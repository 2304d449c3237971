"""The drift model that knows nothing but units, against sums written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from daptq.action_space import ActionDimension
from daptq.drift.models.action import ActionConfig

CHUNK = 4


def chunks_of(n: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randn(n, CHUNK, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ODD_SPACE = (
    ActionDimension(kind="ee-position", unit="m"),
    ActionDimension(kind="ee-rotation-delta", unit="rad", arm=1),
    ActionDimension(kind="joint", unit="rad"),
    ActionDimension(kind="joint-delta", unit="1"),
    ActionDimension(kind="plane", unit="px"),
    ActionDimension(kind="gripper", unit="rad"),
)


def test_the_action_model_is_the_mean_square_of_nominal_displacements() -> None:
    config = ActionConfig(rotation_lever=0.2, joint_lever=0.5, gripper_travel=0.03, pixel=0.002, unitless=0.07)
    millimetres = [1000.0, 200.0, 500.0, 70.0, 2.0, 30.0]
    error = chunks_of(1, 6, seed=2)[0]
    expected = 0.0
    for k in range(3):
        for j in range(6):
            expected += (millimetres[j] * float(error[k, j])) ** 2 / 3
    metric = config.metric(chunks_of(5, 6), None, space=ODD_SPACE, steps=3)
    # Sums of 18 squares.
    assert float(error.flatten() @ metric @ error.flatten()) == pytest.approx(expected, rel=1e-14)
    assert torch.equal(metric, torch.diag(metric.diagonal()))
    unit = torch.tensor([0.1, 0.2, 0.3, 4.0, 50.0, 0.6], dtype=torch.float64)
    raw = [(length * float(u)) ** 2 for length, u in zip(millimetres, unit, strict=True)]
    weights = config.weights(chunks_of(2, 6)[:, 0], unit, space=ODD_SPACE)
    assert weights.tolist() == pytest.approx([value / (sum(raw) / 6) for value in raw], rel=1e-14)
