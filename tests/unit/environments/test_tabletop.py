"""The tabletop benchmark: arm, scenes, action convention, success rules and expert."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from daptq.environments.kinematics import POINTING_DOWN, ArmKinematics, euler_from_matrix, matrix_from_euler
from daptq.environments.tabletop import TabletopEnvironment
from daptq.environments.tabletop.expert import TabletopExpert
from daptq.environments.tabletop.grasps import choose_grasp
from daptq.environments.tabletop.objects import EGGPLANT, GREEN_BLOCK, SCENES, TASKS, YELLOW_BLOCK
from daptq.environments.tabletop.scene import FINGER_CLOSED, FINGER_OPEN, build_model
from daptq.errors import InvalidInputError
from daptq.observations import CameraSize, ImageSizes
from daptq.robots.widowx_250 import JOINTS, SITE

OPEN, CLOSED = 1.0, -1.0


@pytest.fixture(scope="module")
def environment() -> Iterator[TabletopEnvironment]:
    made = TabletopEnvironment(image_size={})
    yield made
    made.close()


@pytest.fixture(scope="module")
def arm() -> ArmKinematics:
    return ArmKinematics(build_model("kitchen"), JOINTS, SITE)


def act(
    *, move: tuple[float, float, float] = (0, 0, 0), yaw: float = 0.0, gripper: float = OPEN
) -> NDArray[np.float32]:
    return np.array([*move, 0, 0, yaw, gripper], dtype=np.float32)


def hold(environment: TabletopEnvironment, steps: int, gripper: float = OPEN) -> NDArray[np.float32]:
    """Returns the measured state after `steps` actions that change nothing."""
    for _ in range(steps):
        observation = environment.step(act(gripper=gripper))[0]
    return observation["observation.state"]


# --- the arm -------------------------------------------------------------------------------------------------------


def test_stretched_arm_reaches_where_the_manufacturer_says(arm: ArmKinematics) -> None:
    # Interbotix's WidowX 250 s: ee_gripper_link at zero joint angles, (0.458, 0, 0.361) m.
    position, rotation = arm.forward(np.zeros(6))
    np.testing.assert_allclose(position, [0.458325, 0.0, 0.36065], atol=1e-9)
    np.testing.assert_allclose(rotation, np.eye(3), atol=1e-12)


def test_the_fingers_travel_is_that_of_the_robots_file() -> None:
    model = build_model("kitchen")
    assert model.joint("left_finger").range.tolist() == [FINGER_CLOSED, FINGER_OPEN]
    assert model.joint("right_finger").range.tolist() == [-FINGER_OPEN, -FINGER_CLOSED]


def test_joint_limits_are_the_manufacturers() -> None:
    model = build_model("kitchen")
    limits = [model.joint(name).range for name in JOINTS]
    np.testing.assert_allclose(
        limits,
        [
            (-3.14158, 3.14158),
            (-1.88496, 1.98968),
            (-2.14675, 1.6057),
            (-3.14158, 3.14158),
            (-1.74533, 2.14675),
            (-3.14158, 3.14158),
        ],
    )


def test_inverse_kinematics_reaches_the_workspace(arm: ArmKinematics) -> None:
    generator = np.random.default_rng(0)
    start = arm.inverse(np.array([0, -0.2, 0.4, 0, 1.4, 0]), np.array([0.24, 0, 0.17]), POINTING_DOWN, iterations=50)
    for _ in range(50):
        position = generator.uniform([0.2, -0.15, 0.025], [0.36, 0.15, 0.16])
        rotation = matrix_from_euler(generator.uniform([-0.2, -0.2, -1.2], [0.2, 0.2, 1.2])) @ POINTING_DOWN
        reached, orientation = arm.forward(arm.inverse(start, position, rotation, iterations=50, tolerance=1e-8))
        np.testing.assert_allclose(reached, position, atol=1e-6)
        np.testing.assert_allclose(orientation, rotation, atol=1e-6)


def test_euler_angles_are_intrinsic_xyz() -> None:
    def about(axis: int, angle: float) -> NDArray[np.float64]:
        one, two = [(1, 2), (2, 0), (0, 1)][axis]
        matrix = np.eye(3)
        matrix[one, one] = matrix[two, two] = np.cos(angle)
        matrix[two, one] = np.sin(angle)
        matrix[one, two] = -np.sin(angle)
        return matrix

    angles = np.array([0.3, -0.4, 0.9])
    expected = about(0, 0.3) @ about(1, -0.4) @ about(2, 0.9)
    np.testing.assert_allclose(matrix_from_euler(angles), expected, atol=1e-12)
    np.testing.assert_allclose(euler_from_matrix(expected), angles, atol=1e-12)


# --- actions and observations --------------------------------------------------------------------------------------


def test_actions_move_the_commanded_pose(environment: TabletopEnvironment) -> None:
    environment.reset(seed=0)
    before = hold(environment, 2)
    environment.step(act(move=(0.02, -0.03, -0.01), yaw=0.2))
    after = hold(environment, 3)
    np.testing.assert_allclose(after[:3] - before[:3], [0.02, -0.03, -0.01], atol=1e-3)
    np.testing.assert_allclose(after[3:6], [0, 0, 0.2], atol=5e-3)


def test_state_is_zero_rotation_when_pointing_down(environment: TabletopEnvironment) -> None:
    observation, info = environment.reset(seed=0)
    np.testing.assert_allclose(observation["observation.state"][3:6], 0, atol=1e-3)
    np.testing.assert_allclose(info["end_effector_rotation"] @ [1, 0, 0], [0, 0, -1], atol=1e-3)


def test_gripper_opening_runs_from_zero_to_one(environment: TabletopEnvironment) -> None:
    environment.reset(seed=0)
    assert hold(environment, 2, CLOSED)[6] < 0.02
    assert hold(environment, 2, OPEN)[6] > 0.98


def test_commanded_pose_stays_in_the_workspace(environment: TabletopEnvironment) -> None:
    environment.reset(seed=0)
    for _ in range(8):
        environment.step(act(move=(0.1, 0.1, -0.1)))
    position, _ = environment.commanded_pose
    assert position[2] >= 0.02
    assert np.hypot(*position[:2]) < 0.5
    joints = environment.joint_positions
    np.testing.assert_allclose(environment.forward_kinematics(joints)[0], position, atol=0.02)


@pytest.mark.parametrize("action", [np.zeros(7 + 1), np.array([np.nan] * 7), np.zeros((1, 7))])
def test_bad_actions_are_refused(environment: TabletopEnvironment, action: NDArray[np.float64]) -> None:
    environment.reset(seed=0)
    with pytest.raises(InvalidInputError, match="action must"):
        environment.step(action.astype(np.float32))


def test_step_before_reset_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="Call reset first"):
        TabletopEnvironment(image_size={}).step(act())


def test_bad_arguments_are_refused(environment: TabletopEnvironment) -> None:
    with pytest.raises(InvalidInputError, match="camera must be one of"):
        TabletopEnvironment(image_size={"top": 64})
    with pytest.raises(InvalidInputError, match="image size of front"):
        TabletopEnvironment(image_size={"front": 0})
    with pytest.raises(InvalidInputError, match=r"image size of front must be in 1.*, got \(48, 0\)"):
        TabletopEnvironment(image_size={"front": (48, 0)})
    with pytest.raises(InvalidInputError, match="camera must be one of front, wrist, got 'observation.images.top'"):
        TabletopEnvironment(image_size={"observation.images.top": 64})
    with pytest.raises(InvalidInputError, match="horizon"):
        TabletopEnvironment(image_size={}, horizon=0)
    with pytest.raises(InvalidInputError, match="task must be one of"):
        environment.reset(options={"task": "fold_the_towel"})
    with pytest.raises(InvalidInputError, match="reset options"):
        environment.reset(options={"tusk": "stack_blocks"})
    with pytest.raises(InvalidInputError, match="seed"):
        environment.reset(seed=-1)
    with pytest.raises(InvalidInputError, match="get_state"):
        environment.set_state(np.zeros(5))
    with pytest.raises(InvalidInputError, match="get_state"):
        environment.set_state(np.zeros(50))


def test_a_wider_picture_shows_more_to_the_sides() -> None:
    asked: ImageSizes = {"observation.images.front": CameraSize(48, 96), "wrist": None}
    wide, square = TabletopEnvironment(image_size=asked), TabletopEnvironment(image_size={"front": 48})
    assert set(wide.image_size.items()) == {("front", (48, 96)), ("wrist", (64, 64))}
    seen, expected = (world.reset(seed=0)[0]["observation.images.front"].astype(int) for world in (wide, square))
    assert seen.shape == (48, 96, 3)
    assert wide.observe()["observation.images.wrist"].shape == (64, 64, 3)
    # The same rays: edges may fall to another side of a pixel's centre.
    assert np.abs(seen[:, 24:72] - expected).mean() < 1.0
    assert np.abs(seen[:, :48] - expected).mean() > 5.0
    wide.close()
    square.close()


def test_without_a_size_every_camera_has_its_own() -> None:
    assert TabletopEnvironment().image_size == {"front": (128, 128), "wrist": (64, 64)}


def test_pictures_have_the_asked_sizes_and_show_the_scene() -> None:
    environment = TabletopEnvironment(image_size={"front": 48, "wrist": 40})
    observation, _ = environment.reset(seed=0)
    assert observation["observation.images.front"].shape == (48, 48, 3)
    assert observation["observation.images.wrist"].shape == (40, 40, 3)
    front = observation["observation.images.front"].astype(int)
    orange = (front[..., 0] > 150) & (front[..., 2] < 80) & (front[..., 1] > 50)
    blue = (front[..., 2] > 120) & (front[..., 0] < 100)
    assert orange.sum() >= 5
    assert blue.sum() >= 20
    assert environment.render().shape == (384, 384, 3)
    environment.close()
    environment.close()


def test_closed_environment_renders_again() -> None:
    environment = TabletopEnvironment(image_size={"front": 32})
    first, _ = environment.reset(seed=0)
    environment.close()
    np.testing.assert_array_equal(environment.observe()["observation.images.front"], first["observation.images.front"])
    environment.close()


def test_closing_one_environment_leaves_the_pictures_of_another() -> None:
    first, second = (TabletopEnvironment(image_size={"front": 32}) for _ in range(2))
    second.reset(seed=0)
    before, _ = first.reset(seed=0)  # drawn last, so that the graphics context in use is not the one that closes
    second.close()
    np.testing.assert_array_equal(first.observe()["observation.images.front"], before["observation.images.front"])
    first.close()


# --- scenes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"), [("spoon_on_towel", "carrot_on_plate"), ("stack_blocks", "eggplant_in_basket")]
)
def test_the_scene_does_not_tell_the_task(one: str, other: str) -> None:
    environment = TabletopEnvironment(image_size={"front": 32})
    first, first_info = environment.reset(seed=5, options={"task": one})
    second, second_info = environment.reset(seed=5, options={"task": other})
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])
    assert first_info["task"] != second_info["task"]
    assert set(first_info["success_by_task"]) == {one, other}
    environment.close()


@pytest.mark.parametrize("task", ["spoon_on_towel", "stack_blocks"])
def test_objects_start_apart_and_at_rest(environment: TabletopEnvironment, task: str) -> None:
    for seed in range(40):
        _, info = environment.reset(seed=seed, options={"task": task})
        assert not any(info["success_by_task"].values())
        state = environment.privileged_state()
        assert state["held"] is None
        objects = SCENES[environment.scene]
        for index, spec in enumerate(objects):
            position = state[f"{spec.name}.position"]
            assert position[2] == pytest.approx(spec.rest_height, abs=1e-3)
            assert 0.19 < position[0] < 0.37
            assert abs(position[1]) < 0.16
            for other in objects[:index]:
                gap = np.linalg.norm(position[:2] - state[f"{other.name}.position"][:2])
                assert gap > 0.07


def test_unseeded_resets_differ(environment: TabletopEnvironment) -> None:
    seeds = {environment.reset()[1]["seed"] for _ in range(3)}
    assert len(seeds) == 3


# --- success -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_success_needs_the_release(environment: TabletopEnvironment, task: str) -> None:
    """Until the expert lets go the task is not done; afterwards it is, and the scene's other task is not."""
    expert = TabletopExpert()
    _, info = environment.reset(seed=1, options={"task": task})
    was_held = False
    for _ in range(environment.horizon):
        held = environment.privileged_state()["held"]
        was_held |= held == TASKS[task].source
        assert not (held == TASKS[task].source and info["success"])
        info = environment.step(expert.action(environment))[-1]
    assert was_held
    assert info["success"]
    assert info["success_any_step"]
    assert [name for name, done in info["success_by_task"].items() if done] == [task]


