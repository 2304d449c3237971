"""Builds the MuJoCo model of a tabletop scene: table, arm with parallel gripper, objects, cameras.

The table is `assets/scene.xml`, the arm `robots/widowx_250.xml`, the objects are `assets/objects.xml`; a variant
changes some of their attributes. The table top is z = 0 and the arm's base frame is the world frame.

What it does not model: motor currents, backlash, joint friction of the real arm, self-collision of the links.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import mujoco
import numpy as np
from jaxtyping import Float

from daptq.environments.tabletop.objects import DISTRACTORS, OBJECTS_MJCF, ObjectSpec
from daptq.environments.tabletop.sizes import resized_objects
from daptq.environments.tabletop.variants import NOMINAL, Texture, Variant
from daptq.robots import widowx_250

FINGER_CLOSED: Final = 0.015
FINGER_OPEN: Final = 0.037
MAX_IMAGE_SIZE: Final = 1024

_SCENE: Final = (Path(__file__).parent / "assets" / "scene.xml").read_text(encoding="utf-8")
_FRONT_TARGET: Final = (0.25, 0.012, 0.05)  # what the front camera looks at [m]


def look_at(position: tuple[float, float, float], target: tuple[float, float, float]) -> Float[np.ndarray, "6"]:
    """Returns the x and y axes of a camera at `position` [m] that looks at `target` [m] with the z axis up.

    MuJoCo cameras look along their own -z axis.
    """
    forward = np.asarray(target, dtype=np.float64) - np.asarray(position, dtype=np.float64)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, np.array([0.0, 0.0, 1.0]))
    right /= np.linalg.norm(right)
    return np.concatenate([right, np.cross(right, forward)])


def scene_xml(scene: str, variant: Variant = NOMINAL) -> str:
    """Returns the MJCF of `scene` (a name in `SCENES`) as `variant` changes it."""
    root, arm = ET.fromstring(_SCENE), ET.fromstring(widowx_250.MJCF)
    root.set("model", f"tabletop_{scene}")
    _vary(root, variant)
    world = _child(root, "worldbody")
    world.extend(_child(arm, "worldbody"))
    specs = (*resized_objects(scene, variant.object_size), *(DISTRACTORS if variant.distractors else ()))
    world.extend(_object(spec) for spec in specs)
    classes = ET.SubElement(root, "default")
    for model in (arm, ET.fromstring(OBJECTS_MJCF)):
        classes.extend(_child(model, "default"))
    root.extend(_child(arm, section) for section in ("contact", "equality", "actuator"))
    return ET.tostring(root, encoding="unicode")


def build_model(scene: str, variant: Variant = NOMINAL) -> mujoco.MjModel:
    """Compiles `scene` (a name in `SCENES`), as `variant` changes it, into a MuJoCo model."""
    return mujoco.MjModel.from_xml_string(scene_xml(scene, variant))


def _vary(root: ET.Element, variant: Variant) -> None:
    """Changes light, front camera, table and backdrop of the empty scene."""
    light, headlight = _child(root, "worldbody/light"), _child(root, "visual/headlight")
    light.set("dir", " ".join(f"{value:g}" for value in variant.light_direction))
    for element, attribute in ((light, "diffuse"), (headlight, "ambient"), (headlight, "diffuse")):
        _scale(element, attribute, variant.brightness)
    camera = _child(root, "worldbody/camera")
    x, y, z = (float(a) + b for a, b in zip(str(camera.get("pos")).split(), variant.camera_offset, strict=True))
    camera.set("pos", f"{x} {y} {z}")
    camera.set("xyaxes", " ".join(f"{value:.9g}" for value in look_at((x, y, z), _FRONT_TARGET)))
    if variant.table is not None:
        _add_material(root, "table", variant.table)
        table = _child(root, "worldbody/geom")
        del table.attrib["rgba"]
        table.set("material", "table")
    if variant.backdrop is not None:
        _add_material(root, "backdrop", variant.backdrop)
        place = {"name": "backdrop", "type": "box", "size": "0.01 0.9 0.6", "pos": "-0.26 0 0.6"}
        untouched = {"contype": "0", "conaffinity": "0", "mass": "0"}
        ET.SubElement(_child(root, "worldbody"), "geom", {**place, "material": "backdrop", **untouched})


def _add_material(root: ET.Element, name: str, texture: Texture) -> None:
    """Adds a texture and a material of one name."""
    first, second = (" ".join(map(str, colour)) for colour in (texture.first, texture.second))
    pattern = {"builtin": "checker"}
    if texture.pattern != "checker":
        pattern = {"builtin": "flat", "mark": "random", "random": "0.12"}
    colours = {"rgb1": first, "rgb2": second, "markrgb": second, "width": "256", "height": "256"}
    repeat = f"{texture.repeat} {texture.repeat}"
    assets = _child(root, "asset")
    ET.SubElement(assets, "texture", {"name": name, "type": "2d", **pattern, **colours})
    dull = {"specular": "0", "shininess": "0"}
    ET.SubElement(assets, "material", {"name": name, "texture": name, "texrepeat": repeat, **dull})


def _object(spec: ObjectSpec) -> ET.Element:
    """The body of an object: free to move, or placed at reset."""
    body = ET.fromstring(f"<body>{spec.geoms}</body>")
    body.attrib.update({"name": spec.name, "pos": f"0 0 {spec.rest_height}"})
    if spec.movable:
        body.insert(0, ET.Element("joint", {"name": spec.name, "type": "free", "damping": "0.0001"}))
    else:
        body.set("mocap", "true")
    return body


def _scale(element: ET.Element, attribute: str, factor: float) -> None:
    values = str(element.get(attribute)).split()
    element.set(attribute, " ".join(f"{float(value) * factor:.9g}" for value in values))


def _child(root: ET.Element, path: str) -> ET.Element:
    """The first element at a path of a file of this package."""
    found = root.find(path)
    assert found is not None, path
    return found
