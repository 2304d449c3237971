"""SimplerEnv without ManiSkill: names are there, actions are converted, and what is missing is said with its remedy."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from daptq.catalog import ENVIRONMENTS, SOURCES
from daptq.cli import main
from daptq.environments.simpler import driver, make, native_action, world
from daptq.environments.simpler.expert import Heights, carry, reach, towards
from daptq.environments.simpler.tasks import TASKS
from daptq.errors import InvalidInputError, MissingDependencyError


def test_the_catalogs_list_it_and_its_tasks_need_no_simulator() -> None:
    assert "simpler" in ENVIRONMENTS.names()
    assert "simpler" in SOURCES.names()
    assert [task.initial_states for task in TASKS.values()] == [24, 24, 24, 64]
    assert TASKS["spoon_on_towel"].instruction == "put the spoon on the towel"


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(world, "version", version)
    with pytest.raises(
        MissingDependencyError, match=r'^mani-skill must be installed, .*pip install "daptq\[simpler\]"'
    ):
        make(image_size={})


def test_another_maniskill_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "version", lambda package: "3.1.0")
    with pytest.raises(MissingDependencyError, match=r"mani-skill must be 3\.0\.1 for simpler, got 3\.1\.0\."):
        make(image_size={})


def test_missing_assets_are_named_with_the_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(world, "version", lambda package: "3.0.1")
    monkeypatch.setattr(world, "asset_folder", lambda: tmp_path)
    with pytest.raises(
        MissingDependencyError, match=r"got no .*bridge_v2_real2sim_dataset\. Run `python -m mani_skill"
    ):
        world.require_simpler()
    for folder in ("tasks/bridge_v2_real2sim_dataset", "robots/widowx"):
        (tmp_path / folder).mkdir(parents=True)
    world.require_simpler()


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ([0.05, -0.025, 0.0, 0.1, 0, -0.2, 0.3], [0.05, -0.025, 0.0, 0.1, 0, -0.2, 1.0]),
        ([3.0, -3.0, 0.01, 0, 9.0, -9.0, 0.0], [1.0, -1.0, 0.01, 0, np.pi / 2, -np.pi / 2, -1.0]),
    ],
)
def test_actions_become_maniskills(action: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(native_action(np.array(action)), np.array(expected, dtype=np.float32))


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a GPU, whose user has no Vulkan driver; where the driver would be installed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(name, "")
    return tmp_path / "daptq" / "vulkan"


def test_a_gpu_draws_where_there_is_one(monkeypatch: pytest.MonkeyPatch, no_driver: Path) -> None:
    no_driver.mkdir(parents=True)
    driver.manifest().write_text("{}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert driver.render_device() == "cuda"
    driver.offer_driver()
    assert not os.environ["VK_ICD_FILENAMES"]


def test_the_driver_is_offered_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch, no_driver: Path) -> None:
    """SAPIEN lists the devices when it is first used, be it for an environment that draws nothing."""
    driver.offer_driver()
    assert not os.environ["VK_ICD_FILENAMES"]
    no_driver.mkdir(parents=True)
    driver.manifest().write_text("{}")
    monkeypatch.setitem(sys.modules, "mani_skill", types.SimpleNamespace(ASSET_DIR="assets"))
    assert world.asset_folder() == Path("assets")
    assert os.environ["VK_ICD_FILENAMES"] == str(driver.manifest())


def test_without_gpu_and_driver_the_command_is_named(no_driver: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"Run `daptq install simpler-driver`"):
        driver.render_device()


def test_a_driver_that_the_user_chose_is_kept(monkeypatch: pytest.MonkeyPatch, no_driver: Path) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", "/mine.json")
    assert driver.render_device() == "pci:0"


def test_the_installed_driver_is_found(monkeypatch: pytest.MonkeyPatch, no_driver: Path, tmp_path: Path) -> None:
    class Driver:
        vk_icdGetInstanceProcAddr = None  # noqa: N815  (Vulkan's name)

    library = tmp_path / "some.so"
    library.write_bytes(b"driver")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    result = CliRunner().invoke(main, ["install", "simpler-driver", "--library", str(library)])
    assert (result.exit_code, result.output) == (0, f"{no_driver / 'swiftshader.json'}\n")
    manifest = json.loads((no_driver / "swiftshader.json").read_text())
    assert (no_driver / manifest["ICD"]["library_path"]).read_bytes() == b"driver"
    assert driver.render_device() == "pci:0"
    assert os.environ["VK_ICD_FILENAMES"] == str(no_driver / "swiftshader.json")


def test_what_is_no_driver_is_refused(no_driver: Path, tmp_path: Path) -> None:
    library = tmp_path / "some.so"
    library.write_bytes(b"no library")
    with pytest.raises(InvalidInputError, match="library must be a Vulkan driver"):
        driver.install(library)
    assert not no_driver.exists()
    result = CliRunner().invoke(main, ["install", "simpler-driver", "--library", str(library)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: library must be a Vulkan driver")


def test_without_debians_packages_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, no_driver: Path) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match="--library FILE"):
        driver.install()


HEIGHTS = Heights(grasp=0.005, release=0.02, travel=0.08, aim=0.02)
HERE = np.array([0.3, 0.0, 0.02])


@pytest.mark.parametrize(
    ("source", "goal", "opens"),
    [
        ([0.3, 0.1, 0.01], [0.3, 0.1, 0.08], False),  # low and away from the target: straight up
        ([0.3, 0.1, 0.08], [0.3, 0.0, 0.08], False),  # high: across
        ([0.3, 0.01, 0.08], [0.3, 0.0, 0.02], False),  # above the target: down
        ([0.3, 0.01, 0.02], [0.3, 0.01, 0.02], True),  # on the target: let go
    ],
)
def test_carrying_lifts_crosses_lowers_and_lets_go(source: list[float], goal: list[float], opens: bool) -> None:
    held, target = np.array(source), np.array([0.3, 0.0, 0.0])
    moved, opened = carry(held, np.zeros(3), held, target, HEIGHTS)
    np.testing.assert_allclose(moved, goal, atol=1e-12)
    assert opened == opens


def test_reaching_hovers_until_it_is_aligned() -> None:
    away = HERE + np.array([0.05, 0.0, 0.08])
    goal, opened = reach(away, away, HERE, 0.0, 1.0, 0.006)
    np.testing.assert_allclose(goal, HERE + np.array([0.0, 0.0, 0.07]))
    assert opened
    above = HERE + np.array([0.0, 0.0, 0.07])
    np.testing.assert_allclose(reach(above, above, HERE, 0.5, 1.0, 0.006)[0], above)  # turns before it comes down
    np.testing.assert_allclose(reach(above, above, HERE, 0.0, 1.0, 0.006)[0], HERE)
    assert not reach(HERE, HERE, HERE, 0.0, 1.0, 0.006)[1]


def test_steps_are_limited() -> None:
    action = towards(np.zeros(3), np.eye(3), np.array([0.3, -0.4, 0.0]), 1.2, False)
    np.testing.assert_allclose(action, [0.021, -0.028, 0, 0, 0, 0.3, -1], atol=1e-6)
