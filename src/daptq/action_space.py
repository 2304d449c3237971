"""What the numbers of an action mean: kind, unit and arm of every dimension.

A policy declares its action space, an environment the one that it is commanded in; a drift model says which spaces it
reads. The module knows neither policies nor robots.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

from daptq.errors import InvalidInputError, require_one_of

__all__ = ["END_EFFECTOR_DELTA", "ActionDimension", "ActionKind", "ActionSpace", "ActionUnit", "agree", "described"]

ActionKind = Literal[
    "ee-position-delta",
    "ee-rotation-delta",
    "ee-position",
    "ee-rotation",
    "joint",
    "joint-delta",
    "gripper",
    "plane",
]
ActionUnit = Literal["m", "rad", "px", "1"]


@dataclass(frozen=True, kw_only=True)
class ActionDimension:
    """Meaning of one number of an action.

    Attributes:
        kind: What is commanded. ``ee-`` stands for the pose of an end-effector; ``-delta`` for a change, the others are
            absolute; ``plane`` for a position on a plane, such as a table.
        unit: Unit of the physical action; ``"1"`` for a number without a unit, such as a gripper command.
        arm: Which arm moves, counted from 0.
    """

    kind: ActionKind
    unit: ActionUnit
    arm: int = 0

    def __post_init__(self) -> None:
        for label, choices in (("kind", get_args(ActionKind)), ("unit", get_args(ActionUnit))):
            require_one_of(f"{label} of an action dimension", getattr(self, label), choices)
        if type(self.arm) is not int or self.arm < 0:
            raise InvalidInputError(
                f"arm of an action dimension must be an integer of 0 or more, got {self.arm!r}. Count arms from 0."
            )


ActionSpace = tuple[ActionDimension, ...]
"""The dimensions of an action, in order."""

END_EFFECTOR_DELTA: ActionSpace = (
    *(ActionDimension(kind="ee-position-delta", unit="m") for _ in range(3)),
    *(ActionDimension(kind="ee-rotation-delta", unit="rad") for _ in range(3)),
    ActionDimension(kind="gripper", unit="1"),
)
"""[dx, dy, dz, droll, dpitch, dyaw, gripper]: a change of an end-effector's pose, and an absolute gripper command."""


def agree(space: ActionSpace, other: ActionSpace) -> bool:
    """Whether the numbers of two spaces mean the same, one by one: kind and unit, and which of them move one arm.

    Which number an arm has does not matter, nor the unit of a gripper.
    """
    return _meaning(space) == _meaning(other)


def _meaning(space: ActionSpace) -> list[tuple[ActionKind, ActionUnit | None, int]]:
    arms = list(dict.fromkeys(one.arm for one in space))
    return [(one.kind, None if one.kind == "gripper" else one.unit, arms.index(one.arm)) for one in space]


def described(space: ActionSpace) -> str:
    """The space in words, for messages: ``3 ee-position-delta [m], 1 gripper [1]``."""
    runs = [(dimension, len(list(group))) for dimension, group in groupby(space)]
    arms = len({dimension.arm for dimension in space}) > 1
    words = [f"{count} {one.kind} [{one.unit}]{f' of arm {one.arm}' if arms else ''}" for one, count in runs]
    return ", ".join(words) or "no dimension"
