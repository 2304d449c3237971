"""What an action space says of itself, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from daptq.action_space import END_EFFECTOR_DELTA, ActionDimension, ActionSpace, agree, described
from daptq.errors import InvalidInputError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"kind": "wheel", "unit": "m"},
            "kind of an action dimension must be one of ee-position-delta, .*, got 'wheel'",
        ),
        ({"kind": "joint", "unit": "deg"}, "unit of an action dimension must be one of m, rad, px, 1, got 'deg'"),
        ({"kind": "joint", "unit": "rad", "arm": -1}, "arm of an action dimension must be an integer of 0 or more"),
        ({"kind": "joint", "unit": "rad", "arm": True}, "arm of an action dimension must be an integer of 0 or more"),
    ],
)
def test_a_dimension_of_something_else_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ActionDimension(**values)


def test_spaces_in_words() -> None:
    assert described(END_EFFECTOR_DELTA) == "3 ee-position-delta [m], 3 ee-rotation-delta [rad], 1 gripper [1]"
    arms = tuple(ActionDimension(kind="joint", unit="rad", arm=arm) for arm in (0, 0, 1))
    assert described(arms) == "2 joint [rad] of arm 0, 1 joint [rad] of arm 1"
    assert described(()) == "no dimension"


def joints(*arms: int, unit: Any = "1") -> ActionSpace:
    """A joint of each of these arms, and a gripper of the last one."""
    return (
        *(ActionDimension(kind="joint", unit="rad", arm=arm) for arm in arms),
        ActionDimension(kind="gripper", unit=unit, arm=arms[-1]),
    )


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (joints(0, 0, 1), True),
        (joints(0, 0, 1, unit="rad"), True),
        (joints(3, 3, 2), True),
        (joints(0, 1, 1), False),
        (joints(0, 0, 0), False),
        (joints(0, 0, 1)[:-1], False),
        (joints(0, 0, 1)[::-1], False),
        ((ActionDimension(kind="joint-delta", unit="rad"), *joints(0, 0, 1)[1:]), False),
        ((ActionDimension(kind="joint", unit="m"), *joints(0, 0, 1)[1:]), False),
        (END_EFFECTOR_DELTA, False),
    ],
)
def test_spaces_agree_whatever_number_an_arm_has_and_whatever_unit_a_gripper(other: ActionSpace, same: bool) -> None:
    assert agree(joints(0, 0, 1), other) == agree(other, joints(0, 0, 1)) == same
