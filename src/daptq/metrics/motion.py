"""How smoothly the robot moves: metrics of one end-effector path, and their paired comparison.

Every metric and its unit is defined in docs/reference/metrics.md. Paths are sampled once per control step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.closed_loop.rollout import EpisodeRecord
from daptq.errors import InvalidInputError
from daptq.statistics.intervals import bootstrap_estimate, mean, median

Array = NDArray[np.float64]

# Of the sampling frequency: the upper half of the frequencies that a sampled path can hold is the oscillation that a
# controller cannot follow.
CUTOFF = 0.25
# Compared by candidate - baseline, since they may be 0; and counts, of which a median would hide flips in few episodes.
_DIFFERENCES = ("spectral_arc_length", "high_frequency_share", "gripper_flips")
_COUNTS = ("gripper_flips",)
METRICS = (
    "rms_jerk",
    "path_length",
    "spectral_arc_length",
    "high_frequency_share",
    "chunk_jump",
    "gripper_flips",
    "time_to_success",
)
_SPARC_AMPLITUDE = 0.05
_SPARC_PADDING = 4


def rms_jerk(positions: Float[np.ndarray, "steps 3"], frequency: float) -> float:
    """Root mean square of the third time derivative, by third differences.

    Args:
        positions: float64 (steps, 3) [m], at least 4 steps.
        frequency: Control steps per second [Hz].

    Returns:
        Jerk [m/s^3].

    Raises:
        InvalidInputError: The path is too short.
    """
    jerk = _differences(positions, 3) * frequency**3
    return float(np.sqrt(np.mean(np.sum(np.square(jerk), axis=-1))))


def path_length(positions: Float[np.ndarray, "steps 3"]) -> float:
    """Sum of the distances between consecutive positions [m]; arguments and errors as in `rms_jerk`."""
    return float(np.sum(np.linalg.norm(_differences(positions, 1), axis=-1)))


def spectral_arc_length(positions: Float[np.ndarray, "steps 3"], frequency: float) -> float:
    """SPARC of the speed profile (Balasubramanian et al. 2015, J. NeuroEng. Rehabil. 12:112): smooth is close to 0.

    Minus the length of the curve of the normalised amplitude spectrum over the frequency, from 0 to the last frequency
    whose amplitude is at least 5 % of that at 0. The frequency axis is divided by the largest one, so a path has the
    same value however fast it is sampled in between.

    Args:
        positions: float64 (steps, 3) [m], at least 2 steps.
        frequency: Control steps per second [Hz].

    Returns:
        A number below 0 without unit; 0 for a robot at rest.

    Raises:
        InvalidInputError: The path is too short.
    """
    speed = np.linalg.norm(_differences(positions, 1), axis=-1) * frequency
    length = 2 ** (int(np.ceil(np.log2(len(speed)))) + _SPARC_PADDING)
    amplitude = np.abs(np.fft.rfft(speed, length))
    if amplitude[0] == 0.0:
        return 0.0
    amplitude /= amplitude[0]
    last = int(np.flatnonzero(amplitude >= _SPARC_AMPLITUDE)[-1])
    if last == 0:
        return 0.0
    steps = np.diff(np.linspace(0.0, 1.0, last + 1))
    return -float(np.sum(np.hypot(steps, np.diff(amplitude[: last + 1]))))


def high_frequency_share(positions: Float[np.ndarray, "steps 3"]) -> float:
    """Share of the velocity's energy, its mean removed, above a quarter of the sampling frequency.

    Args:
        positions: float64 (steps, 3) [m], at least 2 steps.

    Returns:
        Fraction in [0, 1]; 0 for a constant velocity.

    Raises:
        InvalidInputError: The path is too short.
    """
    velocity = _differences(positions, 1)
    spectrum = np.square(np.abs(np.fft.rfft(velocity - velocity.mean(axis=0), axis=0))).sum(axis=-1)
    frequencies = np.fft.rfftfreq(len(velocity))
    # Both halves of the spectrum of a real signal carry the same energy; 0 and the Nyquist frequency come once.
    spectrum[(frequencies > 0.0) & (frequencies < 0.5)] *= 2.0
    total = float(spectrum.sum())
    # Rounding of the positions alone makes an energy of about (number of steps x eps x largest coordinate)^2.
    rounding = len(velocity) * float(np.abs(positions).max()) * np.finfo(np.float64).eps
    return float(spectrum[frequencies > CUTOFF].sum()) / total if total > (4.0 * rounding) ** 2 else 0.0


def chunk_jump(positions: Float[np.ndarray, "steps 3"], chunk_steps: int) -> float | None:
    """How much rougher the path is where a new chunk begins than inside one.

    Args:
        positions: float64 (steps, 3) [m], positions[k] after control step k.
        chunk_steps: Control steps that are executed of every chunk.

    Returns:
        Ratio of the root mean square change of velocity at the first step of a chunk to that at all other steps, 1
        where boundaries do not show; None when there are not both kinds of steps, or the inside does not change.

    Raises:
        InvalidInputError: The path is too short.
    """
    change = np.sum(np.square(_differences(positions, 2)), axis=-1)  # change[k]: velocity of step k + 2 against k + 1
    boundary = (np.arange(len(change)) + 2) % chunk_steps == 0
    if not boundary.any() or boundary.all() or not change[~boundary].any():
        return None
    return float(np.sqrt(change[boundary].mean() / change[~boundary].mean()))


def motion_summary(
    baseline: Sequence[EpisodeRecord],
    candidate: Sequence[EpisodeRecord],
    *,
    frequency: float,
    chunk_steps: tuple[int, int],
    seed: int,
) -> dict[str, Any]:
    """Compares how two policies move, episode by episode.

    Args:
        baseline: Records of the full-precision policy.
        candidate: Records of the other policy for the same episodes, in the same order.
        frequency: Control steps per second [Hz].
        chunk_steps: Control steps that baseline and candidate execute of every chunk.
        seed: Seed of the bootstrap over episodes.

    Returns:
        JSON object by metric (``rms_jerk``, ``path_length``, ``spectral_arc_length``, ``high_frequency_share``,
        ``chunk_jump``, ``gripper_flips``, ``time_to_success``): ``n`` episodes in which it is defined for both, medians
        ``baseline`` and ``candidate``, and ``change``: the median of candidate / baseline (of the difference for
        ``spectral_arc_length`` and ``high_frequency_share``) with its interval, ``low`` and ``high``. Of
        ``gripper_flips``, small whole numbers, all three are means, and ``change`` that of the difference. A metric
        that is defined in no episode has ``n`` 0 and nothing else.
    """
    measured = [
        [_metrics(record, frequency, steps) for record in records]
        for records, steps in zip((baseline, candidate), chunk_steps, strict=True)
    ]
    return {name: _compared(name, *measured, seed=seed) for name in measured[0][0]}


def _metrics(record: EpisodeRecord, frequency: float, chunk_steps: int) -> dict[str, float | None]:
    positions = record.motion.positions
    return {
        "rms_jerk": rms_jerk(positions, frequency),
        "path_length": path_length(positions),
        "spectral_arc_length": spectral_arc_length(positions, frequency),
        "high_frequency_share": high_frequency_share(positions),
        "chunk_jump": chunk_jump(positions, chunk_steps),
        "gripper_flips": float(record.gripper_flips),
        "time_to_success": None if record.first_success is None else record.first_success / frequency,
    }


def _compared(
    name: str,
    baseline: Sequence[Mapping[str, float | None]],
    candidate: Sequence[Mapping[str, float | None]],
    *,
    seed: int,
) -> dict[str, Any]:
    differs = name in _DIFFERENCES
    statistic = mean if name in _COUNTS else median
    pairs = [(first[name], second[name]) for first, second in zip(baseline, candidate, strict=True)]
    defined: Array = np.array(
        [(a, b) for a, b in pairs if a is not None and b is not None and (differs or a > 0.0)], dtype=np.float64
    )
    if not len(defined):
        return {"n": 0}
    before, after = defined[:, 0], defined[:, 1]
    change: Array = after - before if differs else after / before
    return {
        "n": len(change),
        "baseline": float(statistic(before)),
        "candidate": float(statistic(after)),
        "change": bootstrap_estimate(change, np.arange(len(change)), statistic, seed=seed),
    }


def _differences(positions: Float[np.ndarray, "steps 3"], order: int) -> Array:
    if len(positions) <= order:
        message = f"positions must have at least {order + 1} steps, got {len(positions)}."
        raise InvalidInputError(message + " Record a longer path.")
    differences: Array = np.diff(np.asarray(positions, dtype=np.float64), n=order, axis=0)
    return differences
