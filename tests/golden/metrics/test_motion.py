"""Metrics of motion on paths whose values are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from daptq.closed_loop.rollout import EpisodeRecord, Motion
from daptq.errors import InvalidInputError
from daptq.metrics.motion import chunk_jump, high_frequency_share, path_length, rms_jerk, spectral_arc_length
from daptq.metrics.motion_change import motion_summary
from daptq.metrics.motion_metric import Control

FREQUENCY = 5.0


def along_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([values, np.zeros_like(values), np.zeros_like(values)], axis=-1)


def test_jerk_of_a_cubic_is_its_third_derivative() -> None:
    time = np.arange(20) / FREQUENCY
    assert rms_jerk(along_x(0.25 * time**3), FREQUENCY) == pytest.approx(1.5, rel=1e-9)
    assert rms_jerk(along_x(time**2), FREQUENCY) == pytest.approx(0.0, abs=1e-9)


def test_length_of_a_staircase_is_the_sum_of_its_steps() -> None:
    path = np.array([[0, 0, 0], [0.3, 0, 0], [0.3, 0.4, 0], [0.3, 0.4, -0.5]], dtype=np.float64)
    assert path_length(path) == pytest.approx(1.2, rel=1e-12)


def test_energy_above_the_cut_off_is_that_of_the_oscillation() -> None:
    """Velocity of two tones, 1/8 and 3/8 of the sampling frequency, amplitudes 2 and 1: a fifth of the energy."""
    k = np.arange(64)
    velocity = 2 * np.sin(2 * np.pi * k / 8) + np.sin(2 * np.pi * 3 * k / 8)
    path = along_x(np.concatenate([[0.0], np.cumsum(velocity)]))
    assert high_frequency_share(path) == pytest.approx(0.2, rel=1e-9)
    assert high_frequency_share(along_x(0.1 * np.arange(64.0))) == 0.0


def test_spectral_arc_length_equals_a_direct_sum() -> None:
    k = np.arange(33)
    path = along_x(np.cumsum(np.sin(np.pi * k / 32) ** 2))
    speed = np.linalg.norm(np.diff(path, axis=0), axis=-1)
    size = 2 ** (math.ceil(math.log2(len(speed))) + 4)
    spectrum = [
        abs(sum(value * np.exp(-2j * np.pi * row * j / size) for j, value in enumerate(speed)))
        for row in range(size // 2 + 1)
    ]
    normal = [value / spectrum[0] for value in spectrum]
    last = max(row for row, value in enumerate(normal) if value >= 0.05)
    expected = -sum(math.hypot(1 / last, normal[row + 1] - normal[row]) for row in range(last))
    assert spectral_arc_length(path, FREQUENCY) == pytest.approx(expected, rel=1e-9)
    assert spectral_arc_length(np.zeros((9, 3)), FREQUENCY) == 0.0


def test_a_shaking_path_is_less_smooth() -> None:
    k = np.arange(60)
    smooth = np.cumsum(np.sin(np.pi * k / 59) ** 2)
    shaking = smooth + 0.2 * (-1.0) ** k
    assert spectral_arc_length(along_x(shaking), FREQUENCY) < spectral_arc_length(along_x(smooth), FREQUENCY)
    assert rms_jerk(along_x(shaking), FREQUENCY) > rms_jerk(along_x(smooth), FREQUENCY)
    assert high_frequency_share(along_x(shaking)) > high_frequency_share(along_x(smooth))


def test_jumps_stand_out_where_chunks_begin() -> None:
    """Change of velocity 3 at the first step of each chunk of 4, 1 elsewhere."""
    change = np.where((np.arange(30) + 2) % 4 == 0, 3.0, 1.0) * (-1.0) ** np.arange(30)
    path = along_x(np.concatenate([[0.0, 0.0], np.cumsum(np.cumsum(change))]))
    assert chunk_jump(path, 4) == pytest.approx(3.0, rel=1e-9)
    assert chunk_jump(path, 1) is None
    assert chunk_jump(along_x(np.arange(30.0)), 4) is None


@pytest.mark.parametrize("length", [0, 1, 3])
def test_short_paths_are_refused(length: int) -> None:
    with pytest.raises(InvalidInputError, match="positions must have at least 4 steps"):
        rms_jerk(np.zeros((length, 3)), FREQUENCY)


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_scale_and_place_of_a_path_change_only_what_has_a_length(scale: float, seed: int) -> None:
    path = np.cumsum(np.random.default_rng(seed).normal(size=(40, 3)), axis=0)
    moved = scale * path + 0.5
    assert rms_jerk(moved, FREQUENCY) == pytest.approx(scale * rms_jerk(path, FREQUENCY), rel=1e-6)
    assert path_length(moved) == pytest.approx(scale * path_length(path), rel=1e-6)
    assert spectral_arc_length(moved, FREQUENCY) == pytest.approx(spectral_arc_length(path, FREQUENCY), rel=1e-6)
    share = high_frequency_share(path)
    assert 0 <= share <= 1
    assert high_frequency_share(moved) == pytest.approx(share, rel=1e-6)
    assert chunk_jump(moved, 4) == pytest.approx(chunk_jump(path, 4), rel=1e-6)


def record(path: NDArray[np.float64], first_success: int | None, flips: int = 0) -> EpisodeRecord:
    done = first_success is not None
    return EpisodeRecord(
        policy="p",
        index=0,
        task="t",
        seed=0,
        success_any_step=done,
        success_last_step=done,
        first_success=first_success,
        other_tasks=(),
        gripper_flips=flips,
        held=(None,) * len(path),
        motion=Motion(positions=path, rotations=np.broadcast_to(np.eye(3), (len(path), 3, 3))),
    )


def summarised(
    baseline: list[EpisodeRecord], candidate: list[EpisodeRecord], *, chunk_steps: int
) -> dict[str, dict[str, Any]]:
    control = Control(frequency=FREQUENCY, chunk_steps=chunk_steps)
    summary = motion_summary(baseline, candidate, controls=(control, control), seed=0)
    return {name: change.to_json() for name, change in summary.items()}


def test_paired_ratios_and_missing_values() -> None:
    paths = [np.cumsum(np.random.default_rng(seed).normal(size=(24, 3)), axis=0) for seed in range(4)]
    baseline = [record(path, success) for path, success in zip(paths, (10, 20, None, 5), strict=True)]
    candidate = [record(2 * path, success) for path, success in zip(paths, (20, None, 4, 10), strict=True)]
    summary = summarised(baseline, candidate, chunk_steps=4)
    for name, factor in (("rms_jerk", 2.0), ("path_length", 2.0), ("chunk_jump", 1.0), ("time_to_success", 2.0)):
        change = summary[name]["change"]
        assert [change[key] for key in ("value", "low", "high")] == pytest.approx([factor] * 3, rel=1e-9)
    assert summary["rms_jerk"]["n"] == 4
    assert summary["time_to_success"]["n"] == 2
    assert (summary["time_to_success"]["baseline"], summary["time_to_success"]["candidate"]) == (1.5, 3.0)
    assert summary["spectral_arc_length"]["change"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert summary["gripper_flips"]["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    same = summarised(baseline, candidate, chunk_steps=1)
    assert same["chunk_jump"] == {"n": 0}


def test_a_flip_in_few_episodes_shows() -> None:
    """One of eight episodes has four flips more: the median would not see them."""
    path = np.cumsum(np.random.default_rng(0).normal(size=(24, 3)), axis=0)
    baseline = [record(path, None, flips=2) for _ in range(8)]
    candidate = [record(path, None, flips=6 if index == 3 else 2) for index in range(8)]
    flips = summarised(baseline, candidate, chunk_steps=4)["gripper_flips"]
    assert (flips["n"], flips["baseline"], flips["candidate"]) == (8, 2.0, 2.5)
    # Resampling eight episodes draws the odd one 0 to 3 times in 95 % of the cases.
    assert flips["change"] == {"value": 0.5, "low": 0.0, "high": 1.5}
