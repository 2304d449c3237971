"""Keys of observations, and what a policy is given of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from daptq.benchmarking.control_step import control_step
from daptq.calibration.contract import check_batch
from daptq.errors import CalibrationDataError, CheckFailedError, InvalidInputError
from daptq.evaluation.worker_context import picture_sizes
from daptq.observations import STATE, TASK, CameraSize, camera_key, camera_name, is_camera
from daptq.policies.cogact_public import PublicCogACTPolicy
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.conformance import check_policy
from daptq.policies.execution import observation_batch, predict_chunks

FRONT = "observation.images.front"


def stateless() -> SmallCogACTPolicy:
    """The small policy without proprioception."""
    whole = SmallCogACTPolicy.tiny()
    settings = replace(whole.settings, state_dim=0, state_mean=(), state_std=())
    torch.manual_seed(0)
    policy = SmallCogACTPolicy(settings, whole.tokenizer)
    policy._initialize()
    torch.nn.init.normal_(policy.action_model.net.final_layer.linear.weight, std=0.2)
    return policy


def observation(*, size: tuple[int, int] = (64, 64), state: int | None = 7) -> dict[str, Any]:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return {FRONT: image, **({} if state is None else {STATE: np.zeros(state, dtype=np.float32)})}


def test_keys_of_cameras() -> None:
    assert camera_key("front") == FRONT
    assert camera_key(FRONT) == FRONT
    assert camera_key("observation.image") == "observation.image"
    assert camera_name(FRONT) == camera_name("front") == "front"
    assert [is_camera(key) for key in (FRONT, "observation.image", STATE, TASK, "front")] == [True, True, *[False] * 3]


def test_a_policy_reads_pictures_under_any_key_and_of_any_size() -> None:
    policy = stateless()
    policy.cameras = {"observation.image": None}
    given = observation_batch(policy, {"observation.image": observation(size=(48, 80))[FRONT], STATE: [0.0]}, "move")
    assert set(given) == {"observation.image", TASK}
    assert given["observation.image"].shape == (1, 3, 48, 80)


def test_a_policy_without_proprioception_is_neither_given_nor_asked_for_it() -> None:
    policy = stateless()
    check_policy(policy)
    with_state, without = (observation_batch(policy, observation(state=state), "move") for state in (7, None))
    assert set(with_state) == set(without) == {FRONT, TASK}
    chunk = predict_chunks(policy, [observation(state=None)], ["move"], seeds=[0], step_indices=[0])
    assert chunk.shape == (1, 16, 7)
    batch = policy.example_batch(0)
    assert STATE not in batch
    check_batch(batch, policy, 0)
    # A drift model may read it: any width, but finite.
    check_batch({**batch, STATE: torch.zeros(2, 3)}, policy, 0)
    with pytest.raises(CalibrationDataError, match="observation.state of calibration batch 0 must be finite"):
        check_batch({**batch, STATE: torch.full((2, 3), torch.nan)}, policy, 0)
    step = control_step(policy)
    assert step.run(policy).shape == (16, 7)


def test_a_control_step_of_the_public_architecture_needs_no_state() -> None:
    policy = PublicCogACTPolicy.tiny()
    step = control_step(policy)
    assert (step.source, STATE in step.observation) == ("synthetic", False)
    assert step.run(policy).shape == (policy.chunk_size, 7)


@pytest.mark.parametrize("missing", [FRONT, STATE])
def test_what_a_policy_reads_must_be_observed(missing: str) -> None:
    seen = {key: value for key, value in observation().items() if key != missing}
    with pytest.raises(InvalidInputError, match=f"observation for policy tiny must have the keys .'{missing}'., got"):
        observation_batch(SmallCogACTPolicy.tiny(), seen, "move")


def test_calibration_data_must_hold_what_the_policy_reads() -> None:
    policy = SmallCogACTPolicy.tiny()
    batch = policy.example_batch(0)
    with pytest.raises(CalibrationDataError, match=r"must have shape \(2, 7\), got \(2, 8\)"):
        check_batch({**batch, STATE: torch.zeros(2, 8)}, policy, 0)
    with pytest.raises(CalibrationDataError, match="must have the keys .'observation.state'."):
        check_batch({key: value for key, value in batch.items() if key != STATE}, policy, 0)
    policy.cameras = {FRONT: None}
    check_batch({**batch, FRONT: torch.zeros(2, 3, 20, 30)}, policy, 0)
    with pytest.raises(CalibrationDataError, match=r"must have shape \(2, 3, any, any\), got \(2, 1, 20, 30\)"):
        check_batch({**batch, FRONT: torch.zeros(2, 1, 20, 30)}, policy, 0)


def test_one_size_serves_policies_that_agree() -> None:
    first, second, third = (SmallCogACTPolicy.tiny() for _ in range(3))
    second.cameras = {FRONT: None, "observation.images.wrist": None}
    asked = {FRONT: CameraSize(64, 64), "observation.images.wrist": None}
    assert picture_sizes({"a": first, "b": second}) == picture_sizes({"b": second, "a": first}) == asked
    third.cameras = {FRONT: CameraSize(64, 32)}
    with pytest.raises(InvalidInputError, match=r"must have one size, got \(64, 64\) and \(64, 32\) \(c\)"):
        picture_sizes({"a": first, "b": second, "c": third})


@pytest.mark.parametrize(
    ("cameras", "state_dim", "message"),
    [
        ({"front": CameraSize(64, 64)}, 7, "the example batch must have the keys .*'front'"),
        ({FRONT: CameraSize(64, 32)}, 7, r"must have shape \(2, 3, 64, 32\), got \(2, 3, 64, 64\)"),
        ({FRONT: None}, 8, r"observation.state must have shape \(2, 8\), got \(2, 7\)"),
    ],
)
def test_the_conformance_suite_compares_inputs_with_what_is_declared(
    cameras: dict[str, CameraSize | None], state_dim: int, message: str
) -> None:
    policy = SmallCogACTPolicy.tiny()
    example = policy.example_batch(0)
    policy.cameras, policy.state_dim = cameras, state_dim
    policy.example_batch = lambda seed: example  # type: ignore[method-assign]
    with pytest.raises(CheckFailedError, match=message):
        check_policy(policy)


def test_the_conformance_suite_asks_for_full_keys() -> None:
    policy = SmallCogACTPolicy.tiny()
    example = policy.example_batch(0)
    policy.cameras = {"front": CameraSize(64, 64)}
    renamed = {("front" if key == FRONT else key): value for key, value in example.items()}
    policy.example_batch = lambda seed: renamed  # type: ignore[method-assign]
    with pytest.raises(CheckFailedError, match="camera 'front' must be a full key"):
        check_policy(policy)
