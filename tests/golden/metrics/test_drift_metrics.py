"""End-effector deviation against SciPy's rotations and sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from daptq.closed_loop.rollout import BranchRecord, EpisodeRecord, Motion
from daptq.metrics.drift import branch_drift, episode_drift, position_deviation, rotation_deviation


def test_position_is_the_distance_in_millimetres() -> None:
    first = np.array([[0.1, 0.2, 0.3], [0.0, 0.0, 0.0]])
    second = first + np.array([[0.003, 0.0, 0.004], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(position_deviation(first, second), [5.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("angle", [1e-9, 1e-6, 1e-3, 0.1, 1.0, 2.0, 3.1])
def test_rotation_is_the_angle_between_orientations(angle: float) -> None:
    generator = np.random.default_rng(0)
    axes = generator.standard_normal((50, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    start = Rotation.random(50, rng=generator)
    end = start * Rotation.from_rotvec(angle * axes)
    measured = rotation_deviation(start.as_matrix(), end.as_matrix())
    # Matrix entries carry 2e-16; the chord amplifies that by tan(angle / 2) near a half turn, 50 at 3.1 rad.
    np.testing.assert_allclose(np.radians(measured), angle, rtol=1e-9, atol=5e-15)


def test_rotation_of_identical_matrices_is_exactly_zero_and_a_half_turn_is_180() -> None:
    matrices = Rotation.random(20, rng=np.random.default_rng(1)).as_matrix()
    assert not rotation_deviation(matrices, matrices).any()
    assert rotation_deviation(np.eye(3)[None], np.diag([1.0, -1.0, -1.0])[None])[0] == 180.0


def test_the_arc_cosine_of_the_trace_would_fail_for_small_angles() -> None:
    turned = Rotation.from_rotvec([0.0, 0.0, 1e-9]).as_matrix()
    by_trace = np.arccos(np.clip((np.trace(turned) - 1) / 2, -1, 1))
    assert abs(by_trace - 1e-9) > 0.5e-9


def motion(x: list[float], degrees: list[float]) -> Motion:
    positions = np.stack([x, np.zeros(len(x)), np.zeros(len(x))], axis=1)
    turns = Rotation.from_rotvec(np.outer(degrees, [0.0, 0.0, 1.0]), degrees=True)
    return Motion(positions=positions, rotations=turns.as_matrix())


def episode(
    index: int, x: list[float], degrees: list[float], held: tuple[str | None, ...] | None = None
) -> EpisodeRecord:
    return EpisodeRecord(
        policy="p",
        index=index,
        task="t",
        seed=index,
        success_any_step=True,
        success_last_step=True,
        first_success=1,
        other_tasks=(),
        gripper_flips=0,
        held=(None,) * len(x) if held is None else held,
        motion=motion(x, degrees),
    )


def test_whole_episode_drift_by_hand() -> None:
    baseline = [episode(0, [0.0, 0.0], [0.0, 0.0]), episode(1, [0.0, 0.0], [0.0, 0.0])]
    candidate = [episode(0, [0.003, 0.004], [3.0, 4.0]), episode(1, [0.0, 0.012], [0.0, 5.0])]
    drift = episode_drift(baseline, candidate, seed=0).to_json()
    first, second = np.sqrt((9 + 16) / 2), np.sqrt(144 / 2)
    assert [row["position_mm_rms"] for row in drift["per_episode"]] == pytest.approx([first, second])
    assert drift["position_mm"]["rms"]["value"] == pytest.approx(np.sqrt((9 + 16 + 144) / 4))
    assert drift["position_mm"]["median_of_episodes"]["value"] == pytest.approx((first + second) / 2)
    assert drift["rotation_deg"]["rms"]["value"] == pytest.approx(np.sqrt((9 + 16 + 25) / 4))
    # Two episodes can be resampled as (0, 0), (0, 1), (1, 0), (1, 1): the 95 % limits are the extremes.
    assert (drift["position_mm"]["rms"]["low"], drift["position_mm"]["rms"]["high"]) == pytest.approx((first, second))
    assert drift["n"] == 2


def test_drift_until_contact_differs_by_hand() -> None:
    zeros = [0.0] * 3
    baseline = [
        episode(0, zeros, zeros, (None, "cup", "cup")),
        episode(1, zeros, zeros, (None, None, None)),
        episode(2, zeros, zeros, ("cup", "cup", None)),
    ]
    candidate = [
        episode(0, [0.003, 0.004, 9.0], [3.0, 4.0, 90.0], (None, "cup", None)),  # dropped at the third step
        episode(1, [0.001, 0.001, 0.001], [0.0, 0.0, 0.0], (None, None, None)),  # never apart
        episode(2, [9.0, 9.0, 9.0], [90.0, 90.0, 90.0], ("bowl", "bowl", "bowl")),  # apart from the first step
    ]
    until = episode_drift(baseline, candidate, seed=0).to_json()["until_contact_differs"]
    assert until["n"] == 2
    assert until["steps"] == {"value": 2.5, "low": 2.0, "high": 3.0}
    first = np.sqrt((9 + 16) / 2)
    assert until["position_mm"]["value"] == pytest.approx((first + 1) / 2)
    assert (until["position_mm"]["low"], until["position_mm"]["high"]) == pytest.approx((1.0, first))
    assert until["rotation_deg"]["value"] == pytest.approx(first / 2)
    assert episode_drift(baseline[2:], candidate[2:], seed=0).until_contact_differs.to_json() == {"n": 0}


def test_drift_from_identical_states_by_hand() -> None:
    still = [BranchRecord(policy="a", index=i, step=0, motion=motion([0.0] * 3, [0.0] * 3)) for i in (0, 0, 1)]
    paths = ([0.001, 0.002, 0.003], [0.002, 0.004, 0.006], [0.006, 0.009, 0.012])
    moved = [
        BranchRecord(policy="b", index=i, step=0, motion=motion(path, [1.0, 2.0, 3.0]))
        for i, path in zip((0, 0, 1), paths, strict=True)
    ]
    drift = branch_drift(still, moved, horizons=(1, 3), seed=0).to_json()
    assert (drift["n"], drift["episodes"]) == (3, 2)
    one, three = drift["after_steps"]
    assert (one["steps"], three["steps"], three["n"]) == (1, 3, 3)
    assert one["position_mm"]["median"]["value"] == pytest.approx(2.0)
    assert one["position_mm"]["mean"]["value"] == pytest.approx(3.0)
    assert three["position_mm"]["rms"]["value"] == pytest.approx(np.sqrt((9 + 36 + 144) / 3))
    assert three["rotation_deg"]["median"]["value"] == pytest.approx(3.0)
    growth = [
        (entry["steps"], entry["position_mm"]["value"], entry["rotation_deg"]["value"]) for entry in drift["growth"]
    ]
    assert growth == [(k, pytest.approx(mm), pytest.approx(k)) for k, mm in ((1, 2.0), (2, 4.0), (3, 6.0))]
    assert drift["growth"][-1]["position_mm"] == three["position_mm"]["median"]
    # The clusters are the episodes: resampling {0, 0, 1} as single states would reach other extremes than 3 and 12.
    assert (three["position_mm"]["median"]["low"], three["position_mm"]["median"]["high"]) == pytest.approx((4.5, 12.0))


def test_no_states_give_an_empty_answer() -> None:
    empty = {"n": 0, "episodes": 0, "after_steps": [], "growth": []}
    assert branch_drift([], [], horizons=(1, 4), seed=0).to_json() == empty
