"""Variants of the tabletop benchmark: one thing changes, the nominal scene and the initial states do not."""

from __future__ import annotations

import hashlib
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from numpy.typing import NDArray

from daptq.environments.tabletop import TabletopEnvironment
from daptq.environments.tabletop.expert import TabletopExpert
from daptq.environments.tabletop.objects import BLOCK_EDGE, CARROT, GREEN_BLOCK, SCENES, TASKS
from daptq.environments.tabletop.scene import scene_xml
from daptq.environments.tabletop.sizes import resized_objects, resized_tasks
from daptq.environments.tabletop.variants import NOMINAL, VARIANTS, Push, Variant
from daptq.errors import InvalidInputError, UnknownNameError

SEEN = {name for name, variant in VARIANTS.items() if variant.move_noise == 0 and variant.push is None}
variants = pytest.mark.parametrize("name", VARIANTS)


def start(variant: str | None, task: str, seed: int, size: int = 48) -> tuple[dict[str, Any], dict[str, Any]]:
    """Privileged state and observation at reset."""
    environment = TabletopEnvironment(image_size={"front": size} if size else {}, variant=variant)
    observation, _ = environment.reset(seed=seed, options={"task": task})
    state = environment.privileged_state()
    environment.close()
    return state, observation


def drive(variant: str | None, seed: int, steps: int, task: str = "spoon_on_towel") -> NDArray[np.float64]:
    """End-effector position [m] after each of some steps of the expert, float64 (steps, 3)."""
    environment, expert = TabletopEnvironment(image_size={}, variant=variant), TabletopExpert()
    environment.reset(seed=seed, options={"task": task})
    return np.stack([environment.step(expert.action(environment))[4]["end_effector_position"] for _ in range(steps)])


@pytest.mark.parametrize(
    ("scene", "digest"),
    [
        ("kitchen", "b45238481e0d599203e6542b00e1064414c0a6f7cff3a5b50d7c436f6902ff6f"),
        ("blocks", "82df3b150048d3401689c3ef9785c46579e1dab164b865c18b011221a6e769d3"),
    ],
)
def test_the_nominal_scene_is_the_one_before_there_were_variants(scene: str, digest: str) -> None:
    assert hashlib.sha256(scene_xml(scene).encode()).hexdigest() == digest
    assert scene_xml(scene, VARIANTS["lighting-dark"]) != scene_xml(scene, NOMINAL) == scene_xml(scene)


def test_without_a_change_nothing_is_recomputed() -> None:
    for scene, objects in SCENES.items():
        assert resized_objects(scene, 1.0) is objects
        assert all(task is TASKS[name] for name, task in resized_tasks(scene, 1.0).items())


@variants
@pytest.mark.parametrize("task", ["spoon_on_towel", "stack_blocks"])
def test_objects_start_where_they_do_in_the_nominal_scene(name: str, task: str) -> None:
    # A larger object may touch its neighbour, and settles beside it.
    moved = 1e-3 if VARIANTS[name].object_size > 1 else 1e-6
    for seed in (4, 5, 6):
        nominal, _ = start(None, task, seed, size=0)
        state, _ = start(name, task, seed, size=0)
        for key in nominal:
            if key.endswith(".position"):
                np.testing.assert_allclose(state[key][:2], nominal[key][:2], rtol=0, atol=moved)
            elif key.endswith(".yaw"):
                np.testing.assert_allclose(state[key], nominal[key], rtol=0, atol=20 * moved)


@variants
def test_a_variant_changes_what_is_seen_or_what_happens(name: str) -> None:
    changed = not np.array_equal(
        start(name, "spoon_on_towel", 3)[1]["observation.images.front"],
        start(None, "spoon_on_towel", 3)[1]["observation.images.front"],
    )
    assert changed == (name in SEEN)
    if name not in SEEN:
        moved = np.abs(drive(name, 3, 22) - drive(None, 3, 22)).max()
        assert moved > (1e-3 if name != "push-object" else 0.0)


def test_a_hit_object_slides() -> None:
    environment = TabletopEnvironment(image_size={}, variant="push-object")
    for task in TASKS:
        environment.reset(seed=0, options={"task": task})
        before = environment.world.position(TASKS[task].source)
        for _ in range(21):
            environment.step(np.array([0, 0, 0, 0, 0, 0, 1], dtype=np.float32))
        assert 0.01 < np.linalg.norm(environment.world.position(TASKS[task].source) - before) < 0.05


@variants
def test_the_expert_still_succeeds(name: str) -> None:
    environment, expert = TabletopEnvironment(image_size={}, variant=name), TabletopExpert()
    for task in TASKS:
        _, info = environment.reset(seed=2, options={"task": task})
        while not info["success_any_step"] and info["step_index"] < environment.horizon:
            info = environment.step(expert.action(environment))[4]
        assert info["success_any_step"], task


