"""Builds the MuJoCo model of a tabletop scene: table, six-joint arm with parallel gripper, objects, cameras.

The arm has the joint origins, axes, limits and link masses that Interbotix publishes for the WidowX 250 s (6DOF); it is
drawn from boxes, cylinders and capsules because software rendering costs time per vertex. Only the palm, the fingers,
the table and the objects collide. The table top is z = 0 and the arm's base frame is the world frame.

What it does not model: motor currents, backlash, joint friction of the real arm, self-collision of the links.
"""

from __future__ import annotations

from typing import Final

import mujoco
import numpy as np
from jaxtyping import Float

from daptq.environments.tabletop.objects import DISTRACTORS, ObjectSpec
from daptq.environments.tabletop.sizes import resized_objects
from daptq.environments.tabletop.variants import NOMINAL, Texture, Variant

ARM_JOINTS: Final = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
CAMERAS: Final = ("front", "wrist")
FINGER_CLOSED: Final = 0.015
FINGER_OPEN: Final = 0.037
PHYSICS_TIMESTEP: Final = 0.005
END_EFFECTOR_SITE: Final = "end_effector"
MAX_IMAGE_SIZE: Final = 1024

# Fingertips reach 20 mm beyond the end-effector point, which lies 93.575 mm beyond the wrist_rotate joint.
_END_EFFECTOR_X = 0.093575
_FINGER_ROOT_X = 0.066
_FINGER_TIP_X = _END_EFFECTOR_X + 0.020

_FRONT_CAMERA = (0.64, -0.12, 0.40)
_FRONT_TARGET = (0.25, 0.012, 0.05)
# In the gripper's frame, whose x axis points at the table and whose z axis away from the robot when grasping.
_WRIST_CAMERA = (0.020, 0.0, 0.075)
_WRIST_TARGET = (0.125, 0.0, 0.008)

_DARK = "0.16 0.16 0.19 1"
_GREY = "0.42 0.43 0.48 1"
_FINGER = "0.95 0.95 0.95 1"
_LINK = 'contype="0" conaffinity="0" mass="0"'
_BACKDROP = """
  <geom name="backdrop" type="box" size="0.01 0.9 0.6" pos="-0.26 0 0.6" material="backdrop" contype="0" conaffinity="0"
        mass="0"/>"""
_TOUCH = 'contype="2" conaffinity="1" condim="4" friction="1.2 0.02 0.001" solref="0.01 1" solimp="0.95 0.99 0.001"'


def look_at(position: tuple[float, float, float], target: tuple[float, float, float]) -> Float[np.ndarray, "6"]:
    """Returns the x and y axes of a camera at `position` [m] that looks at `target` [m] with the z axis up.

    MuJoCo cameras look along their own -z axis.
    """
    forward = np.asarray(target, dtype=np.float64) - np.asarray(position, dtype=np.float64)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, np.array([0.0, 0.0, 1.0]))
    right /= np.linalg.norm(right)
    return np.concatenate([right, np.cross(right, forward)])


def _camera(
    name: str, position: tuple[float, float, float], target: tuple[float, float, float], field_of_view: float
) -> str:
    axes = " ".join(f"{value:.9g}" for value in look_at(position, target))
    place = " ".join(map(str, position))
    return f'<camera name="{name}" pos="{place}" xyaxes="{axes}" fovy="{field_of_view}"/>'


def _finger(side: str, sign: int) -> str:
    half_length = (_FINGER_TIP_X - _FINGER_ROOT_X) / 2
    low, high = sorted((sign * FINGER_CLOSED, sign * FINGER_OPEN))
    # The pad's inner face lies 5 mm inside the finger's origin: the gap runs from 20 mm to 64 mm.
    return f"""
    <body name="{side}_finger" pos="{_FINGER_ROOT_X} 0 0" gravcomp="1">
      <inertial pos="0.013816 0 0" mass="0.016246" diaginertia="4.79509e-06 3.7467e-06 1.48651e-06"/>
      <joint name="{side}_finger" type="slide" axis="0 1 0" range="{low} {high}" armature="0.05" damping="1"/>
      <geom type="box" size="{half_length} 0.005 0.010" pos="{half_length} 0 0" rgba="{_FINGER}"
            mass="0" {_TOUCH}/>
      <geom type="box" size="0.006 0.0054 0.0104" pos="{2 * half_length - 0.006} 0 0"
            rgba="0.9 0.1 0.1 1" {_LINK}/>
    </body>"""