def test_success_any_step_outlives_success(environment: TabletopEnvironment) -> None:
    """Pushing the finished stack over ends `success`, not `success_any_step`."""
    expert = TabletopExpert()
    environment.reset(seed=0, options={"task": "stack_blocks"})
    for _ in range(40):
        info = environment.step(expert.action(environment))[-1]
    assert info["success"]
    environment.step(act(move=(0.06, 0, 0)))
    environment.step(act(gripper=CLOSED))
    for _ in range(3):
        environment.step(act(move=(0, 0, -0.05), gripper=CLOSED))
        info = environment.step(act(move=(-0.06, 0, 0), gripper=CLOSED))[-1]
    assert not info["success"]
    assert info["success_any_step"]


# --- expert --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_expert_succeeds_and_then_stays(environment: TabletopEnvironment, task: str) -> None:
    expert = TabletopExpert()
    for seed in (100, 101, 102):
        environment.reset(seed=seed, options={"task": task})
        for _ in range(environment.horizon):
            action = expert.action(environment)
            assert np.linalg.norm(action[:3]) < 0.05
            info = environment.step(action)[-1]
        assert info["success"], f"{task}, seed {seed}"
        np.testing.assert_allclose(action, act(), atol=2e-3)


def test_expert_needs_no_memory(environment: TabletopEnvironment) -> None:
    """A fresh expert gives the same action as one that has seen the episode."""
    expert = TabletopExpert()
    environment.reset(seed=2, options={"task": "carrot_on_plate"})
    for _ in range(20):
        action = expert.action(environment)
        np.testing.assert_array_equal(action, TabletopExpert().action(environment))
        environment.step(action)


