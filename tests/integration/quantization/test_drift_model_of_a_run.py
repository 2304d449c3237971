"""Which drift models a run accepts for a policy's action space, and which actions of a chunk they count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daptq.action_space import END_EFFECTOR_DELTA, ActionDimension
from daptq.drift.models.kinematic import KinematicConfig
from daptq.errors import RecipeError
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.quantization.drift_model import models_that_read
from daptq.quantization.profile import drift_metric
from daptq.quantization.profiling import Calibration
from daptq.recipes import da_ptq, da_ptq_plus, quantize, round_to_nearest

JOINTS = (*(ActionDimension(kind="joint", unit="rad") for _ in range(6)), ActionDimension(kind="gripper", unit="1"))


class JointPolicy(SmallCogACTPolicy):
    """The small policy, its seven numbers read as six joints and a gripper."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.action_space = JOINTS


def never(*_: object) -> None:
    pytest.fail("work was done")


@pytest.mark.parametrize("recipe", [da_ptq(), da_ptq_plus()], ids=lambda recipe: recipe.name)
def test_a_drift_model_of_another_space_is_refused_before_any_work(recipe: Any, tmp_path: Path, held: Any) -> None:
    policy = JointPolicy.tiny()
    message = (
        f"drift model {recipe.drift_model.method} must read the actions of policy tiny, got a refusal: it reads 3 "
    )
    with pytest.raises(RecipeError, match=message) as refused:
        quantize(policy, recipe, data=held(policy, 4), output=tmp_path / "out", progress=never)
    assert str(refused.value).endswith("not 6 joint [rad], 1 gripper [1]. Choose action.")


def test_the_model_that_is_named_does_it(tmp_path: Path, held: Any) -> None:
    policy = JointPolicy.tiny()
    for number, recipe in enumerate(
        (
            da_ptq_plus(drift_model="action", calibration_states=4),
            replace(da_ptq(calibration_states=4), drift_model=KinematicConfig(action_space="joint", state="rest")),
            round_to_nearest(),
        )
    ):
        quantize(policy, recipe, data=held(policy, 4), output=tmp_path / str(number))


def test_models_that_read_a_space() -> None:
    assert models_that_read(END_EFFECTOR_DELTA) == ("action", "kinematic", "se3", "virtual-chain")
    assert models_that_read(JOINTS) == ("action",)


@pytest.mark.parametrize("horizon", ["executed", "chunk"])
def test_the_horizon_is_what_the_metric_counts(
    horizon: Any, cogact: SmallCogACTPolicy, held: Callable[..., Any]
) -> None:
    recipe = replace(da_ptq_plus(), drift_horizon=horizon)
    calibration = Calibration.checked(held(cogact, 2), cogact, limit=4, seed=0, progress=lambda *_: None)
    metric = drift_metric(cogact, recipe, calibration)
    steps = {"executed": cogact.n_action_steps, "chunk": cogact.chunk_size}[horizon]
    assert 0 < cogact.n_action_steps < cogact.chunk_size
    expected = recipe.drift_model.metric(
        calibration.chunks, calibration.positions, space=END_EFFECTOR_DELTA, steps=steps
    )
    assert torch.equal(metric, expected)
    assert bool(metric.diagonal()[7 * steps - 1] > 0)
    assert not metric[7 * steps :].any()