def _arm() -> str:
    def joint(name: str, axis: str, low: float, high: float) -> str:
        return f'<joint name="{name}" axis="{axis}" range="{low} {high}" armature="0.05"/>'

    def inertial(pos: str, mass: float, diagonal: str) -> str:
        return f'<inertial pos="{pos}" mass="{mass}" diaginertia="{diagonal}"/>'

    def link(kind: str, size: str, pos: str, rgba: str, extra: str = "") -> str:
        return f'<geom type="{kind}" size="{size}" pos="{pos}" rgba="{rgba}" {_LINK} {extra}/>'

    return f"""
  {link("cylinder", "0.055 0.012", "0 0 0.012", _DARK)}
  {link("cylinder", "0.036 0.026", "0 0 0.046", _GREY)}
  <body name="shoulder_link" pos="0 0 0.072" gravcomp="1">
    {inertial("0 0 0.0066287", 0.480879, "0.000588946 0.000555655 0.000378999")}
    {joint("waist", "0 0 1", -3.14158, 3.14158)}
    {link("box", "0.030 0.036 0.030", "0 0 0.030", _DARK)}
    <body name="upper_arm_link" pos="0 0 0.03865" gravcomp="1">
      {inertial("0.0171605 0 0.191323", 0.430811, "0.00364425 0.003463 0.000399348")}
      {joint("shoulder", "0 1 0", -1.88496, 1.98968)}
      {link("box", "0.020 0.024 0.125", "0 0 0.125", _GREY)}
      {link("box", "0.034 0.022 0.020", "0.025 0 0.25", _DARK)}
      <body name="upper_forearm_link" pos="0.04975 0 0.25" gravcomp="1">
        {inertial("0.107963 0 0", 0.234589, "0.000888 0.000887807 3.97035e-05")}
        {joint("elbow", "0 1 0", -2.14675, 1.6057)}
        {link("box", "0.0875 0.018 0.018", "0.0875 0 0", _GREY)}
        <body name="lower_forearm_link" pos="0.175 0 0" gravcomp="1">
          {inertial("0.0374395 0.00522252 0", 0.220991, "0.0001834 0.000172527 5.88633e-05")}
          {joint("forearm_roll", "1 0 0", -3.14158, 3.14158)}
          {link("box", "0.0375 0.016 0.016", "0.0375 0 0", _DARK)}
          <body name="wrist_link" pos="0.075 0 0" gravcomp="1">
            {inertial("0.04236 0 0.010577", 0.084957, "3.29057e-05 3.082e-05 2.68343e-05")}
            {joint("wrist_angle", "0 1 0", -1.74533, 2.14675)}
            {link("box", "0.034 0.018 0.018", "0.030 0 0", _GREY)}
            <body name="gripper_link" pos="0.065 0 0" gravcomp="1">
              {inertial("0.0325296 0 0.0090959", 0.110084, "0.00307592 0.00307326 0.0030332")}
              {joint("wrist_rotate", "1 0 0", -3.14158, 3.14158)}
              {link("box", "0.025 0.024 0.018", "0.022 0 0", _DARK)}
              <geom type="box" size="0.010 0.046 0.013" pos="0.056 0 0" rgba="{_DARK}" mass="0" {_TOUCH}/>
              <site name="{END_EFFECTOR_SITE}" pos="{_END_EFFECTOR_X} 0 0" size="0.001" rgba="0 0 0 0"/>
              {_camera("wrist", _WRIST_CAMERA, _WRIST_TARGET, 75)}
              {_finger("left", 1)}
              {_finger("right", -1)}
            </body>
          </body>
        </body>
      </body>
    </body>
  </body>"""


