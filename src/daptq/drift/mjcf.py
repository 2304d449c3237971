"""Reads the serial chain to one site out of an MJCF file, with MuJoCo's own reader.

Only bodies, joints and the site are looked at: masses, shapes, meshes, motors and everything else is removed before
MuJoCo compiles the model, so that a missing mesh file does no harm. MuJoCo is imported when a file is read.
"""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from daptq.drift.serial_chain import SerialChain
from daptq.errors import InvalidInputError

__all__ = ["read_chain"]

_KEPT = ("compiler", "default", "worldbody", "body", "frame", "joint", "freejoint", "site")

# A chain without shapes has no mass, and MuJoCo compiles no moving body without one; poses do not depend on it.
_ANY_MASS = 1.0


def read_chain(xml: str, joints: tuple[str, ...], site: str) -> SerialChain:
    """The chain of hinges from the world to a site.

    Args:
        xml: Content of an MJCF file.
        joints: Names of all the joints on the way to the site, in order.
        site: Name of the site that marks the end-effector.

    Raises:
        InvalidInputError: The file is no MJCF that MuJoCo compiles, the site is not there, the joints are others, or
            one of them is no hinge whose reference is 0.
    """
    import mujoco

    try:
        specification = mujoco.MjSpec.from_string(_without_the_rest(xml, site))
        specification.compiler.boundmass = specification.compiler.boundinertia = _ANY_MASS
        specification.compiler.fusestatic = False
        model = specification.compile()
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InvalidInputError(
            f"robot model must be an MJCF file that MuJoCo reads, got: {reason}. Correct the file."
        ) from error
    mark = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, site)
    if mark < 0:
        raise InvalidInputError(f"robot model must hold a site {site!r}, got none. Name the end-effector's site.")

    way = [int(model.site_bodyid[mark])]
    while way[0] != 0:
        way.insert(0, int(model.body_parentid[way[0]]))
    position, rotation = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    names: list[str] = []
    positions, rotations, axes, limits = [], [], [], []
    for body in way[1:]:
        offset, turn = _pose(model.body_pos[body], model.body_quat[body])
        position, rotation = position + rotation @ offset, rotation @ turn
        for joint in range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body]):
            name = model.joint(joint).name
            kind = mujoco.mjtJoint(int(model.jnt_type[joint])).name.removeprefix("mjJNT_").lower()
            if kind != "hinge" or model.qpos0[model.jnt_qposadr[joint]] != 0:
                raise InvalidInputError(
                    f"joint {name!r} must be a hinge whose reference is 0, got type {kind}. Choose a site behind "
                    "hinges only."
                )
            anchor = torch.from_numpy(model.jnt_pos[joint].copy())
            names.append(name)
            positions.append(position + rotation @ anchor)
            rotations.append(rotation)
            axes.append(torch.from_numpy(model.jnt_axis[joint].copy()))
            limits.append(tuple(model.jnt_range[joint]) if model.jnt_limited[joint] else (-math.inf, math.inf))
            position, rotation = -anchor, torch.eye(3, dtype=torch.float64)
    if tuple(names) != joints or not joints:
        raise InvalidInputError(
            f"joints on the way to site {site!r} must be {list(joints)}, got {names}. Name every joint, in order."
        )
    offset, turn = _pose(model.site_pos[mark], model.site_quat[mark])
    low, high = torch.tensor(limits, dtype=torch.float64).unbind(dim=1)
    return SerialChain(
        positions=torch.stack([*positions, position + rotation @ offset]),
        rotations=torch.stack([*rotations, rotation @ turn]),
        axes=torch.stack(axes),
        low=low,
        high=high,
    )


def _without_the_rest(xml: str, site: str) -> str:
    """The model reduced to what moves the site.

    Elements are removed from the text because the calls that delete them from an `MjSpec` differ between MuJoCo 3.2
    and 4.0.

    Raises:
        InvalidInputError: The text is no MJCF, or it includes other files.
    """
    try:
        root = ET.fromstring(xml)
    except ET.ParseError as error:
        raise InvalidInputError(f"robot model must be an MJCF file, got {error}. Pass a complete XML file.") from error
    if root.tag != "mujoco":
        raise InvalidInputError(
            f"robot model must be an MJCF file, got the root element {root.tag!r}. Save the model with MuJoCo first."
        )
    if root.find(".//include") is not None:
        raise InvalidInputError("robot model must be one file, got an include. Save the model with MuJoCo first.")
    for parent in list(root.iter()):
        for child in list(parent):
            child.attrib.pop("material", None)
            another = child.tag == "site" and parent.tag != "default" and child.get("name") != site
            if child.tag not in _KEPT or another:
                parent.remove(child)
    return ET.tostring(root, encoding="unicode")


def _pose(
    position: NDArray[np.float64], quaternion: NDArray[np.float64]
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3 3"]]:
    """Position and rotation matrix of a body or site, from a unit quaternion (w, x, y, z)."""
    w, x, y, z = quaternion.tolist()
    rotation = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    return torch.from_numpy(position.copy()), rotation
