"""Kinematic drift: how far the end-effector of a quantized policy strays from full precision.

Two readings. *Whole episode*: both policies start from one initial state and act alone; the deviation per step is
averaged (root mean square) over the episode, and it grows large once one policy fails where the other succeeds. Until
one policy holds an object that the other does not, both are still on the same errand: that part is read on its own.
*Identical states*: both continue from states saved along full-precision episodes, with the same noise; that isolates
what quantization does from where the robot happened to be. Intervals resample whole episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.closed_loop.rollout import BranchRecord, EpisodeRecord, Motion
from daptq.metrics.deviation import HEADLINE_STEPS
from daptq.statistics.intervals import bootstrap_estimate, mean, median, root_mean_square

Array = NDArray[np.float64]

_UNITS = ("position_mm", "rotation_deg")

# Control steps after a common state at which the drift is read; the growth between them is close to a power of time.
HORIZONS = (1, 2, 4, 8, 16, 32)


def position_deviation(
    first: Float[np.ndarray, "steps 3"], second: Float[np.ndarray, "steps 3"]
) -> Float[np.ndarray, " steps"]:
    """Distance between two end-effector paths at each step.

    Args:
        first: float64 (steps, 3) [m].
        second: float64 (steps, 3) [m].

    Returns:
        float64 (steps,) [mm]; exactly 0 where the positions are identical.
    """
    distance: Array = 1000.0 * np.linalg.norm(first - second, axis=-1)
    return distance


def rotation_deviation(
    first: Float[np.ndarray, "steps 3 3"], second: Float[np.ndarray, "steps 3 3"]
) -> Float[np.ndarray, " steps"]:
    """Angle of the rotation between two orientations at each step.

    With ||A - B||_F^2 = 8 sin^2(angle / 2), which unlike the arc cosine of a trace is exact for small angles.

    Args:
        first: float64 (steps, 3, 3), rotation matrices.
        second: float64 (steps, 3, 3), rotation matrices.

    Returns:
        float64 (steps,) [deg] in [0, 180]; exactly 0 where the matrices are identical.
    """
    half_chord = np.linalg.norm(first - second, axis=(-2, -1)) / np.sqrt(8.0)
    angle: Array = np.degrees(2.0 * np.arcsin(np.minimum(half_chord, 1.0)))
    return angle


def episode_drift(
    baseline: Sequence[EpisodeRecord], candidate: Sequence[EpisodeRecord], *, seed: int
) -> dict[str, Any]:
    """Deviation over whole episodes, per episode and pooled.

    Args:
        baseline: Records of the full-precision policy.
        candidate: Records of the other policy for the same episodes, in the same order.
        seed: Seed of the bootstrap over episodes.

    Returns:
        JSON object: `n`, per unit (`position_mm`, `rotation_deg`) the pooled RMS and the median of the per-episode RMS,
        each with its interval, `until_contact_differs`, and `per_episode` with both RMS values of each episode.
        `until_contact_differs` covers the steps before one policy first holds an object that the other does not: `n`
        episodes with such steps and, unless that is 0, the medians over them of the number of `steps` and of the RMS
        per unit, each with its interval.
    """
    deviations = [_deviation(first.motion, second.motion) for first, second in zip(baseline, candidate, strict=True)]
    clusters = np.arange(len(deviations))
    result: dict[str, Any] = {"n": len(deviations)}
    rows: list[dict[str, Any]] = [{"index": record.index} for record in candidate]
    for unit in _UNITS:
        per_episode: Array = np.array([root_mean_square(deviation[unit]) for deviation in deviations])
        result[unit] = {
            # Episodes are equally long, so the RMS of their RMS values is the RMS over all steps.
            "rms": bootstrap_estimate(per_episode, clusters, root_mean_square, seed=seed),
            "median_of_episodes": bootstrap_estimate(per_episode, clusters, median, seed=seed),
        }
        rows = [{**row, f"{unit}_rms": float(value)} for row, value in zip(rows, per_episode, strict=True)]
    alike = [_steps_alike(first.held, second.held) for first, second in zip(baseline, candidate, strict=True)]
    return {**result, "until_contact_differs": _until(deviations, alike, seed), "per_episode": rows}


def branch_drift(
    baseline: Sequence[BranchRecord], candidate: Sequence[BranchRecord], *, horizons: Sequence[int], seed: int
) -> dict[str, Any]:
    """Deviation after a number of steps from identical states.

    Args:
        baseline: Records of the full-precision policy.
        candidate: Records of the other policy from the same states, in the same order.
        horizons: Numbers of control steps after which the poses are compared, each at least 1.
        seed: Seed of the bootstrap over episodes.

    Returns:
        JSON object: `n` states from `episodes` episodes and `after_steps`, a list with one entry per horizon that holds
        `steps`, `n`, per unit (`position_mm`, `rotation_deg`) median, mean and RMS, each with its interval, and
        `per_state_mm`, the position's deviation from every state in order, for paired tests between policies; and
        `growth`, a list with one entry per step up to the largest horizon that holds `steps` and, per unit, the median
        with its interval.
    """
    deviations = [_deviation(first.motion, second.motion) for first, second in zip(baseline, candidate, strict=True)]
    clusters = np.array([record.index for record in candidate], dtype=np.int64)
    entries = []
    for steps in horizons if deviations else ():
        entry: dict[str, Any] = {"steps": steps, "n": len(deviations)}
        for unit in _UNITS:
            values: Array = np.array([deviation[unit][steps - 1] for deviation in deviations])
            entry[unit] = {
                name: bootstrap_estimate(values, clusters, statistic, seed=seed)
                for name, statistic in (("median", median), ("mean", mean), ("rms", root_mean_square))
            }
        entry["per_state_mm"] = [float(deviation["position_mm"][steps - 1]) for deviation in deviations]
        entries.append(entry)
    growth = [
        {"steps": steps, **{unit: _median_after(deviations, unit, steps, clusters, seed) for unit in _UNITS}}
        for steps in range(1, 1 + max(horizons) if deviations else 1)
    ]
    return {"n": len(deviations), "episodes": len(set(clusters.tolist())), "after_steps": entries, "growth": growth}


def headline_drift(branches: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry of what `branch_drift` returned that tables and gates speak of; None when no state was saved."""
    entries: Sequence[Mapping[str, Any]] = branches["after_steps"]
    return next((entry for entry in entries if entry["steps"] == HEADLINE_STEPS), None)