def _object(spec: ObjectSpec) -> str:
    if spec.movable:
        return (
            f'<body name="{spec.name}" pos="0 0 {spec.rest_height}">'
            f'<joint name="{spec.name}" type="free" damping="0.0001"/>{spec.geoms}</body>'
        )
    return f'<body name="{spec.name}" mocap="true" pos="0 0 {spec.rest_height}">{spec.geoms}</body>'


def _grey(value: float, variant: Variant) -> str:
    return " ".join([f"{value * variant.brightness:.9g}"] * 3)


def _texture(name: str, texture: Texture) -> str:
    first, second = (" ".join(map(str, colour)) for colour in (texture.first, texture.second))
    kind = 'builtin="checker"' if texture.pattern == "checker" else 'builtin="flat" mark="random" random="0.12"'
    return f"""
  <texture name="{name}" type="2d" {kind} rgb1="{first}" rgb2="{second}" markrgb="{second}" width="256" height="256"/>
  <material name="{name}" texture="{name}" texrepeat="{texture.repeat} {texture.repeat}" specular="0" shininess="0"/>"""


def _sum(one: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float, float]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def scene_xml(scene: str, variant: Variant = NOMINAL) -> str:
    """Returns the MJCF of `scene` (a name in `SCENES`) as `variant` changes it."""
    specs = (*resized_objects(scene, variant.object_size), *(DISTRACTORS if variant.distractors else ()))
    objects = "\n  ".join(_object(spec) for spec in specs)
    textures = "" if variant.table is None else _texture("table", variant.table)
    textures += "" if variant.backdrop is None else _texture("backdrop", variant.backdrop)
    surface = 'rgba="0.80 0.74 0.64 1"' if variant.table is None else 'material="table"'
    backdrop = "" if variant.backdrop is None else _BACKDROP
    camera = _camera("front", _sum(_FRONT_CAMERA, variant.camera_offset), _FRONT_TARGET, 51)
    direction = " ".join(f"{value:g}" for value in variant.light_direction)
    actuators = "\n  ".join(
        f'<position joint="{name}" name="{name}" kp="400" dampratio="1" inheritrange="1" forcerange="-35 35"/>'
        for name in ARM_JOINTS
    )
    return f"""
<mujoco model="tabletop_{scene}">
<compiler angle="radian" autolimits="true"/>
<option timestep="{PHYSICS_TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10" iterations="30"/>
<visual>
  <global offwidth="{MAX_IMAGE_SIZE}" offheight="{MAX_IMAGE_SIZE}"/>
  <quality shadowsize="0" offsamples="0" numslices="14" numstacks="8" numquads="1"/>
  <headlight ambient="{_grey(0.45, variant)}" diffuse="{_grey(0.35, variant)}" specular="0 0 0"/>
  <map znear="0.01" zfar="10"/>
</visual>
<statistic center="0.27 0 0.1" extent="1"/>
<asset>
  <texture type="skybox" builtin="flat" rgb1="0.62 0.70 0.76" width="8" height="8"/>{textures}
</asset>
<worldbody>
  <light directional="true" pos="0.3 0 1.5" dir="{direction}" diffuse="{_grey(0.45, variant)}" castshadow="false"/>
  {camera}
  <geom name="table" type="box" size="0.8 0.9 0.02" pos="0.1 0 -0.02" {surface} contype="1"
        conaffinity="3" condim="4" friction="1.2 0.02 0.001" solref="0.01 1" solimp="0.95 0.99 0.001"/>{backdrop}
  {_arm()}
  {objects}
</worldbody>
<contact><exclude body1="left_finger" body2="right_finger"/></contact>
<equality>
  <joint joint1="left_finger" joint2="right_finger" polycoef="0 -1 0 0 0" solref="0.01 1"/>
</equality>
<actuator>
  {actuators}
  <position joint="left_finger" name="gripper" kp="1500" kv="90" ctrlrange="0 0.04" forcerange="-12 12"/>
</actuator>
</mujoco>"""


def build_model(scene: str, variant: Variant = NOMINAL) -> mujoco.MjModel:
    """Compiles `scene` (a name in `SCENES`), as `variant` changes it, into a MuJoCo model."""
    return mujoco.MjModel.from_xml_string(scene_xml(scene, variant))
