"""The Interbotix WidowX 250 s (6DOF), the arm of the tabletop scene; `widowx_250.xml` describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["JOINTS", "MJCF", "REST", "SITE"]

JOINTS: Final = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
SITE: Final = "end_effector"

REST: Final = (0.0, -0.22, 0.37, 0.0, 1.42, 0.0)
"""Joint positions [rad] near the pose from which episodes start: gripper down, 24 cm in front of the base."""

MJCF: Final = Path(__file__).with_suffix(".xml").read_text(encoding="utf-8")
"""The whole model: bodies, joints, gripper, shapes, wrist camera and motors."""
