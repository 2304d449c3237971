"""The joint chain of the Interbotix WidowX 250 s (6DOF) as published by its maker; the arm of the tabletop scene.

The drift stage builds no scene, so it has its own copy of the chain; a test compares it with the simulated arm.
"""

from __future__ import annotations

__all__ = ["JOINTS", "MJCF", "REST", "SITE"]

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
SITE = "end_effector"

REST = (0.0, -0.22, 0.37, 0.0, 1.42, 0.0)
"""Joint positions [rad] near the pose from which episodes start: gripper down, 24 cm in front of the base."""

MJCF = """
<mujoco model="widowx_250">
  <compiler angle="radian" autolimits="true"/>
  <worldbody>
    <body name="shoulder_link" pos="0 0 0.072">
      <joint name="waist" axis="0 0 1" range="-3.14158 3.14158"/>
      <body name="upper_arm_link" pos="0 0 0.03865">
        <joint name="shoulder" axis="0 1 0" range="-1.88496 1.98968"/>
        <body name="upper_forearm_link" pos="0.04975 0 0.25">
          <joint name="elbow" axis="0 1 0" range="-2.14675 1.6057"/>
          <body name="lower_forearm_link" pos="0.175 0 0">
            <joint name="forearm_roll" axis="1 0 0" range="-3.14158 3.14158"/>
            <body name="wrist_link" pos="0.075 0 0">
              <joint name="wrist_angle" axis="0 1 0" range="-1.74533 2.14675"/>
              <body name="gripper_link" pos="0.065 0 0">
                <joint name="wrist_rotate" axis="1 0 0" range="-3.14158 3.14158"/>
                <site name="end_effector" pos="0.093575 0 0"/>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
