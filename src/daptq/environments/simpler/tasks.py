"""The four WidowX tasks of SimplerEnv, with the names that ManiSkill 3 gives to them and to their objects.

It holds names and counts alone, so that they can be listed and checked where ManiSkill is not installed; the lane
`make test-simpler` compares them with the package. What it does not know: scenes, poses and success rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["TASKS", "SimplerTask"]


@dataclass(frozen=True, kw_only=True)
class SimplerTask:
    """One task.

    Attributes:
        name: Name of the task here.
        environment: ManiSkill's name of the task.
        instruction: The instruction that the policy reads, in SimplerEnv's words.
        source: Object to move, by ManiSkill's name.
        target: Object that receives it, by ManiSkill's name.
        initial_states: Number of official initial states.
        horizon: Control steps of an episode.
        in_sink: Whether the scene is the sink, where the target is an invisible plane in the basket.
    """

    name: str
    environment: str
    instruction: str
    source: str
    target: str
    initial_states: int = 24
    horizon: int = 60
    in_sink: bool = False


TASKS: Final[Mapping[str, SimplerTask]] = {
    task.name: task
    for task in (
        SimplerTask(
            name="spoon_on_towel",
            environment="PutSpoonOnTableClothInScene-v1",
            instruction="put the spoon on the towel",
            source="bridge_spoon_generated_modified",
            target="table_cloth_generated_shorter",
        ),
        SimplerTask(
            name="carrot_on_plate",
            environment="PutCarrotOnPlateInScene-v1",
            instruction="put carrot on plate",
            source="bridge_carrot_generated_modified",
            target="bridge_plate_objaverse_larger",
        ),
        SimplerTask(
            name="stack_blocks",
            environment="StackGreenCubeOnYellowCubeBakedTexInScene-v1",
            instruction="stack the green block on the yellow block",
            source="baked_green_cube_3cm",
            target="baked_yellow_cube_3cm",
        ),
        SimplerTask(
            name="eggplant_in_basket",
            environment="PutEggplantInBasketScene-v1",
            instruction="put eggplant into yellow basket",
            source="eggplant",
            target="dummy_sink_target_plane",
            initial_states=64,
            horizon=120,
            in_sink=True,
        ),
    )
}
