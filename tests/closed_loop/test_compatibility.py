"""A policy acts where its commands are those of the environment and its state is there, and is refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from daptq.action_space import END_EFFECTOR_DELTA, ActionDimension, ActionSpace
from daptq.closed_loop.compatibility import compatible, require_compatible
from daptq.closed_loop.episodes import Episode
from daptq.closed_loop.rollout import run_episode
from daptq.errors import InvalidInputError
from daptq.evaluation.watched_drive import take_reference
from tests.closed_loop.json_results import evaluate_json
from tests.closed_loop.point_world import PointWorld, Reader

SETTINGS: dict[str, Any] = {"environment": "point", "episodes": 6, "seed": 1}
JOINTS: ActionSpace = (
    *(ActionDimension(kind="joint", unit="rad") for _ in range(6)),
    ActionDimension(kind="gripper", unit="1"),
)
PLANE: ActionSpace = (ActionDimension(kind="plane", unit="px"),) * 2
BOTH = r"environment point, 3 ee-position-delta \[m\], 3 ee-rotation-delta \[rad\], 1 gripper \[1\], got "


@pytest.mark.parametrize(
    ("space", "got"), [(JOINTS, r"6 joint \[rad\], 1 gripper \[1\]\."), (PLANE, r"2 plane \[px\]\.")]
)
@pytest.mark.parametrize("candidate", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_policy_of_other_actions_is_not_evaluated(
    make_pusher: Callable[..., Any],
    point_world: list[PointWorld],
    space: ActionSpace,
    got: str,
    candidate: bool,
    workers: int,
) -> None:
    other, usual = make_pusher("other"), make_pusher("usual")
    other.action_space = space
    first, second = (other, usual) if candidate else (usual, other)
    PointWorld.resets.clear()
    with pytest.raises(InvalidInputError, match=f"actions of policy other must be those of {BOTH}{got}"):
        evaluate_json(first, against=second, workers=workers, **SETTINGS)
    assert (PointWorld.resets, other.predictions, usual.predictions) == ([], [], [])
    assert [world.closed for world in point_world] == [True]


def test_a_policy_that_reads_another_state_is_not_evaluated(
    make_pusher: Callable[..., Any], point_world: list[PointWorld]
) -> None:
    policy = make_pusher("other")
    policy.state_dim = 8
    with pytest.raises(InvalidInputError, match="of policy other must have the 7 numbers of environment point, got 8"):
        evaluate_json(policy, **SETTINGS)
    assert policy.predictions == []


@pytest.mark.usefixtures("point_world")
@pytest.mark.parametrize(("name", "value"), [("action_space", JOINTS), ("state_dim", 6)])
def test_nothing_normal_is_taken_from_it(name: str, value: Any) -> None:
    reader = Reader()
    setattr(reader, name, value)
    PointWorld.resets.clear()
    with pytest.raises(InvalidInputError, match="of policy reader must"):
        take_reference(reader, environment="point", episodes=8)
    assert PointWorld.resets == []


def test_the_number_of_an_arm_and_the_unit_of_a_gripper_do_not_matter(
    world: PointWorld, make_pusher: Callable[..., Any]
) -> None:
    policy = make_pusher()
    moves = tuple(ActionDimension(kind=one.kind, unit=one.unit, arm=1) for one in END_EFFECTOR_DELTA[:6])
    policy.action_space = (*moves, ActionDimension(kind="gripper", unit="rad", arm=1))
    require_compatible({"p": policy}, world, "point")
    assert compatible(policy, world)
    policy.action_space = (*moves, ActionDimension(kind="gripper", unit="rad", arm=0))
    assert not compatible(policy, world)


def test_a_policy_without_a_state_fits_any(world: PointWorld, make_pusher: Callable[..., Any]) -> None:
    policy = make_pusher()
    for dim, same in ((None, True), (0, True), (7, True), (6, False)):
        policy.state_dim = dim
        assert compatible(policy, world) == same


class _Gripless(PointWorld):
    """Its actions have no gripper."""

    action_dimensions: ClassVar[ActionSpace] = tuple(ActionDimension(kind="joint-delta", unit="rad") for _ in range(7))


class _TwoGrippers(PointWorld):
    """Two arms; the last number of an action, and the one before the last, are grippers'."""

    action_dimensions: ClassVar[ActionSpace] = (
        *(ActionDimension(kind="joint-delta", unit="rad") for _ in range(5)),
        ActionDimension(kind="gripper", unit="1", arm=0),
        ActionDimension(kind="gripper", unit="1", arm=1),
    )


@pytest.mark.parametrize(("kind", "flips"), [(PointWorld, 1), (_Gripless, 0), (_TwoGrippers, 1)])
def test_flips_are_those_of_grippers(kind: type[PointWorld], flips: int, make_pusher: Callable[..., Any]) -> None:
    record = run_episode(kind(), make_pusher(), Episode(index=3, task="left", seed=10_000_003), label="p")
    assert record.gripper_flips == flips
