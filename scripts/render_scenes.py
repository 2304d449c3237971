"""Writes docs/images/tabletop_<scene>.png: what the two cameras of each tabletop scene see at reset and in a grasp.

Run from the repository root: `MUJOCO_GL=egl python scripts/render_scenes.py`.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daptq.environments.tabletop import TabletopEnvironment
from daptq.environments.tabletop.expert import TabletopExpert

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = 384
GRASP_STEPS = 10


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Returns an RGB picture, uint8 (height, width, 3), as a PNG file; no imaging library is needed for that."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + chunk(b"IEND", b"")
    )


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
        path.write_bytes(png(np.concatenate(panels, axis=1)))
        print(path)
    environment.close()


if __name__ == "__main__":
    main()
