"""What lies on the table: the objects, the two scenes and the four tasks of the tabletop benchmark.

`assets/objects.xml` draws every shape from primitive geoms with the body's origin at the place to grasp and the body's
x axis along the object; the numbers here describe these shapes. Lengths are metres, masses kilograms. The module knows
shapes and names only: no simulator, no success rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK_EDGE = 0.04
BASKET_INNER_HALF_SIZE = 0.058
BASKET_WALL_HEIGHT = 0.030

OBJECTS_MJCF = (Path(__file__).parent / "assets" / "objects.xml").read_text(encoding="utf-8")
"""Shapes of all objects, one body each, with the classes of their geoms."""

_GEOMS = {
    str(body.get("name")): "".join(ET.tostring(geom, encoding="unicode") for geom in body)
    for body in ET.fromstring(OBJECTS_MJCF).iterfind("worldbody/body")
}


@dataclass(frozen=True, kw_only=True)
class ObjectSpec:
    """One object.

    Attributes:
        name: Unique within its scene.
        geoms: MJCF of its geoms.
        movable: True: a free body that can be grasped. False: a body placed at reset that nothing moves.
        rest_height: Height of the origin above the table top when it lies on the table [m].
        radius: Radius of the disc that nothing else may enter at reset [m].
        yaw_range: The yaw at reset is uniform in +-this [rad].
        symmetry: Yaw angle after which the object looks the same to the gripper [rad].
        support_height: Height of the surface it offers above its own origin [m].
        support_half_size: Half edge of the square on which another object counts as placed [m].
        grasp_height: Height of the end-effector above the origin in a grasp [m].
        grasp_shifts: Places along the object, besides its origin, where it can be grasped too [m].
        top_height: Height of its highest solid part above the origin [m].
        outline: Discs (x, y, radius) that cover its solid parts, seen from above in its own frame [m].
    """

    name: str
    geoms: str
    movable: bool
    rest_height: float
    radius: float
    yaw_range: float
    symmetry: float = 3.141592653589793
    support_height: float = 0.0
    support_half_size: float = 0.0
    grasp_height: float = 0.0
    grasp_shifts: tuple[float, ...] = ()
    top_height: float
    outline: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task: bring `source` onto `target`.

    Attributes:
        name: Name of the task.
        instruction: The instruction that the policy reads.
        source: Object to move.
        target: Object that receives it.
        height: Height of the source's origin above the target's origin once it rests there [m].
        xy_tolerance: Half edge of the square, in the target's frame, for the source's origin [m].
        z_tolerance: Accepted deviation from `height`, below and above [m].
        release_height: Height of the source's origin above the target's origin at which an expert lets go [m].
        aim_tolerance: Horizontal error within which an expert lowers the source [m].
    """

    name: str
    instruction: str
    source: str
    target: str
    height: float
    xy_tolerance: float
    z_tolerance: tuple[float, float]
    release_height: float
    aim_tolerance: float


def _row(start: float, stop: float, y: float, radius: float) -> tuple[tuple[float, float, float], ...]:
    """Discs of one radius along x, a radius apart."""
    count = max(2, 1 + round((stop - start) / radius))
    return tuple((start + (stop - start) * i / (count - 1), y, radius) for i in range(count))


_WALL = 0.004
_SIDE = BASKET_INNER_HALF_SIZE + _WALL

SPOON = ObjectSpec(
    name="spoon",
    geoms=_GEOMS["spoon"],
    movable=True,
    rest_height=0.009,
    radius=0.050,
    yaw_range=0.6,
    grasp_height=0.016,
    grasp_shifts=(-0.012, -0.024, 0.012),
    top_height=0.009,
    outline=_row(-0.030, 0.030, 0.0, 0.013) + _row(0.048, 0.054, 0.0, 0.020),
)

CARROT = ObjectSpec(
    name="carrot",
    geoms=_GEOMS["carrot"],
    movable=True,
    rest_height=0.0145,
    radius=0.050,
    yaw_range=0.6,
    grasp_height=0.012,
    grasp_shifts=(-0.012, 0.012, -0.024, 0.024),
    top_height=0.0145,
    outline=_row(-0.034, 0.034, 0.0, 0.0145),
)

TOWEL = ObjectSpec(
    name="towel",
    geoms=_GEOMS["towel"],
    movable=False,
    rest_height=0.003,
    radius=0.060,
    yaw_range=0.26,
    support_height=0.003,
    support_half_size=0.056,
    top_height=0.003,
    outline=((0.0, 0.0, 0.056),),
)

PLATE = ObjectSpec(
    name="plate",
    geoms=_GEOMS["plate"],
    movable=False,
    rest_height=0.004,
    radius=0.060,
    yaw_range=0.0,
    support_height=0.004,
    support_half_size=0.050,
    top_height=0.004,
    outline=((0.0, 0.0, 0.060),),
)


