"""What an action space says of itself, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from daptq.action_space import END_EFFECTOR_DELTA, ActionDimension, described
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
