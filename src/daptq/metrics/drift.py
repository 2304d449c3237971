"""Kinematic drift: how far the end-effector of a quantized policy strays from full precision.

Two readings. *Whole episode*: both policies start from one initial state and act alone; the deviation per step is
averaged (root mean square) over the episode, and it grows large once one policy fails where the other succeeds. Until
one policy holds an object that the other does not, both are still on the same errand: that part is read on its own.
*Identical states*: both continue from states saved along full-precision episodes, with the same noise; that isolates
what quantization does from where the robot happened to be. Intervals resample whole episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.closed_loop.rollout import BranchRecord, EpisodeRecord, Motion
from daptq.metrics.deviation import (
    DriftAfter,
    EpisodeDeviation,
    EpisodeSpread,
    GrowthAfter,
    IdenticalStates,
    Spread,
    UntilContactDiffers,
    WholeEpisode,
)
from daptq.statistics.bootstrap import bootstrap_estimate, mean, median, root_mean_square
from daptq.statistics.estimate import Estimate

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
    return 1000.0 * np.linalg.norm(first - second, axis=-1)


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
    return np.degrees(2.0 * np.arcsin(np.minimum(half_chord, 1.0)))


def episode_drift(baseline: Sequence[EpisodeRecord], candidate: Sequence[EpisodeRecord], *, seed: int) -> WholeEpisode:
    """Deviation over whole episodes, per episode and pooled.

    Args:
        baseline: Records of the full-precision policy.
        candidate: Records of the other policy for the same episodes, in the same order.
        seed: Seed of the bootstrap over episodes.
    """
    deviations = [_deviation(first.motion, second.motion) for first, second in zip(baseline, candidate, strict=True)]
    alike = [_steps_alike(first.held, second.held) for first, second in zip(baseline, candidate, strict=True)]
    rms = {unit: np.array([root_mean_square(deviation[unit]) for deviation in deviations]) for unit in _UNITS}
    return WholeEpisode(
        n=len(deviations),
        position_mm=_over_episodes(rms["position_mm"], seed),
        rotation_deg=_over_episodes(rms["rotation_deg"], seed),
        until_contact_differs=_until(deviations, alike, seed),
        per_episode=tuple(
            EpisodeDeviation(index=record.index, position_mm_rms=float(position), rotation_deg_rms=float(rotation))
            for record, position, rotation in zip(candidate, rms["position_mm"], rms["rotation_deg"], strict=True)
        ),
    )


def branch_drift(
    baseline: Sequence[BranchRecord], candidate: Sequence[BranchRecord], *, horizons: Sequence[int], seed: int
) -> IdenticalStates:
    """Deviation after a number of steps from identical states.

    Args:
        baseline: Records of the full-precision policy.
        candidate: Records of the other policy from the same states, in the same order.
        horizons: Numbers of control steps after which the poses are compared, each at least 1; medians are taken after
            every number of steps up to the largest one.
        seed: Seed of the bootstrap over episodes.
    """
    deviations = [_deviation(first.motion, second.motion) for first, second in zip(baseline, candidate, strict=True)]
    clusters = np.array([record.index for record in candidate], dtype=np.int64)

    def after(steps: int, unit: str) -> Array:
        return np.array([deviation[unit][steps - 1] for deviation in deviations])

    def spread(values: Array) -> Spread:
        return Spread(
            median=bootstrap_estimate(values, clusters, median, seed=seed),
            mean=bootstrap_estimate(values, clusters, mean, seed=seed),
            rms=bootstrap_estimate(values, clusters, root_mean_square, seed=seed),
        )

    entries = [
        DriftAfter(
            steps=steps,
            n=len(deviations),
            position_mm=spread(after(steps, "position_mm")),
            rotation_deg=spread(after(steps, "rotation_deg")),
            per_state_mm=tuple(float(value) for value in after(steps, "position_mm")),
        )
        for steps in (horizons if deviations else ())
    ]
    growth = [
        GrowthAfter(
            steps=steps,
            position_mm=bootstrap_estimate(after(steps, "position_mm"), clusters, median, seed=seed),
            rotation_deg=bootstrap_estimate(after(steps, "rotation_deg"), clusters, median, seed=seed),
        )
        for steps in range(1, 1 + max(horizons) if deviations else 1)
    ]
    episodes = len(set(clusters.tolist()))
    return IdenticalStates(n=len(deviations), episodes=episodes, after_steps=tuple(entries), growth=tuple(growth))


def _over_episodes(per_episode: Array, seed: int) -> EpisodeSpread:
    clusters = np.arange(len(per_episode))
    return EpisodeSpread(
        # Episodes are equally long, so the RMS of their RMS values is the RMS over all steps.
        rms=bootstrap_estimate(per_episode, clusters, root_mean_square, seed=seed),
        median_of_episodes=bootstrap_estimate(per_episode, clusters, median, seed=seed),
    )


def _steps_alike(first: Sequence[str | None], second: Sequence[str | None]) -> int:
    """Number of steps before the two hold different things."""
    for step, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return step
    return min(len(first), len(second))


def _until(deviations: Sequence[Mapping[str, Array]], steps: Sequence[int], seed: int) -> UntilContactDiffers:
    """Deviation over the first steps of each episode; episodes without any are left out."""
    kept = [(deviation, count) for deviation, count in zip(deviations, steps, strict=True) if count]
    if not kept:
        return UntilContactDiffers(n=0)
    clusters = np.arange(len(kept))
    counts: Array = np.array([count for _, count in kept], dtype=np.float64)

    def over(unit: str) -> Estimate:
        values: Array = np.array([root_mean_square(deviation[unit][:count]) for deviation, count in kept])
        return bootstrap_estimate(values, clusters, median, seed=seed)

    return UntilContactDiffers(
        n=len(kept),
        steps=bootstrap_estimate(counts, clusters, median, seed=seed),
        position_mm=over("position_mm"),
        rotation_deg=over("rotation_deg"),
    )


def _deviation(first: Motion, second: Motion) -> Mapping[str, Array]:
    """Deviation at each common step, by unit."""
    steps = min(len(first.positions), len(second.positions))
    return {
        "position_mm": position_deviation(first.positions[:steps], second.positions[:steps]),
        "rotation_deg": rotation_deviation(first.rotations[:steps], second.rotations[:steps]),
    }