def _block(name: str) -> ObjectSpec:
    half = BLOCK_EDGE / 2
    return ObjectSpec(
        name=name,
        geoms=_GEOMS[name],
        movable=True,
        rest_height=half,
        radius=0.045,
        yaw_range=0.26,
        symmetry=1.5707963267948966,
        support_height=half,
        support_half_size=half,
        grasp_height=0.010,
        top_height=half,
        outline=tuple(disc for y in (-0.013, 0.0, 0.013) for disc in _row(-0.013, 0.013, y, 0.008)),
    )


GREEN_BLOCK = _block("green_block")
YELLOW_BLOCK = _block("yellow_block")

EGGPLANT = ObjectSpec(
    name="eggplant",
    geoms=_GEOMS["eggplant"],
    movable=True,
    rest_height=0.016,
    radius=0.051,
    yaw_range=0.6,
    grasp_height=0.012,
    grasp_shifts=(-0.010, 0.010, -0.020, 0.020),
    top_height=0.016,
    outline=_row(-0.026, 0.026, 0.0, 0.016),
)

BASKET = ObjectSpec(
    name="basket",
    geoms=_GEOMS["basket"],
    movable=False,
    rest_height=0.003,
    radius=0.083,
    yaw_range=0.15,
    support_height=0.003,
    support_half_size=BASKET_INNER_HALF_SIZE,
    top_height=BASKET_WALL_HEIGHT,
    outline=tuple(
        disc
        for side in (-_SIDE, _SIDE)
        for along, _, radius in _row(-_SIDE, _SIDE, 0.0, 0.006)
        for disc in ((along, side, radius), (side, along, radius))
    ),
)


def _distractor(name: str, height: float, radius: float) -> ObjectSpec:
    return ObjectSpec(
        name=name,
        geoms=_GEOMS[name],
        movable=False,
        rest_height=height / 2,
        radius=radius,
        yaw_range=3.141592653589793,
        top_height=height / 2,
        outline=((0.0, 0.0, radius),),
    )


# What no task names; nothing moves it.
DISTRACTORS: tuple[ObjectSpec, ...] = (
    _distractor("ball", 0.040, 0.02),
    _distractor("can", 0.056, 0.018),
    _distractor("box", 0.024, 0.032),
)

SCENES: Mapping[str, tuple[ObjectSpec, ...]] = MappingProxyType(
    {
        "kitchen": (SPOON, TOWEL, CARROT, PLATE),
        "blocks": (GREEN_BLOCK, YELLOW_BLOCK, EGGPLANT, BASKET),
    }
)

TASKS: Mapping[str, TaskSpec] = MappingProxyType(
    {
        task.name: task
        for task in (
            TaskSpec(
                name="spoon_on_towel",
                instruction="put the spoon on the towel",
                source="spoon",
                target="towel",
                height=SPOON.rest_height + TOWEL.support_height,
                xy_tolerance=TOWEL.support_half_size,
                z_tolerance=(0.006, 0.015),
                release_height=SPOON.rest_height + TOWEL.support_height + 0.004,
                aim_tolerance=0.012,
            ),
            TaskSpec(
                name="carrot_on_plate",
                instruction="put the carrot on the plate",
                source="carrot",
                target="plate",
                height=CARROT.rest_height + PLATE.support_height,
                xy_tolerance=PLATE.support_half_size,
                z_tolerance=(0.006, 0.015),
                release_height=CARROT.rest_height + PLATE.support_height + 0.004,
                aim_tolerance=0.012,
            ),
            TaskSpec(
                name="stack_blocks",
                instruction="stack the green block on the yellow block",
                source="green_block",
                target="yellow_block",
                height=BLOCK_EDGE,
                xy_tolerance=0.020,
                z_tolerance=(0.006, 0.006),
                release_height=BLOCK_EDGE + 0.004,
                aim_tolerance=0.006,
            ),
            TaskSpec(
                name="eggplant_in_basket",
                instruction="put the eggplant in the basket",
                source="eggplant",
                target="basket",
                height=EGGPLANT.rest_height + BASKET.support_height,
                xy_tolerance=BASKET_INNER_HALF_SIZE,
                z_tolerance=(0.006, 0.025),
                release_height=EGGPLANT.rest_height + BASKET.support_height + 0.020,
                aim_tolerance=0.012,
            ),
        )
    }
)


def scene_of(task: str) -> str:
    """Returns the name of the scene in which `task` is set."""
    source = TASKS[task].source
    return next(name for name, objects in SCENES.items() if any(spec.name == source for spec in objects))


def tasks_of(scene: str) -> tuple[str, ...]:
    """Returns the names of the tasks set in `scene`, in catalogue order."""
    return tuple(name for name in TASKS if scene_of(name) == scene)
