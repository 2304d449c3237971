"""What lies on the table: the objects, the two scenes and the four tasks of the tabletop benchmark.

Every shape is drawn from primitive geoms with the body's origin at the place to grasp and the body's x axis along the
object. Lengths are metres, masses kilograms. The module knows shapes and names only: no simulator, no success rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK_EDGE = 0.04
BASKET_INNER_HALF_SIZE = 0.058
BASKET_WALL_HEIGHT = 0.030

_SOLID = 'contype="1" conaffinity="1" condim="4" friction="1.2 0.02 0.001" solref="0.01 1" solimp="0.95 0.99 0.001"'
_VISUAL = 'contype="0" conaffinity="0" mass="0"'


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


def _box(size: str, pos: str, rgba: str, *, mass: float | None = None, euler: str = "0 0 0") -> str:
    role = _VISUAL if mass is None else f'{_SOLID} mass="{mass}"'
    return f'<geom type="box" size="{size}" pos="{pos}" euler="{euler}" rgba="{rgba}" {role}/>'


def _capsule(radius: float, start: str, end: str, rgba: str, *, mass: float | None = None) -> str:
    role = _VISUAL if mass is None else f'{_SOLID} mass="{mass}"'
    return f'<geom type="capsule" size="{radius}" fromto="{start} {end}" rgba="{rgba}" {role}/>'


def _ellipsoid(size: str, pos: str, rgba: str) -> str:
    return f'<geom type="ellipsoid" size="{size}" pos="{pos}" rgba="{rgba}" {_VISUAL}/>'


def _cylinder(radius: float, half_height: float, pos: str, rgba: str) -> str:
    return f'<geom type="cylinder" size="{radius} {half_height}" pos="{pos}" rgba="{rgba}" {_VISUAL}/>'


def _row(start: float, stop: float, y: float, radius: float) -> tuple[tuple[float, float, float], ...]:
    """Discs of one radius along x, a radius apart."""
    count = max(2, 1 + round((stop - start) / radius))
    return tuple((start + (stop - start) * i / (count - 1), y, radius) for i in range(count))


def _hidden(geom: str) -> str:
    return geom.replace("/>", ' group="4"/>')


_INVISIBLE = "0 0 0 0"
_WALL = 0.004
_SIDE = BASKET_INNER_HALF_SIZE + _WALL
_BASKET_COLOUR = "0.15 0.65 0.85 1"

SPOON = ObjectSpec(
    name="spoon",
    geoms=_box("0.036 0.013 0.009", "-0.004 0 0", "0.10 0.62 0.25 1", mass=0.04)
    + _hidden(_box("0.019 0.018 0.009", "0.050 0 0", _INVISIBLE, mass=0.015))
    + _ellipsoid("0.026 0.021 0.010", "0.050 0 0", "0.10 0.62 0.25 1")
    + _ellipsoid("0.018 0.014 0.004", "0.051 0 0.0075", "0.05 0.36 0.14 1"),
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
    geoms=_hidden(_box("0.044 0.0145 0.0145", "0 0 0", _INVISIBLE, mass=0.06))
    + _capsule(0.0155, "-0.026 0 0", "-0.002 0 0", "0.98 0.45 0.05 1")
    + _capsule(0.0125, "0 0 -0.002", "0.020 0 -0.002", "0.98 0.45 0.05 1")
    + _capsule(0.0085, "0.020 0 -0.005", "0.040 0 -0.005", "0.98 0.45 0.05 1")
    + _capsule(0.0055, "-0.040 0 0.002", "-0.060 0.008 0.006", "0.15 0.60 0.15 1")
    + _capsule(0.0055, "-0.040 0 0.002", "-0.060 -0.008 0.006", "0.15 0.60 0.15 1"),
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
    geoms=_box("0.056 0.056 0.003", "0 0 0", "0.20 0.30 0.85 1", mass=0.2)
    + _box("0.056 0.005 0.0002", "0 0.036 0.003", "0.85 0.88 0.98 1")
    + _box("0.056 0.005 0.0002", "0 -0.036 0.003", "0.85 0.88 0.98 1"),
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
    geoms=_hidden(_box("0.050 0.050 0.004", "0 0 0", _INVISIBLE, mass=0.2))
    + _cylinder(0.060, 0.0037, "0 0 0", "0.90 0.20 0.45 1")
    + _cylinder(0.045, 0.0042, "0 0 0", "0.99 0.93 0.95 1"),
    movable=False,
    rest_height=0.004,
    radius=0.060,
    yaw_range=0.0,
    support_height=0.004,
    support_half_size=0.050,
    top_height=0.004,
    outline=((0.0, 0.0, 0.060),),
)


def _block(name: str, rgba: str) -> ObjectSpec:
    half = BLOCK_EDGE / 2
    return ObjectSpec(
        name=name,
        geoms=_box(f"{half} {half} {half}", "0 0 0", rgba, mass=0.06),
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


GREEN_BLOCK = _block("green_block", "0.05 0.60 0.15 1")
YELLOW_BLOCK = _block("yellow_block", "0.98 0.85 0.05 1")

EGGPLANT = ObjectSpec(
    name="eggplant",
    geoms=_hidden(_box("0.036 0.016 0.016", "0 0 0", _INVISIBLE, mass=0.06))
    + _capsule(0.0155, "-0.022 0 0", "0.008 0 0", "0.42 0.10 0.55 1")
    + _ellipsoid("0.024 0.0185 0.0175", "0.018 0 0", "0.42 0.10 0.55 1")
    + _capsule(0.0065, "-0.038 0 0.003", "-0.048 0 0.006", "0.20 0.55 0.15 1"),
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
    geoms=_box(f"{_SIDE} {_SIDE} 0.003", "0 0 0", "0.10 0.40 0.60 1", mass=0.2)
    + "".join(
        _box(size, pos, _BASKET_COLOUR, mass=0.05)
        for size, pos in (
            (f"{_SIDE} {_WALL / 2} {BASKET_WALL_HEIGHT / 2}", f"0 {_SIDE} {BASKET_WALL_HEIGHT / 2}"),
            (f"{_SIDE} {_WALL / 2} {BASKET_WALL_HEIGHT / 2}", f"0 -{_SIDE} {BASKET_WALL_HEIGHT / 2}"),
            (f"{_WALL / 2} {_SIDE} {BASKET_WALL_HEIGHT / 2}", f"{_SIDE} 0 {BASKET_WALL_HEIGHT / 2}"),
            (f"{_WALL / 2} {_SIDE} {BASKET_WALL_HEIGHT / 2}", f"-{_SIDE} 0 {BASKET_WALL_HEIGHT / 2}"),
        )
    ),
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


def _ball(radius: float, rgba: str, *, mass: float) -> str:
    return f'<geom type="sphere" size="{radius}" rgba="{rgba}" {_SOLID} mass="{mass}"/>'


def _distractor(name: str, geoms: str, height: float, radius: float) -> ObjectSpec:
    return ObjectSpec(
        name=name,
        geoms=geoms,
        movable=False,
        rest_height=height / 2,
        radius=radius,
        yaw_range=3.141592653589793,
        top_height=height / 2,
        outline=((0.0, 0.0, radius),),
    )


# What no task names; nothing moves it.
DISTRACTORS: tuple[ObjectSpec, ...] = (
    _distractor("ball", _ball(0.020, "0.85 0.12 0.10 1", mass=0.05), 0.040, 0.02),
    _distractor(
        "can", f'<geom type="cylinder" size="0.018 0.028" rgba="0.55 0.75 0.90 1" {_SOLID} mass="0.1"/>', 0.056, 0.018
    ),
    _distractor("box", _box("0.026 0.018 0.012", "0 0 0", "0.30 0.22 0.16 1", mass=0.1), 0.024, 0.032),
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