def test_noise_depends_on_seed_and_step_alone() -> None:
    def noise(seed: int, moves: float) -> NDArray[np.int64]:
        pictures = []
        for variant in ("observation-noise", None):
            environment = TabletopEnvironment(image_size={"front": 32}, variant=variant)
            environment.reset(seed=seed, options={"task": "spoon_on_towel"})
            action = np.array([moves, 0, 0, 0, 0, 0, 1], dtype=np.float32)
            pictures.append(environment.step(action)[0]["observation.images.front"].astype(np.int64))
            environment.close()
        return pictures[0] - pictures[1]

    still, moving, other = noise(1, 0.0), noise(1, 0.03), noise(2, 0.0)
    # Values far from the ends of the scale are not clipped: there the noise is the same whatever is seen.
    inside = (np.abs(still) < 60) & (np.abs(moving) < 60)
    assert np.mean(still[inside] == moving[inside]) > 0.9
    assert np.mean(still == other) < 0.1
    assert 9.0 < still.std() < 13.0  # 12 grey levels, less what the ends of the scale cut off


def test_action_noise_has_the_stated_spread_and_is_the_same_for_every_policy() -> None:
    environment = TabletopEnvironment(image_size={}, variant="action-noise", horizon=400)
    environment.reset(seed=1)
    still = np.array([0, 0, 0, 0, 0, 0, 1], dtype=np.float32)
    path = [environment.commanded_pose[0]]
    for _ in range(40):
        environment.step(still)
        path.append(environment.commanded_pose[0])
    moves = np.diff(path, axis=0)
    free = moves[np.all(moves != 0, axis=1)]  # the workspace's ends stop a walk
    assert 0.0032 < free[:, :2].std() < 0.0048  # 4 mm; 80 draws have a standard error of 8 %
    environment.reset(seed=1)
    environment.step(np.array([0.01, 0, 0, 0, 0, 0, 1], dtype=np.float32))
    np.testing.assert_allclose(environment.commanded_pose[0] - path[0], moves[0] + [0.01, 0, 0], atol=1e-9)


@pytest.mark.parametrize("name", ["push-gripper", "push-object"])
def test_a_push_comes_once_and_leaves_no_force_behind(name: str) -> None:
    for seed in range(3):
        pushed, nominal = drive(name, seed, 25), drive(None, seed, 25)
        same = np.all(pushed == nominal, axis=1)
        first = int(np.argmin(same))
        assert 4 <= first <= 25
        assert same[:first].all()
    environment = TabletopEnvironment(image_size={}, variant=name)
    environment.reset(seed=0)
    for _ in range(21):
        environment.step(np.array([0, 0, 0, 0, 0, 0, 1], dtype=np.float32))
    assert not environment.world.data.xfrc_applied.any()


def test_resized_objects_keep_density_and_heights_that_fit() -> None:
    kitchen = {spec.name: spec for spec in resized_objects("kitchen", 1.15)}
    assert kitchen["carrot"].rest_height == pytest.approx(1.15 * CARROT.rest_height)
    assert kitchen["towel"] in SCENES["kitchen"]
    (carrot,) = [geom for geom in ET.fromstring(f"<b>{kitchen['carrot'].geoms}</b>") if geom.get("group") == "4"]
    assert [float(value) for value in carrot.attrib["size"].split()] == pytest.approx([0.0506, 0.016675, 0.016675])
    assert float(carrot.attrib["mass"]) == pytest.approx(0.06 * 1.15**3)
    stack = resized_tasks("blocks", 0.85)["stack_blocks"]
    assert stack.height == pytest.approx(0.85 * BLOCK_EDGE)
    assert stack.xy_tolerance == pytest.approx(0.85 * TASKS["stack_blocks"].xy_tolerance)
    assert GREEN_BLOCK.rest_height == 0.02
    plate = resized_tasks("kitchen", 0.85)["carrot_on_plate"]
    assert plate.height == pytest.approx(0.85 * 0.0145 + 0.004)
    assert plate.xy_tolerance == TASKS["carrot_on_plate"].xy_tolerance


def test_a_state_of_a_variant_goes_on_in_the_same_variant() -> None:
    first, second = (TabletopEnvironment(image_size={"front": 24}, variant="push-gripper") for _ in range(2))
    first.reset(seed=0, options={"task": "stack_blocks"})
    still = np.array([0, 0, 0, 0, 0, 0, 1], dtype=np.float32)
    for _ in range(3):
        first.step(still)
    second.reset(seed=9)
    second.set_state(first.get_state())
    for _ in range(20):  # over the push, whichever step it comes at
        one, two = first.step(still), second.step(still)
        assert np.array_equal(one[0]["observation.images.front"], two[0]["observation.images.front"])
        assert np.array_equal(first.get_state(), second.get_state())
    first.close()
    second.close()


def test_bad_variants_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="lighting-dark"):
        TabletopEnvironment(variant="lighting-drak")
    for settings, message in (
        ({"object_size": 2.0}, "object_size must be in"),
        ({"brightness": 0.0}, "brightness must be positive"),
        ({"pixel_noise": -1.0}, "noise must not be negative"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            Variant(description="", **settings)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="push must have"):
        Push(target="gripper", force=0.0, chunks=1)
