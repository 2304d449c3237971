"""What drift models and the cost of rounding refuse, and what their messages say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daptq.action_space import END_EFFECTOR_DELTA as SPACE
from daptq.action_space import ActionDimension, ActionSpace
from daptq.drift.contract import DriftModel
from daptq.drift.mjcf import read_chain
from daptq.drift.models.action import ActionConfig
from daptq.drift.models.kinematic import KinematicConfig
from daptq.drift.models.se3 import Se3Config
from daptq.drift.models.virtual_chain import VirtualChainConfig
from daptq.errors import CalibrationDataError, InvalidInputError, RecipeError
from daptq.robots.widowx_250 import JOINTS, MJCF, SITE
from daptq.sensitivity.probe import metric_root, probe
from daptq.sensitivity.rounding import RoundingSensitivity

MODELS: list[DriftModel] = [VirtualChainConfig(), Se3Config(), KinematicConfig(), ActionConfig()]
READ_POSES: list[DriftModel] = [Se3Config(), KinematicConfig()]

models = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.method)
read_poses = pytest.mark.parametrize("model", READ_POSES, ids=lambda model: model.method)


@models
@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 7), (0, 3, 7), (2, 0, 7)])
def test_chunks_of_another_shape_are_refused(model: DriftModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"action chunks must have shape \(n, chunk, 7\)"):
        model.metric(torch.zeros(shape), None, space=SPACE, steps=1)


@models
@pytest.mark.parametrize("steps", [0, -1, 4])
def test_steps_must_be_within_the_chunk(model: DriftModel, steps: int) -> None:
    with pytest.raises(InvalidInputError, match=f"steps must be between 1 and the 3 actions of a chunk, got {steps}"):
        model.metric(torch.zeros(2, 3, 7), None, space=SPACE, steps=steps)


@read_poses
@pytest.mark.parametrize("shape", [(3, 7), (2, 5), (2,)])
def test_states_must_belong_to_the_chunks(model: DriftModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        InvalidInputError, match=r"states must have shape \(2, 6 or more\) and begin with an end-effector's"
    ):
        model.metric(torch.zeros(2, 3, 7), torch.zeros(shape), space=SPACE, steps=1)


@models
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_must_be_finite(model: DriftModel, value: float) -> None:
    with pytest.raises(InvalidInputError, match="action chunks must be finite"):
        model.metric(torch.full((1, 3, 7), value), None, space=SPACE, steps=1)


@read_poses
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_poses_must_be_finite(model: DriftModel, value: float) -> None:
    with pytest.raises(InvalidInputError, match="states must be finite"):
        model.metric(torch.zeros(1, 3, 7), torch.full((1, 7), value), space=SPACE, steps=1)


@pytest.mark.parametrize("model", [Se3Config(), KinematicConfig(), ActionConfig()], ids=lambda model: model.method)
@pytest.mark.parametrize("unit", [torch.ones(6), torch.zeros(7), -torch.ones(7), torch.full((7,), math.nan)])
def test_unit_must_be_usable(model: DriftModel, unit: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError, match="unit must hold 7 numbers of 0 or more"):
        model.weights(torch.zeros(2, 7), unit, space=SPACE)


def test_a_dimension_that_never_varies_has_no_weight() -> None:
    weights = Se3Config().weights(torch.zeros(2, 7), torch.tensor([0.0, 1, 1, 1, 1, 1, 1]), space=SPACE)
    assert weights[0] == 0
    assert weights[1] > 0


def test_the_virtual_chain_leaves_the_unit_aside() -> None:
    actions = torch.randn(3, 7)
    assert torch.equal(
        VirtualChainConfig().weights(actions, torch.full((7,), 0.1), space=SPACE),
        VirtualChainConfig().weights(actions, space=SPACE),
    )


JOINT_DELTAS = (*(ActionDimension(kind="joint-delta", unit="rad") for _ in JOINTS), SPACE[6])


def test_joint_deltas_have_the_arms_width() -> None:
    model = KinematicConfig(action_space="joint-delta")
    with pytest.raises(InvalidInputError, match=r"\(n, chunk, 7\) with 6 joint-delta \[rad\], 1 gripper \[1\], got"):
        model.metric(torch.zeros(1, 2, 8), None, space=JOINT_DELTAS, steps=1)
    with pytest.raises(
        InvalidInputError, match=r"states must have shape \(1, 6 or more\) and begin with joint positions"
    ):
        KinematicConfig(action_space="joint-delta", state="joints").metric(
            torch.zeros(1, 2, 7), torch.zeros(1, 5), space=JOINT_DELTAS, steps=1
        )


TWO_ARMS = (*SPACE[:6], ActionDimension(kind="gripper", unit="1", arm=1))


@pytest.mark.parametrize(
    ("model", "read", "refused"),
    [
        (VirtualChainConfig(), [SPACE], [JOINT_DELTAS, TWO_ARMS, SPACE[:6], ()]),
        (Se3Config(), [SPACE, tuple(replace(one, arm=1) for one in SPACE)], [JOINT_DELTAS, TWO_ARMS, SPACE + SPACE]),
        (KinematicConfig(), [SPACE], [JOINT_DELTAS]),
        (
            KinematicConfig(action_space="joint-delta"),
            [JOINT_DELTAS, (*JOINT_DELTAS[:6], ActionDimension(kind="gripper", unit="rad"))],
            [SPACE, JOINT_DELTAS[1:], (*(replace(one, unit="1") for one in JOINT_DELTAS[:6]), SPACE[6])],
        ),
        (KinematicConfig(action_space="joint"), [], [SPACE, JOINT_DELTAS]),
        (ActionConfig(), [SPACE, JOINT_DELTAS, TWO_ARMS, SPACE + SPACE], []),
    ],
    ids=lambda value: getattr(value, "method", None),
)
def test_models_say_which_spaces_they_read(
    model: DriftModel, read: list[ActionSpace], refused: list[ActionSpace]
) -> None:
    for space in read:
        assert model.refuses(space) is None
    for space in refused:
        assert model.refuses(space)
        with pytest.raises(InvalidInputError, match=f"drift model {model.method} must read the action space: it reads"):
            model.metric(torch.zeros(1, 2, len(space)), None, space=space, steps=1)


def test_a_state_out_of_reach_is_refused() -> None:
    states = torch.tensor([[0.24, 0, 0.15, 0, 0, 0, 1.0], [2.0, 0, 0.15, 0, 0, 0, 1.0]])
    with pytest.raises(InvalidInputError, match=r"state must be a pose that the arm reaches, got \[2.0"):
        KinematicConfig().metric(torch.zeros(2, 1, 7), states, space=SPACE, steps=1)
    KinematicConfig().metric(torch.zeros(1, 1, 7), states[:1], space=SPACE, steps=1)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Se3Config, {"frame": "world"}, "frame of the se3 drift model must be one of base, tool, got 'world'"),
        (Se3Config, {"lever": -0.1}, "lever of the se3 drift model must be 0 or more"),
        (Se3Config, {"half_gap": -0.1}, "half_gap of the se3 drift model must be 0 or more"),
        (KinematicConfig, {"half_gap": math.inf}, "half_gap of the kinematic drift model must be 0 or more"),
        (Se3Config, {"lever": math.nan}, "lever of the se3 drift model must be 0 or more"),
        (Se3Config, {"gripper_travel": 0.0}, "gripper_travel of the se3 drift model must be positive"),
        (Se3Config, {"gripper_travel": math.inf}, "gripper_travel of the se3 drift model must be positive"),
        (KinematicConfig, {"action_space": "xyz"}, "must be one of joint-delta, joint, cartesian-delta, got 'xyz'"),
        (
            KinematicConfig,
            {"state": "none"},
            "state of the kinematic drift model must be one of pose, joints, rest, got",
        ),
        (Se3Config, {"state": "joints"}, "state of the se3 drift model must be one of pose, rest, got 'joints'"),
        (ActionConfig, {"pixel": 0.0}, "pixel of the action drift model must be positive"),
        (ActionConfig, {"unitless": math.nan}, "unitless of the action drift model must be positive"),
        (KinematicConfig, {"rest": (0.0,)}, "rest of the kinematic drift model must hold a position for each of 6"),
        (KinematicConfig, {"rest": (math.nan,) * 6}, "rest of the kinematic drift model must hold a position"),
        (KinematicConfig, {"joints": (), "rest": ()}, "at least one joint"),
        (KinematicConfig, {"lever": -1.0}, "lever of the kinematic drift model must be 0 or more"),
        (KinematicConfig, {"damping": 0.0}, "damping of the kinematic drift model must be positive"),
        (KinematicConfig, {"gripper_travel": -1.0}, "gripper_travel of the kinematic drift model must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[DriftModel], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        kind(**settings)


def test_settings_survive_json() -> None:
    config = KinematicConfig(joints=list(JOINTS), rest=[0.0] * 6)  # type: ignore[arg-type]
    assert config == KinematicConfig(joints=JOINTS, rest=(0.0,) * 6)
    assert hash(config)


def test_a_robot_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="robot must be widowx-250 or a readable MJCF file"):
        KinematicConfig(robot=str(tmp_path / "none.xml")).chain()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</mujoco>", "", "robot model must be an MJCF file"),
        ("<worldbody>", '<include file="other.xml"/><worldbody>', "must be one file, got an include"),
        ('name="end_effector"', 'name="tip"', "must hold a site 'end_effector', got none"),
        ('name="elbow"', 'name="ellbow"', r"must be \['waist', .* got \['waist', 'shoulder', 'ellbow'"),
        ('name="waist"', 'name="waist" type="slide"', "joint 'waist' must be a hinge .* got type slide"),
        ('name="waist"', 'name="waist" ref="0.1"', "joint 'waist' must be a hinge whose reference is 0"),
        (
            '<joint name="waist" axis="0 0 1" range="-3.14158 3.14158" armature="0.05"/>',
            '<freejoint name="waist"/>',
            "must be a hinge .* got type free",
        ),
        ('name="wrist_link"', 'name="wrist_link" quat="0 0 0 0"', "that MuJoCo reads, got: .*zero quaternion"),
        ('pos="0.175 0 0"', 'pos="0.175 0"', "that MuJoCo reads, got: .*pos.* does not have enough data"),
        ('pos="0.175 0 0"', 'pos="0.175 0 far"', "that MuJoCo reads, got: .*pos"),
        (MJCF, "<robot/>", "must be an MJCF file, got the root element 'robot'"),
    ],
)
def test_robot_models_that_are_not_understood_are_refused(old: str, new: str, message: str) -> None:
    read_chain(MJCF, JOINTS, SITE)
    with pytest.raises(InvalidInputError, match=message):
        read_chain(MJCF.replace(old, new, 1), JOINTS, SITE)


def layer() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(2, 3))


def test_no_step_has_no_cost() -> None:
    sensitivity = RoundingSensitivity({"a": layer()}, lambda name, bits: torch.zeros(2, 3), (4,))
    for read in (sensitivity.first_order, sensitivity.second_moment):
        with pytest.raises(InvalidInputError, match="at least one calibration step"):
            read()


@pytest.mark.parametrize("bits", [(), (4, 4)])
def test_bits_must_be_named_once(bits: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="bits must name at least one bit-width, each once"):
        RoundingSensitivity({}, lambda name, bits: torch.zeros(1), bits)


def test_a_layer_that_the_value_ignores_costs_nothing() -> None:
    used, unused = layer(), layer()
    sensitivity = RoundingSensitivity({"u": used, "n": unused}, lambda name, bits: torch.zeros(2, 3), (4,))
    sensitivity.update(used.sum())
    assert sensitivity.first_order() == {"u": {4: 6.0}, "n": {4: 0.0}}
    assert sensitivity.second_moment() == {"u": {4: 36.0}, "n": {4: 0.0}}


def test_a_failed_step_adds_nothing() -> None:
    good, bad = layer(), layer()
    results = {"good": torch.zeros(2, 3), "bad": torch.full((2, 3), math.inf)}
    sensitivity = RoundingSensitivity({"good": good, "bad": bad}, lambda name, bits: results[name], (4,))
    with pytest.raises(CalibrationDataError, match="change by layer bad at 4 bits in calibration step 0"):
        sensitivity.update((good + bad).sum())
    assert sensitivity.steps == 0
    results["bad"] = torch.zeros(2, 3)
    sensitivity.update((good + bad).sum())
    assert sensitivity.first_order() == {"good": {4: 6.0}, "bad": {4: 6.0}}


def test_a_value_that_is_not_finite_is_refused() -> None:
    weight = layer()
    sensitivity = RoundingSensitivity({"a": weight}, lambda name, bits: torch.zeros(2, 3), (4,))
    with pytest.raises(CalibrationDataError, match="value of calibration step 0 must be finite"):
        sensitivity.update(weight.sum() * math.nan)


def test_a_rounded_weight_of_another_shape_is_refused() -> None:
    weight = layer()
    sensitivity = RoundingSensitivity({"a": weight}, lambda name, bits: torch.zeros(1, 3), (4,))
    with pytest.raises(InvalidInputError, match=r"layer a rounded to 4 bits must have shape \(2, 3\), got \(1, 3\)"):
        sensitivity.update(weight.sum())


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (torch.zeros(2, 3), "finite square matrix"),
        (torch.zeros(0, 0), "finite square matrix"),
        (torch.full((2, 2), math.nan), "finite square matrix"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "positive semi-definite, got the eigenvalue -1.0"),
    ],
)
def test_what_has_no_root_is_refused(metric: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        metric_root(metric)


@pytest.mark.parametrize("shape", [(2, 3, 2), (0, 2, 2), (2, 4)])
def test_probe_refuses_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"chunk and metric root must have shapes \(b, chunk, action\)"):
        probe(torch.zeros(shape), torch.eye(4), torch.Generator())