def _median_after(
    deviations: Sequence[Mapping[str, Array]], unit: str, steps: int, clusters: NDArray[np.int64], seed: int
) -> dict[str, float]:
    values: Array = np.array([deviation[unit][steps - 1] for deviation in deviations])
    return bootstrap_estimate(values, clusters, median, seed=seed)


def _steps_alike(first: Sequence[str | None], second: Sequence[str | None]) -> int:
    """Number of steps before the two hold different things."""
    for step, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return step
    return min(len(first), len(second))


def _until(deviations: Sequence[Mapping[str, Array]], steps: Sequence[int], seed: int) -> dict[str, Any]:
    """Deviation over the first steps of each episode; episodes without any are left out."""
    kept = [(deviation, count) for deviation, count in zip(deviations, steps, strict=True) if count]
    if not kept:
        return {"n": 0}
    clusters = np.arange(len(kept))
    counts: Array = np.array([count for _, count in kept], dtype=np.float64)
    result: dict[str, Any] = {"n": len(kept), "steps": bootstrap_estimate(counts, clusters, median, seed=seed)}
    for unit in _UNITS:
        values: Array = np.array([root_mean_square(deviation[unit][:count]) for deviation, count in kept])
        result[unit] = bootstrap_estimate(values, clusters, median, seed=seed)
    return result


def _deviation(first: Motion, second: Motion) -> Mapping[str, Array]:
    """Deviation at each common step, by unit."""
    steps = min(len(first.positions), len(second.positions))
    return {
        "position_mm": position_deviation(first.positions[:steps], second.positions[:steps]),
        "rotation_deg": rotation_deviation(first.rotations[:steps], second.rotations[:steps]),
    }
