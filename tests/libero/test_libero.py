"""LIBERO: the task list, the contract, the action convention and the expert. Needs the extra `libero`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from daptq.environments.conformance import check_environment
from daptq.environments.libero import LiberoEnvironment
from daptq.environments.libero.tasks import TASKS
from daptq.errors import InvalidInputError
from tests.libero.expert import LiberoExpert

# robosuite and LIBERO warn of their own affairs.
pytestmark = [pytest.mark.libero, pytest.mark.filterwarnings("ignore")]

SOUP, MILK = "pick_up_the_alphabet_soup_and_place_it_in_the_basket", "pick_up_the_milk_and_place_it_in_the_basket"
BOWL = "pick_up_the_black_bowl_from_table_center_and_place_it_on_the_plate"
OPEN, CLOSED = 1.0, -1.0


@pytest.fixture(scope="module")
def environment() -> Iterator[LiberoEnvironment]:
    made = LiberoEnvironment(image_size={})
    yield made
    made.close()


def act(*, move: tuple[float, float, float] = (0, 0, 0), gripper: float = OPEN) -> NDArray[np.float32]:
    return np.array([*move, 0, 0, 0, gripper], dtype=np.float32)


def test_the_tasks_are_the_packages() -> None:
    from libero.libero import benchmark

    for suite in ("libero_object", "libero_spatial"):
        listed = benchmark.get_benchmark(suite)().tasks
        ours = [task for task in TASKS.values() if task.suite == suite]
        assert [(task.name, task.instruction) for task in ours] == [(task.name, task.language) for task in listed]
        assert [task.index for task in ours] == list(range(10))


class _OneTaskOfEachSuite(LiberoEnvironment):
    """Building a scene takes seconds: two tasks show what twenty would."""

    tasks = (SOUP, BOWL)

    def __init__(self) -> None:
        super().__init__(image_size={"front": 32, "wrist": 24}, horizon=8)


def test_environment_keeps_the_contract() -> None:
    check_environment(_OneTaskOfEachSuite)


def test_the_seed_is_the_row_of_the_initial_states(environment: LiberoEnvironment) -> None:
    states = []
    for seed in (3, 53, 4):
        environment.reset(seed=seed, options={"task": SOUP})
        states.append(environment.get_state()[2:])
    assert len(environment.world.initial_states) == environment.initial_states_of(SOUP) == 50
    np.testing.assert_array_equal(states[0], states[1])
    assert not np.array_equal(states[0], states[2])
    # A row holds time, nine joints of the robot, then the first object's position. Settling leaves it where it stood.
    expected = environment.world.initial_states[4, 10:12]
    np.testing.assert_allclose(environment.world.data.qpos[9:11], expected, atol=0.01)


def test_actions_are_metres_in_the_base_frame(environment: LiberoEnvironment) -> None:
    for axis in range(3):
        for sign in (-1.0, 1.0):
            before = environment.reset(seed=0, options={"task": SOUP})[1]["end_effector_position"]
            move = sign * 0.02 * np.eye(3)[axis]
            for _ in range(10):
                after = environment.step(act(move=tuple(move)))[-1]["end_effector_position"]
            # The controller starts from rest and lags: ten steps go part of the way, in the direction asked.
            assert 2 < (after - before) @ move / 0.02**2 < 10
            assert np.abs(np.delete(after - before, axis)).max() < 0.2 * abs((after - before)[axis])


def test_gripper_sign(environment: LiberoEnvironment) -> None:
    environment.reset(seed=0, options={"task": SOUP})
    for _ in range(20):
        environment.step(act(gripper=CLOSED))
    assert environment.privileged_state()["gripper_opening"][0] < 0.1
    for _ in range(20):
        environment.step(act(gripper=OPEN))
    assert environment.privileged_state()["gripper_opening"][0] > 0.9


def test_pictures_are_upright() -> None:
    environment = LiberoEnvironment(BOWL, image_size={"front": 64})
    picture = environment.reset(seed=0)[0]["observation.images.front"].astype(int)
    # The wall behind the robot is grey, the table below it is wood: more red than blue.
    warmth = picture[..., 0] - picture[..., 2]
    assert warmth[-8:].mean() > warmth[:8].mean() + 10
    assert environment.render().shape == (384, 384, 3)
    environment.close()


def test_bad_arguments_are_refused(environment: LiberoEnvironment) -> None:
    with pytest.raises(InvalidInputError, match="camera must be one of"):
        LiberoEnvironment(image_size={"top": 64})
    with pytest.raises(InvalidInputError, match="image size of front"):
        LiberoEnvironment(image_size={"front": 0})
    with pytest.raises(InvalidInputError, match="horizon"):
        LiberoEnvironment(image_size={}, horizon=0)
    with pytest.raises(InvalidInputError, match="Call reset first"):
        LiberoEnvironment(image_size={}).step(act())
    with pytest.raises(InvalidInputError, match="task must be"):
        environment.reset(options={"task": "fold_the_towel"})
    with pytest.raises(InvalidInputError, match="reset options"):
        environment.reset(options={"tusk": SOUP})
    with pytest.raises(InvalidInputError, match="seed"):
        environment.reset(seed=-1)
    with pytest.raises(InvalidInputError, match="get_state"):
        environment.set_state(np.zeros(5))


@pytest.mark.parametrize("task", [SOUP, MILK, BOWL])
def test_expert_succeeds(environment: LiberoEnvironment, task: str) -> None:
    expert = LiberoExpert()
    environment.reset(seed=0, options={"task": task})
    was_held = False
    for _ in range(environment.horizon):
        was_held |= environment.world.held() == TASKS[task].source
        _, _, terminated, _, info = environment.step(expert.action(environment))
        assert not terminated
        if info["success"]:
            break
    assert was_held
    assert info["success"]
    assert info["success_by_task"] == {task: True}


def test_doing_nothing_does_not_succeed(environment: LiberoEnvironment) -> None:
    environment.reset(seed=0, options={"task": SOUP})
    assert not any(environment.step(act())[-1]["success"] for _ in range(20))
