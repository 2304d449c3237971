"""Writes docs/images/tabletop_<scene>.png: what the two cameras of each tabletop scene see at reset and in a grasp.

Run from the repository root: `MUJOCO_GL=egl python scripts/render_scenes.py`. Needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np

from daptq.environments._tabletop_expert import TabletopExpert
from daptq.environments.tabletop import TabletopEnvironment

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = 384
GRASP_STEPS = 10


def main() -> None:
    """Renders one picture per scene: front and wrist camera, before and while the first task's object is grasped."""
    environment = TabletopEnvironment(image_size={"front": SIZE, "wrist": SIZE})
    expert = TabletopExpert()
    IMAGES.mkdir(parents=True, exist_ok=True)
    for task in ("carrot_on_plate", "stack_blocks"):
        observation, _ = environment.reset(seed=4, options={"task": task})
        panels = [observation["observation.images.front"], observation["observation.images.wrist"]]
        for _ in range(GRASP_STEPS):
            observation = environment.step(expert.action(environment))[0]
        panels += [observation["observation.images.front"], observation["observation.images.wrist"]]
        path = IMAGES / f"tabletop_{environment.scene}.png"
        matplotlib.image.imsave(path, np.concatenate(panels, axis=1))
        print(path)
    environment.close()


if __name__ == "__main__":
    main()
