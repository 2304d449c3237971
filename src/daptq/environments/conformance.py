"""The public conformance suite of a benchmark environment: its contract, checked on two instances.

It checks the contract, not whether a task can be solved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import gymnasium
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from daptq.action_space import ActionDimension, described
from daptq.environments.contract import Environment, Info
from daptq.errors import require_check
from daptq.observations import STATE, is_camera

__all__ = ["check_environment"]

_SIZES: Final = {"m": 0.02, "rad": 0.1, "px": 10.0, "1": 1.0}  # of small actions, by unit

_INFO_TYPES: Final[Mapping[str, type]] = {
    "task": str,
    "success": bool,
    "success_any_step": bool,
    "success_by_task": dict,
    "end_effector_position": np.ndarray,
    "end_effector_rotation": np.ndarray,
    "step_index": int,
    "seed": int,
}


def check_environment(make: Callable[[], Environment], *, seed: int = 0) -> None:
    """Checks that what `make` returns keeps the contract of `Environment`.

    It makes two instances, since a saved state has to work in another one, and closes both.

    Args:
        make: Returns a new environment, for example the class itself.
        seed: Seed of the episodes and of the random actions.

    Raises:
        CheckFailedError: If anything differs; the message names the first difference.
    """
    first, second = make(), make()
    try:
        _check_spaces(first)
        for task in first.tasks:
            _check_observation(first, task, seed)
            _check_repeatable(first, second, task, seed)
            _check_restore(first, second, task, seed)
            _check_kinematics(first, task, seed)
        _check_refusals(first, seed)
        _check_horizon(first, seed)
    finally:
        first.close()
        second.close()


def _equal(first: Any, second: Any) -> bool:
    """Bit-for-bit equality of nested dictionaries, tuples, arrays and scalars."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(np.array_equal(first, second))


def _rest(environment: Environment) -> NDArray[np.float32]:
    """Changes of nothing, absolute commands in the middle of their range, and grippers that are neither."""
    box = environment.action_space
    assert isinstance(box, gymnasium.spaces.Box)
    absolute = [not one.kind.endswith("-delta") and one.kind != "gripper" for one in environment.action_dimensions]
    ranged = np.isfinite(box.low) & np.isfinite(box.high) & absolute
    return np.add(box.low, box.high, out=np.zeros(len(ranged), np.float32), where=ranged) / np.float32(2.0)


def _actions(environment: Environment, count: int, seed: int) -> NDArray[np.float32]:
    """Returns (count, action) small random actions: +-2 cm, +-0.1 rad, +-10 pixels, either gripper command."""
    generator = np.random.default_rng(seed)
    sizes = [1.0 if one.kind == "gripper" else _SIZES[one.unit] for one in environment.action_dimensions]
    moves = generator.uniform(-1, 1, (count, len(sizes))) * np.array(sizes)
    return (_rest(environment) + moves).astype(np.float32)


def _still(environment: Environment) -> NDArray[np.float32]:
    """Returns the action (action,) at rest, with grippers that open."""
    opens = [one.kind == "gripper" for one in environment.action_dimensions]
    return np.where(opens, 1.0, _rest(environment)).astype(np.float32)


def _check_spaces(environment: Environment) -> None:
    actions, dimensions = environment.action_space, environment.action_dimensions
    meant = len(dimensions) > 0 and all(isinstance(one, ActionDimension) for one in dimensions)
    require_check(meant, f"action_dimensions must hold one ActionDimension or more, got {dimensions}")
    shape = (len(dimensions),)
    require_check(
        isinstance(actions, gymnasium.spaces.Box) and actions.shape == shape and actions.dtype == np.float32,
        f"action space must be a float32 Box of shape {shape}, for {described(dimensions)}, got {actions}",
    )
    space = environment.observation_space
    require_check(isinstance(space, gymnasium.spaces.Dict), f"observation space must be a Dict, got {space}")
    keys = set(space)  # type: ignore[call-overload]
    wrong = sorted(key for key in keys if key != STATE and not is_camera(key))
    require_check(STATE in keys and not wrong, f"observation keys must be LeRobot's, got {sorted(keys)}")
    flat = len(space[STATE].shape or ()) == 1  # type: ignore[index]
    require_check(flat, f"{STATE} must have one axis, got {space[STATE]}")  # type: ignore[index]
    require_check(len(environment.tasks) > 0, "an environment must have a task, got none")
    frequency = environment.control_frequency
    require_check(frequency > 0, f"control frequency must be positive, got {frequency}")


