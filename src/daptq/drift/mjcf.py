"""Reads the serial chain to one site out of an MJCF file, without a simulator.

It understands what lies on the way from the world to the site: bodies and the site with `pos` and `quat`, hinge joints
with `pos`, `axis` and `range`, default classes, and the compiler's angle unit. Whatever else would move the site
(includes, other notations of an orientation, other joints) is refused rather than ignored; masses, shapes and
everything beside the way are not looked at. MuJoCo saves any model in this form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.drift.serial_chain import SerialChain
from daptq.errors import InvalidInputError

__all__ = ["read_chain"]

_ORIENTATIONS = ("euler", "axisangle", "xyaxes", "zaxis")


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """What the head of an MJCF file says about its body.

    Attributes:
        defaults: Attributes by (class, tag); the class of a nameless root is "main".
        degrees: Whether angles are told in degrees.
    """

    defaults: Mapping[tuple[str, str], Mapping[str, str]]
    degrees: bool

    def attributes(self, element: ET.Element, childclass: str) -> dict[str, str]:
        """An element's attributes over those of its default class."""
        chosen = element.get("class", childclass)
        attributes = {**self.defaults.get((chosen, element.tag), {}), **element.attrib}
        for notation in _ORIENTATIONS:
            if notation in attributes:
                raise InvalidInputError(
                    f"orientation of {element.tag} {element.get('name')!r} must be told as quat, got {notation}. Save "
                    "the model with MuJoCo first."
                )
        return attributes

    def limits(self, joint: Mapping[str, str]) -> tuple[float, float]:
        """Limits of a joint [rad]."""
        if "range" not in joint or joint.get("limited") == "false":
            return -math.inf, math.inf
        low, high = (math.radians(v) if self.degrees else v for v in _numbers(joint["range"], 2))
        return low, high


def read_chain(xml: str, joints: tuple[str, ...], site: str) -> SerialChain:
    """The chain of hinges from the world to a site.

    Args:
        xml: Content of an MJCF file.
        joints: Names of all the joints on the way to the site, in order.
        site: Name of the site that marks the end-effector.

    Raises:
        InvalidInputError: The file is no MJCF, the site is not there, the joints are others, or something on the way
            has a form that is not understood.
    """
    try:
        root = ET.fromstring(xml)
    except ET.ParseError as error:
        raise InvalidInputError(f"robot model must be an MJCF file, got {error}. Pass a complete XML file.") from error
    if root.find(".//include") is not None:
        raise InvalidInputError("robot model must be one file, got an include. Save the model with MuJoCo first.")
    way = _way_to(root, site)
    compiler = root.find("compiler")
    degrees = compiler is None or compiler.get("angle", "degree") == "degree"
    reader = _Reader(defaults=_defaults(root), degrees=degrees)

    position, rotation = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    names: list[str] = []
    positions, rotations, axes, limits = [], [], [], []
    childclass = "main"
    for body in way:
        childclass = body.get("childclass", childclass)
        offset, turn = _pose(reader.attributes(body, childclass))
        position, rotation = position + rotation @ offset, rotation @ turn
        for joint in body:
            if joint.tag not in ("joint", "freejoint"):
                continue
            attributes = reader.attributes(joint, childclass)
            kind = "free" if joint.tag == "freejoint" else attributes.get("type", "hinge")
            if kind != "hinge" or float(attributes.get("ref", "0")) != 0:
                raise InvalidInputError(
                    f"joint {joint.get('name')!r} must be a hinge whose reference is 0, got type {kind}. Choose a site "
                    "behind hinges only."
                )
            anchor = _vector(attributes, "pos", (0.0, 0.0, 0.0))
            axis = _unit(_vector(attributes, "axis", (0.0, 0.0, 1.0)))
            names.append(joint.get("name", ""))
            positions.append(position + rotation @ anchor)
            rotations.append(rotation)
            axes.append(axis)
            limits.append(reader.limits(attributes))
            position, rotation = -anchor, torch.eye(3, dtype=torch.float64)
    if tuple(names) != joints or not joints:
        raise InvalidInputError(
            f"joints on the way to site {site!r} must be {list(joints)}, got {names}. Name every joint, in order."
        )
    mark = next(element for element in way[-1].findall("site") if element.get("name") == site)
    offset, turn = _pose(reader.attributes(mark, childclass))
    low, high = torch.tensor(limits, dtype=torch.float64).unbind(dim=1)
    return SerialChain(
        positions=torch.stack([*positions, position + rotation @ offset]),
        rotations=torch.stack([*rotations, rotation @ turn]),
        axes=torch.stack(axes),
        low=low,
        high=high,
    )


def _way_to(root: ET.Element, site: str) -> list[ET.Element]:
    """The bodies from the world's child to the one that holds the site."""

    def search(body: ET.Element) -> list[ET.Element] | None:
        if any(element.get("name") == site for element in body.findall("site")):
            return [body]
        for child in body.findall("body"):
            if (rest := search(child)) is not None:
                return [body, *rest]
        return None

    for body in root.findall("worldbody/body"):
        if (way := search(body)) is not None:
            return way
    raise InvalidInputError(
        f"robot model must hold a site {site!r} within bodies, got none. Name the end-effector's site, and save a "
        "model with frames or attachments with MuJoCo first."
    )


def _defaults(root: ET.Element) -> dict[tuple[str, str], dict[str, str]]:
    """Attributes by (class, tag), each class over the ones around it."""
    result: dict[tuple[str, str], dict[str, str]] = {}

    def read(element: ET.Element, name: str, inherited: dict[str, dict[str, str]]) -> None:
        own = {tag: dict(attributes) for tag, attributes in inherited.items()}
        for child in element:
            if child.tag != "default":
                own[child.tag] = {**own.get(child.tag, {}), **child.attrib}
        result.update({(name, tag): attributes for tag, attributes in own.items()})
        for child in element.findall("default"):
            read(child, child.get("class", ""), own)

    for element in root.findall("default"):
        read(element, "main", {})
        if "class" in element.attrib:
            result.update({(element.get("class", ""), tag): v for (name, tag), v in result.items() if name == "main"})
    return result


def _numbers(text: str, count: int) -> list[float]:
    """That many finite numbers.

    Raises:
        InvalidInputError: They are not.
    """
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise InvalidInputError(f"attribute must be {count} finite numbers, got {text!r}. Correct the robot model.")
    return values


def _vector(attributes: Mapping[str, str], name: str, otherwise: tuple[float, ...]) -> Float[Tensor, " n"]:
    """A vector attribute."""
    values = _numbers(attributes[name], len(otherwise)) if name in attributes else otherwise
    return torch.tensor(values, dtype=torch.float64)


def _unit(vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The vector with length 1.

    Raises:
        InvalidInputError: It is zero.
    """
    length = vector.norm()
    if float(length) == 0:
        raise InvalidInputError("axis or quat must not be zero, got only zeros. Correct the robot model.")
    direction: Tensor = vector / length
    return direction


def _pose(attributes: Mapping[str, str]) -> tuple[Float[Tensor, "3"], Float[Tensor, "3 3"]]:
    """Position and rotation matrix of a body or site."""
    w, x, y, z = _unit(_vector(attributes, "quat", (1.0, 0.0, 0.0, 0.0))).tolist()
    rotation = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    return _vector(attributes, "pos", (0.0, 0.0, 0.0)), rotation
