"""Objects of another size, and the tasks that go with them.

Every length of a movable object is multiplied by one factor; the places at reset are not, so `ObjectSpec.radius`, the
room that an object takes at reset, stays.
"""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

from daptq.environments.tabletop.objects import SCENES, TASKS, ObjectSpec, TaskSpec, tasks_of

__all__ = ["resized_objects", "resized_tasks"]


def resized_objects(scene: str, factor: float) -> tuple[ObjectSpec, ...]:
    """The objects of `scene` with every length of the movable ones multiplied by `factor`, at the same density."""
    if factor == 1.0:
        return SCENES[scene]
    return tuple(_resized(spec, factor) if spec.movable else spec for spec in SCENES[scene])


def resized_tasks(scene: str, factor: float) -> dict[str, TaskSpec]:
    """The tasks of `scene` by name, with heights and tolerances for objects of `resized_objects`."""
    before = {spec.name: spec for spec in SCENES[scene]}
    after = {spec.name: spec for spec in resized_objects(scene, factor)}
    tasks = {}
    for name in tasks_of(scene):
        task = TASKS[name]
        raised = after[task.source].rest_height - before[task.source].rest_height
        raised += after[task.target].support_height - before[task.target].support_height
        wider = factor if before[task.target].movable else 1.0
        tasks[name] = (
            task
            if factor == 1.0
            else replace(
                task,
                height=task.height + raised,
                release_height=task.release_height + raised,
                xy_tolerance=task.xy_tolerance * wider,
                aim_tolerance=task.aim_tolerance * min(1.0, wider),
            )
        )
    return tasks


def _resized(spec: ObjectSpec, factor: float) -> ObjectSpec:
    geoms = ET.fromstring(f"<body>{spec.geoms}</body>")
    for geom in geoms:
        for length in ("size", "pos", "fromto"):
            if length in geom.attrib:
                geom.set(length, " ".join(f"{float(value) * factor:.9g}" for value in geom.attrib[length].split()))
        if "mass" in geom.attrib:
            geom.set("mass", f"{float(geom.attrib['mass']) * factor**3:.9g}")
    return replace(
        spec,
        geoms="".join(ET.tostring(geom, encoding="unicode") for geom in geoms),
        rest_height=spec.rest_height * factor,
        support_height=spec.support_height * factor,
        support_half_size=spec.support_half_size * factor,
        grasp_height=spec.grasp_height * factor,
        grasp_shifts=tuple(shift * factor for shift in spec.grasp_shifts),
        top_height=spec.top_height * factor,
        outline=tuple((x * factor, y * factor, radius * factor) for x, y, radius in spec.outline),
    )
