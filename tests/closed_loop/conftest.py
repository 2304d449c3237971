"""The point world as an environment of the catalog, in this process and in others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daptq.catalog import ENVIRONMENTS
from daptq.evaluation.watched_drive import take_reference
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.policies.contract import Policy
from tests.closed_loop import point_world as toy
from tests.closed_loop.point_world import TASKS, VARIANTS, PointWorld, Pusher, Reader

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world() -> PointWorld:
    return PointWorld()


@pytest.fixture
def make_pusher() -> Callable[..., Policy]:
    return Pusher


@pytest.fixture
def point_world(monkeypatch: pytest.MonkeyPatch) -> list[PointWorld]:
    """Puts the point world under the name "point" into the catalog; returns the instances that were made."""
    made: list[PointWorld] = []

    def make(**settings: Any) -> PointWorld:
        made.append(toy.make(**settings))
        return made[-1]

    load = ENVIRONMENTS.load
    module = SimpleNamespace(make=make, TASKS=TASKS, VARIANTS=VARIANTS)
    monkeypatch.setattr(ENVIRONMENTS, "load", lambda name: module if name == "point" else load(name))
    return made


@pytest.fixture
def plugged_in(tmp_path: Path, point_world: list[PointWorld], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes "point" known to processes that are started from now on; returns the folder to put on their path."""
    folder = tmp_path / "plugin"
    about = folder / "point_world-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: point-world\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[daptq.environment]\npoint = tests.closed_loop.point_world\n")
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def reference(reader: Reader) -> InterfaceReference:
    return take_reference(reader, environment="point", episodes=48, seed=7)