def _check_info(environment: Environment, info: Info, step: int) -> None:
    for key, kind in _INFO_TYPES.items():
        require_check(key in info, f"info must hold {key!r}, got {sorted(info)}")
        require_check(
            isinstance(info[key], kind), f"info[{key!r}] must be {kind.__name__}, got {type(info[key]).__name__}"
        )
    for key, shape in (("end_effector_position", (3,)), ("end_effector_rotation", (3, 3))):
        array = info[key]
        require_check(
            array.shape == shape and array.dtype == np.float64,
            f"info[{key!r}] must be float64 of shape {shape}, got {array.dtype} of shape {array.shape}",
        )
    by_task = info["success_by_task"]
    require_check(environment.task in by_task, f"success_by_task must hold {environment.task!r}, got {sorted(by_task)}")
    require_check(
        info["success"] == by_task[environment.task], "success must agree with success_by_task, got two answers"
    )
    held = environment.privileged_state().get("held", 0)
    require_check(
        held is None or isinstance(held, str), f"privileged_state must name what is 'held' or None, got {held!r}"
    )
    require_check(
        info["task"] == environment.instruction, f"info['task'] must be the instruction, got {info['task']!r}"
    )
    require_check(info["step_index"] == step, f"step_index must be {step}, got {info['step_index']}")


def _check_observation(environment: Environment, task: str, seed: int) -> None:
    observation, info = environment.reset(seed=seed, options={"task": task})
    require_check(environment.task == task, f"task after reset must be {task!r}, got {environment.task!r}")
    require_check(info["seed"] == seed, f"info['seed'] must be {seed}, got {info['seed']}")
    for step, action in enumerate(_actions(environment, 2, seed)):
        _check_info(environment, info, step)
        for key, value in observation.items():
            kind = np.float32 if key == STATE else np.uint8
            require_check(value.dtype == kind, f"{key} must be {np.dtype(kind)}, got {value.dtype}")
        require_check(
            environment.observation_space.contains(observation), "observation must lie in its space, it does not"
        )
        observation, _, _, _, info = environment.step(action)


def _check_repeatable(first: Environment, second: Environment, task: str, seed: int) -> None:
    outcomes = []
    for environment in (first, second, first):
        outcome: list[Any] = [environment.reset(seed=seed, options={"task": task})[0]]
        outcome += [environment.step(action)[0] for action in _actions(environment, 6, seed)]
        outcomes.append([*outcome, environment.get_state()])
    for other in outcomes[1:]:
        for step, (one, two) in enumerate(zip(outcomes[0], other, strict=True)):
            require_check(
                _equal(one, two), f"{task}: the same seed must give the same episode, it differs at step {step}"
            )
    first.reset(seed=seed + 1, options={"task": task})
    second.reset(seed=seed, options={"task": task})
    require_check(
        not _equal(first.privileged_state(), second.privileged_state()),
        f"{task}: another seed must give another start, seeds {seed} and {seed + 1} give the same one",
    )
    states = first.initial_states_of(task)
    if states is not None:
        first.reset(seed=seed + states, options={"task": task})
        require_check(
            _equal(first.privileged_state(), second.privileged_state()),
            f"{task}: {states} initial states must come back after {states} seeds, they do not",
        )


