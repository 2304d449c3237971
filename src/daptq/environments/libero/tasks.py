"""The tasks of LIBERO's suites libero_object and libero_spatial, in the suites' order.

It holds names and counts alone, so that they can be listed and checked where LIBERO is not installed; the lane
`make test-libero` compares them with the package. What it does not know: scenes, goals and initial states, which are in
the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["TASKS", "LiberoTask"]


@dataclass(frozen=True, kw_only=True)
class LiberoTask:
    """One task of a suite.

    Attributes:
        name: LIBERO's name of the task.
        suite: LIBERO's name of the suite.
        index: Place in the suite.
        source: Object to move, by its name in the scene.
        target: Object that receives it, by its name in the scene.
        initial_states: Number of official initial states.
    """

    name: str
    suite: str
    index: int
    source: str
    target: str
    initial_states: int = 50

    @property
    def instruction(self) -> str:
        """The instruction that the policy reads, in LIBERO's words."""
        return self.name.replace("_", " ")


_GROCERIES: Final = (
    "alphabet_soup",
    "cream_cheese",
    "salad_dressing",
    "bbq_sauce",
    "ketchup",
    "tomato_sauce",
    "butter",
    "milk",
    "chocolate_pudding",
    "orange_juice",
)
_BOWL_PLACES: Final = (
    "between_the_plate_and_the_ramekin",
    "next_to_the_ramekin",
    "from_table_center",
    "on_the_cookie_box",
    "in_the_top_drawer_of_the_wooden_cabinet",
    "on_the_ramekin",
    "next_to_the_cookie_box",
    "on_the_stove",
    "next_to_the_plate",
    "on_the_wooden_cabinet",
)


def _tasks() -> Mapping[str, LiberoTask]:
    groceries = [
        LiberoTask(
            name=f"pick_up_the_{grocery}_and_place_it_in_the_basket",
            suite="libero_object",
            index=index,
            source=f"{grocery}_1",
            target="basket_1",
        )
        for index, grocery in enumerate(_GROCERIES)
    ]
    bowls = [
        LiberoTask(
            name=f"pick_up_the_black_bowl_{place}_and_place_it_on_the_plate",
            suite="libero_spatial",
            index=index,
            source="akita_black_bowl_1",
            target="plate_1",
        )
        for index, place in enumerate(_BOWL_PLACES)
    ]
    return {task.name: task for task in (*groceries, *bowls)}


TASKS: Final[Mapping[str, LiberoTask]] = _tasks()
