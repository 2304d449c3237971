"""`benchmarks/drift_growth.py`: the curve of a journal with known motions, and the image of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from daptq.closed_loop.rollout import BranchRecord, Motion
from daptq.errors import InvalidInputError
from tests.integration.test_evaluation_scripts import load

STEPS = 4


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("benchmarks/drift_growth.py")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """From state i, a policy strays by i mm per step, the other one by nothing."""
    lines = [json.dumps({"evaluation": "made up"})]
    for index in (1, 2, 3):
        for policy, speed in (("reference", 0.0), ("W4A8: slow", 0.001 * index)):
            positions = np.zeros((STEPS, 3))
            positions[:, 0] = speed * np.arange(1, STEPS + 1)
            motion = Motion(positions=positions, rotations=np.tile(np.eye(3), (STEPS, 1, 1)))
            record = BranchRecord(policy=policy, index=index, step=8, motion=motion)
            lines.append(json.dumps({"branch": record.to_json()}))
    path = tmp_path / "episodes.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_curve_is_the_median_over_states_after_each_step(script: ModuleType, journal: Path) -> None:
    curve = script.growth(journal, ["W4A8: slow"])["W4A8: slow"]
    assert curve["n"] == 3
    assert curve["steps"] == [1, 2, 3, 4]
    assert curve["median"] == pytest.approx([2.0, 4.0, 6.0, 8.0])
    assert all(
        low <= value <= high for low, value, high in zip(*(curve[k] for k in ("low", "median", "high")), strict=True)
    )


def test_figure_and_numbers_are_written(script: ModuleType, journal: Path, tmp_path: Path) -> None:
    image = tmp_path / "images/growth.svg"
    arguments = ["--journal", str(journal), "--arms", "slow", "--figure", str(image), "--results", str(tmp_path)]
    script.main(arguments)
    first = image.read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")
    script.main(arguments)
    assert image.read_bytes() == first
    (numbers,) = tmp_path.glob("*-drift-growth.json")
    assert json.loads(numbers.read_text())["curves"]["W4A8: slow"]["n"] == 3


def test_a_policy_without_branches_is_named(script: ModuleType, journal: Path) -> None:
    with pytest.raises(InvalidInputError, match="W4A8: gone"):
        script.growth(journal, ["W4A8: gone"])
