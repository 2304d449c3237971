"""The catalogue of variants of the tabletop benchmark: one thing about the scene, the sensors or the motors is changed.

A variant leaves everything else as it is: the same seed puts the same objects at the same places as in the nominal
scene, so an episode on a variant is paired with the nominal one. What a variant draws (noise, distractors, a push) it
draws from the episode's seed, so every policy meets the same. Variants follow SimplerEnv's variant aggregation
(arXiv 2405.05941) where they change the scene, and RobustVLA (arXiv 2510.00037) where they disturb sensors and motors.

The module knows what is changed, not how: drawing is the scene's business, physics the world's, noise the
environment's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from daptq.errors import InvalidInputError, UnknownNameError

__all__ = ["NOMINAL", "VARIANTS", "Push", "Texture", "Variant", "find_variant"]

Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Texture:
    """A procedural texture of MuJoCo.

    Attributes:
        pattern: ``"checker"`` squares, or a ``"gradient"`` with ``"specks"`` of the second colour.
        first, second: Its two colours, each channel in [0, 1].
        repeat: How often it repeats along each edge.
    """

    pattern: Literal["checker", "specks"]
    first: Colour
    second: Colour
    repeat: float


@dataclass(frozen=True, kw_only=True)
class Push:
    """A sudden horizontal force in a random direction, once per episode, from a random control step in 4..19 on.

    Attributes:
        target: ``"gripper"``, or the ``"object"`` that the asked task moves.
        force: Its size [N].
        chunks: How long it lasts, in tenths of a control step.
    """

    target: Literal["gripper", "object"]
    force: float
    chunks: int

    def __post_init__(self) -> None:
        if self.force <= 0 or not 1 <= self.chunks <= 10:
            raise InvalidInputError(
                f"a push must have a positive force and last 1..10 chunks, got {self.force} N and {self.chunks}. "
                "Leave it out for no push."
            )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What differs from the nominal scene; every default changes nothing.

    Attributes:
        description: What is changed, in a few words.
        brightness: Factor on the light of the headlight and the lamp.
        light_direction: Where the lamp's light goes.
        table: Texture of the table top; None for the plain one.
        backdrop: Texture of a wall behind the robot, which has none in the nominal scene.
        camera_offset: Where the front camera is moved [m]; it goes on looking at the same point.
        distractors: Whether things that no task names lie beside the objects.
        object_size: Factor on every length of the movable objects; their density stays.
        pixel_noise: Standard deviation of independent Gaussian noise on every pixel value [grey levels of 255].
        position_noise: Standard deviation of Gaussian noise on the measured position in `observation.state` [m].
        move_noise: Standard deviation of Gaussian noise on each component of a commanded move [m].
        turn_noise: Standard deviation of Gaussian noise on each component of a commanded turn [rad].
        push: A sudden force.
    """

    description: str
    brightness: float = 1.0
    light_direction: tuple[float, float, float] = (-0.3, 0.25, -1.0)
    table: Texture | None = None
    backdrop: Texture | None = None
    camera_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    distractors: bool = False
    object_size: float = 1.0
    pixel_noise: float = 0.0
    position_noise: float = 0.0
    move_noise: float = 0.0
    turn_noise: float = 0.0
    push: Push | None = None

    def __post_init__(self) -> None:
        if self.brightness <= 0:
            raise InvalidInputError(f"brightness must be positive, got {self.brightness}. 1 is the nominal light.")
        # The gripper's gap runs from 20 to 64 mm, the objects' widths from 26 to 40 mm.
        if not 0.8 <= self.object_size <= 1.5:
            raise InvalidInputError(
                f"object_size must be in 0.8..1.5, got {self.object_size}. The gripper cannot hold other sizes."
            )
        noises = (self.pixel_noise, self.position_noise, self.move_noise, self.turn_noise)
        if min(noises) < 0:
            raise InvalidInputError(f"noise must not be negative, got {min(noises)}. 0 is none.")


NOMINAL: Final = Variant(description="the scene that policies are trained in")

VARIANTS: Final[Mapping[str, Variant]] = MappingProxyType(
    {
        "lighting-dark": Variant(description="60 % of the light", brightness=0.6),
        "lighting-bright": Variant(description="130 % of the light", brightness=1.3),
        "lighting-side": Variant(description="the lamp shines from the left", light_direction=(0.0, -1.0, -0.6)),
        "table-texture-1": Variant(
            description="table top of light and dark squares",
            table=Texture(pattern="checker", first=(0.80, 0.74, 0.64), second=(0.66, 0.58, 0.47), repeat=12),
        ),
        "table-texture-2": Variant(
            description="grey table top with dark specks",
            table=Texture(pattern="specks", first=(0.66, 0.68, 0.70), second=(0.45, 0.46, 0.50), repeat=4),
        ),
        "background": Variant(
            description="a patterned wall behind the robot",
            backdrop=Texture(pattern="checker", first=(0.75, 0.40, 0.32), second=(0.90, 0.86, 0.78), repeat=6),
        ),
        "camera-pose-1": Variant(
            description="front camera 3 cm to the side and 2 cm up, aimed as before", camera_offset=(0.0, 0.03, 0.02)
        ),
        "camera-pose-2": Variant(
            description="front camera 12 cm to the other side and 3 cm back, aimed as before",
            camera_offset=(0.03, -0.12, 0.0),
        ),
        "distractors": Variant(description="a ball, a can and a box that no task names", distractors=True),
        "object-small": Variant(description="movable objects 15 % smaller", object_size=0.85),
        "object-large": Variant(description="movable objects 15 % larger", object_size=1.15),
        "observation-noise": Variant(
            description="noise of 12 grey levels on every pixel and 3 mm on the measured position",
            pixel_noise=12.0,
            position_noise=0.003,
        ),
        "action-noise": Variant(
            description="noise of 4 mm and 0.02 rad on every commanded move", move_noise=0.004, turn_noise=0.02
        ),
        "push-gripper": Variant(
            description="the gripper is pushed with 25 N for a fifth of a second",
            push=Push(target="gripper", force=25.0, chunks=10),
        ),
        "push-object": Variant(
            description="the object to be moved is hit with 1.5 N for 0.04 s",
            push=Push(target="object", force=1.5, chunks=2),
        ),
    }
)


def find_variant(name: str | None) -> Variant:
    """The variant called `name`; None is the nominal scene.

    Raises:
        UnknownNameError: There is no such variant.
    """
    if name is None:
        return NOMINAL
    if name not in VARIANTS:
        raise UnknownNameError("variant", name, VARIANTS)
    return VARIANTS[name]
