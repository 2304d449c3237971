"""SimplerEnv's WidowX tasks: names, the contract, initial states, actions, pictures, the expert. Needs ManiSkill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from daptq.calibration.conformance import check_source
from daptq.calibration.demonstrations import Disturbance, record_episode
from daptq.calibration.simpler import DEMONSTRATIONS
from daptq.calibration.states import open_demonstrations
from daptq.environments.conformance import check_environment
from daptq.environments.simpler import SimplerEnvironment
from daptq.environments.simpler.expert import SimplerExpert
from daptq.environments.simpler.tasks import TASKS
from daptq.errors import InvalidInputError
from daptq.observations import CameraSize

# ManiSkill and SAPIEN warn of their own affairs.
pytestmark = [pytest.mark.simpler, pytest.mark.filterwarnings("ignore")]

SPOON, CARROT, EGGPLANT = "spoon_on_towel", "carrot_on_plate", "eggplant_in_basket"
OPEN, CLOSED = 1.0, -1.0


@pytest.fixture(scope="module")
def environment() -> Iterator[SimplerEnvironment]:
    """Physics alone."""
    made = SimplerEnvironment(image_size={})
    yield made
    made.close()


@pytest.fixture(scope="module")
def seeing() -> Iterator[SimplerEnvironment]:
    """Kept open by the tests that draw: SAPIEN's renderer takes half a minute to start."""
    made = SimplerEnvironment(image_size={"front": 64})
    yield made
    made.close()


def act(*, move: tuple[float, float, float] = (0, 0, 0), gripper: float = OPEN) -> NDArray[np.float32]:
    return np.array([*move, 0, 0, 0, gripper], dtype=np.float32)


def test_the_tasks_are_maniskills(environment: SimplerEnvironment) -> None:
    from mani_skill.utils.registration import REGISTERED_ENVS

    for task in TASKS.values():
        environment.reset(seed=0, options={"task": task.name})
        native = environment.world._env
        assert native.get_language_instruction() == [task.instruction]
        assert (native.source_obj_name, native.target_obj_name) == (task.source, task.target)
        assert environment.world.initial_states == task.initial_states
        assert REGISTERED_ENVS[task.environment].max_episode_steps == environment.horizon_of(task.name)
        assert native.control_freq == environment.control_frequency
        assert task.in_sink == (native.scene_setting == "sink")


class _TwoTasks(SimplerEnvironment):
    """A scene on the table and the one in the sink show what four would."""

    tasks = (SPOON, EGGPLANT)

    def __init__(self) -> None:
        super().__init__(image_size={"front": 16}, horizon=4)


def test_environment_keeps_the_contract(seeing: SimplerEnvironment) -> None:
    seeing.reset(seed=0)
    check_environment(_TwoTasks)