def _check_restore(first: Environment, second: Environment, task: str, seed: int) -> None:
    observation, info = first.reset(seed=seed, options={"task": task})
    for action in _actions(first, 5, seed):
        observation, _, _, _, info = first.step(action)
    state = first.get_state()
    flat = state.ndim == 1 and state.dtype == np.float64
    require_check(flat, f"state must be a flat float64 array, got {state.dtype} of shape {state.shape}")
    second.reset(seed=seed + 1, options={"task": first.tasks[first.tasks.index(task) - 1]})
    same = _equal((observation, info), second.set_state(state)) and _equal(second.get_state(), state)
    require_check(same, f"{task}: a restored state must give the observation it was saved at, it does not")
    for step, action in enumerate(_actions(first, 5, seed + 1)):
        same = _equal(first.step(action), second.step(action)) and _equal(first.get_state(), second.get_state())
        require_check(same, f"{task}: a restored episode must go on bit for bit, it differs after {step + 1} steps")
    for action in _actions(first, 3, seed + 2):
        observation, _, _, _, info = first.step(action)
        same = _equal(second.advance(action), info)
        require_check(same, f"{task}: advance must return the info of step, it differs")
    same = _equal(second.observe(), observation) and _equal(second.observe(), observation)
    require_check(same, f"{task}: observe must return the observation of step however often it is asked, it does not")


def _check_kinematics(environment: Environment, task: str, seed: int) -> None:
    environment.reset(seed=seed, options={"task": task})
    info: Info = {}
    for action in _actions(environment, 3, seed):
        info = environment.step(action)[-1]
    joints = environment.joint_positions
    position, rotation = environment.forward_kinematics(joints)
    require_check(
        np.allclose(position, info["end_effector_position"], atol=1e-9)
        and np.allclose(rotation, info["end_effector_rotation"], atol=1e-9),
        f"{task}: forward kinematics must agree with info's end-effector pose, it does not",
    )
    # Central differences at 1e-5 rad err by 1e-10 (third derivatives of order 1 m) plus 1e-11 (rounding).
    step = 1e-5
    columns = []
    for offset in step * np.eye(joints.size):
        ahead, behind = environment.forward_kinematics(joints + offset), environment.forward_kinematics(joints - offset)
        turn = Rotation.from_matrix(ahead[1] @ behind[1].T).as_rotvec()
        columns.append(np.concatenate([ahead[0] - behind[0], turn]) / (2 * step))
    error = float(np.abs(environment.jacobian() - np.stack(columns, axis=1)).max())
    require_check(error < 1e-7, f"{task}: jacobian must agree with finite differences to 1e-7, got {error:.2e}")


def _check_refusals(environment: Environment, seed: int) -> None:
    environment.reset(seed=seed)
    size = len(environment.action_dimensions)
    for bad in (np.zeros(size - 1, np.float32), *(np.full(size, value, np.float32) for value in (np.nan, np.inf))):
        require_check(_refuses(partial(environment.step, bad)), f"step must refuse a bad action, got through: {bad}")
    unknown = partial(environment.reset, options={"task": "no such task"})
    require_check(_refuses(unknown), "reset must refuse an unknown task, got through: 'no such task'")


def _refuses(call: Callable[[], object]) -> bool:
    try:
        call()
    except ValueError:
        return True
    return False


def _check_horizon(environment: Environment, seed: int) -> None:
    environment.reset(seed=seed)
    still = _still(environment)
    horizon = environment.horizon_of(environment.task)
    for step in range(1, horizon + 1):
        _, _, terminated, truncated, _ = environment.step(still)
        require_check(not terminated, f"an episode must never terminate, it did at step {step}")
        require_check(
            bool(truncated) == (step == horizon),
            f"an episode must be truncated at step {horizon}, got truncated={truncated} at step {step}",
        )
    beyond = environment.advance(still)["step_index"]
    require_check(beyond == environment.horizon + 1, f"advance must go on beyond the horizon, got to step {beyond}")