@pytest.mark.parametrize("task", TASKS)
def test_expert_recovers_from_a_drop(environment: TabletopEnvironment, task: str) -> None:
    expert = TabletopExpert()
    environment.reset(seed=3, options={"task": task})
    dropped = False
    for step in range(environment.horizon):
        action = expert.action(environment)
        if not dropped and step > 8 and environment.privileged_state()["held"] is not None:
            action = act(move=(0.0, 0.02, 0.01))
            dropped = True
        info = environment.step(action)[-1]
    assert dropped
    assert info["success"]


def test_expert_lets_go_of_the_wrong_object(environment: TabletopEnvironment) -> None:
    """Given the state in which the carrot is held, the spoon's expert opens, then fetches the spoon."""
    expert = TabletopExpert()
    environment.reset(seed=4, options={"task": "carrot_on_plate"})
    while environment.privileged_state()["held"] != "carrot":
        environment.step(expert.action(environment))
    state = environment.get_state()
    state[0] = environment.tasks.index("spoon_on_towel")
    environment.set_state(state)
    assert environment.task == "spoon_on_towel"
    assert expert.action(environment)[6] == OPEN
    for _ in range(45):
        info = environment.step(expert.action(environment))[-1]
    assert info["success_by_task"]["spoon_on_towel"]


def test_grasp_turns_away_from_a_neighbour() -> None:
    """With a block where a finger would come down, the gripper turns or moves; without one it does not."""
    state = {
        "green_block.position": np.array([0.28, 0.0, 0.02]),
        "green_block.yaw": np.array([0.0]),
        "yellow_block.position": np.array([0.28, 0.10, 0.02]),
        "yellow_block.yaw": np.array([0.0]),
        "eggplant.position": np.array([0.28, 0.30, 0.02]),
        "eggplant.yaw": np.array([0.0]),
    }
    neighbours = (YELLOW_BLOCK, EGGPLANT)
    point, yaw = choose_grasp(GREEN_BLOCK, neighbours, state, 0.1, 0.024)
    np.testing.assert_allclose(point, [0.28, 0.0, 0.03])
    assert yaw == pytest.approx(0.0)
    state["yellow_block.position"] = np.array([0.28, 0.045, 0.02])
    _, yaw = choose_grasp(GREEN_BLOCK, neighbours, state, 0.1, 0.024)
    assert abs(yaw) > 0.5


def test_importing_the_package_imports_no_simulator() -> None:
    code = "import sys, daptq.environments; assert 'mujoco' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