def test_the_seed_is_the_row_of_the_initial_states(environment: SimplerEnvironment) -> None:
    world = environment.world
    places = []
    for seed in (0, 9, 33):
        environment.reset(seed=seed, options={"task": CARROT})
        world = environment.world
        # ManiSkill's row r is place r // 2 and orientation r % 2. Settling moves things by millimetres.
        expected = np.array(world._env.xyz_configs[0], dtype=np.float64)
        official = world._positions[seed % 24 // 2]
        np.testing.assert_allclose(expected, official, atol=1e-6)
        settled = np.stack([world._env.objs[name].pose.p[0] for name in world._env.obj_names])
        np.testing.assert_allclose(settled[:, :2], official[:, :2], atol=0.01)
        places.append(environment.privileged_state()[f"{TASKS[CARROT].source}.position"])
    np.testing.assert_array_equal(places[1], places[2])
    assert np.linalg.norm(places[0] - places[1]) > 0.1


@pytest.mark.parametrize("task", [SPOON, EGGPLANT])
def test_scattered_episodes_start_beside_an_official_state(environment: SimplerEnvironment, task: str) -> None:
    source, target = f"{TASKS[task].source}.position", f"{TASKS[task].target}.position"
    states = []
    for scattered in (False, True):
        environment.reset(seed=5, options={"task": task, "scattered": scattered})
        states.append(environment.privileged_state())
    assert 0.001 < np.linalg.norm(states[0][source][:2] - states[1][source][:2]) < 0.06
    moved = float(np.linalg.norm(states[0][target][:2] - states[1][target][:2]))
    assert moved == 0.0 if TASKS[task].in_sink else 0.001 < moved < 0.06
    saved = environment.get_state()
    environment.reset(seed=5, options={"task": SPOON})
    environment.set_state(saved)
    np.testing.assert_array_equal(environment.privileged_state()[source], states[1][source])


def test_kinematics_are_sapiens(environment: SimplerEnvironment) -> None:
    environment.reset(seed=0, options={"task": SPOON})
    environment.advance(act(move=(0.02, 0.03, -0.01)))
    controller = environment.world._env.agent.controller.controllers["arm"]
    native = controller.ee_pose_at_base.to_transformation_matrix()[0].numpy()
    # SAPIEN computes in float32 through a world frame a metre away: 1e-6 m.
    position, rotation = environment.world.end_effector()
    np.testing.assert_allclose(position, native[:3, 3], atol=5e-6)
    np.testing.assert_allclose(rotation, native[:3, :3], atol=5e-6)


def test_actions_are_metres_in_the_base_frame(environment: SimplerEnvironment) -> None:
    for axis, sign in ((0, 1.0), (1, -1.0), (2, -1.0)):
        before = environment.reset(seed=0, options={"task": SPOON})[1]["end_effector_position"]
        move = sign * 0.015 * np.eye(3)[axis]
        for _ in range(3):
            environment.advance(act(move=tuple(move)))
        for _ in range(3):
            after = environment.advance(act())["end_effector_position"]
        np.testing.assert_allclose(after - before, 3 * move, atol=0.006)


def test_gripper_sign(environment: SimplerEnvironment) -> None:
    environment.reset(seed=0, options={"task": SPOON})
    for _ in range(4):
        environment.advance(act(gripper=CLOSED))
    assert environment.privileged_state()["gripper_opening"][0] < 0.1
    for _ in range(4):
        environment.advance(act(gripper=OPEN))
    assert environment.privileged_state()["gripper_opening"][0] > 0.9


def test_pictures_are_the_photograph_with_robot_and_objects(seeing: SimplerEnvironment) -> None:
    """Each task overlays its own photograph and keeps its own objects, whichever scene was built before."""
    for task, colour in ((EGGPLANT, "dark"), (CARROT, "orange"), (EGGPLANT, "dark")):
        picture = seeing.reset(seed=0, options={"task": task})[0]["observation.images.front"]
        photograph = seeing.world._overlay(CameraSize(64, 64))
        drawn = (picture != photograph).any(axis=-1)
        assert 0.02 < drawn.mean() < 0.5
        assert drawn[:16].any()  # the gripper hangs in from above
        assert not drawn[-4:].any()
        red, green, blue = picture[20:][drawn[20:]].astype(int).T
        seen = (red > 150) & (blue < 90) if colour == "orange" else (blue > green + 20) & (red > green + 5)
        assert seen.sum() >= 4
    assert seeing.render().shape == (384, 384, 3)


def test_bad_arguments_are_refused(environment: SimplerEnvironment) -> None:
    with pytest.raises(InvalidInputError, match="camera must be front"):
        SimplerEnvironment(image_size={"wrist": 64})
    with pytest.raises(InvalidInputError, match="image size of front"):
        SimplerEnvironment(image_size={"front": 0})
    with pytest.raises(InvalidInputError, match="horizon"):
        SimplerEnvironment(image_size={}, horizon=0)
    with pytest.raises(InvalidInputError, match="Call reset first"):
        SimplerEnvironment(image_size={}).step(act())
    with pytest.raises(InvalidInputError, match="task must be"):
        environment.reset(options={"task": "fold_the_towel"})
    with pytest.raises(InvalidInputError, match="reset options"):
        environment.reset(options={"tusk": SPOON})
    with pytest.raises(InvalidInputError, match="seed"):
        environment.reset(seed=-1)
    with pytest.raises(InvalidInputError, match="must have a camera to render"):
        environment.render()
    for state in (np.zeros(5), np.array([7.0, 0, 0]), np.array([0.0, -1, 0]), np.array([0.0, 0, 0.5])):
        with pytest.raises(InvalidInputError, match="get_state"):
            environment.set_state(state)


@pytest.mark.parametrize("task", TASKS)
def test_expert_succeeds(environment: SimplerEnvironment, task: str) -> None:
    expert = SimplerExpert()
    environment.reset(seed=0, options={"task": task})
    was_held = False
    for _ in range(environment.horizon_of(task)):
        was_held |= environment.world.holds(TASKS[task].source)
        info = environment.advance(expert.action(environment))
        if info["success"]:
            break
    assert was_held
    assert info["success"]
    assert info["success_by_task"] == {task: True}


def test_a_disturbed_demonstration_succeeds_and_carries_its_labels(environment: SimplerEnvironment) -> None:
    episode = record_episode(environment, DEMONSTRATIONS, task=CARROT, seed=4, disturbance=Disturbance())
    assert episode.success
    environment.reset(seed=4, options={"task": CARROT, "scattered": True})
    np.testing.assert_array_equal(episode.arrays["action"][0], SimplerExpert().action(environment))
    present = np.isfinite(episode.arrays["object_positions"]).all(axis=(0, 2))
    there = [name for name, seen in zip(DEMONSTRATIONS.objects, present, strict=True) if seen]
    assert there == [TASKS[CARROT].source, TASKS[CARROT].target]
    assert (episode.arrays["valid"] < 16).any()


def test_recorded_states_keep_the_contract_of_a_source(seeing: SimplerEnvironment, tmp_path: Path) -> None:
    seeing.reset(seed=0)
    settings = replace(
        DEMONSTRATIONS, environment=lambda: SimplerEnvironment(image_size={"front": 16}), episodes_per_shard=4
    )
    check_source(partial(open_demonstrations, settings, folder=tmp_path), "train")


def test_doing_nothing_does_not_succeed(environment: SimplerEnvironment) -> None:
    environment.reset(seed=0, options={"task": SPOON})
    assert not any(environment.advance(act())["success"] for _ in range(10))
